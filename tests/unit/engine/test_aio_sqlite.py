"""The cursors of our aiosqlite connections do what its own do, with fewer visits to its thread."""

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from dotdo import AsyncContext, AsyncDo, Catalogue, action
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


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The visits to the threads of connections, by what they are for."""
    found: list[str] = []
    visit = aio_sqlite.Connection.visit

    async def counted(connection: Any, function: Any, *given: Any, **options: Any) -> Any:
        what = function.args[1] if isinstance(function, partial) else function  # in a transaction
        found.append(what.__name__)
        return await visit(connection, function, *given, **options)

    monkeypatch.setattr(aio_sqlite.Connection, "visit", counted)
    return found


def test_a_statement_is_one_visit_to_the_thread(visits: list[str]):
    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://", connect_args={"async_creator_fn": aio_sqlite.connect})
        async with engine.connect() as connection:
            assert (await connection.execute(text("select 1"))).all() == [(1,)]
            visits.clear()
            assert (await connection.execute(text("select 2"))).all() == [(2,)]
            assert visits == ["_visit"]
            rows = await connection.stream(text(NUMBERS.format(3 * AHEAD)))
            assert [row.x async for row in rows] == [*range(1, 3 * AHEAD + 1)]
        await engine.dispose()

    asyncio.run(main())


def test_an_attempt_is_one_visit_more_than_its_statements(visits: list[str], tmp_path: Path):
    """It begins with the first one, and is committed with its applied row; there is nothing to roll back then."""

    @action("notes-twice", retry=1, catalogue=(catalogue := Catalogue()))
    async def notes_twice(ctx: AsyncContext) -> int:
        for number in range(2):
            await ctx.sql.execute(text("insert into notes values (:number)"), {"number": number})
        return len((await ctx.sql.execute(text("select * from notes"))).all())

    @action("goes-around", retry=1, catalogue=catalogue)
    async def goes_around(ctx: AsyncContext) -> bool:
        driver: Any = await ctx.sql.run_sync(lambda connection: connection.connection.driver_connection)
        await (await driver.execute("insert into notes values (9)")).close()
        return driver.in_transaction

    async def main() -> None:
        path = tmp_path / "app.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("create table notes (number integer)")
        async with AsyncDo("sqlite://", sql=f"sqlite:///{path}", catalogue=catalogue) as do:
            assert await do.run(notes_twice) == 2
            visits.clear()
            assert await do.run(notes_twice) == 4
            assert visits == ["_visit", "_visit", "_visit", "_commit"]
            assert await do.run(goes_around), "also the driver's own methods are in the transaction"
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("select count(*) from notes").fetchone() == (5,)

    asyncio.run(main())


@pytest.fixture
def table(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A file `app.db` with a table, over a connection that finds it locked at once."""
    with closing(
        sqlite3.connect(tmp_path / "app.db", isolation_level=None, timeout=0, check_same_thread=False)
    ) as connection:
        connection.execute("create table t (a)")
        yield connection


def insert(number: int) -> Callable[[sqlite3.Connection], Any]:
    return lambda connection: connection.execute("insert into t values (?)", (number,))


def open_file(tmp_path: Path) -> aio_sqlite.Connection:
    return aio_sqlite.connect(tmp_path / "app.db", isolation_level=None, timeout=0)


def test_a_transaction_that_cannot_begin_is_as_if_it_had_not(tmp_path: Path, table: sqlite3.Connection):
    """The file is locked: the statement fails, is not executed by itself, and the next one begins anew."""

    async def main() -> None:
        table.execute("begin immediate")
        async with (connection := open_file(tmp_path)):
            connection.begin_with_next()
            for _ in range(2):
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    await connection.execute("insert into t values (1)")
                assert connection.in_transaction, "as it seems to those who have begun it"
            await connection.rollback()
            assert not connection.in_transaction
            table.execute("rollback")
            connection.begin_with_next()
            await connection.execute("insert into t values (2)")
            assert table.execute("select * from t").fetchall() == []
            await connection.commit()
        assert table.execute("select * from t").fetchall() == [(2,)]

    asyncio.run(main())


