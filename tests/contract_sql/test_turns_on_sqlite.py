"""On SQLite, attempts of sync and async handlers queue for the one writer; none of them finds the file locked."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dotdo import AsyncContext, Context, Retry, action, service
from dotdo.engine.turns import Turns
from tests.contract_sql.databases import SQLiteFile
from tests.workshop import PATIENCE, Workshop

ATTEMPTS = 20


def test_sync_and_async_attempts_never_find_the_file_locked(
    bare_workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dotdo.engine.applying.BUSY", 0)  # whoever finds the file locked fails at once
    database, once = SQLiteFile(tmp_path / "app.db"), Retry(attempts=1)
    threads_wait = threading.Semaphore(0)

    @action("write-sync", catalogue=bare_workshop.catalogue, retry=once)
    def write_sync(ctx: Context, statement: str) -> Any:
        threads_wait.release()
        done = ctx.sql.execute(text(statement))
        return done.scalar() if done.returns_rows else None

    @action("write-async", catalogue=bare_workshop.catalogue, retry=once)
    async def write_async(ctx: AsyncContext, statement: str) -> Any:
        done = await ctx.sql.execute(text(statement))
        return done.scalar() if done.returns_rows else None

    @action("hold", catalogue=bare_workshop.catalogue, retry=once)
    async def hold(ctx: AsyncContext) -> None:
        await ctx.sql.execute(text("insert into notes (text) values ('held')"))
        assert await asyncio.to_thread(threads_wait.acquire, timeout=PATIENCE)  # until a thread comes to write
        for _ in range(50):
            await asyncio.sleep(0)

    @service("crowd", catalogue=bare_workshop.catalogue)
    async def crowd() -> None:
        for one in (write_sync, write_async):
            assert await one(statement="pragma busy_timeout") == 0
        threads_wait.acquire()
        both = (
            one(statement=f"insert into notes (text) values ('{one.name} {number}')")
            for number in range(ATTEMPTS)
            for one in (write_sync, write_async)
        )
        await asyncio.gather(hold(), *both)

    client = bare_workshop.open(sql=database.url)
    client.start(crowd).result(timeout=PATIENCE)
    assert len(database.notes()) == 2 * ATTEMPTS + 1


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a thread makes it true
        await asyncio.sleep(0.001)


def test_turns_come_in_order_to_threads_and_the_loop():
    turns, order = Turns(), list[Any]()

    def in_a_thread(name: str) -> None:
        turns.take()
        order.append(name)
        turns.give_back()

    async def on_the_loop(name: str) -> None:
        await turns.take_async()
        order.append(name)
        turns.give_back()

    async def main() -> None:
        turns.take()
        asked: list[asyncio.Future[None]] = []
        for number in range(6):
            name = f"{number}"
            one = asyncio.to_thread(in_a_thread, name) if number % 2 else on_the_loop(name)
            asked.append(asyncio.ensure_future(one))
            await until(lambda: len(turns._waiting) > number)  # noqa: B023  # pyright: ignore[reportPrivateUsage]
        turns.give_back()
        await asyncio.gather(*asked)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert order == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("given_back_first", [True, False])
def test_a_turn_is_not_lost_with_who_is_cancelled_as_it_comes(given_back_first: bool):
    async def main() -> None:
        turns = Turns()
        turns.take()
        waiting = asyncio.ensure_future(turns.take_async())
        await until(lambda: len(turns._waiting) == 1)  # pyright: ignore[reportPrivateUsage]
        if given_back_first:
            turns.give_back()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if not given_back_first:
            turns.give_back()
        turns.take()  # at once: nobody has it

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_who_waits_for_too_long_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.turns.PATIENCE", 0.01)
    turns = Turns()
    turns.take()
    with pytest.raises(TimeoutError, match="one writer at a time"):
        turns.take()
    with pytest.raises(TimeoutError, match="one writer at a time"):
        asyncio.run(turns.take_async())
    turns.give_back()
    turns.take()


def test_nobody_waits_after_the_end():
    turns = Turns()
    turns.take()
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(turns.take) for _ in range(2)]
        while len(turns._waiting) < 2:  # pyright: ignore[reportPrivateUsage]
            time.sleep(0.001)
        turns.end()
        assert [one.result(PATIENCE) for one in waiting] == [None, None]
    turns.take()  # nor does anybody who comes later
