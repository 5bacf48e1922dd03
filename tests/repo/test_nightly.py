"""A night of long proofs: one that fails, or hangs, loses none of the others, and the end says which and why."""

import fcntl
import importlib.util
import re
import sys
import time
from pathlib import Path

import pytest

from tests import nightly
from tests.nightly import Proof
from tests.patience import PATIENCE
from tests.simulation.__main__ import NIGHT

ROOT = Path(__file__).parents[2]


def python(name: str, code: str, alone: bool = False) -> Proof:
    return Proof(name, [sys.executable, "-I", "-S", "-c", code], alone)


def test_one_that_fails_stops_no_other_and_is_told_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = [
        python("alone", "print('measured')", alone=True),
        python("bad", "print('seed 7: I4'); raise SystemExit(3)"),
        python("good", "print('1000 seeds, 0 went wrong')"),
    ]
    assert nightly.run(chosen, tmp_path / "logs", cores=1) == 1
    lines = [re.sub(r" +\d+ min +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        f"3 proofs, 1 side by side; how far each is can be read in {tmp_path}/logs/NAME.log",
        "FAILED bad seed 7: I4",
        "ok     good 1000 seeds, 0 went wrong",
        "ok     alone measured",  # last, whatever the order
    ]
    assert f"bad ended with 3; all it said is in {tmp_path}/logs/bad.log, which ends so:" in lines
    assert lines[-3] == "seed 7: I4"
    assert lines[-1].startswith("3 proofs in ")
    assert lines[-1].endswith(" h, 1 failed: bad")


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    held, log = tmp_path / "held", tmp_path / "hanging.log"
    child = "import fcntl, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    child += f"held = open({str(held)!r}, 'w'); fcntl.flock(held, fcntl.LOCK_EX); "
    child += "print('held', flush=True); time.sleep(3600)"
    parent = "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    parent += f"subprocess.Popen([sys.executable, '-I', '-S', '-c', {child!r}]); time.sleep(3600)"
    running = nightly.Running(python("hanging", parent), tmp_path)
    until = time.monotonic() + PATIENCE
    while not log.read_text().endswith("\nheld\n") and time.monotonic() < until:
        time.sleep(0.01)
    assert running.ended(hours=1000.0) is None
    ended = running.ended(hours=0.0)
    assert ended is not None
    assert ended.wrong == "was not done in 0 h"
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # what it had started held this as long as it lived


def test_all_that_it_names_is_there(capsys: pytest.CaptureFixture[str]):
    for proof in nightly.proofs(7):
        for argument in proof.command:
            if argument.startswith("tests."):
                assert importlib.util.find_spec(argument), argument
            if argument.startswith("tests/"):
                assert (ROOT / argument).exists(), argument
    assert nightly.SEEDS >= NIGHT, "or the simulation does not ask for what is rare"
    assert nightly.main(["--list", "nodes", "--seed", "7"]) == 0
    assert capsys.readouterr().out.split()[1:] == [sys.executable, "-m", "tests.simulation", "nodes", "7", "10007"]


def test_an_evening_plays_fewer_random_ones(capsys: pytest.CaptureFixture[str]):
    assert nightly.main(["--list", "nodes", "server", "model", "--seed", "7", "--seeds", "5000"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-2:] for line in lines[:2]] == [["7", "507"], ["7", "17"]]
    assert lines[2][-4:] == ["--examples", "100", "--seed", "7"]
    with pytest.raises(SystemExit):
        nightly.main(["--list", "--seeds", "100"])
    assert "--seeds 100 leaves none for the server: 500 is the least" in capsys.readouterr().err


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        nightly.main(["--list", "node"])
    assert "there is no node; there are simulation, " in capsys.readouterr().err
