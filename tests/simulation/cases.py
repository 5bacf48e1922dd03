"""What a seed stands for: runs with their plans, and what callers and operators do to them when. Cases shrink."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.simulation import halting, hostile
from tests.simulation.durations import skewed
from tests.simulation.world import EFFECTS

LONG = 2 * 3600.0
EVENTS = ("a", "b")
MANY_KILLS = 8.0
REFUSED = ("bad input", "too much input", "no such service")


@dataclass(frozen=True)
class Order:
    """A run that a caller wants: at which second, under which key, with which plan, of which service."""

    key: str
    at: float
    plan: list[Any]
    deadline: float | None = None
    delay: float | None = None
    service: str = "sim"
    priority: int | None = None


@dataclass(frozen=True)
class Deed:
    """What somebody does to a run. kind: again, conflict, refused, event, cancel, cancel when told
    (of its failure, or that it is blocked), undo, retry, read."""

    kind: str
    key: str
    at: float
    name: str = ""
    sender: str | None = None


@dataclass(frozen=True)
class Case:
    """All that is decided before it begins. faults: the numbers of the faults that are allowed; None: all. kills: how
    many times more often than in most cases processes die. limits: whether an action has one (see limits.py).
    sql_fails: commits of the application's database fail, too. sql_silent: that one has failed is noticed late, and its
    run is cancelled meanwhile. room: for how many runs a process has room; runs have priorities then (see ranks.py)."""

    seed: int
    orders: tuple[Order, ...]
    deeds: tuple[Deed, ...]
    faults: frozenset[int] | None = None
    kills: float = 1.0
    limits: bool = False
    sql_fails: bool = False
    sql_silent: bool = False
    room: int | None = None


def make_case(seed: int) -> Case:
    """The case of a seed."""
    chance = random.Random(f"case {seed}")
    maker = _Plans(chance)
    orders: list[Order] = []
    deeds: list[Deed] = []
    for number in range(chance.randint(1, 3)):
        key, at = f"k{number}", skewed(chance, 20)
        plan = maker.plan(chance.randint(1, 6))
        deadline = chance.choice([30.0, 600.0]) if chance.random() < 0.06 else None
        delay = 40.0 if chance.random() < 0.08 else None
        orders.append(Order(key, at, plan, deadline, delay))
        for name in maker.awaited:
            when = at + skewed(chance, 300)
            deeds += [Deed("event", key, when, name, f"{key} {name} {n}") for n in range(chance.randint(1, 2))]
        maker.awaited.clear()
        for kind, likely in (
            ("again", 0.4),
            ("conflict", 0.2),
            ("cancel", 0.2),
            ("undo", 0.3),
            ("retry", 0.4),
            ("read", 1),
        ):
            if chance.random() < likely:
                deeds.append(Deed(kind, key, at + skewed(chance, 400 if kind in ("undo", "retry", "read") else 60)))
    more = random.Random(f"gate {seed}")
    if more.random() < 0.12:
        deeds.append(Deed("refused", "k0", skewed(more, 60), more.choice(REFUSED)))
    worst = hostile.draw(seed)
    if worst is not None:
        orders.append(Order("hostile", skewed(more, 20), worst, service="hostile"))
    for key, halt in (("halting", halting.draw(seed)), ("stubborn", halting.draw_stubborn(seed))):
        if halt is not None:
            plan, errands = halt
            at = skewed(random.Random(f"halted {seed}"), 20)
            orders.append(Order(key, at, plan))
            deeds += [Deed(kind, key, at + after) for kind, after in errands]
    weary = halting.draw_weary(seed)
    if weary is not None:
        orders.append(Order("weary", skewed(random.Random(f"tired {seed}"), 20), weary))
    kills = MANY_KILLS if random.Random(f"cruel {seed}").random() < 0.05 else 1.0
    # Not drawn: so those that are known to have found something stay as they were.
    sql_fails, sql_silent = seed % 13 == 11, seed % 26 == 11
    in_order = tuple(sorted(deeds, key=lambda deed: deed.at))
    return Case(seed, tuple(orders), in_order, kills=kills, sql_fails=sql_fails, sql_silent=sql_silent)


class _Plans:
    """Makes plans. awaited: names of events that they wait for."""

    def __init__(self, chance: random.Random) -> None:
        self._chance, self._number = chance, 0
        self.awaited: list[str] = []

    def plan(self, steps: int) -> list[Any]:
        """So many nodes in a row."""
        return [self._node(2) for _ in range(steps)]

    def _node(self, depth: int) -> Any:
        draw = self._chance.random()
        if depth and draw < 0.18:
            return {"beside": [self._node(depth - 1) for _ in range(self._chance.randint(2, 3))]}
        if depth and draw < 0.24:
            return {"child": [self._node(depth - 1) for _ in range(self._chance.randint(1, 2))]}
        if depth and draw < 0.30:
            return {"try": self._node(depth - 1)}
        if depth and draw < 0.34:
            return {"within": self._chance.choice([0.05, 2.0, 30.0]), "node": self._node(depth - 1)}
        if draw < 0.44:
            return {"sleep": self._chance.choice([0.01, 1.0, 30.0, LONG])}
        if draw < 0.50:
            name = self._chance.choice(EVENTS)
            self.awaited.append(name)
            return {"event": name}
        return self._action()

    def _action(self) -> Any:
        chance = self._chance
        self._number += 1
        name = chance.choice(["plain", "plain", "undoable", "undoable", "stocked", "stocked", "pivot"])
        if name == "pivot" and chance.random() < 0.5:
            name = "undoable"
        spec: dict[str, Any] = {"do": name, "n": self._number}
        kinds = list(EFFECTS)
        if chance.random() < 0.4:
            spec["stage"] = [chance.choice(kinds) for _ in range(chance.randint(1, 2))]
        if name != "stocked" and chance.random() < 0.4:
            spec["request"] = [chance.choice(kinds) for _ in range(chance.randint(1, 2))]
        if name == "undoable" and chance.random() < 0.5:
            spec["undo"] = [chance.choice(kinds)]
        if chance.random() < 0.2:
            spec["fails"] = chance.randint(1, 3)
        if chance.random() < 0.08:
            spec["refuses"] = True
        if name != "stocked" and chance.random() < 0.2:
            spec["seconds"] = 3.0
        return spec


def smaller(case: Case, fired: list[int]) -> Iterator[Case]:
    """Cases with something left out, the most first. fired: numbers of the faults that occurred in it."""
    for order in case.orders:
        if len(case.orders) > 1:
            left = tuple(one for one in case.orders if one is not order)
            yield replace(case, orders=left, deeds=tuple(deed for deed in case.deeds if deed.key != order.key))
    half = len(fired) // 2
    for part in ([], fired[:half], fired[half:]):
        if len(part) < len(fired):
            yield replace(case, faults=frozenset(part))
    for index in range(len(case.deeds)):
        yield replace(case, deeds=case.deeds[:index] + case.deeds[index + 1 :])
    for number in fired:
        yield replace(case, faults=frozenset(one for one in fired if one != number))
    for index, order in enumerate(case.orders):
        for plan in _smaller_plans(order.plan):
            changed = replace(order, plan=plan)
            yield replace(case, orders=(*case.orders[:index], changed, *case.orders[index + 1 :]))


def _smaller_plans(plan: Any) -> Iterator[Any]:
    if isinstance(plan, list):
        for index, node in enumerate(plan):
            if len(plan) > 1:
                yield plan[:index] + plan[index + 1 :]
            for less in _smaller_plans(node):
                yield [*plan[:index], less, *plan[index + 1 :]]
        return
    for name in ("beside", "child", "try", "node", "bug"):
        if name in plan:
            inner = plan[name]
            yield from inner if isinstance(inner, list) else [inner]
            for less in _smaller_plans(inner):
                yield {**plan, name: less}
    if "do" in plan:
        for name in ("stage", "request", "undo", "fails", "seconds"):
            if name in plan:
                yield {key: value for key, value in plan.items() if key != name}
