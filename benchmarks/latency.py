"""Latency: onboardings, and single actions, one at a time.

Each from the call to the typed result, in one process, after a warm-up; the p99 of a repetition is that of 300 runs.
`Do` is the same through the client for code without async, which has a thread of its own for the engine.

An onboarding waits for three commits, one after the other, and an action for two, so what a commit takes is measured
beside it: SQLite alone, one row of the size of an entry, as durable (write-ahead log, synchronous=FULL), on the same
disk, in the same rounds. It took 0.04 ms where the bars were set; the notes say what is left without the commits.
"""

import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

from benchmarks import jobs
from benchmarks.driving import latency, one_at_a_time
from benchmarks.figures import Figure, at_most, median, number
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from dotdo import Do

Latency = dict[str, float]


async def alone(runs: int, repetitions: int) -> dict[str, list[Latency]]:
    """In the measuring process."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:

            async def onboard(_: int) -> Any:
                return await client.run(jobs.onboarding, email=jobs.EMAIL)

            async def act(_: int) -> Any:
                return await client.run(jobs.create_user, email=jobs.EMAIL)

            found: dict[str, list[Latency]] = {"onboarding": [], "action": [], "commit": []}
            await one_at_a_time(onboard, 50)
            for _ in range(repetitions):
                found["onboarding"].append(latency(await one_at_a_time(onboard, runs)))
                found["action"].append(latency(await one_at_a_time(act, runs)))
                found["commit"].append(latency(_bare_commits(folder, runs)))
            return found


def _bare_commits(folder: Path, count: int) -> list[float]:
    with closing(apsw.Connection(str(folder / "bare.db"))) as connection:
        connection.execute("pragma journal_mode = wal").fetchall()
        connection.execute("pragma synchronous = full")
        connection.execute("create table if not exists entries (number integer primary key, data text)")
        seconds: list[float] = []
        for _ in range(count):
            before = time.perf_counter()
            connection.execute("insert into entries (data) values (?)", ("x" * 300,))
            seconds.append(time.perf_counter() - before)
        return seconds


def alone_without_async(runs: int, repetitions: int) -> list[Latency]:
    """The same through `Do`, in the measuring process."""
    found: list[Latency] = []
    with scratch() as folder, Do(f"sqlite:///{folder / 'dotdo.db'}", check_replay=False) as client:
        for _ in range(50):
            client.run(jobs.onboarding, email=jobs.EMAIL)
        for _ in range(repetitions):
            seconds: list[float] = []
            for _ in range(runs):
                before = time.perf_counter()
                client.run(jobs.onboarding, email=jobs.EMAIL)
                seconds.append(time.perf_counter() - before)
            found.append(latency(seconds))
    return found


def figures(scale: Scale) -> list[Figure]:
    """p50 and p99 of both."""
    runs, times = scale.of(300), scale.repetitions
    found = measure("benchmarks.latency:alone", runs=runs, repetitions=times)
    found["without async"] = measure("benchmarks.latency:alone_without_async", runs=runs, repetitions=times)

    def of(what: str, which: str) -> list[float]:
        return [one[which] for one in found[what]]

    commit = statistics.median(of("commit", "p50"))

    def own(what: str, commits: int) -> str:
        return f"{number(statistics.median(of(what, 'p50')) - commits * commit)} without its {commits} commits"

    return [
        median("one onboarding, p50", of("onboarding", "p50"), "ms", at_most(1.0), own("onboarding", 3)),
        median("one onboarding, p99", of("onboarding", "p99"), "ms", at_most(4.0)),
        median("one action, p50", of("action", "p50"), "ms", at_most(0.6), own("action", 2)),
        median("one action, p99", of("action", "p99"), "ms"),
        median("a bare commit of SQLite, p50", of("commit", "p50"), "ms"),
        median("one onboarding through Do, p50", of("without async", "p50"), "ms"),
        median("one onboarding through Do, p99", of("without async", "p99"), "ms"),
    ]
