"""An attempt that has only read from SQLite leaves no applied row: nothing of it could be lost, or happen twice."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, text

from dotdo import Action, AsyncContext, Context, action
from tests.contract_sql.databases import Database
from tests.contract_sql.test_transaction import NoteRow
from tests.workshop import PATIENCE, Workshop, data

COUNT = "select count(*) from notes"
WRITES = [
    "insert into notes (text) values ('written')",
    "insert into notes (text) values ('written') returning id",
    "with new (text) as (select 'written') insert into notes (text) select text from new",
    "update notes set text = 'written' where id = 0",
    "create table written (id integer)",
    "pragma user_version = 7",
]


def by_connection(workshop: Workshop) -> Action[..., Any]:
    @action("read", retry=1, catalogue=workshop.catalogue)
    def read(ctx: Context) -> int:
        ctx.stage(workshop.send, text="hello")
        return ctx.sql.execute(text(COUNT)).scalar_one()

    return read


def by_session(workshop: Workshop) -> Action[..., Any]:
    @action("read", retry=1, catalogue=workshop.catalogue)
    def read(ctx: Context) -> int:
        ctx.stage(workshop.send, text="hello")
        return len(ctx.session.scalars(select(NoteRow)).all())

    return read


def by_async_connection(workshop: Workshop) -> Action[..., Any]:
    @action("read", retry=1, catalogue=workshop.catalogue)
    async def read(ctx: AsyncContext) -> int:
        ctx.stage(workshop.send, text="hello")
        return (await ctx.sql.execute(text(COUNT))).scalar_one()

    return read


def by_async_session(workshop: Workshop) -> Action[..., Any]:
    @action("read", retry=1, catalogue=workshop.catalogue)
    async def read(ctx: AsyncContext) -> int:
        ctx.stage(workshop.send, text="hello")
        return len((await ctx.session.scalars(select(NoteRow))).all())

    return read


@pytest.mark.parametrize("define", [by_connection, by_session, by_async_connection, by_async_session])
def test_reading_leaves_no_row_on_sqlite(
    workshop: Workshop, database: Database, define: Callable[[Workshop], Action[..., Any]]
):
    database.execute("insert into notes (text) values ('there')")
    client, read = workshop.open(), define(workshop)
    handle = client.start(read)
    assert handle.result(timeout=PATIENCE) == 1
    (committed,) = data(handle, "committed")
    is_sqlite = database.url.startswith("sqlite")
    assert (committed.sql, len(database.applied())) == (([], 0) if is_sqlite else (["main"], 1))
    assert workshop.receiver.texts() == ["hello"]
    assert client.run(read) == 1  # the file is free, and the connection too


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("statement", WRITES)
def test_whatever_is_more_than_a_select_leaves_its_row(workshop: Workshop, database: Database, statement: str):
    @action("write", retry=1, catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        ctx.sql.execute(text(COUNT))
        ctx.sql.execute(text(statement))

    @action("write-async", retry=1, catalogue=workshop.catalogue)
    async def write_async(ctx: AsyncContext) -> None:
        await ctx.sql.execute(text(COUNT))
        await ctx.sql.execute(text(statement.replace("written", "async")))

    client = workshop.open()
    client.run(write)
    client.run(write_async)
    assert [row[0] for row in database.applied()] == ["write", "write-async"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_written_around_the_session_leaves_its_row(workshop: Workshop, database: Database):
    """By the driver itself, or by a function that a `select` calls."""

    @action("write", retry=1, catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        driver: Any = ctx.sql.connection.driver_connection
        driver.create_function("note", 0, lambda: driver.execute(WRITES[0]).rowcount)
        assert ctx.sql.execute(text("select note()")).scalar_one() == 1

    @action("write-async", retry=1, catalogue=workshop.catalogue)
    async def write_async(ctx: AsyncContext) -> None:
        driver: Any = await ctx.sql.run_sync(lambda connection: connection.connection.driver_connection)
        await (await driver.execute(WRITES[0].replace("written", "async"))).close()

    client = workshop.open()
    client.run(write)
    client.run(write_async)
    assert database.notes() == ["written", "async"]
    assert [row[0] for row in database.applied()] == ["write", "write-async"]
