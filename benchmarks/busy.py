"""Beside one busy handler: the thread of a sync handler executes Python code without a pause, in the same process.

It competes for the interpreter's lock all the time. Then a flood of onboardings with 500 in flight, and onboardings one
at a time. The busy handler is itself an action of the same client.
"""

import asyncio
from typing import Any

from benchmarks import jobs
from benchmarks.driving import flood, in_flight, latency, one_at_a_time
from benchmarks.figures import Figure, at_least, at_most, median
from benchmarks.flood import IN_FLIGHT
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale


async def beside_busy(runs: int) -> dict[str, float]:
    """In the measuring process."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:

            async def start(_: int) -> Any:
                return await client.run(jobs.onboarding, email=jobs.EMAIL)

            await in_flight(start, 500, IN_FLIGHT)
            busy = await client.start(jobs.spin)
            await asyncio.to_thread(jobs.spinning.wait)
            try:
                found = (await flood(start, runs, IN_FLIGHT, 1))[0]
                seconds = await one_at_a_time(start, max(100, runs // 10))
            finally:
                jobs.spin_over.set()
            await busy.result()
            return {"rate": found["runs_per_second"], **latency(seconds)}


def figures(scale: Scale) -> list[Figure]:
    """Rate and latency."""
    found = [measure("benchmarks.busy:beside_busy", runs=scale.of(3000)) for _ in range(scale.repetitions)]
    return [
        median("beside a busy handler: 500 in flight", [one["rate"] for one in found], "runs/s", at_least(1000)),
        median("beside a busy handler: one onboarding, p50", [one["p50"] for one in found], "ms"),
        median("beside a busy handler: one onboarding, p99", [one["p99"] for one in found], "ms", at_most(25)),
    ]
