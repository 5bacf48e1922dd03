"""`dotdo.map`: at most `limit` items at a time, outputs in the order of the items, and nothing is done twice."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import dotdo
from dotdo import ActionFailed, AsyncContext, AsyncDo, Catalogue, DefinitionError, Fail, action, service
from dotdo.errors import RunBlocked
from tests.guarantees.lab import World, hold, in_loop, laboratory, note
from tests.guarantees.lab import catalogue as lab_catalogue

catalogue = Catalogue()


@action("pair", catalogue=catalogue)
async def pair(left: int, right: int = 0) -> list[int]:
    """Gives its parameters back."""
    return [left, right]


@action("step", catalogue=catalogue)
async def step(ctx: AsyncContext, item: int) -> int:
    """Counts how many are under way at a time; a test may have one wait at a gate or fail."""
    world = ctx.resource(World)
    world.say(f"begin {item}")
    if f"gate {item}" in world.failures:
        await world.pass_gate(f"gate {item}")
    if world.failures.get(f"fail {item}"):
        raise Fail(f"item {item} is refused")
    world.say(f"end {item}")
    return item * 10


@service("child", catalogue=catalogue)
async def child(item: int) -> int:
    """A child service."""
    return await step(item)


class Gathered(msgspec.Struct):
    """What a mapping service returns."""

    outputs: list[int]
    failed: list[str] = []


@service("mapping", catalogue=catalogue)
async def mapping(items: list[int], limit: int = 50) -> Gathered:
    """Maps and returns everything."""
    return Gathered(await dotdo.map(step, items, limit=limit))


@service("tolerant", catalogue=catalogue)
async def tolerant(items: list[int], limit: int = 50) -> Gathered:
    """Maps, and keeps what failed."""
    found = await dotdo.map(step, items, limit=limit, return_exceptions=True)
    return Gathered(
        [item for item in found if isinstance(item, int)],
        [str(item.step) + ": " + item.error_message for item in found if isinstance(item, ActionFailed)],
    )


@in_loop
async def test_outputs_come_in_the_order_of_the_items_and_no_more_than_the_limit_are_under_way(tmp_path: Path):
    world = World()
    world.failures = {f"gate {n}": 1 for n in range(6)}
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        handle = await lab.client.start(mapping, list(range(6)), limit=2)
        await asyncio.gather(world.heard("begin 0"), world.heard("begin 1"))
        assert world.said == ["begin 0", "begin 1"]
        world.open("gate 1")
        await world.heard("begin 2")
        for n in (2, 3, 4):
            assert world.said.count(f"begin {n + 1}") == 0
            world.open(f"gate {n}")
            await world.heard(f"begin {n + 1}")
        for n in (0, 5):
            world.open(f"gate {n}")
        assert (await handle.result()).outputs == [0, 10, 20, 30, 40, 50]


@in_loop
async def test_item_is_the_parameters_by_name_or_the_first_one(tmp_path: Path):
    @service("shapes", catalogue=(own := Catalogue()))
    async def shapes() -> list[list[int]]:
        items = ({"left": 1, "right": 2}, 3, {"left": 4})
        return await dotdo.map(pair, (item for item in items), limit=2)

    async with laboratory(tmp_path, catalogue=_both(own)) as lab:
        assert await lab.client.run(shapes) == [[1, 2], [3, 0], [4, 0]]


@in_loop
async def test_action_may_be_called_by_name(tmp_path: Path):
    @service("by-name", catalogue=(own := Catalogue()))
    async def by_name() -> list[list[int]]:
        with pytest.raises(DefinitionError, match="each item is a mapping of parameters by name, not 3"):
            await dotdo.map("pair", [3])  # type: ignore[list-item]
        return await dotdo.map("pair@1", [{"left": 1}, {"left": 2, "right": 3}])

    async with laboratory(tmp_path, catalogue=_both(own)) as lab:
        assert await lab.client.run(by_name) == [[1, 0], [2, 3]]


@in_loop
async def test_equal_items_are_steps_of_their_own_and_children_work_alike(tmp_path: Path):
    @service("equals", catalogue=(own := Catalogue()))
    async def equals() -> list[int]:
        return [*await dotdo.map(step, [7, 7, 7], limit=2), *await dotdo.map(child, [1, 1, 2], limit=3)]

    world = World()
    async with laboratory(tmp_path, catalogue=_both(own), world=world) as lab:
        assert await lab.client.run(equals) == [70, 70, 70, 10, 10, 20]
        assert world.said.count("end 7") == 3


@in_loop
async def test_first_failure_ends_it_alone_and_nothing_further_begins(tmp_path: Path):
    world = World()
    world.failures = {"gate 0": 1, "gate 1": 1, "fail 1": 1}
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        handle = await lab.client.start(mapping, [0, 1, 2, 3], limit=2)
        await world.reached("gate 0")
        world.open("gate 1")
        with pytest.raises(ActionFailed, match="item 1 is refused") as caught:
            await handle.result()
        assert caught.value.action == "step"
        assert "begin 2" not in world.said
        assert len(await lab.entries(handle.id, "step_cancelled")) == 1  # item 0 was settled before the run ended


@in_loop
async def test_failures_can_be_kept_in_their_places(tmp_path: Path):
    world = World()
    world.failures = {"fail 1": 1, "fail 3": 1}
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        found = await lab.client.run(tolerant, [0, 1, 2, 3, 4], limit=2)
        assert found.outputs == [0, 20, 40]
        assert [text.rpartition(": ")[2] for text in found.failed] == ["item 1 is refused", "item 3 is refused"]


@in_loop
async def test_what_was_done_is_not_done_again_by_another_engine(tmp_path: Path):
    world = World()
    world.failures = {"gate 5": 1}
    async with laboratory(tmp_path, catalogue=catalogue, world=world, grace=0) as lab:
        handle = await lab.client.start(mapping, list(range(9)), limit=3)
        await world.heard("end 8")
        await lab.until_journal_has(handle.id, "completed", 8)
    world.open("gate 5")
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        assert (await lab.client.handle(handle.id).result())["outputs"] == [n * 10 for n in range(9)]
    assert all(world.said.count(f"begin {n}") == (2 if n == 5 else 1) for n in range(9))


@in_loop
async def test_retry_repeats_the_failed_item_and_those_not_begun(tmp_path: Path):
    world = World()
    world.failures = {"fail 2": 1}
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        handle = await lab.client.start(mapping, [0, 1, 2, 3], limit=1)
        with pytest.raises(ActionFailed):
            await handle.result()
        world.failures = {}
        await lab.client.runs.retry(handle.id)
        assert (await handle.result()).outputs == [0, 10, 20, 30]
        assert [text for text in world.said if text.startswith("begin")] == [f"begin {n}" for n in (0, 1, 2, 2, 3)]


@in_loop
async def test_ten_thousand_items(tmp_path: Path):
    async with AsyncDo(str(tmp_path / "dotdo.db"), catalogue=catalogue, resources=[World()]) as client:
        began = time.process_time()
        found = await client.run(mapping, list(range(10_000)), limit=200)
        assert found.outputs == [n * 10 for n in range(10_000)]
        # About 0.05 ms each; what is quadratic takes several.
        assert time.process_time() - began < 10_000 * 0.001


@in_loop
async def test_items_that_break_are_a_bug_of_the_service(tmp_path: Path):
    def items() -> Iterator[str]:
        yield "one"
        raise LookupError("no second item")

    @service("broken", catalogue=(own := Catalogue()))
    async def broken() -> list[str]:
        return await dotdo.map(note, items(), limit=1)

    async with laboratory(tmp_path, catalogue=_both(own, lab_catalogue)) as lab:
        with pytest.raises(RunBlocked, match="LookupError: no second item"):
            await lab.client.run(broken)


@in_loop
async def test_limit_must_be_a_number_and_a_cancelled_map_ends_what_is_under_way(tmp_path: Path):
    @service("limits", catalogue=(own := Catalogue()))
    async def limits() -> str:
        with pytest.raises(DefinitionError, match="map\\(limit=0\\)"):
            await dotdo.map(note, [], limit=0)
        assert await dotdo.map(note, [], limit=1) == []
        try:
            async with asyncio.timeout(60):
                await dotdo.map(hold, ["a", "b", "c"], limit=2)
        except TimeoutError:
            return "timed out"
        return "went on"

    async with laboratory(tmp_path, catalogue=_both(own, lab_catalogue)) as lab:
        handle = await lab.client.start(limits)
        await lab.world.reached("a")
        await lab.world.reached("b")
        await lab.advance_to_next()
        assert await handle.result() == "timed out"
        assert sorted(lab.world.said) == ["at a", "at b", "cancelled at a", "cancelled at b"]


def test_outside_a_service_it_says_where_it_works():
    with pytest.raises(dotdo.DefinitionError, match="map\\(\\) was called outside a service"):
        asyncio.run(dotdo.map(step, [1]))


def _both(*catalogues: Catalogue) -> Catalogue:
    """One catalogue of several."""
    joined = Catalogue()
    for each in (catalogue, *catalogues):
        for kind in ("action", "service"):
            for found in each.all(kind):
                if joined.find(kind, found.name, found.version) is None:
                    joined.add(kind, found.name, found.version, found, found.handler)
    return joined
