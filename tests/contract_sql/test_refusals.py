"""What `ctx.sql` refuses: everything that would end its transaction, or spread one attempt over two databases."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from dotdo import Action, ActionFailed, AsyncContext, Context, DefinitionError, Do, Retry, StoreError, action
from tests.contract_sql.databases import Database, SQLiteFile
from tests.workshop import PATIENCE, Workshop

SYNC: dict[str, Callable[[Context], Any]] = {
    "commit": lambda ctx: ctx.sql.commit(),
    "rollback": lambda ctx: ctx.sql.rollback(),
    "begin": lambda ctx: ctx.sql.begin(),
    "close": lambda ctx: ctx.sql.close(),
    "with": lambda ctx: ctx.sql.__exit__(None, None, None),
    "transaction": lambda ctx: ctx.sql.get_transaction().commit(),  # pyright: ignore[reportOptionalMemberAccess]
    "autocommit": lambda ctx: ctx.sql.execution_options(isolation_level="AUTOCOMMIT"),
    "session.commit": lambda ctx: ctx.session.commit(),
    "session.rollback": lambda ctx: ctx.session.rollback(),
    "session.close": lambda ctx: ctx.session.close(),
    "session.reset": lambda ctx: ctx.session.reset(),
}
ASYNC: dict[str, Callable[[AsyncContext], Awaitable[Any]]] = {
    "commit": lambda ctx: ctx.sql.commit(),
    "rollback": lambda ctx: ctx.sql.rollback(),
    "begin": lambda ctx: ctx.sql.begin().__aenter__(),
    "close": lambda ctx: ctx.sql.close(),
    "with": lambda ctx: ctx.sql.__aexit__(None, None, None),
    "transaction": lambda ctx: ctx.sql.get_transaction().commit(),  # pyright: ignore[reportOptionalMemberAccess]
    "autocommit": lambda ctx: ctx.sql.execution_options(isolation_level="AUTOCOMMIT"),
    "run_sync": lambda ctx: ctx.sql.run_sync(lambda connection: connection.commit()),
    "session.commit": lambda ctx: ctx.session.commit(),
    "session.rollback": lambda ctx: ctx.session.rollback(),
    "session.close": lambda ctx: ctx.session.close(),
    "session.reset": lambda ctx: ctx.session.reset(),
}
STATEMENTS = [
    "commit",
    "COMMIT WORK",
    "end",
    "rollback",
    "begin",
    "  \n commit",
    "-- a comment\ncommit",
    "/* a comment */ commit",
    "/* one */ -- two\n /* three */ rollback",
    "insert into notes (text) values ('second'); commit",
    "insert into notes (text) values (';'); commit",
]
HARMLESS = [
    "insert into notes (text) values ('commit; rollback')",
    "insert into notes (text) values ('-- commit')",
    "savepoint mine",
    "/* commit */ insert into notes (text) values ('third')",
]


def refused(workshop: Workshop, do: Action[..., Any]) -> str:
    """The message of the refusal; the handler's writes are gone with it."""
    with pytest.raises(ActionFailed) as failure:
        workshop.open().run(do.with_(retry=1))
    assert failure.value.error_type == DefinitionError.__name__
    return failure.value.error_message


@pytest.mark.parametrize("name", SYNC)
def test_sync_handler_cannot_end_its_transaction(workshop: Workshop, database: Database, name: str):
    @action("meddle", catalogue=workshop.catalogue)
    def meddle(ctx: Context) -> None:
        ctx.sql.execute(text("insert into notes (text) values ('first')"))
        ctx.session.execute(text("insert into notes (text) values ('second')"))
        SYNC[name](ctx)

    assert "ctx.sql does not take" in refused(workshop, meddle)
    assert database.notes() == []
    assert database.applied() == []


@pytest.mark.parametrize("name", ASYNC)
def test_async_handler_cannot_end_its_transaction(workshop: Workshop, database: Database, name: str):
    @action("meddle", catalogue=workshop.catalogue)
    async def meddle(ctx: AsyncContext) -> None:
        await ctx.sql.execute(text("insert into notes (text) values ('first')"))
        await ctx.session.execute(text("insert into notes (text) values ('second')"))
        await ASYNC[name](ctx)

    assert "ctx.sql does not take" in refused(workshop, meddle)
    assert database.notes() == []
    assert database.applied() == []


@pytest.mark.parametrize("statement", STATEMENTS)
def test_statement_that_ends_the_transaction_is_refused(workshop: Workshop, database: Database, statement: str):
    @action("meddle", catalogue=workshop.catalogue)
    def meddle(ctx: Context) -> None:
        ctx.sql.execute(text("insert into notes (text) values ('first')"))
        ctx.sql.exec_driver_sql(statement)

    @action("meddle-async", catalogue=workshop.catalogue)
    async def meddle_async(ctx: AsyncContext) -> None:
        await ctx.sql.execute(text("insert into notes (text) values ('first')"))
        await ctx.sql.execute(text(statement.replace(":", r"\:")))

    assert "ctx.sql does not take" in refused(workshop, meddle)
    assert "ctx.sql does not take" in refused_again(workshop, meddle_async)
    assert database.notes() == []


