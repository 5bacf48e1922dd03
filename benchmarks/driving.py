"""Drives any system the same way: one run at a time, or many in flight. Knows no system, so peers are driven by it too.

A run is `start(i)`: a coroutine that submits one run and returns when its result is there.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Start = Callable[[int], Awaitable[Any]]

STEPS = 4  # of one onboarding


async def one_at_a_time(start: Start, runs: int) -> list[float]:
    """Seconds of each run."""
    seconds: list[float] = []
    for number in range(runs):
        before = time.perf_counter()
        await start(number)
        seconds.append(time.perf_counter() - before)
    return seconds


async def in_flight(start: Start, runs: int, limit: int) -> float:
    """Seconds for all of `runs`, with `limit` of them in flight at any time."""
    numbers = iter(range(runs))

    async def worker() -> None:
        for number in numbers:
            await start(number)

    before = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(min(limit, runs))))
    return time.perf_counter() - before


async def flood(start: Start, runs: int, limit: int, repetitions: int) -> list[dict[str, float]]:
    """Floods in a row: the rate by the wall clock, and this process's CPU time, all threads, user and system."""
    found: list[dict[str, float]] = []
    for _ in range(repetitions):
        cpu = time.process_time()
        seconds = await in_flight(start, runs, limit)
        cpu = time.process_time() - cpu
        found.append({"runs_per_second": runs / seconds, "cpu_per_1000_steps": cpu / (runs * STEPS) * 1000})
    return found


def latency(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in ms."""
    ordered = sorted(seconds)
    return {
        "p50": statistics.median(ordered) * 1000,
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000,
    }


def device_flushes() -> int:
    """Cache flushes completed by the machine's disks since boot (Documentation/block/stat.rst, 16th field).

    Of the whole machine: other processes and the file system's own commits count too.
    """
    total = 0
    for disk in Path("/sys/block").iterdir():
        if disk.name.startswith(("vd", "nvme", "sd", "xvd")):
            fields = (disk / "stat").read_text().split()
            total += int(fields[15]) if len(fields) > 15 else 0
    return total
