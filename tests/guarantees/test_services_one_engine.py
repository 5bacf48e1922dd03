"""One engine per file: what one that is gone has left is rescued. Who takes over: test_take_over.py."""

from pathlib import Path

import pytest

from dotdo import service
from tests.guarantees.lab import book, catalogue, hold, in_loop, laboratory

pytestmark = pytest.mark.of_files("one engine for each file")


@service("is-left-behind", catalogue=catalogue)
async def is_left_behind() -> str:
    await book(item="once")
    return await hold(gate="left")


@in_loop
async def test_runs_of_a_node_that_is_gone_are_rescued_whenever_they_turn_up(tmp_path: Path):
    """Rescue is a sweep for ever, not a thing of the start: a run may come to light late."""
    async with laboratory(tmp_path, grace=0.05) as lab:
        handle = await lab.client.start(is_left_behind)
        await lab.world.reached("left")
    async with laboratory(tmp_path, world=lab.world) as lab:
        await lab.until_journal_has(handle.id, "claimed")
        await lab.world.reached("left")
        lab.engine.live.pop(handle.id).release()  # as if its node had died without a word
        await lab.sql("update runs set owner = 'node_of_the_dead' where id = :run", run=handle.id)
        lab.engine.claimer.hint()
        lab.world.open("left")
        assert await lab.client.handle(handle.id).result() == "left"
        assert [claimed.crashed for claimed in await lab.data(handle.id, "claimed")][-1] is True
        assert lab.world.said.count("book once") == 1
