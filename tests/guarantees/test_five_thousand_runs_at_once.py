"""Guarantee 11: 5,000 runs at once in one process: all in memory together, none mixed up, nothing left behind."""

import asyncio
import gc
import resource
from collections import Counter
from pathlib import Path
from typing import Any

from dotdo import AsyncContext, action, random, service, wait_for_event
from dotdo.engine.running import LiveRun
from tests.guarantees.lab import World, catalogue, in_loop, laboratory

RUNS = 5_000


@action("weigh", catalogue=catalogue)
async def weigh(parcel: int) -> dict[str, int]:
    return {"parcel": parcel, "grams": parcel * 7 % 1000}


@action("stamp", catalogue=catalogue)
async def stamp(ctx: AsyncContext, parcel: int, office: str) -> str:
    if office == "second":
        await ctx.resource(World).pass_gate("all of them")
    return f"{office} {parcel}"


@service("sends", catalogue=catalogue)
async def sends(parcel: int) -> list[Any]:
    weighed = await weigh(parcel=parcel)
    first, second = await asyncio.gather(
        stamp(parcel=weighed["parcel"], office="first"), stamp(parcel=parcel, office="second")
    )
    return [weighed["grams"], first, second, random().random()]


def living() -> int:
    """How many runs are in this process's memory, of whatever engine."""
    gc.collect()
    return sum(type(thing) is LiveRun for thing in gc.get_objects())


@in_loop
async def test_five_thousand_runs_in_flight_together_all_complete(tmp_path: Path):
    before = living()
    async with laboratory(tmp_path, check_replay=False) as lab:
        handles = await asyncio.gather(*(lab.client.start(sends, parcel=parcel) for parcel in range(RUNS)))
        assert len({handle.id for handle in handles}) == RUNS

        async def all_stand_at_the_gate() -> bool:
            return await lab.sql("select count(*) from journal where kind = 'completed'") == [(2 * RUNS,)]

        await lab.until(all_stand_at_the_gate)
        assert len(lab.engine.live) == RUNS
        lab.world.open("all of them")
        results = await asyncio.gather(*(handle.result() for handle in handles))

        for parcel, (grams, first, second, _) in enumerate(results):
            assert (grams, first, second) == (parcel * 7 % 1000, f"first {parcel}", f"second {parcel}")
        assert len({drawn for _, _, _, drawn in results}) == RUNS  # each run has random numbers of its own
        assert lab.engine.live == {}
        statuses = await lab.engine.read(lab.engine.store.count_by_status)
        assert statuses == {"completed": RUNS}
        kinds = Counter(entry.kind for entry in await handles[-1].journal())
        assert kinds == {"accepted": 1, "completed": 3, "ended": 1}
    gc.collect()
    assert living() <= before


@service("waits-for-the-word", catalogue=catalogue)
async def waits_for_the_word(number: int) -> str:
    word = await wait_for_event("word")
    return f"{number} {word}"


@in_loop
async def test_five_thousand_waiting_runs_take_no_memory_and_wake_together(tmp_path: Path):
    async with laboratory(tmp_path, check_replay=False) as lab:
        handles = await asyncio.gather(*(lab.client.start(waits_for_the_word, number=n) for n in range(RUNS)))
        await lab.until(lambda: lab.engine.live == {})
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await asyncio.gather(*(handle.send_event("word", f"hello {n}") for n, handle in enumerate(handles)))
        results = await asyncio.gather(*(handle.result() for handle in handles))
        assert results == [f"{n} hello {n}" for n in range(RUNS)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < RUNS * 20, f"{grown} KiB for {RUNS} runs"
