"""Memory: the resident set of an idle process, what each run in flight adds, and what a long wait holds.

Idle: the client is open and has done 100 onboardings. In flight: onboardings whose last step waits inside its handler,
with three steps behind it. Waiting: runs whose service sleeps for an hour, so they leave memory.

What a run holds is counted by tracemalloc, in a process of its own: every block that Python has allocated, to the byte.
It is what 5,000 more of them add to the first 5,000, which have brought about whatever is there once. Beside it the
growth of the resident set, which is what the machine sees; that has noise of a few MB (arenas of the allocator that are
not full, the page caches of SQLite), so it can tell KiB per run, but not bytes.
"""

import asyncio
import ctypes
import gc
import tracemalloc
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.driving import in_flight, one_at_a_time
from benchmarks.figures import Figure, at_most, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from dotdo import AsyncDo, AsyncHandle


def resident() -> int:
    """Bytes of memory that the process has, once what is free has been given back as far as it can be."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("The kernel does not tell the size of the process.")


async def idle() -> float:
    """In the measuring process: MiB."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            await one_at_a_time(lambda _: client.run(jobs.onboarding, email=jobs.EMAIL), 100)
            return resident() / 2**20


async def held(runs: int, traced: bool) -> float:
    """In the measuring process: bytes that each of the second half of so many runs in flight adds."""
    now = _allocated if traced else resident
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            await in_flight(lambda _: client.run(jobs.onboarding, email=jobs.EMAIL), 500, 500)
            _begin(traced)
            handles: list[AsyncHandle[Any]] = []
            sizes: list[int] = []
            for _ in range(2):
                handles += [await client.start(jobs.onboarding_gated, email=jobs.EMAIL) for _ in range(runs)]
                await jobs.gate.wait_for(len(handles))
                sizes.append(now())
            tracemalloc.stop()
            jobs.gate.open()
            for handle in handles:
                await handle.result()
            return (sizes[1] - sizes[0]) / runs


async def waiting(runs: int, traced: bool) -> float:
    """In the measuring process: bytes that each of the second half of so many waiting runs holds."""
    now = _allocated if traced else resident
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            _begin(traced)
            await _leave_waiting(client, runs)
            before = now()
            await _leave_waiting(client, runs)
            return (now() - before) / runs


def _begin(traced: bool) -> None:
    if traced:
        tracemalloc.start()


def _allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _leave_waiting(client: AsyncDo, runs: int) -> None:
    ids: list[str] = []
    for _ in range(0, runs, 500):
        handles = await asyncio.gather(*(client.start(jobs.wait_an_hour, email=jobs.EMAIL) for _ in range(500)))
        ids += [handle.id for handle in handles]
    for id in ids:
        while (await client.runs.get(id)).status != "waiting":  # noqa: ASYNC110 - nothing tells that a run was parked
            await asyncio.sleep(0.05)


def figures(scale: Scale) -> list[Figure]:
    """MiB, KiB and bytes."""
    runs, times = max(2500, scale.of(5000)), range(scale.repetitions)
    found = {
        (what, traced): [measure(f"benchmarks.memory:{what}", runs=runs, traced=traced) for _ in times]
        for what in ("held", "waiting")
        for traced in (True, False)
    }

    def kib(traced: bool) -> list[float]:
        return [one / 1024 for one in found["held", traced]]

    grown = "growth of the resident set"
    return [
        median(
            "resident when idle",
            [measure("benchmarks.memory:idle") for _ in times],
            "MiB",
            at_most(80),
            "embedded, without an API",
        ),
        median("per run in flight", kib(True), "KiB", at_most(10), "blocks that Python allocated"),
        median("per run in flight, resident", kib(False), "KiB", None, grown),
        median("per run that waits for an hour", found["waiting", True], "bytes", at_most(50), "the same"),
        median("per run that waits for an hour, resident", found["waiting", False], "bytes", None, f"{grown}: noise"),
    ]