def refused_again(workshop: Workshop, do: Action[..., Any]) -> str:
    workshop.close_clients()
    return refused(workshop, do)


@pytest.mark.parametrize("statement", HARMLESS)
def test_statement_that_only_looks_like_it_is_not(workshop: Workshop, database: Database, statement: str):
    @action("write", retry=1, catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        ctx.sql.exec_driver_sql("insert into notes (text) values ('first')")
        ctx.sql.exec_driver_sql(statement)

    workshop.open().run(write)
    assert database.notes()[0] == "first"


def test_refusal_that_the_handler_swallows_has_done_no_harm(workshop: Workshop, database: Database):
    @action("meddle", retry=1, catalogue=workshop.catalogue)
    def meddle(ctx: Context) -> None:
        ctx.sql.execute(text("insert into notes (text) values ('first')"))
        for call in (ctx.sql.commit, ctx.sql.rollback, ctx.sql.close, ctx.session.commit, ctx.session.close):
            with pytest.raises(DefinitionError):
                call()
        with pytest.raises(DefinitionError):
            ctx.sql.execute(text("rollback"))
        ctx.sql.execute(text("insert into notes (text) values ('second')"))

    workshop.open().run(meddle)
    assert database.notes() == ["first", "second"]
    assert len(database.applied()) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("given", ["url", "engine"])
def test_statement_that_came_with_one_that_rolls_everything_back_is_not_committed_by_itself(
    workshop: Workshop, database: Database, given: str
):
    """Tasks of a handler execute them at once: the second one is on its way when SQLite ends the transaction."""
    database.execute(
        "create trigger refuse before insert on notes when new.text = 'bad' begin select raise(rollback, 'no'); end"
    )

    @action("write", retry=Retry(attempts=3, delay=0, jitter=False), catalogue=workshop.catalogue)
    async def write(ctx: AsyncContext) -> None:
        await ctx.sql.execute(text(f"insert into notes (text) values ('before {ctx.attempt}')"))
        texts = ["bad" if ctx.attempt < 3 else "good", f"beside {ctx.attempt}", f"many {ctx.attempt}"]
        one, two, many = (text(f"insert into notes (text) values (:{name})") for name in ("one", "two", "many"))
        ends = await asyncio.gather(
            ctx.sql.execute(one, {"one": texts[0]}),
            ctx.sql.execute(two, {"two": texts[1]}),
            ctx.sql.execute(many, [{"many": texts[2]}, {"many": "and more"}]),
            return_exceptions=True,
        )
        if any(isinstance(end, Exception) for end in ends):
            raise ConnectionError("another attempt, please")

    engine = create_async_engine(database.url.replace("sqlite:", "sqlite+aiosqlite:"))
    with workshop.open(sql=database.url if given == "url" else engine) as client:
        client.run(write)
    assert sorted(database.notes()) == ["and more", "before 3", "beside 3", "good", "many 3"]


# -- which database ---------------------------------------------------------------------------------------------------


@pytest.fixture
def second(tmp_path: Path) -> SQLiteFile:
    """Another database of the application."""
    return SQLiteFile(tmp_path / "second.db")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("shape", ["sync", "async"])
@pytest.mark.parametrize("goes_on", [True, False], ids=["with a statement", "to its end"])
def test_transaction_that_the_database_has_rolled_back_cannot_be_gone_on_with(
    workshop: Workshop, database: Database, shape: str, goes_on: bool
):
    """After some errors SQLite rolls everything back, and commits each statement that follows by itself."""
    same = "insert or rollback into notes (id, text) values (1, 'twice')"
    more = "insert into notes (text) values ('after')"

    @action("go-on-sync", retry=1, catalogue=workshop.catalogue)
    def go_on_sync(ctx: Context) -> str:
        ctx.sql.exec_driver_sql("insert into notes (id, text) values (1, 'once')")
        with contextlib.suppress(IntegrityError):
            ctx.sql.exec_driver_sql(same)
        if goes_on:
            ctx.sql.exec_driver_sql(more)
        return "never"

    @action("go-on-async", retry=1, catalogue=workshop.catalogue)
    async def go_on_async(ctx: AsyncContext) -> str:
        await ctx.sql.exec_driver_sql("insert into notes (id, text) values (1, 'once')")
        with contextlib.suppress(IntegrityError):
            await ctx.sql.exec_driver_sql(same)
        if goes_on:
            await ctx.sql.exec_driver_sql(more)
        return "never"

    client = workshop.open()
    with pytest.raises(ActionFailed, match="SQLite has rolled back this attempt's whole transaction"):
        client.run({"sync": go_on_sync, "async": go_on_async}[shape])
    assert database.notes() == []
    assert database.applied() == []


def test_one_attempt_uses_one_database(workshop: Workshop, database: Database, second: SQLiteFile):
    orders: dict[str, list[Callable[[Context], Any]]] = {
        "first-then-second": [lambda ctx: ctx.sql, lambda ctx: ctx.database("second")],
        "second-then-first": [lambda ctx: ctx.database("second"), lambda ctx: ctx.sql],
        "second-then-session": [lambda ctx: ctx.database("second"), lambda ctx: ctx.session],
    }

    @action("spread", retry=1, catalogue=workshop.catalogue)
    def spread(ctx: Context, order: str) -> None:
        for use in orders[order]:
            use(ctx).execute(text("insert into notes (text) values ('hello')"))

    client = workshop.open(sql={"first": database.url, "second": second.url})
    for order in orders:
        with pytest.raises(ActionFailed, match="one attempt commits in one database"):
            client.run(spread, order=order)
    assert database.notes() == second.notes() == []


def test_each_attempt_has_its_database(workshop: Workshop, database: Database, second: SQLiteFile):
    @action("write", catalogue=workshop.catalogue)
    def write(ctx: Context, name: str) -> None:
        ctx.database(name).execute(text("insert into notes (text) values ('hello')"))

    @action("write-async", catalogue=workshop.catalogue)
    async def write_async(ctx: AsyncContext, name: str) -> None:
        await ctx.database(name).execute(text("insert into notes (text) values ('async')"))

    @action("write-default", catalogue=workshop.catalogue)
    def write_default(ctx: Context) -> None:
        ctx.database("first").execute(text("insert into notes (text) values ('by name')"))
        ctx.sql.execute(text("insert into notes (text) values ('by default')"))

    client = workshop.open(sql={"first": database.url, "second": second.url})
    for name in ("first", "second"):
        client.run(write, name=name)
        client.run(write_async, name=name)
    client.run(write_default)
    assert second.notes() == ["hello", "async"]
    assert database.notes() == ["hello", "async", "by name", "by default"]
    assert (len(database.applied()), len(second.applied())) == (3, 2)


def test_unknown_database_is_named(workshop: Workshop, database: Database):
    @action("write", retry=1, catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        ctx.database("third")

    with pytest.raises(ActionFailed, match="no database 'third'; known: main"):
        workshop.open().run(write)


def test_client_without_a_database_says_what_to_give(workshop: Workshop, database: Database):
    @action("write", retry=1, catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        _ = ctx.sql

    workshop.open().close()  # makes the applied table that the fixture looks at
    with pytest.raises(ActionFailed, match=r"Do\(sql="):
        workshop.open(sql=None).run(write)


@pytest.mark.parametrize("make", [create_engine, create_async_engine])
def test_engines_may_be_given_instead_of_urls(workshop: Workshop, database: Database, make: Any):
    url = database.url.replace("postgresql:", "postgresql+psycopg:")
    if make is create_async_engine:
        url = url.replace("sqlite:", "sqlite+aiosqlite:")
    engine = make(url)

    @action("write", catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        ctx.sql.execute(text("insert into notes (text) values ('sync')"))

    @action("write-async", catalogue=workshop.catalogue)
    async def write_async(ctx: AsyncContext) -> None:
        await ctx.sql.execute(text("insert into notes (text) values ('async')"))

    with workshop.open(sql=engine) as client:
        client.run(write)
        client.run(write_async)
    assert database.notes() == ["sync", "async"]
    if make is create_engine:
        engine.dispose()


def test_unusable_databases_are_refused_at_the_start(tmp_path: Path):
    store = f"sqlite:///{tmp_path / 'dotdo.db'}"
    refusals: dict[Any, tuple[type[Exception], str]] = {
        "sqlite://": (DefinitionError, "must outlive the process"),
        "not a url": (DefinitionError, "not a database URL"),
        "oracle+nothing://host/x": (DefinitionError, "driver that is not installed"),
        f"sqlite:///{tmp_path / 'missing' / 'app.db'}": (StoreError, "cannot be used"),
        "postgresql://nobody@127.0.0.1:9/none": (StoreError, "cannot be used"),
        store: (StoreError, "another file"),
    }
    for sql, (error, message) in refusals.items():
        with pytest.raises(error, match=message):
            Do(store, sql=sql).__enter__()
    with Do(store):  # what was refused has left nothing locked
        pass


def test_engine_that_commits_each_statement_by_itself_is_refused(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'app.db'}"
    asynchronous = f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"
    for engine in (
        create_engine(url, isolation_level="AUTOCOMMIT"),
        create_engine(url).execution_options(isolation_level="AUTOCOMMIT"),
        create_async_engine(asynchronous, isolation_level="AUTOCOMMIT"),
        create_engine("postgresql+psycopg://nobody@127.0.0.1:9/none", isolation_level="AUTOCOMMIT"),
    ):
        with pytest.raises(DefinitionError, match="commits each statement by itself"):
            Do(f"sqlite:///{tmp_path / 'dotdo.db'}", sql=engine).__enter__()


def test_failing_client_says_it_in_time(workshop: Workshop, database: Database):
    """A table that is missing is the handler's failure, like any other."""

    @action("write", retry=1, catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        ctx.sql.execute(text("insert into nowhere values (1)"))

    handle = workshop.open().start(write)
    with pytest.raises(ActionFailed, match="nowhere"):
        handle.result(timeout=PATIENCE)
