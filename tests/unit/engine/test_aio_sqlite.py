"""The cursors of our aiosqlite connections do what its own do, with fewer visits to its thread."""

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from dotdo.engine import aio_sqlite, applying
from dotdo.engine.aio_sqlite import AHEAD

NUMBERS = "with recursive n(x) as (select 1 union all select x + 1 from n where x < {}) select x, 'é' from n"
INSERTED = "insert into t (a) select value from json_each('{}') returning a, id"

Work = Callable[[Any], Awaitable[list[Any]]]


async def all_rows(cursor: Any) -> list[Any]:
    found: list[Any] = []
    for size in (0, 1, AHEAD - 1, AHEAD, AHEAD + 1, 3 * AHEAD):
        await cursor.execute(NUMBERS.format(size))
        found += [cursor.description, await cursor.fetchall(), await cursor.fetchall(), cursor.rowcount]
    return found


async def rows_in_parts(cursor: Any) -> list[Any]:
    await cursor.execute(NUMBERS.format(2 * AHEAD + 5))
    sizes = (7, AHEAD, 1, AHEAD, 50)
    return [await cursor.fetchone(), *[await cursor.fetchmany(size) for size in sizes], await cursor.fetchone()]


async def rows_one_by_one(cursor: Any) -> list[Any]:
    await cursor.execute(NUMBERS.format(AHEAD + 2))
    return [row async for row in cursor]


async def writes(cursor: Any) -> list[Any]:
    found: list[Any] = []
    await cursor.execute("create table t (id integer primary key, a)")
    for sql in ("insert into t (a) values (?)", "update t set a = ?", "delete from t where a = ?"):
        await cursor.execute(sql, ("x",))
        found += [cursor.description, cursor.rowcount, cursor.lastrowid]
    await cursor.executemany("insert into t (a) values (?)", [(1,), (2,), (3,)])
    found += [cursor.rowcount]
    for given in ("[]", "[1, 2]", str([*range(AHEAD + 20)])):
        await cursor.execute(INSERTED.format(given))
        found += [cursor.description, await cursor.fetchall(), cursor.rowcount]
    await cursor.executescript("create table u (b); insert into u values (5);")
    await cursor.execute("select * from u")
    return [*found, await cursor.fetchall()]


async def errors(cursor: Any) -> list[Any]:
    found: list[Any] = []
    for sql in ("select", "select * from nothing", "select abs('x', 1)"):
        with pytest.raises(sqlite3.OperationalError) as raised:
            await cursor.execute(sql)
        found.append(str(raised.value))
    await cursor.execute("select 1")
    return [*found, await cursor.fetchall()]


@pytest.mark.parametrize("work", [all_rows, rows_in_parts, rows_one_by_one, writes, errors])
def test_cursor_does_what_aiosqlites_own_does(work: Work):
    async def main(connect: Any) -> list[Any]:
        async with connect(":memory:") as connection, connection.cursor() as cursor:
            return await work(cursor)

    assert asyncio.run(main(aio_sqlite.connect)) == asyncio.run(main(aiosqlite.connect))


def test_a_statement_is_one_visit_to_the_thread(monkeypatch: pytest.MonkeyPatch):
    visits: list[str] = []
    execute: Any = aiosqlite.Connection._execute  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]

    async def counted(connection: Any, function: Any, *given: Any) -> Any:
        visits.append(function.__name__)
        return await execute(connection, function, *given)

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://", connect_args={"async_creator_fn": aio_sqlite.connect})
        async with engine.connect() as connection:
            assert (await connection.execute(text("select 1"))).all() == [(1,)]
            monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
            assert (await connection.execute(text("select 2"))).all() == [(2,)]
            assert visits == ["_visit"]
            rows = await connection.stream(text(NUMBERS.format(3 * AHEAD)))
            assert [row.x async for row in rows] == [*range(1, 3 * AHEAD + 1)]
        await engine.dispose()

    asyncio.run(main())


def test_rows_that_nobody_wants_are_not_fetched():
    async def main() -> None:
        async with aio_sqlite.connect(":memory:") as connection:
            cursor: Any = connection.cursor()
            await cursor.execute(NUMBERS.format(10**15))
            assert (await cursor.fetchone())[0] == 1
            await cursor.close()
            await connection.execute("create table t (a)")

    asyncio.run(main())


def test_thread_of_a_connection_keeps_no_process_from_ending():
    """Before aiosqlite 0.22 a connection was its thread."""

    class Older(threading.Thread):
        pass

    older = Older()
    assert aio_sqlite.thread_of(older) is older
    assert aio_sqlite.thread_of(aio_sqlite.connect(":memory:")).daemon


@pytest.mark.parametrize("inside", [(aiosqlite.Cursor, "_execute"), (aiosqlite.Connection, "_conn")])
def test_aiosqlite_with_other_insides_has_cursors_of_its_own(monkeypatch: pytest.MonkeyPatch, inside: tuple[Any, str]):
    url = make_url("sqlite+aiosqlite:///app.db")
    assert applying._async_options(url) == {"async_creator_fn": aio_sqlite.connect}
    monkeypatch.delattr(*inside)
    assert applying._async_options(url) == {}
