"""`python -m tests.model --examples N --seed S` plays so many random histories on every door, and makes one that fails
smaller; `... planted` looks for every planted fault, from that seed on. Part of `make nightly`.
"""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from tests.model.planted import PLANTED
from tests.model.playing import LEASE, play
from tests.postgres import postgres_server
from tests.store.postgres_stores import make_template
from tests.stores import use_server

DOORS = ("embedded", "remote", "postgres")
BATCH = 25  # examples of one seed
MOST = 60  # seeds of 5 examples within which a planted fault must be found


def many(name: str, examples: int, first: int, *, shrink: bool) -> int:
    """Plays so many examples on a door; returns how many seeds went wrong."""
    wrong, seen, began = 0, Counter[str](), time.process_time()
    with entered(name):
        for seed in range(first, first + -(-examples // BATCH)):
            try:
                seen.update(play("remote" if name == "remote" else "embedded", seed, BATCH, shrink=shrink))
            except AssertionError as error:
                wrong += 1
                print(f"{name}, seed {seed}: {error}", *getattr(error, "__notes__", ()), sep="\n", flush=True)
    spent = time.process_time() - began
    print("; ".join(f"{what} {count}" for what, count in sorted(seen.items()) if count))
    seeds = -(-examples // BATCH)
    print(
        f"{name}: {seeds} seeds from {first} on, {wrong} went wrong; {BATCH} examples each, {spent:.0f} s of CPU",
        flush=True,
    )
    return wrong


@contextmanager
def entered(name: str) -> Generator[None]:
    """Clients open what the name of a door says."""
    if name != "postgres":
        yield
        return
    with postgres_server() as server, pytest.MonkeyPatch.context() as patch:
        make_template(server)
        use_server(server, patch, LEASE)
        yield


def find_planted(first: int) -> int:
    """Looks for each planted fault; returns how many were not found."""
    missed = 0
    for name, plant in PLANTED.items():
        found = None
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            for seed in range(first, first + MOST):
                try:
                    play("remote" if "on_the_way" in name else "embedded", seed, 5)
                except AssertionError:
                    found = seed
                    break
        print(f"{name}: {'NOT FOUND' if found is None else f'seed {found}'}", flush=True)
        missed += found is None
    print(f"{len(PLANTED)} planted faults, {missed} not found")
    return missed


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["planted"])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-it-is", action="store_true", help="do not make smaller what fails")
    parser.add_argument("--door", choices=DOORS, action="append")
    options = parser.parse_args()
    logging.getLogger("dotdo").setLevel(logging.CRITICAL)  # runs are blocked here all the time
    if options.what == "planted":
        return find_planted(options.seed)
    return sum(
        many(name, options.examples, options.seed, shrink=not options.as_it_is) for name in options.door or DOORS
    )


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
