"""`dotdo.publish`: readers see each value once and in order, also across restarts and replays."""

import asyncio
from pathlib import Path

import pytest

import dotdo
from dotdo import ActionFailed, AsyncContext, Catalogue, Do, RunBlocked, action, service
from tests.guarantees.lab import World, book, hold, in_loop, laboratory, note, unbook

pytestmark = pytest.mark.usefixtures("both_doors")

catalogue = Catalogue()
for given in (book, unbook, hold, note):
    catalogue.add("action", given.name, 1, given, given.handler)


@action("flip", retry=1, catalogue=catalogue)
async def flip(ctx: AsyncContext) -> None:
    """Fails as told."""
    if ctx.resource(World).failures.get("flip"):
        raise dotdo.Fail("flipped")


@service("import-files", catalogue=catalogue)
async def import_files(count: int) -> str:
    """Tells how far it is, before and after it waits."""
    for number in range(count):
        dotdo.publish({"done": number, "of": count})
        await note(f"file {number}")
    await dotdo.wait_for_event("go")
    dotdo.publish("finishing")
    return "imported"


@service("booking", catalogue=catalogue)
async def booking() -> str:
    """Tells of something that is undone when it fails."""
    await book("seat")
    dotdo.publish("booked")
    await flip()
    dotdo.publish("flipped")
    return "done"


async def _collect(lab_client: dotdo.AsyncDo, id: str) -> list[object]:
    return [value async for value in lab_client.runs.progress(id)]


@in_loop
async def test_readers_see_every_value_once_across_a_restart(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(import_files, 3)
        assert (await lab.until_asleep(handle.id)).progress == {"done": 2, "of": 3}
        reading = aiter(handle.progress())
        assert [await anext(reading) for _ in range(3)] == [{"done": n, "of": 3} for n in range(3)]
        assert [run.progress for run in await lab.client.runs.list()] == [{"done": 2, "of": 3}]
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        reading = asyncio.create_task(_collect(lab.client, handle.id))
        await lab.client.runs.send_event(handle.id, "go")
        run = await lab.client.runs.wait(handle.id)
        assert run.progress == "finishing"
        assert await reading == [*({"done": n, "of": 3} for n in range(3)), "finishing"]
        assert len(await lab.entries(handle.id, "published")) == 4


@in_loop
async def test_reader_is_told_while_the_run_goes_on(tmp_path: Path):
    @service("slow", catalogue=(own := Catalogue()))
    async def slow() -> None:
        dotdo.publish(1)
        await hold("first")
        dotdo.publish(2)
        await hold("second")

    own.add("action", "hold", 1, hold, hold.handler)
    async with laboratory(tmp_path, catalogue=own) as lab:
        handle = await lab.client.start(slow)
        reading = aiter(handle.progress())
        assert await anext(reading) == 1
        await lab.world.reached("first")
        lab.world.open("first")
        assert await anext(reading) == 2
        await lab.world.reached("second")
        lab.world.open("second")
        with pytest.raises(StopAsyncIteration):
            await anext(reading)


@in_loop
async def test_what_is_undone_and_done_again_is_told_again(tmp_path: Path):
    world = World()
    world.failures = {"flip": 1}
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        handle = await lab.client.start(booking)
        with pytest.raises(ActionFailed):
            await handle.result()
        world.failures = {}
        await lab.client.runs.retry(handle.id)
        assert await handle.result() == "done"
        assert await _collect(lab.client, handle.id) == ["booked", "booked", "flipped"]


@in_loop
async def test_reading_ends_when_the_run_is_blocked_and_an_unknown_run_is_refused(tmp_path: Path):
    @service("talkative", catalogue=(own := Catalogue()))
    async def talkative() -> None:
        dotdo.publish("so far")
        await note("x")
        dotdo.publish("x" * 20_000)

    own.add("action", "note", 1, note, note.handler)
    async with laboratory(tmp_path, catalogue=own) as lab:
        handle = await lab.client.start(talkative)
        with pytest.raises(RunBlocked, match="What is published is 20,002 bytes as JSON; at most 16,384"):
            await handle.result()
        assert await _collect(lab.client, handle.id) == ["so far"]
        with pytest.raises(dotdo.UnknownName):
            await _collect(lab.client, "run_none")
        assert not lab.engine.readers._waiting


def test_sync_client_reads_it_too(tmp_path: Path):
    with Do(str(tmp_path / "dotdo.db"), catalogue=catalogue, resources=[World()]) as client:
        handle = client.start(import_files, 2)
        reading = handle.progress()
        assert next(reading) == {"done": 0, "of": 2}
        handle.send_event("go")
        assert list(reading) == [{"done": 1, "of": 2}, "finishing"]
        assert list(client.runs.progress(handle.id))[-1] == "finishing"
