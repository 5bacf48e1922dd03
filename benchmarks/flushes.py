"""Flushes of the disk, and how much they cost: fsync and fdatasync calls per onboarding, alone and in a flood.

Counted exactly, in the measuring process, by a shim under the C library (syncs.c; needs a C compiler). In series is the
median of single onboardings, one at a time: nothing else flushes then but a checkpoint now and then, which is in the
mean beside it. Then the same with each call made 1 ms slower, as on an ordinary disk; "no loss of throughput" is at
least 0.9 of the rate without, both under the shim, since two floods of the same code differ by that much. Without a
compiler the cache flushes that the machine's disks report are counted instead, which includes those of other processes,
and nothing is slowed.
"""

import statistics
from typing import Any

from benchmarks import jobs
from benchmarks.driving import device_flushes, flood, in_flight, latency, one_at_a_time
from benchmarks.figures import Figure, at_least, at_most, median
from benchmarks.flood import IN_FLIGHT
from benchmarks.processes import measure, scratch, sync_environment, syncs
from benchmarks.scale import Scale


async def counted(runs: int, counts_calls: bool) -> dict[str, float]:
    """In the measuring process: runs alone, then four times as many in a flood."""
    count = syncs if counts_calls else device_flushes
    with scratch() as folder:
        async with jobs.open_client(folder) as client:

            async def start(_: int) -> Any:
                return await client.run(jobs.onboarding, email=jobs.EMAIL)

            await in_flight(start, 500, IN_FLIGHT)
            seconds, flushed = [], []
            for _ in range(runs):
                before = count()
                seconds += await one_at_a_time(start, 1)
                flushed.append(count() - before)
            between = count()
            found = (await flood(start, runs * 4, IN_FLIGHT, 1))[0]
            return {
                "in_series": statistics.median(flushed),
                "alone": statistics.mean(flushed),
                "in_flood": (count() - between) / (runs * 4),
                "rate": found["runs_per_second"],
                **latency(seconds),
            }


def figures(scale: Scale) -> list[Figure]:
    """Counts, and what is left of the speed when a flush is slow."""
    plain, slow = sync_environment(), sync_environment(delay_us=1000)
    size = {"runs": scale.of(500), "counts_calls": plain is not None}
    how = "fsync and fdatasync calls, by the shim" if plain else "flushes of the machine's disks: no C compiler found"
    fast = [measure("benchmarks.flushes:counted", env=plain, **size) for _ in range(scale.repetitions)]
    found = [
        median("flushes in series per onboarding, alone", [one["in_series"] for one in fast], "", at_most(3), how),
        median("flushes per onboarding alone, mean", [one["alone"] for one in fast], ""),
        median("flushes per onboarding, in a flood", [one["in_flood"] for one in fast], "", at_most(0.1), how),
    ]
    if slow is not None:
        slowed = [measure("benchmarks.flushes:counted", env=slow, **size) for _ in range(scale.repetitions)]
        rates = [one["rate"] for one in slowed]
        ratios = [one["rate"] / before["rate"] for one, before in zip(slowed, fast, strict=True)]
        found += [
            median("each flush 1 ms slower: one onboarding, p50", [one["p50"] for one in slowed], "ms", at_most(5)),
            median("each flush 1 ms slower: one onboarding, p99", [one["p99"] for one in slowed], "ms"),
            median("each flush 1 ms slower: in a flood", rates, "runs/s"),
            median("each flush 1 ms slower: flood, of before", ratios, "x", at_least(0.9)),
        ]
    return found
