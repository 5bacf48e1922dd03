"""Latency while the store is busy with something large: a checkpoint, or a result of many megabytes.

Onboardings one at a time, beside actions with results of 50 kB that make the write-ahead log grow, so that the store
copies it into its file again and again. Only a checkpoint writes that file; an onboarding counts as overlapping one
when the file was written during it, or at most 10 ms before it (the clock of file times has such steps). Then the same
beside results of 64 MB, just below what a value may be.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.driving import latency
from benchmarks.figures import Figure, at_most, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from dotdo import AsyncDo

TICK_NS = 10_000_000


async def overlapping(samples: int) -> dict[str, Any]:
    """In the measuring process: the onboardings that overlapped a checkpoint."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            seconds = await _beside(client, 50_000, 4, lambda found: len(found) >= samples, folder / "dotdo.db")
            return {"samples": len(seconds), **latency(seconds)}


async def beside_large(results: int) -> dict[str, Any]:
    """In the measuring process: all onboardings beside some very large results."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            large = asyncio.ensure_future(_make(client, 64_000_000, results))
            seconds = await _beside(client, 0, 0, lambda _: large.done(), None)
            await large
            return {"samples": len(seconds), **latency(seconds)}


async def _make(client: AsyncDo, size: int, times: int) -> None:
    for _ in range(times):
        await client.run(jobs.make_text, size=size)


async def _beside(client: AsyncDo, size: int, makers: int, enough: Any, file: Path | None) -> list[float]:
    """Onboards until there is enough; of those, what overlapped a write of the file, if there is one."""
    makers_at_work = [asyncio.ensure_future(_make(client, size, 1_000_000)) for _ in range(makers)]
    seconds: list[float] = []
    while not enough(seconds):
        before, began = time.perf_counter(), time.time_ns()
        await client.run(jobs.onboarding, email=jobs.EMAIL)
        took = time.perf_counter() - before
        if file is None or os.stat(file).st_mtime_ns >= began - TICK_NS:
            seconds.append(took)
    for maker in makers_at_work:
        maker.cancel()
    await asyncio.gather(*makers_at_work, return_exceptions=True)
    return seconds


def figures(scale: Scale) -> list[Figure]:
    """p50 and p99."""
    repetitions = range(scale.repetitions)
    found = [measure("benchmarks.checkpoints:overlapping", samples=scale.of(300)) for _ in repetitions]
    large = [measure("benchmarks.checkpoints:beside_large", results=3) for _ in repetitions]
    note = f"{found[0]['samples']} onboardings that overlapped a checkpoint"
    return [
        median("during a checkpoint: one onboarding, p50", [one["p50"] for one in found], "ms", None, note),
        median("during a checkpoint: one onboarding, p99", [one["p99"] for one in found], "ms", at_most(50), note),
        median("beside results of 64 MB: one onboarding, p50", [one["p50"] for one in large], "ms"),
        median("beside results of 64 MB: one onboarding, p99", [one["p99"] for one in large], "ms", at_most(50)),
    ]
