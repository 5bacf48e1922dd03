"""Replay: how fast a service's code is run from its journal, as after a restart.

Recorded steps per second through `dotdo.engine.replaying.replay`, from stored entries (decoding them is in it) to the
end of the code: of a service of 1,000 steps in sequence, and of the onboarding, where each replay also begins and ends
a run.
"""

import asyncio
import time
from typing import Any

from benchmarks import jobs
from benchmarks.driving import STEPS
from benchmarks.figures import Figure, at_least, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from dotdo.catalogue import Snapshot, default_catalogue
from dotdo.engine.replaying import replay
from dotdo.journal import Entry
from dotdo.service import Service

Recorded = tuple[str, list[Entry]]


async def _recorded(runs: int, length: int) -> dict[str, list[Recorded]]:
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            onboardings = [await client.start(jobs.onboarding, email=jobs.EMAIL) for _ in range(runs)]
            counts = [await client.start(jobs.count, steps=length)]
            for handle in [*onboardings, *counts]:
                await handle.result()
            return {
                "onboarding": [(handle.id, await handle.journal()) for handle in onboardings],
                "sequence": [(handle.id, await handle.journal()) for handle in counts],
            }


def replayed(runs: int, length: int, repetitions: int) -> dict[str, list[float]]:
    """In the measuring process: steps per second."""
    recorded = asyncio.run(_recorded(runs, length))
    return {
        "onboarding": [_rate(jobs.onboarding, recorded["onboarding"], STEPS, 5) for _ in range(repetitions)],
        "sequence": [_rate(jobs.count, recorded["sequence"], length, 20) for _ in range(repetitions)],
    }


def _rate(definition: Service[..., Any], recorded: list[Recorded], steps: int, times: int) -> float:
    before = time.perf_counter()
    for _ in range(times):
        for run, entries in recorded:
            done = replay(definition, run, entries, Snapshot("", {}), default_catalogue)
            if done.new or done.error or len(done.asked) != steps:
                raise RuntimeError(f"The replay of {run} went elsewhere: {done.error or done.new}")
    return steps * len(recorded) * times / (time.perf_counter() - before)


def figures(scale: Scale) -> list[Figure]:
    """Recorded steps per second."""
    found = measure("benchmarks.replays:replayed", runs=scale.of(500), length=1000, repetitions=scale.repetitions)
    return [
        median("replay of 1,000 steps in sequence", found["sequence"], "steps/s", at_least(100_000)),
        median("replay of onboardings", found["onboarding"], "steps/s", at_least(100_000)),
    ]
