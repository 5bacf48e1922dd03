"""Cases in which an action has a limit: one at a time, of all runs. Few seeds have that; the others play as if there
were none."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

from dotdo import AsyncContext, Catalogue, action
from tests.simulation import hostile
from tests.simulation.cases import Case
from tests.simulation.world import ACTIONS, SOON, Spec, World, catalogue, do

LIKELY = 0.12
HELD = (0.02, 0.1, 0.2, 3.0)  # seconds for which they have it


@cache
def catalogue_with_limits() -> Catalogue:
    """What the others have, and an action with a limit."""
    assert hostile.catalogue is catalogue, "all is defined by now"
    found = Catalogue()
    for kind in ("action", "service", "effect"):
        for each in catalogue.all(kind):
            found.add(kind, each.name, each.version, each, catalogue_with_limits)

    @action("limited", concurrency=1, retry=SOON, catalogue=found)
    async def limited(ctx: AsyncContext, spec: Spec) -> int:
        with ctx.resource(World).alone():
            return await do(ctx, spec)

    ACTIONS["limited"] = limited
    return found


def limited(case: Case) -> Case:
    """The case, in which what was to be done by plain actions is done one at a time if its seed says so. Its runs begin
    at nearly the same time, with several of these, so that somebody waits."""
    if case.limits or random.Random(f"limits {case.seed}").random() > LIKELY:
        return case
    catalogue_with_limits()
    chance = random.Random(f"held {case.seed}")
    orders = tuple(
        replace(order, at=order.at / 20, plan=[_crowd(chance), *_limited(order.plan, chance)])
        for order in case.orders
        if order.service == "sim"
    )
    return replace(case, orders=orders, limits=True)


def _crowd(chance: random.Random) -> Any:
    return {"beside": [{"do": "limited", "n": 100 + n, "seconds": chance.choice(HELD)} for n in range(2)]}


def _limited(plan: Any, chance: random.Random) -> Any:
    match plan:
        case list():
            return [_limited(node, chance) for node in plan]
        case {"do": "plain", **spec}:
            return {"do": "limited", **spec, "seconds": chance.choice(HELD)}
        case dict():
            return {key: _limited(value, chance) for key, value in plan.items()}
        case _:
            return plan
