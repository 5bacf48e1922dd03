"""`ctx.sql` and `ctx.session`: what a handler writes is committed with its attempt, or was never there."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, event, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dotdo import Action, ActionFailed, AsyncContext, Context, Fail, Retry, action
from dotdo.journal import Completion
from tests.contract_sql.databases import Database
from tests.workshop import PATIENCE, Workshop, data, kinds

Note = Callable[[Workshop], Action[..., Any]]
RETRY = Retry(attempts=3, delay=10, jitter=False)


class Base(DeclarativeBase):
    """Of the ORM's classes."""


class NoteRow(Base):
    """A note as an object."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def by_connection(workshop: Workshop) -> Action[..., Any]:
    @action("note", retry=RETRY, catalogue=workshop.catalogue)
    def note(ctx: Context, content: str, fail_until: int = 0) -> int:
        ctx.sql.execute(insert(NoteRow).values(text=f"{content} {ctx.attempt}"))
        if ctx.attempt <= fail_until:
            raise ConnectionError("after the write")
        return ctx.sql.execute(select(NoteRow.id)).scalars().one()

    return note


def by_session(workshop: Workshop) -> Action[..., Any]:
    @action("note", retry=RETRY, catalogue=workshop.catalogue)
    def note(ctx: Context, content: str, fail_until: int = 0) -> int:
        row = NoteRow(text=f"{content} {ctx.attempt}")
        ctx.session.add(row)
        if ctx.attempt <= fail_until:
            ctx.session.flush()
            raise ConnectionError("after the write")
        return ctx.session.scalars(select(NoteRow.id)).one()

    return note


def by_async_connection(workshop: Workshop) -> Action[..., Any]:
    @action("note", retry=RETRY, catalogue=workshop.catalogue)
    async def note(ctx: AsyncContext, content: str, fail_until: int = 0) -> int:
        await ctx.sql.execute(insert(NoteRow).values(text=f"{content} {ctx.attempt}"))
        if ctx.attempt <= fail_until:
            raise ConnectionError("after the write")
        return (await ctx.sql.execute(select(NoteRow.id))).scalars().one()

    return note


def by_async_session(workshop: Workshop) -> Action[..., Any]:
    @action("note", retry=RETRY, catalogue=workshop.catalogue)
    async def note(ctx: AsyncContext, content: str, fail_until: int = 0) -> int:
        ctx.session.add(NoteRow(text=f"{content} {ctx.attempt}"))
        if ctx.attempt <= fail_until:
            await ctx.session.flush()
            raise ConnectionError("after the write")
        return (await ctx.session.scalars(select(NoteRow.id))).one()

    return note


in_every_way = pytest.mark.parametrize("define", [by_connection, by_session, by_async_connection, by_async_session])


@in_every_way
def test_write_is_committed_with_the_whole_completion_beside_it(workshop: Workshop, database: Database, define: Note):
    handle = workshop.open().start(define(workshop), content="hello")
    assert handle.result(timeout=PATIENCE) == 1

    assert database.notes() == ["hello 1"]
    ((step, generation, attempt, completion),) = database.applied()
    assert (step, generation, attempt) == ("note", 0, 1)
    (completed,) = [entry for entry in handle.journal() if entry.kind == "completed"]
    assert completion == completed.data  # verbatim what the journal has
    assert msgspec.json.decode(completion, type=Completion).action == "note"


@in_every_way
def test_handler_that_raises_has_written_nothing(workshop: Workshop, database: Database, define: Note):
    handle = workshop.open().start(define(workshop), content="hello", fail_until=3)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed, match="after 3 attempts"):
        handle.result(timeout=PATIENCE)

    assert database.notes() == []
    assert database.applied() == []


@in_every_way
def test_only_the_attempt_that_commits_has_written(workshop: Workshop, database: Database, define: Note):
    handle = workshop.open().start(define(workshop), content="hello", fail_until=2)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    assert database.notes() == ["hello 3"]
    assert [row[:3] for row in database.applied()] == [("note", 0, 3)]


def test_completion_in_the_row_has_effects_and_requests(workshop: Workshop, database: Database):
    @action("note", catalogue=workshop.catalogue)
    async def note(ctx: AsyncContext) -> str:
        await ctx.request(workshop.order, text="bread")
        ctx.stage(workshop.send, text="hello")
        await ctx.sql.execute(insert(NoteRow).values(text="hello"))
        return "done"

    @note.undo
    def forget(ctx: Context, result: str) -> None:
        raise NotImplementedError

    handle = workshop.open().start(note)
    handle.result(timeout=PATIENCE)

    ((_, _, _, row),) = database.applied()
    completion = msgspec.json.decode(row, type=Completion)
    (committed,) = data(handle, "committed")
    assert [effect.key for effect in completion.effects] == workshop.receiver.keys("send")
    assert (completion.requests, completion.undo) == (committed.requests, True)
    assert len(completion.requests) == 1


def test_nothing_is_sent_when_the_commit_fails(workshop: Workshop, database: Database):
    database.execute("insert into notes (id, text) values (1, 'taken')")

    @action("note", retry=1, catalogue=workshop.catalogue)
    def note(ctx: Context) -> None:
        ctx.stage(workshop.send, text="never")
        ctx.session.add(NoteRow(text="taken"))  # found out when the session is flushed, at the commit

    handle = workshop.open().start(note)
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)
    assert failure.value.error_type == "IntegrityError"
    assert workshop.receiver.heard == []
    assert kinds(handle, "note") == ["attempt_failed", "failed"]
    assert database.notes() == ["taken"]


@pytest.fixture
def foreign_keys() -> Iterator[None]:
    """Each connection to SQLite checks them, as an application may have it."""

    def check(connection: Any, _record: Any) -> None:
        if "sqlite" in type(connection).__module__:
            connection.cursor().execute("pragma foreign_keys = on")

    event.listen(Engine, "connect", check)
    yield
    event.remove(Engine, "connect", check)


@pytest.mark.parametrize("shape", ["sync", "async"])
@pytest.mark.usefixtures("foreign_keys")
def test_commit_that_the_database_refuses_leaves_nothing_open(workshop: Workshop, database: Database, shape: str):
    """For the sake of a constraint that is checked then. SQLite goes on with the transaction."""
    note = "note integer not null references notes (id) deferrable initially deferred"
    database.execute(f"create table remarks (id {database.id}, {note})")
    remark, add = text("insert into remarks (note) values (:note)"), text("insert into notes (text) values ('first')")

    @action("remark-sync", retry=1, catalogue=workshop.catalogue)
    def remark_sync(ctx: Context) -> None:
        ctx.stage(workshop.send, text="never")
        ctx.sql.execute(remark, {"note": 1})

    @action("remark-async", retry=1, catalogue=workshop.catalogue)
    async def remark_async(ctx: AsyncContext) -> None:
        ctx.stage(workshop.send, text="never")
        await ctx.sql.execute(remark, {"note": 1})

    @action("add-sync", retry=1, catalogue=workshop.catalogue)
    def add_sync(ctx: Context) -> None:
        ctx.sql.execute(add)

    @action("add-async", retry=1, catalogue=workshop.catalogue)
    async def add_async(ctx: AsyncContext) -> None:
        await ctx.sql.execute(add)

    client = workshop.open()
    with pytest.raises(ActionFailed) as failure:
        client.start({"sync": remark_sync, "async": remark_async}[shape]).result(timeout=PATIENCE)
    assert failure.value.error_type == "IntegrityError"
    assert database.execute("select * from remarks") == []
    assert workshop.receiver.heard == []
    client.start({"sync": add_sync, "async": add_async}[shape]).result(timeout=PATIENCE)
    assert database.notes() == ["first"]


def test_session_and_connection_share_the_transaction(workshop: Workshop, database: Database):
    seen: list[list[str]] = []

    @action("note", catalogue=workshop.catalogue)
    def note(ctx: Context) -> None:
        ctx.sql.execute(insert(NoteRow).values(text="by connection"))
        seen.append(list(ctx.session.scalars(select(NoteRow.text))))
        ctx.session.add(NoteRow(text="by session"))
        ctx.session.flush()
        seen.append(list(ctx.sql.execute(select(NoteRow.text).order_by(NoteRow.id)).scalars()))
        ctx.session.add(NoteRow(text="flushed at the commit"))

    workshop.open().run(note)
    assert seen == [["by connection"], ["by connection", "by session"]]
    assert database.notes() == ["by connection", "by session", "flushed at the commit"]
    assert len(database.applied()) == 1


def test_savepoints_are_the_handlers_own(workshop: Workshop, database: Database):
    @action("note", catalogue=workshop.catalogue)
    def note(ctx: Context) -> None:
        for content in ("a", "a", "b"):
            try:
                with ctx.sql.begin_nested():
                    ctx.sql.execute(insert(NoteRow).values(text=content))
            except Exception as error:
                errors.append(type(error).__name__)

    @action("note-async", catalogue=workshop.catalogue)
    async def note_async(ctx: AsyncContext) -> None:
        for content in ("c", "c", "d"):
            try:
                async with ctx.sql.begin_nested():
                    await ctx.sql.execute(insert(NoteRow).values(text=content))
            except Exception as error:
                errors.append(type(error).__name__)

    errors: list[str] = []
    client = workshop.open()
    client.run(note)
    client.run(note_async)
    assert errors == ["IntegrityError"] * 2
    assert database.notes() == ["a", "b", "c", "d"]


def test_first_statements_may_come_at_once(workshop: Workshop, database: Database):
    """Two tasks of a handler that both begin with SQL get one transaction, not two of which one is lost."""

    @action("note", catalogue=workshop.catalogue)
    async def note(ctx: AsyncContext) -> None:
        await asyncio.gather(
            *(ctx.sql.execute(insert(NoteRow).values(text=content)) for content in ("one", "two", "three"))
        )

    client = workshop.open()
    client.run(note)
    assert sorted(database.notes()) == ["one", "three", "two"]
    assert len(database.applied()) == 1
    assert client.run(by_connection_count(workshop)) == 3  # the connection is free again


@pytest.mark.parametrize("options", [{"stream_results": True}, {"schema_translate_map": {None: "elsewhere"}}])
@pytest.mark.parametrize("shape", ["sync", "async"])
def test_options_of_the_handlers_statements_are_not_those_of_the_applied_row(
    workshop: Workshop, database: Database, shape: str, options: dict[str, Any]
):
    """SQLAlchemy sets them on the connection itself."""

    @action("note-sync", retry=1, catalogue=workshop.catalogue)
    def note_sync(ctx: Context) -> int:
        ctx.sql.execute(insert(NoteRow).values(text="hello"))
        return ctx.sql.execution_options(**options).execute(text("select 7")).scalar_one()

    @action("note-async", retry=1, catalogue=workshop.catalogue)
    async def note_async(ctx: AsyncContext) -> int:
        await ctx.sql.execute(insert(NoteRow).values(text="hello"))
        connection = await ctx.sql.execution_options(**options)
        return await connection.run_sync(lambda connection: connection.execute(text("select 7")).scalar_one())

    assert workshop.open().run({"sync": note_sync, "async": note_async}[shape]) == 7
    assert database.notes() == ["hello"]
    assert len(database.applied()) == 1


def test_first_statement_may_be_streamed(workshop: Workshop, database: Database):
    """Nor does what is asked of the connection before it need one."""
    database.execute("insert into notes (text) values ('there')")

    @action("read", retry=1, catalogue=workshop.catalogue)
    async def read(ctx: AsyncContext) -> list[str]:
        assert not ctx.sql.closed
        assert not ctx.sql.in_transaction()
        assert database.url.startswith(ctx.sql.dialect.name)
        return [row.text async for row in await ctx.sql.stream(select(NoteRow.text))]

    assert workshop.open().run(read) == ["there"]


def by_connection_count(workshop: Workshop) -> Action[..., int]:
    @action("count", catalogue=workshop.catalogue)
    def count(ctx: Context) -> int:
        return len(ctx.sql.execute(select(NoteRow.id)).all())

    return count


def test_sql_that_is_never_used_leaves_no_row(workshop: Workshop, database: Database):
    @action("idle", catalogue=workshop.catalogue)
    async def idle(ctx: AsyncContext) -> None:
        _ = ctx.sql, ctx.session

    client = workshop.open()
    client.run(idle)
    assert database.applied() == []


def test_undo_and_fallback_write_in_transactions_of_their_own(workshop: Workshop, database: Database):
    @action("note-elsewhere", catalogue=workshop.catalogue)
    def note_elsewhere(ctx: Context, content: str) -> str:
        ctx.sql.execute(insert(NoteRow).values(text=f"{content} by fallback"))
        ctx.stage(workshop.send, text="refused")
        return content

    @note_elsewhere.undo
    def remove(ctx: Context, content: str) -> None:
        ctx.sql.execute(insert(NoteRow).values(text=f"{content} undone"))

    @action("note", retry=1, fallback=note_elsewhere, catalogue=workshop.catalogue)
    def note(ctx: Context, content: str) -> str:
        ctx.sql.execute(insert(NoteRow).values(text=content))
        raise Fail("no")

    workshop.receiver.fail("send", Fail("unknown address"))
    handle = workshop.open().start(note, content="hello")
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)
    assert database.notes() == ["hello by fallback", "hello undone"]
    assert sorted(row[0] for row in database.applied()) == ["note", "undo:note"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_is_made_to_keep_what_it_has_acknowledged(workshop: Workshop, database: Database):
    @action("look", catalogue=workshop.catalogue)
    def look(ctx: Context) -> list[Any]:
        return [ctx.sql.execute(text(f"pragma {name}")).scalar_one() for name in ("synchronous", "journal_mode")]

    @action("look-async", catalogue=workshop.catalogue)
    async def look_async(ctx: AsyncContext) -> list[Any]:
        names = ("synchronous", "journal_mode")
        return [(await ctx.sql.execute(text(f"pragma {name}"))).scalar_one() for name in names]

    client = workshop.open()
    assert client.run(look) == client.run(look_async) == [2, "wal"]  # 2 is FULL
