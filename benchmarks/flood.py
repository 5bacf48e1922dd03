"""Throughput: onboardings with 500 in flight.

One process is client and engine at once, as an application that embeds dotdo is. After a warm-up, floods in a row; each
counts from the first submission to the last result. CPU is that of the whole process (all threads, user and system),
per 1000 steps, four to an onboarding; it moves less than the rate when others use the machine.
"""

from typing import Any

from benchmarks import jobs
from benchmarks.driving import STEPS, flood, in_flight
from benchmarks.figures import Figure, at_least, at_most, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale

IN_FLIGHT = 500


async def floods(runs: int, repetitions: int) -> dict[str, Any]:
    """In the measuring process."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:

            async def start(_: int) -> None:
                await client.run(jobs.onboarding, email=jobs.EMAIL)

            await in_flight(start, 500, IN_FLIGHT)
            return {"floods": await flood(start, runs, IN_FLIGHT, repetitions)}


def figures(scale: Scale) -> list[Figure]:
    """Rate and CPU."""
    found = measure("benchmarks.flood:floods", runs=scale.of(4000), repetitions=scale.repetitions)["floods"]
    rates = [one["runs_per_second"] for one in found]
    return [
        median("onboardings, 500 in flight", rates, "runs/s", at_least(4000)),
        median("steps of these", [rate * STEPS for rate in rates], "steps/s", at_least(16_000)),
        median("CPU of these", [one["cpu_per_1000_steps"] for one in found], "s/1000 steps", at_most(0.06)),
    ]
