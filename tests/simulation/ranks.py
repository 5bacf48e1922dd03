"""Cases in which runs have priorities, and wait: for the slot of an action that one may have at a time, and for room in
their process. Few seeds have that.

Each turn, of that slot and of the claims, is looked at: whose it was while others waited, by rows that the engine does
not order by. What is promised is in docs/concurrency.md.
"""

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dotdo.store.fairness import ONE_IN
from dotdo.store.protocol import Claim, Settled, SlotAsk
from dotdo.store.sql import SqlStore
from tests.simulation.cases import Case, Order
from tests.simulation.machine import FaultyStore

PRIORITIES = (-5, 0, 0, None, 3, 3, 3, 3)  # many go before few
HELD = (0.02, 0.1, 0.5)  # seconds for which they have the slot
ROOMS = (2, 3, 6)  # runs for which a process has room
DELAY = 40.0


def ranked(case: Case) -> Case:
    """The case, with runs of several priorities that begin, or are due, at nearly one time, if its seed says so."""
    # Not drawn: so those seeds that are known to have found something stay as they were.
    if case.seed % 17 != 3 or case.room is not None:
        return case
    chance = random.Random(f"ranks {case.seed}")
    begins = 20 * chance.random()
    crowd = tuple(_order(chance, number, begins) for number in range(chance.randint(8, 14)))
    given = tuple(replace(order, priority=chance.choice(PRIORITIES)) for order in case.orders)
    return replace(case, orders=(*given, *crowd), limits=True, room=chance.choice(ROOMS))


def _order(chance: random.Random, number: int, begins: float) -> Order:
    """One that begins at once has its limited actions begin together with others; one that begins later has to be
    claimed first, beside them."""
    count = chance.randint(1, 3)
    held = [{"do": "limited", "n": 300 + n, "seconds": chance.choice(HELD)} for n in range(count)]
    plan: list[Any] = [{"child": held}] if chance.random() < 0.15 else [{"beside": held}]
    delay = DELAY if chance.random() < 0.6 else None
    return Order(f"rank{number}", begins + chance.random(), plan, delay=delay, priority=chance.choice(PRIORITIES))


class Waiting(NamedTuple):
    """One that waits for a turn. since: its place, the lower the earlier. line: those with whom it is first come, first
    served."""

    id: str
    since: int
    priority: int
    line: str = ""


class Turns:
    """The turns of one queue in one process."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._passed = 0  # turns in a row in which the one that has waited the longest was passed over
        self._was_other = False  # the last turn was not for the highest priority

    def look(self, taken: Sequence[Waiting], left: Sequence[Waiting], *, full: bool) -> list[str]:
        """What is not as promised with a turn, in words. left: those that go on waiting. full: there is no room for
        them; else they have the next turn, and were not passed over."""
        if not taken or not left:
            self._passed, self._was_other = 0, False
            return []
        everybody = [*taken, *left]
        highest, longest = max(one.priority for one in everybody), min(one.since for one in everybody)
        of = {one.priority for one in taken}
        is_highest = of == {highest}
        is_patient = len(of) == 1 and of <= {one.priority for one in everybody if one.since == longest}
        wrong = [
            f"{self.what}: {late.id} goes before {one.id}, which came first"
            for late in taken
            for one in left
            if (one.priority, one.line) == (late.priority, late.line) and one.since < late.since
        ]
        if not (is_highest or is_patient):
            wrong.append(f"{self.what}: priority {of} has a turn, and {highest} waits, and others for longer")
        if self._was_other and not is_highest:
            wrong.append(f"{self.what}: priority {highest} waits for more than one other thing")
        self._was_other = not is_highest
        self._passed = 0 if is_patient else self._passed + full
        if self._passed >= ONE_IN:
            wrong.append(f"{self.what}: who waits the longest was passed over {self._passed} times")
        return wrong


# Rows are told apart by the runs' own priorities, not by what was asked with.
DUE = """
select id, due_at, priority, name from runs where ended_at is null and owner is null and due_at <= :now
"""
TICKETS = """
select tickets.id, tickets.run, runs.priority, tickets.scope is not null from tickets join runs on runs.id = tickets.run
where (tickets.scope is not null or tickets.stage >= 0) and runs.ended_at is null and runs.status <> 'blocked'
"""


class WatchedStore(SqlStore):
    """A store whose turns are looked at. wrong: what was not as promised. seen: turns for which several had waited."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()
        self._claims_turns, self._slot_turns = Turns("claims"), Turns("slots")

    def claim_due(self, node: str, now: int, limit: int) -> list[Claim]:
        """As it is."""
        due = [Waiting(*row) for row in self._db.read(DUE, {"now": now})]
        claims = super().claim_due(node, now, limit)
        self._look(self._claims_turns, due, {claim.run for claim in claims}, full=len(claims) == limit)
        return claims

    def settle_slots(self, asks: Sequence[SlotAsk], gone: Sequence[tuple[str, str, str]], now: int) -> Settled:
        """As it is."""
        before = self._holders()
        settled = super().settle_slots(asks, gone, now)
        self._look_at_slots(before)
        return settled

    def sweep_slots(self, now: int, before: int) -> Settled:
        """As it is."""
        held = self._holders()
        settled = super().sweep_slots(now, before)
        self._look_at_slots(held)
        return settled

    def _holders(self) -> set[str]:
        return {str(id) for id, _, _, waits in self._db.read(TICKETS, {}) if not waits}

    def _look_at_slots(self, held: set[str]) -> None:
        tickets = self._db.read(TICKETS, {})
        waiting = [Waiting(str(id), id, priority) for id, _, priority, _ in tickets if str(id) not in held]
        self._look(self._slot_turns, waiting, {str(id) for id, _, _, waits in tickets if not waits})

    def _look(self, turns: Turns, waiting: Sequence[Waiting], went: set[str], *, full: bool = True) -> None:
        taken, left = [one for one in waiting if one.id in went], [one for one in waiting if one.id not in went]
        if taken:
            self.wrong += turns.look(taken, left, full=full)
            self.seen[f"turn.{turns.what}"] += bool(left) and len({one.priority for one in waiting}) > 1


class RankedStore(FaultyStore, WatchedStore):
    """One that fails, too."""


def check_priorities(runs: Collection[dict[str, Any]], orders: dict[str, Order]) -> list[str]:
    """What does not hold of the rows: a run has the priority that it was given, and a child that of its parent."""
    given = {run["id"]: run["priority"] for run in runs}
    wrong: list[str] = []
    for run in runs:
        order = orders.get(run["key"] or "")
        expected = given.get(run["parent"], 0) if run["parent"] else (order.priority or 0) if order else 0
        if run["priority"] != expected:
            wrong.append(f"{run['id']} has the priority {run['priority']} instead of {expected}")
    return wrong
