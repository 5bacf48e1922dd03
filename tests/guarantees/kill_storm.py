"""Real processes under SIGKILL at points that a seed chooses: `python -m tests.guarantees.kill_storm`.

Each scene is killed up to four times and then lives to its end, which must equal that of the undisturbed run; all
invariants are checked against the store, the application's database and the ledger. A run that has died three times
without getting anywhere is blocked, as it must be; then a person retries it, and it ends alike. Part of `make nightly`.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
LIVES = 4


def storm(kills: int, seed: int) -> int:
    """Kills so many processes; returns how many scenes came to another end than undisturbed."""
    chance, done, wrong, began = random.Random(seed), 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Ledger() as ledger, Crasher(ledger) as one, Crasher(ledger) as two:
        crashers = Crashers(ledger, [one, two])
        expected: list[tuple[list[str], State]] = []
        for number, (service, input) in enumerate(SERVICES):
            scene = Scene(one, Path(folder, f"undisturbed-{number}"), service, input)
            state = scene.end()
            expected.append((scene.points, state))

        def play(task: tuple[int, int, list[str]]) -> tuple[int, int, str]:
            number, which, points = task
            service, input = SERVICES[which]
            with crashers.scene(Path(folder, f"scene-{number}"), service, input) as scene:
                scene.pardons, right = True, expected[which][1]
                try:
                    for point in points:
                        scene.live(point)
                    state = scene.end()
                    if scene.pardoned:
                        state, right = state.untold(), right.untold()
                    bad = "" if state == right else f"{state}, not {right}"
                except AssertionError as error:
                    bad = f"{error}"
                forget(scene.folder / "dotdo.db")
                return scene.deaths, scene.pardoned, f"{service} killed at {points}: {bad}" if bad else ""

        number = blocked = 0
        while done < kills:
            tasks: list[tuple[int, int, list[str]]] = []
            for _ in range(20):
                which = chance.randrange(len(SERVICES))
                points = [chance.choice(expected[which][0]) for _ in range(chance.randint(1, LIVES))]
                tasks.append((number, which, points))
                number += 1
            for deaths, pardoned, bad in crashers.map(play, tasks):
                done += deaths
                blocked += pardoned
                if bad:
                    wrong += 1
                    print(bad, flush=True)
    spent = time.monotonic() - began
    print(f"seed {seed}: {done} kills in {number} scenes, {blocked} blocked runs, {wrong} went wrong, {spent:.0f} s")
    return wrong


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    given = parser.parse_args()
    with own_server() if given.store == "postgres" else contextlib.nullcontext():
        return min(storm(given.kills, given.seed), 1)


if __name__ == "__main__":
    sys.exit(main())
