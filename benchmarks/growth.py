"""Growth: what a store with a million ended onboardings makes slower, and a run of 10,000 steps.

The store is filled by filling.py, whose copies pass the audit. The same operations are then timed on it and on an empty
store, each in a fresh process, in turns; the figure is the ratio of the p95s, pair by pair. Start: until the run's id
is there, which is until it is durable. Complete: from there to the result. Status: a hundred old runs, each asked for
once before. Claim: an operator cancels a run that had left memory (it sleeps for an hour); its node claims it, reads
its journal and ends it. A look: the engine's regular one for due runs, when there are none.

What reads more the more there is (a status from a cold disk, lists that match little, counts) is printed for the large
store, without a bar.
"""

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.driving import one_at_a_time
from benchmarks.figures import Bar, Figure, at_most, median
from benchmarks.filling import OLD
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from dotdo import AsyncDo
from dotdo.engine.engine import Engine

RUNS, STEPS = 1_000_000, 10_000
COMPARED = ("start", "complete", "status", "claim", "look")
LISTS: dict[str, dict[str, Any]] = {
    "runs list": {},
    "runs list, of the failed (there are none)": {"status": "failed"},
    "runs list, of the waiting (there are none)": {"status": "waiting"},
    "runs list, by a name (there are none)": {"name": "nothing-of-that-name"},
}

Seconds = dict[str, list[float]]


async def operations(folder: str, times: int, lists: bool) -> dict[str, dict[str, float]]:
    """In the measuring process: p50 and p95 of each operation, in ms. lists: also of those that read much."""
    before = time.perf_counter()
    async with jobs.open_client(folder) as client:
        await client.run(jobs.onboarding, email=jobs.EMAIL)
        found: Seconds = {"open": [time.perf_counter() - before]}
        await one_at_a_time(lambda _: client.run(jobs.onboarding, email=jobs.EMAIL), 100)
        found["start"], found["complete"], new = await _runs(client, times)
        old = _old_runs(folder) or new
        found["cold status"] = await _timed(old[:100], client.runs.get)
        found["status"] = await _timed(random.choices(old[:100], k=times), client.runs.get)
        found["claim"] = await _claims(client, max(20, times // 5))
        engine = await client.platform()
        assert isinstance(engine, Engine)
        found["look"] = await _timed(range(times), lambda _: engine.claimer._sweep())
        if lists:
            few = range(max(3, times // 50))
            for name, filter in LISTS.items():
                found[name] = await _timed(few, lambda _, filter=filter: client.runs.list(**filter))
            found["runs show: a run and its journal"] = await _timed(old[100:200] or old, lambda id: _show(client, id))
            found["counts by status"] = await _timed(few, lambda _: engine.count_by_status())
    return {name: _spread(seconds) for name, seconds in found.items()}


async def _runs(client: AsyncDo, times: int) -> tuple[list[float], list[float], list[str]]:
    starts: list[float] = []
    ends: list[float] = []
    ids: list[str] = []
    for _ in range(times):
        before = time.perf_counter()
        handle = await client.start(jobs.onboarding, email=jobs.EMAIL)
        started = time.perf_counter()
        await handle.result()
        ends.append(time.perf_counter() - started)
        starts.append(started - before)
        ids.append(handle.id)
    return starts, ends, ids


async def _claims(client: AsyncDo, times: int) -> list[float]:
    handles = [await client.start(jobs.wait_an_hour, email=jobs.EMAIL) for _ in range(times)]
    for handle in handles:
        while (await handle.get()).status != "waiting":  # noqa: ASYNC110 - nothing tells that a run was parked
            await asyncio.sleep(0.01)

    async def cancel(handle: Any) -> None:
        await handle.cancel()
        while (await handle.get()).status != "cancelled":  # noqa: ASYNC110 - it counts when a client sees it
            await asyncio.sleep(0)

    return await _timed(handles, cancel)


async def _show(client: AsyncDo, id: str) -> None:
    await client.runs.get(id)
    await client.runs.journal(id)


async def _timed(subjects: Any, operation: Callable[[Any], Awaitable[Any]]) -> list[float]:
    seconds: list[float] = []
    for subject in subjects:
        before = time.perf_counter()
        await operation(subject)
        seconds.append(time.perf_counter() - before)
    return seconds


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return {"p50": statistics.median(ordered) * 1000, "p95": p95 * 1000}


def _old_runs(folder: str) -> list[str]:
    file = Path(folder, OLD)
    return json.loads(file.read_text()) if file.exists() else []


async def long_run(folder: str, steps: int) -> dict[str, float]:
    """In the measuring process, all in ms: a step of one run with so many, its status, and its whole journal."""
    async with jobs.open_client(folder) as client:
        await client.run(jobs.count, steps=100)
        before = time.perf_counter()
        handle = await client.start(jobs.count, steps=steps)
        await handle.result()
        step = (time.perf_counter() - before) / steps * 1000
        status = _spread(await _timed([handle.id] * 50, client.runs.get))["p50"]
        before = time.perf_counter()
        if len(await handle.journal()) != steps + 2:
            raise RuntimeError(f"The journal of {steps} steps has another length.")
        return {"step": step, "status": status, "journal": (time.perf_counter() - before) * 1000}


def figures(scale: Scale) -> list[Figure]:
    """Ratios, then ms."""
    runs, times, steps = scale.of(RUNS), scale.of(500), scale.of(STEPS)
    with scratch() as large:
        filled = measure("benchmarks.filling:fill", folder=str(large), runs=runs)
        pairs: list[tuple[Any, Any]] = []
        for _ in range(scale.repetitions):
            with scratch() as empty:
                small = measure("benchmarks.growth:operations", folder=str(empty), times=times, lists=False)
            pairs.append((small, measure("benchmarks.growth:operations", folder=str(large), times=times, lists=True)))
        long = [measure("benchmarks.growth:long_run", folder=str(large), steps=steps) for _ in range(scale.repetitions)]
        size = os.path.getsize(large / "dotdo.db") / 2**30
    many = f"{runs:,} ended runs"
    note = f"{size:.1f} GiB, filled in {filled['seconds']:.0f} s; a sample of it passed the audit"
    found: list[Figure] = []
    for name in COMPARED:
        ratios = [full[name]["p95"] / small[name]["p95"] for small, full in pairs]
        beside = " / ".join(
            f"{statistics.median(one[name]['p95'] for one in side):.3g}" for side in zip(*pairs, strict=True)
        )
        found.append(
            median(f"{many}: {name}, p95, of an empty store's", ratios, "x", at_most(1.5), f"ms: {beside}; {note}")
        )
        note = "empty / full"
    found.append(median(f"{many}: open, and a first result", [one["open"]["p50"] for _, one in pairs], "ms"))
    for name in ("cold status", *(name for name in pairs[0][1] if name.startswith(("runs ", "counts")))):
        found.append(median(f"{many}: {name}, p50", [one[name]["p50"] for _, one in pairs], "ms"))
    bars: dict[str, Bar] = {"step": at_most(1)}
    for name in ("step", "status", "journal"):
        found.append(median(f"a run of {steps:,} steps: {name}", [one[name] for one in long], "ms", bars.get(name)))
    return found
