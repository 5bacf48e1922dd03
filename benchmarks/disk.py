"""Bytes on disk: the store's files after 5,000 onboardings and an orderly end, per onboarding, less an empty store's.

An onboarding is six journal entries and a row of state, with their indexes. Nothing is left out of the journal for it.
"""

from pathlib import Path

from benchmarks import jobs
from benchmarks.driving import in_flight
from benchmarks.figures import Figure, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale


async def bytes_each(runs: int) -> float:
    """In the measuring process."""
    with scratch() as folder:
        async with jobs.open_client(folder):
            pass
        empty = _size(folder)
        async with jobs.open_client(folder) as client:
            await in_flight(lambda _: client.run(jobs.onboarding, email=jobs.EMAIL), runs, 500)
        return (_size(folder) - empty) / runs


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def figures(scale: Scale) -> list[Figure]:
    """Bytes."""
    found = [measure("benchmarks.disk:bytes_each", runs=scale.of(5000)) for _ in range(scale.repetitions)]
    return [median("on disk per onboarding", found, "bytes")]
