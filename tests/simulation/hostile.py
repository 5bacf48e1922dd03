"""Runs that do the worst to the process they are in (I13): they kill it, leave it, or return what cannot be kept."""

import asyncio
import random
import sys
from typing import Any

from dotdo import AsyncContext, action, service
from tests.simulation.world import SOON, World, catalogue

# How a handler strikes, and how a service does; the first of them is drawn most often.
IN_ACTIONS = ("dies", "exits", "cyclic", "deep", "infinite", "object")
IN_SERVICES = ("exits", "cyclic", "breaks")


def draw(seed: int) -> list[Any] | None:
    """The plan of a hostile run, which few seeds have."""
    chance = random.Random(f"ill {seed}")
    if chance.random() > 0.08:
        return None
    if chance.random() < 0.5:
        return [{"where": "action", "how": "dies"}]
    where = chance.choice(("action", "action", "service"))
    return [{"where": where, "how": chance.choice(IN_ACTIONS[1:] if where == "action" else IN_SERVICES)}]


def strike(how: str) -> Any:
    """Raises, or gives a value, that nobody wants."""
    match how:
        case "exits":
            sys.exit("I leave")
        case "breaks":
            raise ValueError("a bug")
        case "cyclic":
            circle: list[Any] = []
            circle.append(circle)
            return circle
        case "deep":
            deep: list[Any] = []
            for _ in range(10_000):
                deep = [deep]
            return deep
        case "infinite":
            return float("inf")
        case _:
            return object()


@action("strikes", retry=SOON, catalogue=catalogue)
async def strikes(ctx: AsyncContext, how: str) -> Any:
    if how != "dies":
        return strike(how)
    world = ctx.resource(World)
    if ctx.run_id not in world.mended:
        world.deaths[ctx.run_id] += 1
        await world.die()
    return "mended"


@action("page", retry=SOON, catalogue=catalogue)
async def page(ctx: AsyncContext, failure: Any) -> None:
    """Tells of it, but not at once: the run leaves memory meanwhile."""
    if ctx.attempt < 3:
        raise ConnectionError("the pager is down")


@service("hostile", on_failure=[page], catalogue=catalogue)
async def hostile(plan: list[Any]) -> Any:
    [spec] = plan
    if spec["where"] == "action":
        return await strikes(how=spec["how"])
    await asyncio.sleep(0.01)
    return strike(spec["how"])
