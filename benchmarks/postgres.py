"""PostgreSQL as the store: throughput, latency, a long history, and a server that goes and comes back.

The server (with fsync, otherwise as it comes but for 256 MB of buffers) is on the same cores as the node, which is
client and engine at once. The history is a million ended runs, as rows that were never run, vacuumed once.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks import jobs
from benchmarks.driving import flood, in_flight, latency, one_at_a_time
from benchmarks.figures import Figure, at_least, at_most, median
from benchmarks.processes import measure
from benchmarks.scale import Scale
from dotdo import AsyncDo
from dotdo.engine.engine import Engine
from dotdo.errors import StoreError
from tests.postgres import Server, restartable_server

IN_FLIGHT = 500
SECONDS = 3.0  # of load, before and after the server goes
HISTORY = """
insert into dotdo.runs
select 'run_0' || to_char(n, 'FM0000000000'), 'run_0' || to_char(n, 'FM0000000000'), null, null, 'service',
    'onboarding', 1, null, 'digest', null, null, '{}', 'completed', 'none', 0, null, null, null, 1, 0, 12, 'digest',
    'anchor', n, n
from generate_series(1, %s) as n
"""


@contextlib.contextmanager
def _server() -> Iterator[Server]:
    os.environ["DOTDO_AUDIT_KEY"] = "00112233445566778899aabbccddeeff"
    with restartable_server(fsync="on", shared_buffers="256MB") as server:
        yield server


async def _onboard(client: AsyncDo, _: int = 0) -> Any:
    return await client.run(jobs.onboarding, email=jobs.EMAIL)


async def alone(runs: int, flooded: int, history: int, repetitions: int) -> dict[str, Any]:
    """In the measuring process."""
    with _server() as server:
        async with AsyncDo(server.url, check_replay=False) as client:

            async def start(_: int) -> Any:
                return await _onboard(client)

            await in_flight(start, 500, IN_FLIGHT)
            found: dict[str, Any] = {"floods": await flood(start, flooded, IN_FLIGHT, repetitions)}
            found["latency"] = [latency(await one_at_a_time(start, runs)) for _ in range(repetitions)]
            found["claim"] = [await _claim(client) for _ in range(20)]
            await asyncio.to_thread(_make_history, server.url, history)
            found["claim with history"] = [await _claim(client) for _ in range(20)]
            found["floods with history"] = await flood(start, flooded, IN_FLIGHT, repetitions)
            return found


async def _claim(client: AsyncDo) -> float:
    """Seconds for a look at what is due and whose node is gone, when there is nothing."""
    engine = await client.platform()
    assert isinstance(engine, Engine)
    before = time.perf_counter()
    await engine.claimer._sweep()
    return time.perf_counter() - before


def _make_history(url: str, runs: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(HISTORY.encode(), (runs,))
        connection.execute("vacuum analyze dotdo.runs")


async def restarted() -> dict[str, float]:
    """In the measuring process: onboardings per second before the server goes and once it is back, and how long after
    its start the first one is done."""
    with _server() as server:
        async with AsyncDo(server.url, check_replay=False) as client:
            done, over = 0, asyncio.Event()

            async def work() -> None:
                nonlocal done
                while not over.is_set():
                    try:
                        await _onboard(client)
                        done += 1
                    except StoreError:
                        await asyncio.sleep(0.05)

            async def rate() -> float:
                before, began = done, time.perf_counter()
                await asyncio.sleep(SECONDS)
                return (done - before) / (time.perf_counter() - began)

            working = [asyncio.create_task(work()) for _ in range(100)]
            await rate()
            before = await rate()
            await asyncio.to_thread(server.stop, immediately=True)
            await asyncio.sleep(SECONDS)
            await asyncio.to_thread(server.start)
            at_start, started = done, time.perf_counter()
            while done == at_start:  # noqa: ASYNC110 - asked often enough
                await asyncio.sleep(0.01)
            first = time.perf_counter() - started
            after = max([await rate() for _ in range(3)])
            over.set()
            await asyncio.gather(*working)
            return {"before": before, "after": after, "first": first}


def figures(scale: Scale) -> list[Figure]:
    """All of them."""
    history = scale.of(1_000_000)
    found = measure(
        "benchmarks.postgres:alone",
        runs=scale.of(300),
        flooded=scale.of(4000),
        history=history,
        repetitions=scale.repetitions,
    )
    gone = measure("benchmarks.postgres:restarted")

    def of(what: str, which: str) -> list[float]:
        return [one[which] for one in found[what]]

    many = f"beside {history:,} ended runs"
    return [
        median("onboardings, 500 in flight", of("floods", "runs_per_second"), "runs/s", at_least(3000)),
        median("CPU of these, without the server's", of("floods", "cpu_per_1000_steps"), "s/1000 steps"),
        median("one onboarding, p50", of("latency", "p50"), "ms", at_most(3.0)),
        median("one onboarding, p99", of("latency", "p99"), "ms"),
        median("a look for due runs", [one * 1000 for one in found["claim"]], "ms"),
        median(f"a look for due runs, {many}", [one * 1000 for one in found["claim with history"]], "ms"),
        median(f"500 in flight, {many}", of("floods with history", "runs_per_second"), "runs/s"),
        Figure("server crashed and back: rate, of before", gone["after"] / gone["before"], "x", at_least(0.95)),
        Figure("server crashed and back: first onboarding after", gone["first"], "s", at_most(60)),
    ]
