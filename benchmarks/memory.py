"""Memory: the resident set of an idle process, what each run in flight adds, and what a long wait holds.

Idle: the client is open and has done 100 onboardings. In flight: 5,000 onboardings whose last step waits inside its
handler, with three steps behind it; the growth of the resident set, after a garbage collection, per run. Waiting: runs
whose service sleeps for an hour, so they leave memory. An allocator does not give its pages back, so the question is
whether more such runs need more: 5,000 are started and left, then 5,000 more, and the growth by the latter counts.
"""

import asyncio
import ctypes
import gc
from pathlib import Path

from benchmarks import jobs
from benchmarks.driving import in_flight, one_at_a_time
from benchmarks.figures import Figure, at_most, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from dotdo import AsyncDo


def resident() -> int:
    """Bytes of memory that the process has, once what is free has been given back as far as it can be."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("The kernel does not tell the size of the process.")


async def held(runs: int) -> dict[str, float]:
    """In the measuring process: idle, then with runs in flight."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            await one_at_a_time(lambda _: client.run(jobs.onboarding, email=jobs.EMAIL), 100)
            idle = resident()
            # What the first batches need once is not what a run in flight holds.
            await in_flight(lambda _: client.run(jobs.onboarding, email=jobs.EMAIL), 500, 500)
            before = resident()
            handles = [await client.start(jobs.onboarding_gated, email=jobs.EMAIL) for _ in range(runs)]
            await jobs.gate.wait_for(runs)
            after = resident()
            jobs.gate.open()
            for handle in handles:
                await handle.result()
            return {"idle": idle / 2**20, "per_run": (after - before) / runs / 1024}


async def waiting(runs: int) -> float:
    """In the measuring process: bytes that each of the second half of so many waiting runs holds."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            await _leave_waiting(client, runs)
            before = resident()
            await _leave_waiting(client, runs)
            return (resident() - before) / runs


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
    runs = max(2500, scale.of(5000))  # fewer, and the noise of the allocator is larger than what they hold
    found = [measure("benchmarks.memory:held", runs=runs) for _ in range(scale.repetitions)]
    waits = [measure("benchmarks.memory:waiting", runs=runs) for _ in range(scale.repetitions)]
    return [
        median("resident when idle", [one["idle"] for one in found], "MiB", at_most(80), "embedded, without an API"),
        median("per run in flight", [one["per_run"] for one in found], "KiB", at_most(10)),
        median("per run that waits for an hour", waits, "bytes", at_most(50), "0 but for the noise of the allocator"),
    ]
