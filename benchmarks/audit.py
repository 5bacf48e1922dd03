"""The audit: entries per second of `dotdo audit verify`, over the journals of 10,000 onboardings.

Through the same `Audit` that the command uses: every entry's data is hashed, every chain followed, every anchor
checked.
"""

import time

from benchmarks import jobs
from benchmarks.driving import in_flight
from benchmarks.figures import Figure, at_least, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader


async def verified(runs: int, repetitions: int) -> list[float]:
    """In the measuring process: entries per second."""
    rates: list[float] = []
    with scratch() as folder:
        async with jobs.open_client(folder) as client:
            await in_flight(lambda _: client.run(jobs.onboarding, email=jobs.EMAIL), runs, 500)
        path = str(folder / "dotdo.db")
        key = audit_key(path, make=False)
        for _ in range(repetitions):
            audit = Audit(open_reader(path), key)
            before = time.perf_counter()
            findings = list(audit.verify())
            rates.append(audit.entries / (time.perf_counter() - before))
            if findings or audit.runs != runs:
                raise RuntimeError(f"The audit of {runs} sound runs saw {audit.runs} and found: {findings[:3]}")
    return rates


def figures(scale: Scale) -> list[Figure]:
    """Entries per second."""
    found = measure("benchmarks.audit:verified", runs=scale.of(10_000), repetitions=scale.repetitions)
    return [median("audit verify", found, "entries/s", at_least(200_000))]