def test_what_belongs_to_a_commit_is_done_on_its_thread(tmp_path: Path, table: sqlite3.Connection):
    told: list[str] = []

    def committed() -> None:
        told.append("committed")
        table.execute("begin immediate")  # the file is free at that moment
        table.execute("rollback")

    async def main() -> None:
        async with (connection := open_file(tmp_path)):
            connection.begin_with_next()
            await connection.execute("insert into t values (1)")
            connection.commit_with(lambda connection: connection.execute("insert into missing values (2)"), committed)
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await connection.commit()
            assert (connection.in_transaction, told) == (True, [])
            connection.commit_with(insert(3), committed)
            await connection.rollback()
            connection.begin_with_next()
            await connection.commit()
            assert told == [], "what belonged to a commit that did not come belongs to no other"
            connection.begin_with_next()
            connection.commit_with(insert(4), committed)
            await connection.commit()
            assert told == ["committed"]
        assert table.execute("select * from t").fetchall() == [(4,)]

    asyncio.run(main())


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_statement_that_comes_behind_the_end_is_not_committed_by_itself(
    tmp_path: Path, table: sqlite3.Connection, end: str
):
    """A task that the handler has left behind executes something while the attempt's commit is under way."""

    async def main() -> None:
        async with (connection := open_file(tmp_path)):
            connection.begin_with_next()
            await connection.execute("insert into t values (1)")
            ending = asyncio.ensure_future(getattr(connection, end)())
            await asyncio.sleep(0)
            for statement in ("insert into t values (2)", "select * from t"):
                with pytest.raises(sqlite3.ProgrammingError, match="has ended"):
                    await connection.execute(statement)
            await ending
            connection.begin_with_next()
            await connection.execute("insert into t values (3)")
            await connection.commit()
        assert table.execute("select * from t").fetchall() == ([(1,), (3,)] if end == "commit" else [(3,)])

    asyncio.run(main())


def test_late_statement_does_not_come_into_the_next_attempts_transaction(tmp_path: Path, table: sqlite3.Connection):
    """The thread comes to it when the loop has begun the next attempt already: it was asked for by another one."""

    async def main() -> None:
        async with (connection := open_file(tmp_path)):
            began, held = threading.Event(), threading.Event()

            def hold() -> None:
                began.set()
                held.wait(60)

            connection.begin_with_next()
            await connection.execute("insert into t values (1)")
            ending = asyncio.ensure_future(connection.commit())
            holding = asyncio.ensure_future(connection.visit(hold))
            await ending
            await asyncio.to_thread(began.wait, 60)
            late = asyncio.ensure_future(connection.execute("insert into t values (2)"))
            await asyncio.sleep(0)
            connection.begin_with_next()
            next_one = asyncio.ensure_future(connection.execute("insert into t values (3)"))
            await asyncio.sleep(0)
            held.set()
            await asyncio.gather(holding, next_one)
            with pytest.raises(sqlite3.ProgrammingError, match="has ended"):
                await late
            await connection.commit()
        assert table.execute("select * from t").fetchall() == [(1,), (3,)]

    asyncio.run(main())


def test_who_is_cancelled_before_its_statement_is_executed_leaves_nothing(tmp_path: Path, table: sqlite3.Connection):
    """The rollback comes behind the statement that nobody waits for any more."""

    async def main() -> None:
        async with (connection := open_file(tmp_path)):
            held = threading.Event()
            await connection.create_function("hold", 0, lambda: held.wait(60))
            holding = asyncio.ensure_future(connection.execute("select hold()"))
            await asyncio.sleep(0)
            connection.begin_with_next()
            inserting = asyncio.ensure_future(connection.execute("insert into t values (1)"))
            await asyncio.sleep(0)
            inserting.cancel()
            undone = asyncio.ensure_future(connection.rollback())
            await asyncio.sleep(0)
            held.set()
            await asyncio.gather(holding, undone)
            assert not connection.in_transaction
            assert table.execute("select * from t").fetchall() == []

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


@pytest.mark.parametrize(
    "inside", [(aiosqlite.Cursor, "_execute"), (aiosqlite.Connection, "_conn"), (aiosqlite.Connection, "_execute")]
)
def test_aiosqlite_with_other_insides_has_cursors_of_its_own(monkeypatch: pytest.MonkeyPatch, inside: tuple[Any, str]):
    url = make_url("sqlite+aiosqlite:///app.db")
    assert applying._async_options(url) == {"async_creator_fn": aio_sqlite.connect}
    monkeypatch.delattr(*inside)
    assert applying._async_options(url) == {}
