"""Guarantee 10: a timer of thirty days in virtual time: holds no memory, survives restarts, fires once, never early."""

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from dotdo import now, service, sleep
from tests.guarantees.lab import book, catalogue, in_loop, laboratory, note

THIRTY_DAYS = timedelta(days=30)


@service("renews", catalogue=catalogue)
async def renews(months: int) -> list[str]:
    days = [now().isoformat()]
    for month in range(months):
        await note(text=f"paid for month {month}")
        await sleep(THIRTY_DAYS.total_seconds())
        days.append(now().isoformat())
    return days


@in_loop
async def test_thirty_days_pass_and_the_service_goes_on_at_the_minute(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(renews, months=1)
        waiting = await lab.until_asleep(handle.id)
        assert lab.engine.live == {}
        assert waiting.waiting_for is not None
        assert waiting.waiting_for.until == lab.clock.now() + THIRTY_DAYS // timedelta(milliseconds=1)

        lab.clock.advance(THIRTY_DAYS - timedelta(milliseconds=1))
        await lab.sweep()
        assert lab.engine.live == {}
        assert await lab.entries(handle.id, "fired") == []

        lab.clock.advance(timedelta(milliseconds=1))
        start, end = map(datetime.fromisoformat, await handle.result())
        assert end - start == THIRTY_DAYS
        assert len(await lab.entries(handle.id, "fired")) == 1
        assert lab.world.said == ["paid for month 0"]


@in_loop
async def test_timer_that_falls_due_while_no_engine_runs_fires_at_the_next_start(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(renews, months=1)
        await lab.until_asleep(handle.id)
    lab.clock.advance(timedelta(days=45))
    async with laboratory(tmp_path, world=lab.world, clock=lab.clock) as lab:
        start, end = map(datetime.fromisoformat, await lab.client.handle(handle.id).result())
        assert end - start == timedelta(days=45)
        assert len(await lab.entries(handle.id, "fired")) == 1
        assert lab.world.said == ["paid for month 0"]


@in_loop
async def test_a_year_of_months_with_an_engine_of_its_own_for_each(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(renews, months=12)
        await lab.until_asleep(handle.id)
    for month in range(1, 13):
        async with laboratory(tmp_path, world=lab.world, clock=lab.clock) as lab:
            lab.clock.advance(THIRTY_DAYS)
            if month < 12:
                await lab.until_journal_has(handle.id, "fired", month)
                await lab.until_asleep(handle.id)
            else:
                days = [datetime.fromisoformat(day) for day in await lab.client.handle(handle.id).result()]
    assert [after - before for before, after in pairwise(days)] == [THIRTY_DAYS] * 12
    assert lab.world.said == [f"paid for month {month}" for month in range(12)]


@service("gives-up-after-a-month", catalogue=catalogue)
async def gives_up_after_a_month() -> str:
    await book(item="offer")
    try:
        async with asyncio.timeout(THIRTY_DAYS.total_seconds()):
            await asyncio.gather(sleep(THIRTY_DAYS.total_seconds() - 1), sleep(THIRTY_DAYS.total_seconds() + 1))
    except TimeoutError:
        return "expired"
    return "in time"


@in_loop
async def test_timers_that_are_due_in_the_same_moment_of_a_long_sleep_fire_in_their_order(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(gives_up_after_a_month)
        await lab.until_asleep(handle.id)
        lab.clock.advance(timedelta(days=60))
        assert await handle.result() == "expired"
        fired = await lab.data(handle.id, "fired")
        assert [one.due for one in fired] == sorted(one.due for one in fired)
        assert len(fired) == 2
