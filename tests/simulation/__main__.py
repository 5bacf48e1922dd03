"""`python -m tests.simulation SEED` plays a seed and shrinks it; `... FIRST LAST` plays many; `... planted` looks for
every planted bug, from the first seed on."""

import json
import sys
import time
from collections import Counter

import pytest

from tests.simulation.cases import make_case
from tests.simulation.planted import PLANTED
from tests.simulation.simulating import Played, play, shrink

MOST = 2_000  # seeds within which a planted bug must be found


def show(played: Played) -> None:
    """Prints a case: what was asked for, which faults occurred, and what came of it."""
    for order in played.case.orders:
        print(f"at {order.at:8.3f} s: {order.key} is started: {json.dumps(order.plan)}")
    for deed in played.case.deeds:
        print(f"at {deed.at:8.3f} s: {deed.kind} {deed.key} {deed.name}")
    print(f"faults: {played.chance.fired} in {played.lives} processes")
    print(played.journal)
    print("\n".join(played.wrong) or "nothing is wrong")


def many(first: int, last: int) -> int:
    """Plays seeds; returns how many went wrong."""
    seen: Counter[str] = Counter()
    wrong, began = 0, time.process_time()
    for seed in range(first, last):
        played = play(make_case(seed))
        seen.update(played.chance.seen)
        if played.wrong:
            wrong += 1
            print(f"seed {seed}: {played.wrong[:3]}", flush=True)
    rate = (last - first) / (time.process_time() - began) * 3600
    print(f"{last - first} seeds, {wrong} went wrong; {rate:,.0f} seeds per hour and core")
    print("; ".join(f"{what} {count}" for what, count in sorted(seen.items())))
    return wrong


def find_planted() -> int:
    """Looks for each planted bug; returns how many were not found."""
    missed = 0
    for name, plant in PLANTED.items():
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            found = next((seed for seed in range(MOST) if play(make_case(seed)).wrong), None)
        print(f"{name}: {'NOT FOUND' if found is None else f'seed {found}'}", flush=True)
        missed += found is None
    return missed


def main(arguments: list[str]) -> int:
    """The program."""
    if arguments == ["planted"]:
        return find_planted()
    numbers = [int(argument) for argument in arguments]
    if len(numbers) == 2:
        return many(*numbers)
    played = play(make_case(numbers[0]))
    show(shrink(played) if played.wrong else played)
    return len(played.wrong)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
