"""An operator undoes a run that had ended: a cancellation or deadline that comes meanwhile does not begin it anew."""

import asyncio
from pathlib import Path

import pytest

from dotdo import service
from tests.guarantees.lab import book, catalogue, in_loop, laboratory


@service("booked-trip", catalogue=catalogue)
async def booked_trip() -> str:
    return await book(item="seat")


@pytest.mark.parametrize("meanwhile", ["cancel", "deadline"])
@in_loop
async def test_undo_is_made_once(tmp_path: Path, meanwhile: str):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(booked_trip.with_(deadline=100.0 if meanwhile == "deadline" else None))
        assert await handle.result(timeout=60) == "ticket for seat"
        lab.world.fail("unbook seat", 0)  # it stops at its gate
        await lab.client.runs.undo(handle.id)
        await lab.world.reached("unbook seat")
        if meanwhile == "cancel":
            await handle.cancel()
            await lab.until(lambda: lab.engine.live[handle.id].taken > 1)
        else:
            lab.clock.advance(200)
        for _ in range(20):  # whatever that has brought about is durable, and goes on
            await lab.engine.committer.call(lambda: None)
            await asyncio.sleep(0)
        lab.world.open("unbook seat")
        await lab.until_status(handle.id, "completed", "failed", "cancelled")
        run = await handle.get()
        assert (run.status, run.undo) == ("completed", "all")
        assert lab.world.said == ["book seat", "unbook seat"]
