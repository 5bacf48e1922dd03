"""Guarantee 12: what has ended replays the same, in other processes and under other hash seeds; a mismatch blocks (I9).

Every other test of services replays all that has ended in its store when it closes its lab, or ends its scene. Here 250
random asyncio programs run as real services, undisturbed and killed in their middle.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dotdo import Catalogue, RunBlocked, service
from dotdo.embedding import open_reader
from dotdo.records import RunFilter
from tests.guarantees import random_services
from tests.guarantees.invariants import check_store
from tests.guarantees.lab import in_loop, laboratory
from tests.guarantees.ledger import ROOT
from tests.guarantees.replays import check_replays
from tests.unit.engine.random_programs import BRANCHES, LEAVES

pytestmark = pytest.mark.of_files("code is replayed, wherever its journal was; the programs keep theirs in a file")

PROGRAMS = 250


def program(store: Path, *arguments: object, hash_seed: int) -> "subprocess.CompletedProcess[str]":
    """Runs `random_services` in a process of its own."""
    command = [sys.executable, "-m", "tests.guarantees.random_services", str(store), *map(str, arguments)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)


def answer(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """What it printed."""
    assert done.returncode == 0
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which all programs have run, undisturbed."""
    file = tmp_path_factory.mktemp("programs") / "dotdo.db"
    ends = answer(program(file, "run", 0, PROGRAMS, hash_seed=1))
    assert [end for end in ends.values() if "message" in end] == []  # none is blocked: each was replayed as it ended
    return file


def test_the_programs_are_worth_replaying(store: Path):
    opened = open_reader(str(store))
    runs = opened.list_runs(RunFilter(status="completed", limit=PROGRAMS))
    kinds = Counter(entry.kind for run in runs for entry in opened.read_journal(run.id))
    opened.close()
    assert len(runs) == PROGRAMS
    seen = Counter(event[0] for run in runs for event in run.result["events"])
    assert {*LEAVES, *BRANCHES} - {"raise"} <= set(seen)
    assert min(kinds["completed"], kinds["fired"]) > 400
    assert min(kinds["failed"], kinds["step_cancelled"]) > 100
    assert len({json.dumps(run.result) for run in runs}) > PROGRAMS * 0.8


def test_each_program_replays_to_its_recorded_end(store: Path):
    check_store(store)
    assert check_replays(store, random_services.catalogue) == PROGRAMS


def test_replays_under_two_other_hash_seeds_ask_for_the_same_steps_and_end_the_same(store: Path):
    first, second = (answer(program(store, "replay", hash_seed=seed)) for seed in (2, 3))
    assert len(first) == PROGRAMS
    assert first == second
    opened = open_reader(str(store))
    for run, (asked, _, result, error) in first.items():
        found = opened.get_run(run)
        assert found is not None
        assert (json.loads(result), error) == (found.result, None)
        steps = {entry.step for entry in opened.read_journal(run) if entry.kind in ("completed", "failed")}
        assert steps <= {*asked}
    opened.close()


def test_programs_killed_in_their_middle_go_on_under_another_hash_seed(tmp_path: Path):
    resumed = 0
    for commits in (1, 4):
        file = tmp_path / f"killed after {commits}.db"
        assert program(file, "run", 0, PROGRAMS, commits, hash_seed=1).returncode == -signal.SIGKILL
        ends = answer(program(file, "run", 0, PROGRAMS, hash_seed=2))
        assert [end for end in ends.values() if "message" in end] == []
        check_store(file)
        assert check_replays(file, random_services.catalogue) == PROGRAMS
        opened = open_reader(str(file))
        runs = opened.list_runs(RunFilter(status="completed", limit=PROGRAMS))
        resumed += sum(any(entry.kind == "claimed" for entry in opened.read_journal(run.id)) for run in runs)
        opened.close()
    assert resumed > 50


def test_control_other_programs_do_not_replay_to_these_ends(store: Path):
    other = Catalogue()

    @service("random-program", catalogue=other)
    async def random_program(seed: int) -> dict[str, Any]:
        return await random_services.random_program.plain(seed + 1)

    with pytest.raises(AssertionError, match="I9"):
        check_replays(store, other)


@in_loop
async def test_run_that_meets_other_code_is_blocked_and_not_run_wrongly(tmp_path: Path):
    old, new = Catalogue(), Catalogue()
    for made, item in ((old, 1), (new, 2)):

        @service("charges", catalogue=made)
        async def charges(item: int = item) -> str:
            charged = await random_services.a.with_(key=f"charge {item}")(argument=item)
            await random_services.asyncio.sleep(60)
            return charged

    async with laboratory(tmp_path, catalogue=old) as lab:
        handle = await lab.client.service("charges").start()
        await lab.until_asleep(handle.id)
    async with laboratory(tmp_path, catalogue=new, clock=lab.clock) as lab:
        lab.clock.advance(60)
        with pytest.raises(RunBlocked, match=r"asked for the step a:charge 2 .* but its journal has a:charge 1"):
            await lab.client.handle(handle.id).result()
        assert [entry.step for entry in await lab.entries(handle.id, "completed")] == ["a:charge 1"]
