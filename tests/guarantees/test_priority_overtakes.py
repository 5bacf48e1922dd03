"""What has a high priority overtakes a flood of what has a low one, wherever runs wait; and the low one is not starved.

Runs wait to be claimed by nodes that are full, and for slots of limits. On SQLite one node does the work, on PostgreSQL
two do.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dotdo import AsyncContext, AsyncHandle, Do, action, continue_as_new, service, wait_for_event
from dotdo.store.fairness import ONE_IN
from tests.guarantees import node
from tests.guarantees.invariants import check_store
from tests.guarantees.lab import Lab, World, catalogue, in_loop, laboratory
from tests.guarantees.node_process import node_process
from tests.patience import PATIENCE
from tests.stores import LASTING, url_of

ROOM, FLOOD = 2, 30


def until(condition: Callable[[], bool]) -> None:
    """Returns when that holds; other processes bring it about, so it is looked at again and again."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"that never came about: {node.told()}"
        time.sleep(0.02)


def begun() -> list[str]:
    """Whose attempts have begun, in order."""
    return [name for what, name in (line.split() for line in node.told()) if what == "begins"]


def test_urgent_run_is_claimed_before_a_flood_that_nodes_have_no_room_for(
    each_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(node.TOLD, str(tmp_path / "told"))
    monkeypatch.setenv("DOTDO_LEASE", LASTING)
    path, nodes = tmp_path / "dotdo.db", 2 if each_store == "postgres" else 1
    gates = {name: node.keep(name) for name in (f"low{number}" for number in range(FLOOD))}
    with contextlib.ExitStack() as stack:
        for _ in range(nodes):
            stack.enter_context(node_process("narrow", url_of(path), f"{ROOM}"))
        client = stack.enter_context(Do(url_of(path), engine=False, catalogue=node.definitions()))
        low = [client.action("linger", priority=-1).start(name=name) for name in gates]
        until(lambda: len(begun()) == nodes * ROOM)
        urgent = client.action("linger", priority=9).start(name="urgent")
        gates.pop(begun()[0]).unlink()
        assert urgent.result(timeout=PATIENCE) == "urgent"
        assert begun()[nodes * ROOM] == "urgent", "it was the next to begin, of all that waited"
        assert client.runs.get(urgent.id).priority == 9
        for gate in gates.values():
            gate.unlink()
        assert len({handle.result(timeout=PATIENCE) for handle in low}) == FLOOD
    check_store(path)


# -- slots of a limit --------------------------------------------------------------------------------------------------


@action("serve-one", concurrency=1, retry=1, catalogue=catalogue)
async def serve_one(ctx: AsyncContext, name: str) -> str:
    """One at a time; says whom it serves."""
    world = ctx.resource(World)
    world.say(name)
    await world.pass_gate("counter")
    return name


@service("is-served", catalogue=catalogue)
async def is_served(name: str, by_a_child: bool = False, again: bool = False) -> str:
    """Is served, by a step of its own, or of a child's, or of the run that goes on for it."""
    if by_a_child:
        return await is_served(name)
    if again:
        await wait_for_event("again")
        continue_as_new(name=name)
    return await serve_one(name)


@pytest.fixture(autouse=True)
def quick_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave memory as soon as they wait."""
    monkeypatch.setattr("dotdo.engine.parking.LINGER", 0.01)


async def stand_in_line(lab: Lab, count: int) -> None:
    """Returns once so many runs wait for the limit."""

    async def do() -> bool:
        found = await lab.client.runs.list(status="waiting", limit=100)
        return sum(run.waiting_for is not None and run.waiting_for.kind == "limit" for run in found) == count

    await lab.until(do)


@in_loop
@pytest.mark.usefixtures("each_store")
async def test_slots_go_to_the_urgent_and_to_its_children_and_successors(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        runs: list[AsyncHandle[str]] = [await lab.client.start(serve_one, "first")]
        await lab.world.heard("first")
        for number in range(3):
            runs.append(await lab.client.start(serve_one.with_(priority=-2), f"low{number}"))
            await stand_in_line(lab, number + 1)
        urgent = is_served.with_(priority=4)
        runs.append(await lab.client.start(urgent, "step"))
        await stand_in_line(lab, 4)
        runs.append(await lab.client.start(urgent, "child", by_a_child=True))
        await stand_in_line(lab, 5)
        [child] = await lab.client.runs.list(parent=runs[-1].id)
        assert child.priority == 4
        runs.append(await lab.client.start(urgent, "later", again=True))
        await runs[-1].send_event("again")
        await stand_in_line(lab, 6)
        assert (await runs[-1].get()).priority == 4
        runs.append(await lab.client.start(serve_one, "usual"))
        await stand_in_line(lab, 7)
        lab.world.open("counter")
        await asyncio.gather(*(run.result() for run in runs))
        assert lab.world.said == ["first", "step", "child", "later", "usual", "low0", "low1", "low2"]


@in_loop
@pytest.mark.usefixtures("each_store")
async def test_low_one_has_its_turn_however_many_go_before_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        runs = [await lab.client.start(serve_one, "first")]
        await lab.world.heard("first")
        runs.append(await lab.client.start(serve_one.with_(priority=-10), "low"))
        await stand_in_line(lab, 1)
        for number in range(3 * ONE_IN):
            runs.append(await lab.client.start(serve_one.with_(priority=10), f"high{number}"))
        await stand_in_line(lab, 1 + 3 * ONE_IN)
        lab.world.open("counter")
        await asyncio.gather(*(run.result() for run in runs))
        assert lab.world.said.index("low") == ONE_IN - 1
