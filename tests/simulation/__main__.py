"""`python -m tests.simulation SEED` plays a seed and shrinks it; `... FIRST LAST` plays many; `... planted` looks for
every planted bug, or for those named behind, from the first seed on. `... nodes SEED`, `... nodes FIRST LAST`, `...
nodes planted`: on several nodes; `... server SEED`, `... server FIRST LAST`: those on a real PostgreSQL server.

Many seeds must meet each kind of fault, and pass through each state, and enough of them in an hour, or it fails.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.simulation import planted_peers
from tests.simulation.cases import Case, make_case
from tests.simulation.nodes import play_on_nodes
from tests.simulation.occurring import EVERYTHING, EVERYTHING_ON_NODES, RARELY
from tests.simulation.planted import Plant, finds
from tests.simulation.planted_reckoning import PLANTED
from tests.simulation.server import play_on_server
from tests.simulation.simulating import Played, play, shrink
from tests.stores import own_server

Player = Callable[[Case], Played]

MOST = 2_000  # seeds within which a planted bug must be found
ENOUGH = 1_000  # seeds from which on everything must have occurred
NIGHT = 100_000  # and what is rare, too
TOLD = 1_000  # seeds after which it tells how far it is
RATE = 10_000  # seeds in an hour of one core


def show(played: Played) -> None:
    """Prints a case: what was asked for, which faults occurred, and what came of it."""
    for order in played.case.orders:
        print(f"at {order.at:8.3f} s: {order.key} is started: {json.dumps(order.plan)}")
    for deed in played.case.deeds:
        print(f"at {deed.at:8.3f} s: {deed.kind} {deed.key} {deed.name}")
    print(f"faults: {played.chance.fired} in {played.lives} processes")
    print(played.journal)
    print("\n".join(played.wrong) or "nothing is wrong")


def many(first: int, last: int, play: Player = play, occurs: Sequence[str] = EVERYTHING, rate: int = RATE) -> int:
    """Plays seeds; returns how much went wrong. occurs: what many seeds must have met. rate: how many in an hour."""
    seen: Counter[str] = Counter()
    wrong, began = 0, time.process_time()
    for seed in range(first, last):
        played = play(make_case(seed))
        seen.update(played.chance.seen)
        if played.wrong:
            wrong += 1
            print(f"seed {seed}: {played.wrong[:3]}", flush=True)
        if (seed + 1 - first) % TOLD == 0:
            print(f"{seed + 1 - first} seeds, {wrong} went wrong", flush=True)
    reached = (last - first) / (time.process_time() - began) * 3600
    print("; ".join(f"{what} {count}" for what, count in sorted(seen.items())))
    rare = RARELY if occurs is EVERYTHING and last - first >= NIGHT else ()
    never = [what for what in (*occurs, *rare) if not seen[what]] if last - first >= ENOUGH else []
    slow = last - first >= ENOUGH and reached < rate
    if never:
        print(f"never: {', '.join(never)}")
    if slow:
        print(f"too slow: {rate:,} seeds per hour and core are wanted")
    print(f"{last - first} seeds, {wrong} went wrong; {reached:,.0f} seeds per hour and core")
    return wrong + len(never) + slow


def find_planted(bugs: dict[str, Plant] = PLANTED, play: Player = play, names: Sequence[str] = ()) -> int:
    """Looks for each planted bug, or for those of some names; returns how many were not found."""
    tried = missed = 0
    for name, plant in bugs.items():
        if names and name not in names:
            continue
        found = next((seed for seed in range(MOST) if finds(plant, play, seed)), None)
        print(f"{name}: {'NOT FOUND' if found is None else f'seed {found}'}", flush=True)
        missed += found is None
        tried += 1
    print(f"{tried} planted bugs, {missed} not found")
    return missed


def on_nodes(arguments: list[str]) -> int:
    """The same on several nodes."""
    if arguments[:1] == ["planted"]:
        return find_planted(planted_peers.PLANTED, play_on_nodes, arguments[1:])
    return one_or_many(arguments, play_on_nodes, EVERYTHING_ON_NODES)


def on_server(arguments: list[str]) -> int:
    """The same on several nodes that share a database of a real server."""
    with own_server():
        return one_or_many(arguments, play_on_server, ())


def one_or_many(arguments: list[str], play: Player, occurs: Sequence[str]) -> int:
    """Plays a seed and shows it, or plays several."""
    numbers = [int(argument) for argument in arguments]
    if len(numbers) == 2:
        return many(numbers[0], numbers[1], play, occurs, rate=0)
    played = play(make_case(numbers[0]))
    show(played)
    return len(played.wrong)


def main(arguments: list[str]) -> int:
    """The program."""
    if arguments[:1] == ["nodes"]:
        return on_nodes(arguments[1:])
    if arguments[:1] == ["server"]:
        return on_server(arguments[1:])
    if arguments[:1] == ["planted"]:
        return find_planted(names=arguments[1:])
    numbers = [int(argument) for argument in arguments]
    if len(numbers) == 2:
        return many(numbers[0], numbers[1])
    played = play(make_case(numbers[0]))
    show(shrink(played) if played.wrong else played)
    return len(played.wrong)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
