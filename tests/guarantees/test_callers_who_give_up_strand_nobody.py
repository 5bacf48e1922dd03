"""Whoever asks for a run may give up waiting at any moment, be it before the run is durable: the run goes on all the
same."""

import asyncio
from pathlib import Path

import pytest

from tests.guarantees.lab import Lab, in_loop, laboratory
from tests.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("each_store")


async def ask_and_give_up(lab: Lab, delay: float | None) -> str:
    """Asks for a run, and gives up as soon as its first entry is on its way to the store; returns its id."""
    noting = lab.client.action("note", key="given up", delay=delay)
    asking = asyncio.ensure_future(noting.start(text="noted all the same"))
    async with asyncio.timeout(PATIENCE):
        while not lab.engine.live:
            assert not asking.done(), "nothing was given up"
            await asyncio.sleep(0)
    (id,) = lab.engine.live
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    return id


@in_loop
async def test_delayed_run_whose_caller_gave_up_starts_at_its_time(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        id = await ask_and_give_up(lab, delay=60)
        await lab.until(lambda: not lab.engine.live)  # nobody has it until its time has come
        lab.clock.advance(60)
        assert (await lab.engine.result(id)).result == "noted all the same"
        assert lab.world.said == ["noted all the same"]


@in_loop
async def test_run_whose_caller_gave_up_goes_on(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        id = await ask_and_give_up(lab, delay=None)
        assert (await lab.engine.result(id)).result == "noted all the same"
        assert lab.world.said == ["noted all the same"]
