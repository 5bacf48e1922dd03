"""Real processes under SIGKILL and SIGSTOP at points that a seed chooses: `python -m tests.guarantees.kill_storm`.

Each scene is killed up to four times and then lives to its end, which must equal that of the undisturbed run; all
invariants are checked against the store, the application's database and the ledger. A run that has died three times
without getting anywhere is blocked, as it must be; then a person retries it, and it ends alike. On PostgreSQL some are
not killed, but stopped, until another process has taken over; then they go on beside that. Part of `make nightly`.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.guarantees.crashing import Crasher, Crashers, Scene, State
from tests.guarantees.ledger import Ledger
from tests.stores import forget, own_server

SERVICES: list[tuple[str, dict[str, Any]]] = [
    ("onboard", {"name": "ada"}),
    ("onboard-refused", {"name": "ada"}),
    ("family", {"refused": False}),
    ("mendable", {"name": "ada"}),
    ("steered", {"name": "ada"}),
    ("rounds", {"number": 0, "last": 2}),
    ("files-forms", {"name": "ada"}),
]
STEERED = {"mendable", "steered", "files-forms"}  # two processes that are alive would both do a person's part
LIVES = 4
STOPPED = 0.4  # so many of all, where another node can take over
LATEST = 40  # points that the other one passes until they go on


class Fate(NamedTuple):
    """What happens to one process. point: where. wakes_at: it is not killed there, but stopped, and goes on when the
    next one has passed so many points."""

    point: str
    wakes_at: int | None = None


def meet(scene: Scene, fates: list[Fate]) -> State:
    """Plays the scene to its end."""
    wakes_at = 0
    for fate in fates:
        if fate.wakes_at is None or wakes_at:  # one that is stopped goes on before another is
            scene.live(fate.point, wakes_at=wakes_at)
            wakes_at = 0
        elif scene.stop(fate.point):
            wakes_at = fate.wakes_at
    return scene.end(wakes_at=wakes_at)


def storm(kills: int, seed: int, *, stops: bool) -> int:
    """Kills so many processes; returns how many scenes came to another end than undisturbed. stops: and stops some."""
    chance, done, wrong, began = random.Random(seed), 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Ledger() as ledger, Crasher(ledger) as one, Crasher(ledger) as two:
        crashers = Crashers(ledger, [one, two])
        expected: list[tuple[list[str], State]] = []
        for number, (service, input) in enumerate(SERVICES):
            scene = Scene(one, Path(folder, f"undisturbed-{number}"), service, input)
            state = scene.end()
            expected.append((scene.points, state))

        def play(task: tuple[int, int, list[Fate]]) -> tuple[int, int, int, str]:
            number, which, fates = task
            service, input = SERVICES[which]
            with crashers.scene(Path(folder, f"scene-{number}"), service, input) as scene:
                scene.pardons, right = True, expected[which][1]
                try:
                    state = meet(scene, fates)
                    if scene.pardoned:
                        state, right = state.untold(), right.untold()
                    bad = "" if state == right else f"{state}, not {right}"
                except AssertionError as error:
                    bad = f"{error}"
                forget(scene.folder / "dotdo.db")
                return scene.deaths, scene.stops, scene.pardoned, f"{service} {fates}: {bad}" if bad else ""

        def fate(which: int) -> Fate:
            point = chance.choice(expected[which][0])
            is_stopped = stops and SERVICES[which][0] not in STEERED and chance.random() < STOPPED
            return Fate(point, chance.randint(1, LATEST) if is_stopped else None)

        number = blocked = halted = 0
        while done < kills:
            tasks: list[tuple[int, int, list[Fate]]] = []
            for _ in range(20):
                which = chance.randrange(len(SERVICES))
                tasks.append((number, which, [fate(which) for _ in range(chance.randint(1, LIVES))]))
                number += 1
            for deaths, stopped, pardoned, bad in crashers.map(play, tasks):
                done += deaths
                halted += stopped
                blocked += pardoned
                if bad:
                    wrong += 1
                    print(bad, flush=True)
    spent = time.monotonic() - began
    told = f"{done} kills and {halted} stops in {number} scenes, {blocked} blocked runs"
    print(f"seed {seed}: {told}, {wrong} went wrong, {spent:.0f} s")
    return wrong


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    given = parser.parse_args()
    with own_server() if given.store == "postgres" else contextlib.nullcontext():
        return min(storm(given.kills, given.seed, stops=given.store == "postgres"), 1)


if __name__ == "__main__":
    sys.exit(main())
