"""The long proofs, for a night: `python -m tests.nightly` runs all, `... NAME NAME` some; `... --list` shows them.
`... --seeds 5000` plays fewer random ones, and is done in an evening; what is not random is tried whole.

As many run side by side as there are cores, then, one at a time, those that use every core or measure. What each says
is in `.nightly/NAME.log`. One that fails, or is not done in time, stops no other: a line tells how each ended, and the
last lines what the failed ones said. Ends with 1 if one failed.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.store_faults.workloads import SCRIPTS

LOGS = Path(".nightly")
HOURS = 8.0  # each proof has so long; the simulation takes half of it, and the others on one core less than that
SEEDS = 100_000  # of the simulation on one node; of the rest of what is random so much:
ON_NODES, ON_SERVER, EXAMPLES = 1 / 10, 1 / 500, 1 / 50
EVERYWHERE = [
    "tests/guarantees/test_every_service_killed_everywhere.py",
    "tests/examples/test_onboarding_killed_everywhere.py",
]
PROPERTIES = [f"tests/unit/test_{name}.py" for name in ("codec", "journal", "keys", "pieces", "policy", "schema")]
LOOK, GRACE = 0.2, 30.0  # seconds: how often it looks, and until what was interrupted is killed
SHOWN = 25  # lines of a failed one's log


class Proof(NamedTuple):
    """One program. alone: nothing may run beside it."""

    name: str
    command: Sequence[str]
    alone: bool = False


class Ended(NamedTuple):
    """How a proof ended. wrong: why it counts as failed, or nothing."""

    name: str
    wrong: str
    minutes: float
    log: Path

    def said(self, lines: int) -> str:
        """The last lines that it said."""
        return "\n".join(self.log.read_text(errors="replace").rstrip().splitlines()[-lines:])


def proofs(seed: int, seeds: int = SEEDS) -> list[Proof]:
    """All of them, with so many fresh seeds from this one on; first what takes longest."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "auto"]
    return [
        _module("simulation", "simulation", seed, seed + seeds),  # undivided, since all of them must meet what is rare
        _module("nodes", "simulation", "nodes", seed, seed + round(seeds * ON_NODES)),
        _module("server", "simulation", "server", seed, seed + round(seeds * ON_SERVER)),
        *[_module(f"faults-{workload}", "store_faults", workload) for workload in SCRIPTS],
        _module("model", "model", "--examples", round(seeds * EXAMPLES), "--seed", seed),
        Proof("properties", [*pytest, "--hypothesis-profile=fresh", *PROPERTIES]),
        _module("model-planted", "model", "planted"),
        _module("simulation-planted", "simulation", "planted"),
        _module("nodes-planted", "simulation", "nodes", "planted"),
        _module("kills-sqlite", "guarantees.kill_storm", "--kills", 1000),
        _module("kills-postgres", "guarantees.kill_storm", "--kills", 1000, "--store", "postgres"),
        _module("pgbouncer", "guarantees.behind_pgbouncer"),
        _module("throughput", "guarantees.throughput_after_faults", alone=True),
        Proof("killed-everywhere", [*pytest, "--timeout=1800", "--crash-sample=all", *EVERYWHERE], alone=True),
        Proof("guarantees-postgres", [*pytest, "--store=postgres", "tests/guarantees"], alone=True),
        Proof("servers", ["make", "servers"], alone=True),
    ]


def _module(name: str, module: str, *arguments: object, alone: bool = False) -> Proof:
    return Proof(name, [sys.executable, "-m", f"tests.{module}", *map(str, arguments)], alone)


def run(chosen: Sequence[Proof], logs: Path = LOGS, hours: float = HOURS, cores: int = os.cpu_count() or 1) -> int:
    """Runs them and tells how each ended; returns how many failed."""
    logs.mkdir(exist_ok=True)
    began = time.monotonic()
    print(f"{len(chosen)} proofs, {cores} side by side; how far each is can be read in {logs}/NAME.log", flush=True)
    ends = _side_by_side([proof for proof in chosen if not proof.alone], cores, logs, hours)
    ends += _side_by_side([proof for proof in chosen if proof.alone], 1, logs, hours)
    failed = [ended for ended in ends if ended.wrong]
    for ended in failed:
        print(f"\n{ended.name} {ended.wrong}; all it said is in {ended.log}, which ends so:\n{ended.said(SHOWN)}")
    told = f"{len(failed)} failed: {', '.join(ended.name for ended in failed)}" if failed else "none failed"
    print(f"\n{len(ends)} proofs in {(time.monotonic() - began) / 3600:.1f} h, {told}")
    return len(failed)


def _side_by_side(waiting: list[Proof], most: int, logs: Path, hours: float) -> list[Ended]:
    running: list[Running] = []
    ends: list[Ended] = []
    try:
        while waiting or running:
            while waiting and len(running) < most:
                running.append(Running(waiting.pop(0), logs))
            time.sleep(LOOK)
            for one in list(running):
                if (ended := one.ended(hours)) is not None:
                    running.remove(one)
                    ends.append(ended)
                    told = "FAILED" if ended.wrong else "ok"
                    print(f"{told:7}{ended.name:20}{ended.minutes:5.0f} min  {ended.said(1)}", flush=True)
    finally:  # who is interrupted leaves nothing behind
        for one in running:
            one.end()
    return ends


class Running:
    """A proof in a group of processes of its own, so that nothing of it is left when it is over."""

    def __init__(self, proof: Proof, logs: Path) -> None:
        self._name, self._log, self._began = proof.name, logs / f"{proof.name}.log", time.monotonic()
        with self._log.open("w") as said:
            said.write(f"$ {' '.join(proof.command)}\n")
            said.flush()
            self._process = subprocess.Popen(
                proof.command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},  # how far it came can be read meanwhile
                start_new_session=True,
            )

    def ended(self, hours: float) -> Ended | None:
        """How it ended, if it did; one that took too long is ended."""
        code, spent = self._process.poll(), time.monotonic() - self._began
        if code is None and spent < hours * 3600:
            return None
        self.end()
        wrong = f"was not done in {hours:g} h" if code is None else f"ended with {code}" if code else ""
        return Ended(self._name, wrong, spent / 60, self._log)

    def end(self) -> None:
        """Interrupts it, so that it can stop its servers; kills what is left of it."""
        if self._process.poll() is None:
            self._signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seed", type=int, default=int(time.time()) * 100_000)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many are played (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=HOURS, help="how long one may take (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="only show what would run")
    given = parser.parse_args(arguments)
    if given.seeds < 1 / ON_SERVER:
        parser.error(f"--seeds {given.seeds} leaves none for the server: {1 / ON_SERVER:.0f} is the least")
    known = {proof.name: proof for proof in proofs(given.seed, given.seeds)}
    if unknown := set(given.names) - known.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [proof for name, proof in known.items() if not given.names or name in given.names]
    if given.list:
        for proof in chosen:
            print(f"{proof.name:20} {' '.join(proof.command)}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell in the background has them ignored
        signal.signal(number, lambda *_: sys.exit("interrupted"))
    return min(run(chosen, hours=given.hours), 1)


if __name__ == "__main__":
    sys.exit(main())
