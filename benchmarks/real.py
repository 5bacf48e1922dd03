"""The onboarding for real: examples/onboarding, against its stand-in servers in another process.

One `ctx.sql` row on SQLite, one HTTP request for the billing customer, an e-mail over SMTP and a Slack message over
HTTP, in sequence: 100 in flight, then one at a time. The stand-ins write each arrival to their ledger before they
answer, on the same two cores; their CPU is printed beside ours. What arrived is counted: one of each per onboarding.

Beside it, the floor: the same calls by hand, with the same libraries, without dotdo and so without any journal, retries
or keys that outlive a crash (`peers/outside.py`; the row is committed by itself).
"""

import itertools
import os
import time
from typing import Any

import psutil

from benchmarks.driving import Start, in_flight, latency, one_at_a_time
from benchmarks.figures import Figure, at_least, at_most, median
from benchmarks.processes import measure, scratch
from benchmarks.scale import Scale
from examples.onboarding.standins import StandIns

_numbers = itertools.count(1)


async def onboarded(runs: int) -> dict[str, float]:
    """In the measuring process."""
    with scratch() as folder, StandIns(folder) as world:
        os.environ.update(world.environment)
        from examples.onboarding.app import customer_onboarding, open_client
        from examples.onboarding.users import create_tables

        create_tables(folder)
        async with open_client(folder) as client:

            async def start(_: int) -> Any:
                number = next(_numbers)
                return await client.run(
                    customer_onboarding, user_name=f"User {number}", user_email=f"user{number}@example.com"
                )

            found = await _measured(start, runs)
        _check(world, next(_numbers) - 1)
        return found


async def by_hand(runs: int) -> dict[str, float]:
    """In the measuring process."""
    with scratch() as folder, StandIns(folder) as world:
        os.environ.update(world.environment)
        from sqlalchemy import event
        from sqlalchemy.ext.asyncio import create_async_engine

        from benchmarks.peers.outside import Outside, durable, insert_user
        from examples.onboarding.users import create_tables

        create_tables(folder)
        # One connection, for which all queue, as in dotdo: SQLite has one writer at a time.
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{folder / 'app.db'}", pool_size=1, max_overflow=0, pool_timeout=600
        )
        event.listen(engine.sync_engine, "connect", durable)
        async with engine.connect() as connection:
            await connection.exec_driver_sql("pragma journal_mode = wal")
        outside = Outside()

        async def start(_: int) -> None:
            number = next(_numbers)
            async with engine.begin() as connection:
                await connection.execute(insert_user("sqlite", f"user_{number}", number))
            await outside.create_customer(f"create-{number}", number)
            await outside.send_welcome(f"welcome-{number}", number)
            await outside.notify_sales(number)

        found = await _measured(start, runs)
        await outside.close()
        await engine.dispose()
        _check(world, next(_numbers) - 1)
        return found


async def _measured(start: Start, runs: int) -> dict[str, float]:
    await in_flight(start, 100, 100)
    ours, theirs = time.process_time(), _cpu_of_children()
    seconds = await in_flight(start, runs, 100)
    ours, theirs = time.process_time() - ours, _cpu_of_children() - theirs
    alone = await one_at_a_time(start, max(20, runs // 10))
    return {
        "rate": runs / seconds,
        "cpu": ours / runs * 1000,
        "cpu_outside": theirs / runs * 1000,
        **latency(alone),
    }


def _check(world: StandIns, runs: int) -> None:
    for server in ("email", "billing", "slack"):
        arrived = len(world.done(server))
        if arrived != runs:
            raise RuntimeError(f"{runs} onboardings brought {arrived} arrivals at the {server} stand-in.")


def _cpu_of_children() -> float:
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(one.user + one.system for one in times)


def figures(scale: Scale) -> list[Figure]:
    """Rate, latency, and CPU on both sides; and of the same calls without dotdo."""
    found: list[dict[str, float]] = []
    bare: list[dict[str, float]] = []
    for _ in range(scale.repetitions):
        found.append(measure("benchmarks.real:onboarded", runs=scale.of(1000)))
        bare.append(measure("benchmarks.real:by_hand", runs=scale.of(1000)))
    outside = f"the stand-ins used {min(one['cpu_outside'] for one in found):.2f} ms beside it"
    floor = "for real: the same calls without dotdo"
    return [
        median("for real: 100 in flight", [one["rate"] for one in found], "runs/s", at_least(300), outside),
        median("for real: CPU per onboarding", [one["cpu"] for one in found], "ms", None, outside),
        median("for real: one at a time, p50", [one["p50"] for one in found], "ms", at_most(15)),
        median("for real: one at a time, p99", [one["p99"] for one in found], "ms"),
        median(f"{floor}: 100 in flight", [one["rate"] for one in bare], "runs/s"),
        median(f"{floor}: CPU", [one["cpu"] for one in bare], "ms"),
        median(f"{floor}: one at a time, p50", [one["p50"] for one in bare], "ms"),
    ]
