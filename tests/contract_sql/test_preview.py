"""A preview's transaction, on every kind of database: later steps see what earlier ones wrote, and nothing stays."""

import contextlib
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dotdo import Action, AsyncContext, Context, Do, Fail, Preview, action, service
from dotdo.engine import previewing
from tests.contract_sql.databases import Database, PostgresDatabase, SQLiteFile
from tests.contract_sql.test_refusals import ASYNC, STATEMENTS, SYNC
from tests.workshop import PATIENCE, Workshop

INSERT = text("insert into notes (text) values (:note) returning id")
COUNT = text("select count(*) from notes")


class Base(DeclarativeBase):
    """Of the ORM's classes."""


class NoteRow(Base):
    """A note as an object."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def by_connection(workshop: Workshop) -> Action[..., Any]:
    @action("note", catalogue=workshop.catalogue)
    def note(ctx: Context, note: str) -> int:
        ctx.sql.execute(INSERT, {"note": note}).scalar_one()
        return ctx.sql.execute(COUNT).scalar_one()

    return note


def by_session(workshop: Workshop) -> Action[..., Any]:
    @action("note", catalogue=workshop.catalogue)
    def note(ctx: Context, note: str) -> int:
        ctx.session.add(NoteRow(text=note))
        return ctx.session.execute(COUNT).scalar_one()

    return note


def by_async_connection(workshop: Workshop) -> Action[..., Any]:
    @action("note", catalogue=workshop.catalogue)
    async def note(ctx: AsyncContext, note: str) -> int:
        (await ctx.sql.execute(INSERT, {"note": note})).scalar_one()
        return (await ctx.sql.execute(COUNT)).scalar_one()

    return note


def by_async_session(workshop: Workshop) -> Action[..., Any]:
    @action("note", catalogue=workshop.catalogue)
    async def note(ctx: AsyncContext, note: str) -> int:
        ctx.session.add(NoteRow(text=note))
        return (await ctx.session.execute(COUNT)).scalar_one()

    return note


KINDS = [by_connection, by_session, by_async_connection, by_async_session]


def assert_nothing_stays(database: Database) -> None:
    assert database.notes() == []
    assert database.applied() == []


def notes_of(preview: Preview[Any]) -> str:
    return " ".join(note.text for note in preview.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_action_is_previewed_and_rolled_back(
    workshop: Workshop, database: Database, kind: Callable[[Workshop], Action[..., Any]]
):
    note = kind(workshop)
    client = workshop.open()
    preview = client.preview(note, note="one")
    assert (preview.status, preview.result, preview.notes) == ("completed", 1, [])
    inserted, counted = preview.statements
    assert inserted.sql.lower().startswith("insert into notes")
    assert (inserted.rows, inserted.kept, inserted.step) == (1, True, "note")
    assert "one" in str(inserted.parameters)
    assert counted.rows in (1, None)  # Python's sqlite3 does not count what a SELECT gives
    assert_nothing_stays(database)
    assert client.preview(note, note="one").result == 1
    assert client.run(note, note="one") == 1  # the connection is as it was
    assert database.notes() == ["one"]


@pytest.mark.parametrize("kind", KINDS)
def test_row_counts_are_those_of_the_database(
    workshop: Workshop, database: Database, kind: Callable[[Workshop], Action[..., Any]]
):
    for number in range(3):
        database.execute(f"insert into notes (text) values ('{number}')")
    if kind in (by_connection, by_session):

        @action("change", catalogue=workshop.catalogue)
        def change(ctx: Context) -> None:
            sql = ctx.sql if kind is by_connection else ctx.session
            sql.execute(text("update notes set text = text || '!'"))
            sql.execute(text("delete from notes where text = '0!' or text = '1!' returning id")).all()
            sql.execute(text("insert into notes (text) values (:t)"), [{"t": "a"}, {"t": "b"}])
    else:

        @action("change", catalogue=workshop.catalogue)
        async def change(ctx: AsyncContext) -> None:
            sql: Any = ctx.sql if kind is by_async_connection else ctx.session
            await sql.execute(text("update notes set text = text || '!'"))
            (await sql.execute(text("delete from notes where text = '0!' or text = '1!' returning id"))).all()
            await sql.execute(text("insert into notes (text) values (:t)"), [{"t": "a"}, {"t": "b"}])

    preview = workshop.open().action("change").preview()
    assert [statement.rows for statement in preview.statements] == [3, 2, 2], str(preview)
    assert database.notes() == ["0", "1", "2"]


@pytest.mark.parametrize("order", ["sync first", "async first"])
def test_steps_of_both_kinds_share_one_transaction(workshop: Workshop, database: Database, order: str):
    @action("plain", catalogue=workshop.catalogue)
    def plain(ctx: Context, note: str) -> list[str]:
        ctx.session.add(NoteRow(text=note))
        ctx.session.flush()
        return list(ctx.sql.execute(text("select text from notes order by text")).scalars())

    @action("awaited", catalogue=workshop.catalogue)
    async def awaited(ctx: AsyncContext, note: str) -> list[str]:
        ctx.session.add(NoteRow(text=note))
        await ctx.session.flush()
        return list((await ctx.sql.execute(text("select text from notes order by text"))).scalars())

    first, second = (plain, awaited) if order == "sync first" else (awaited, plain)

    @service("both", catalogue=workshop.catalogue)
    async def both() -> list[list[str]]:
        return [await first(note="a"), await second(note="b"), await first(note="c")]

    preview = workshop.open().preview(both)
    assert preview.status == "completed", str(preview)
    assert preview.result == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert_nothing_stays(database)


def test_failed_step_is_rolled_back_to_its_savepoint_and_the_service_goes_on(workshop: Workshop, database: Database):
    @action("note", catalogue=workshop.catalogue)
    def note(ctx: Context, note: str, fails: bool = False) -> int:
        ctx.sql.execute(INSERT, {"note": note})
        if fails:
            raise Fail("after the write")
        return ctx.sql.execute(COUNT).scalar_one()

    @action("break", catalogue=workshop.catalogue)
    async def break_(ctx: AsyncContext) -> None:
        await ctx.sql.execute(INSERT, {"note": "first"})  # a duplicate: the database raises

    @service("survivor", catalogue=workshop.catalogue)
    async def survivor() -> list[Any]:
        found: list[Any] = [await note(note="first")]
        for attempt in (lambda: note(note="gone", fails=True), break_):
            try:
                await attempt()
            except Exception as error:
                found.append(type(error).__name__)
        return [*found, await note(note="last")]

    preview = workshop.open().preview(survivor)
    assert preview.status == "completed", str(preview)
    assert preview.result == [1, "ActionFailed", "ActionFailed", 2]
    assert [(one.rows, one.kept) for one in preview.statements if "gone" in str(one.parameters)] == [(1, False)]
    assert [step.status for step in preview.steps] == ["completed", "failed", "failed", "completed"]
    assert_nothing_stays(database)


def test_undo_actions_are_previewed_newest_first(workshop: Workshop, database: Database):
    @action("note", catalogue=workshop.catalogue)
    def note(ctx: Context, note: str) -> int:
        return ctx.sql.execute(INSERT, {"note": note}).scalar_one()

    @note.undo
    async def forget(ctx: AsyncContext, id: int) -> int:
        await ctx.sql.execute(text("delete from notes where id = :id"), {"id": id})
        return (await ctx.sql.execute(COUNT)).scalar_one()

    @action("refuse", catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("doomed", catalogue=workshop.catalogue)
    async def doomed() -> None:
        await note(note="a")
        await note(note="b")
        await refuse()

    preview = workshop.open().preview(doomed)
    assert (preview.status, preview.error and preview.error.message) == ("failed", "no")
    undone = [step for step in preview.steps if step.kind == "undo"]
    assert [(step.status, step.result) for step in undone] == [("completed", 1), ("completed", 0)]
    assert [step.id for step in undone] == [f"undo:{step.id}" for step in reversed(preview.steps[:2])]
    assert_nothing_stays(database)


# -- hostile handlers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", SYNC)
def test_sync_handler_cannot_end_the_transaction(workshop: Workshop, database: Database, what: str):
    @action("hostile", catalogue=workshop.catalogue)
    def hostile(ctx: Context) -> None:
        ctx.sql.execute(INSERT, {"note": "kept?"})
        SYNC[what](ctx)

    preview = workshop.open().preview(hostile)
    assert (preview.status, preview.error and preview.error.type) == ("failed", "DefinitionError")
    assert_nothing_stays(database)


@pytest.mark.parametrize("what", ASYNC)
def test_async_handler_cannot_end_the_transaction(workshop: Workshop, database: Database, what: str):
    handlers: dict[str, Callable[[AsyncContext], Awaitable[Any]]] = ASYNC

    @action("hostile", catalogue=workshop.catalogue)
    async def hostile(ctx: AsyncContext) -> None:
        await ctx.sql.execute(INSERT, {"note": "kept?"})
        await handlers[what](ctx)

    preview = workshop.open().preview(hostile)
    assert (preview.status, preview.error and preview.error.type) == ("failed", "DefinitionError")
    assert_nothing_stays(database)


def test_handler_that_swallows_every_refusal_leaves_nothing(workshop: Workshop, database: Database):
    @action("hostile", catalogue=workshop.catalogue)
    def hostile(ctx: Context) -> int:
        refused = 0
        for statement in STATEMENTS:
            ctx.sql.execute(text("select 1"))
            try:
                ctx.sql.exec_driver_sql(statement)
            except Exception:
                refused += 1
        ctx.sql.execute(INSERT, {"note": "kept?"})
        return refused

    preview = workshop.open().preview(hostile)
    assert preview.result == len(STATEMENTS), str(preview)
    assert_nothing_stays(database)


def test_transaction_that_sqlite_ends_itself_takes_no_more_statements(tmp_path: Path):
    database = SQLiteFile(tmp_path / "app.db")
    workshop = Workshop(tmp_path, sql=database.url)
    database.execute("insert into notes (text) values ('there')")

    @action("sneaky", catalogue=workshop.catalogue)
    def sneaky(ctx: Context) -> str:
        with pytest.raises(IntegrityError):
            ctx.sql.execute(text("insert or rollback into notes (text) values ('there')"))
        try:
            ctx.sql.execute(INSERT, {"note": "committed by itself"})
        except Exception as error:
            return str(error)
        return "was executed"

    preview = workshop.open().preview(sneaky)
    assert preview.status == "incomplete", str(preview)
    assert "transaction was lost" in notes_of(preview)
    assert database.notes() == ["there"]
    workshop.close()


def test_thread_that_writes_on_and_on_writes_nothing(
    workshop: Workshop, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dotdo.engine.preview_steps.ENDING", 0.01)
    ends: list[tuple[threading.Event, threading.Event]] = []

    @action("stubborn", timeout=0.5, catalogue=workshop.catalogue)
    def stubborn(ctx: Context) -> None:
        sql, number = ctx.sql, 0
        released, ended = ends[-1]
        while not released.is_set():
            with contextlib.suppress(BaseException):
                sql.execute(INSERT, {"note": str(number)})
                number += 1
        ended.set()

    client = workshop.open()
    in_the_middle = 0
    while in_the_middle < 3:  # on a slow machine time may be over before it has begun
        released, ended = threading.Event(), threading.Event()
        ends.append((released, ended))
        preview = client.preview(stubborn)
        released.set()
        assert preview.status == "incomplete", str(preview)
        in_the_middle += len(preview.statements) > 10
        assert ended.wait(PATIENCE)
    assert_nothing_stays(database)


def test_session_state_of_postgres_ends_with_the_preview(postgres_url: str, tmp_path: Path):
    database = PostgresDatabase(postgres_url)
    workshop = Workshop(tmp_path, sql=database.url)

    @action("locks", catalogue=workshop.catalogue)
    def locks(ctx: Context) -> int:
        ctx.sql.execute(text("select pg_advisory_lock(42)"))
        return ctx.sql.execute(text("select pg_backend_pid()")).scalar_one()

    preview = workshop.open().preview(locks)
    assert preview.status == "completed"
    with psycopg.connect(database.url) as connection:
        connection.execute("select pg_advisory_lock(42)")  # is given once the preview's session has ended
        found = connection.execute("select count(*) from pg_stat_activity where pid = %s", (preview.result,))
        assert found.fetchone() == (0,)
    workshop.close()


def test_deferred_constraint_is_checked_as_a_commit_would(postgres_url: str, tmp_path: Path):
    database = PostgresDatabase(postgres_url)
    database.execute(
        "create table tags (note integer references notes (id) deferrable initially deferred, "
        "other integer references notes (id) deferrable initially immediate)"
    )
    workshop = Workshop(tmp_path, sql=database.url)

    @action("tag", catalogue=workshop.catalogue)
    def tag(ctx: Context, note: int, create: bool) -> None:
        ctx.sql.execute(text("insert into tags (note) values (:note)"), {"note": note})
        if create:
            ctx.sql.execute(
                text("insert into notes (id, text) values (:note, :text)"), {"note": note, "text": str(note)}
            )

    @service("tag-twice", catalogue=workshop.catalogue)
    async def tag_twice() -> None:
        await tag(note=1, create=True)
        await tag(note=2, create=True)

    client = workshop.open()
    assert client.preview(tag, note=1, create=True).status == "completed"
    failed = client.preview(tag, note=1, create=False)
    assert failed.error is not None
    assert "ForeignKeyViolation" in failed.error.message
    twice = client.preview(tag_twice)
    assert twice.status == "completed", str(twice)  # still deferred within the second step
    workshop.close()


# -- beside others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_preview_gives_up_when_the_database_is_locked(
    workshop: Workshop,
    database: Database,
    kind: Callable[[Workshop], Action[..., Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(previewing, "LOCK_SECONDS", 0.1)
    note = kind(workshop)

    @action("holder", catalogue=workshop.catalogue)
    def holder(ctx: Context) -> None:
        ctx.sql.execute(INSERT, {"note": "same"})
        held.set()
        assert released.wait(PATIENCE)

    held, released = threading.Event(), threading.Event()
    client = workshop.open()
    handle = client.start(holder)
    assert held.wait(PATIENCE)
    preview = client.preview(note, note="same")
    assert preview.status == "incomplete", str(preview)
    assert "Try again" in notes_of(preview)
    released.set()
    handle.result(timeout=PATIENCE)
    assert database.notes() == ["same"]
    assert client.preview(note, note="other").result == 2


def test_second_database_ends_the_preview(tmp_path: Path, postgres_url: str):
    one, two = SQLiteFile(tmp_path / "one.db"), PostgresDatabase(postgres_url)
    workshop = Workshop(tmp_path, sql={"one": one.url, "two": two.url})

    @action("note", catalogue=workshop.catalogue)
    def note(ctx: Context, database: str) -> None:
        ctx.database(database).execute(INSERT, {"note": database})

    @service("both", catalogue=workshop.catalogue)
    async def both() -> None:
        await note(database="one")
        await note(database="two")

    preview = workshop.open().preview(both)
    assert preview.status == "incomplete"
    assert [step.status for step in preview.steps] == ["completed", "incomplete"]
    assert "'two'" in notes_of(preview)
    assert one.notes() == two.notes() == []
    workshop.close()


def test_driver_that_commits_each_statement_by_itself_ends_the_preview(tmp_path: Path, postgres_url: str):
    database = PostgresDatabase(postgres_url)
    url = database.url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url, connect_args={"autocommit": True})  # nothing of the engine tells
    workshop = Workshop(tmp_path, sql=engine)
    preview = workshop.open().preview(by_connection(workshop), note="committed?")
    assert preview.status == "incomplete", str(preview)
    assert "AUTOCOMMIT" in notes_of(preview)
    assert database.notes() == []
    workshop.close()
    engine.dispose()


def test_engine_that_was_given_is_used_with_its_settings(tmp_path: Path):
    database = SQLiteFile(tmp_path / "app.db")
    engine = create_engine(database.url)

    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.create_function("twice", 1, lambda value: value * 2)

    workshop = Workshop(tmp_path, sql=engine)

    @action("compute", catalogue=workshop.catalogue)
    def compute(ctx: Context) -> int:
        return ctx.sql.execute(text("select twice(21)")).scalar_one()

    @action("awaited", catalogue=workshop.catalogue)
    async def awaited(ctx: AsyncContext) -> int:
        return (await ctx.sql.execute(text("select 1"))).scalar_one()

    @service("both", catalogue=workshop.catalogue)
    async def both() -> int:
        return await compute() + await awaited()

    client: Do = workshop.open()
    assert client.preview(compute).result == 42
    preview = client.preview(both)
    assert (preview.status, preview.steps[0].result) == ("incomplete", 42)
    assert "AsyncEngine" in notes_of(preview)
    workshop.close()
    engine.dispose()
