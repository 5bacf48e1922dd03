"""A handler with a transaction of its own commits its attempt with `completion_statement()`, exactly once.

However it ends: it returns, raises, hangs or dies, before or after its commit. Tried with plain sqlite3, with Django's
ORM on SQLite and PostgreSQL, and with asyncpg (own_transactions.py).
"""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dotdo import ActionFailed, AsyncContext, Context, Do, Handle, action
from dotdo.journal import Completion
from tests.contract_sql import own_transactions
from tests.contract_sql.databases import Database, PostgresDatabase, SQLiteFile
from tests.contract_sql.own_transactions import KEY, Gate, catalogue, gates
from tests.workshop import PATIENCE, Workshop, kinds

ROOT = Path(__file__).resolve().parents[2]
MOMENT = 0.3  # s of real time, because handlers are real work: a timeout that is meant to pass


@pytest.fixture(params=["sqlite3", "django-sqlite", "django-postgres", "asyncpg"])
def shape(request: pytest.FixtureRequest) -> str:
    """Who writes, and where."""
    return request.param


@pytest.fixture
def driver(shape: str) -> str:
    """Who writes."""
    return shape.partition("-")[0]


@pytest.fixture
def database(shape: str, request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """The application's database, with an empty table of notes."""
    if shape in ("sqlite3", "django-sqlite"):
        return SQLiteFile(tmp_path / "app.db")
    return PostgresDatabase(request.getfixturevalue("postgres_url"))


@pytest.fixture
def gate(driver: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Where a handler of that kind hangs."""
    gate = Gate()
    monkeypatch.setitem(gates, driver, gate)
    yield gate
    gate.released.set()


@pytest.fixture
def start(workshop: Workshop, database: Database, driver: str) -> Any:
    """Starts the action, with what to do at each attempt."""

    def start(moves: str, **options: Any) -> Handle[Any]:
        client = workshop.open(catalogue=catalogue)
        definition: Any = getattr(own_transactions, f"write_{driver}")
        return client.start(definition.with_(**options), url=database.url, moves=moves)

    return start


def test_commits_the_handlers_writes_with_the_whole_completion_beside_them(start: Any, database: Database):
    handle = start("return")
    assert handle.result(timeout=PATIENCE) == "attempt 1"
    assert database.notes() == ["attempt 1"]
    ((step, generation, attempt, completion),) = database.applied()
    assert (step, generation, attempt) == (handle.get().name, 0, 1)
    (completed,) = [entry for entry in handle.journal() if entry.kind == "completed"]
    assert completion == completed.data
    assert msgspec.json.decode(completion, type=Completion).sql == ["main"]


def test_handler_that_raises_after_its_commit_has_committed(
    start: Any, database: Database, caplog: pytest.LogCaptureFixture
):
    handle = start("raise-after")
    assert handle.result(timeout=PATIENCE) == "attempt 1"
    assert kinds(handle) == ["accepted", "completed", "ended"]
    assert database.notes() == ["attempt 1"]
    assert "had committed, and counts; it then raised ConnectionError: raised after" in caplog.text


def test_handler_that_raises_before_its_commit_is_tried_again(start: Any, database: Database):
    handle = start("raise-before,return")
    assert handle.result(timeout=PATIENCE) == "attempt 2"
    assert database.notes() == ["attempt 2"]
    assert [row[3] == "void" for row in database.applied()] == [True, False]


@pytest.mark.parametrize("move", ["forget", "roll-back"])
def test_handler_that_returns_without_its_commit_fails_and_is_told_why(start: Any, database: Database, move: str):
    handle = start(move)
    with pytest.raises(ActionFailed, match="nothing of it is committed in the database 'main'") as error:
        handle.result(timeout=PATIENCE)
    assert (error.value.error_type, error.value.attempts) == ("DefinitionError", 1)
    assert database.notes() == []
    assert [row[3] for row in database.applied()] == ["void"]


def test_handler_whose_time_is_over_before_its_commit_can_commit_no_more(
    start: Any, database: Database, gate: Gate, driver: str
):
    """The thread cannot be killed. It wakes up after the next attempt has committed; even if it then overlooks that its
    statement has failed, nothing of it is committed."""
    handle = start("hang-before,return", timeout=MOMENT)
    in_time = handle.result(timeout=PATIENCE)
    assert gate.reached.is_set()
    if driver != "asyncpg":  # there the handler was cancelled where it stood
        gate.over.clear()
        gate.released.set()
        assert gate.over.wait(PATIENCE)
        assert set(gate.then) == {"IntegrityError"}
    assert database.notes() == [in_time]
    accepted, *failed, completed, ended = kinds(handle)
    assert (accepted, {*failed}, completed, ended) == ("accepted", {"attempt_failed"}, "completed", "ended")


def test_handler_whose_time_is_over_after_its_commit_has_committed(start: Any, database: Database, gate: Gate):
    handle = start("hang-after", timeout=MOMENT)
    committed = handle.result(timeout=PATIENCE)
    assert gate.reached.is_set()
    assert database.notes() == [committed]
    _, *failed, completed, _ = kinds(handle)  # on a slow machine some did not even come to their commit
    assert (committed, completed) == (f"attempt {len(failed) + 1}", "completed")


@pytest.mark.parametrize("move, result", [("die-before", "attempt 2"), ("die-after", "attempt 1")])
def test_process_that_dies_around_the_handlers_commit(
    workshop: Workshop, database: Database, driver: str, tmp_path: Path, move: str, result: str
):
    program = "tests.contract_sql.own_transactions"
    moves = f"{move},return"
    command = [sys.executable, "-m", program, str(tmp_path), database.url, f"write-{driver}", moves]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert database.notes() == (["attempt 1"] if move == "die-after" else [])

    client = workshop.open(catalogue=catalogue)
    (run,) = client.runs.list()
    assert run.key == KEY
    assert client.runs.wait(run.id, timeout=PATIENCE).result == result
    assert database.notes() == [result]


# -- what it refuses, in any driver ------------------------------------------------------------------------------------


one_shape = pytest.mark.parametrize("shape", ["sqlite3"], indirect=True)


def refusal(client: Do, definition: Any) -> str:
    with pytest.raises(ActionFailed) as failure:
        client.run(definition)
    assert failure.value.error_type == "DefinitionError"
    return failure.value.error_message


@one_shape
def test_everything_staged_and_requested_comes_before(workshop: Workshop, database: Database):
    @action("stages-late", catalogue=workshop.catalogue)
    def stages_late(ctx: Context) -> None:
        ctx.completion_statement()
        ctx.stage(workshop.send, text="too late")

    @action("requests-late", catalogue=workshop.catalogue)
    async def requests_late(ctx: AsyncContext) -> None:
        ctx.completion_statement()
        await ctx.request(workshop.ask, text="too late")

    client = workshop.open()
    for definition in (stages_late, requests_late):
        assert "Do that before you ask for it" in refusal(client, definition)
    assert workshop.receiver.heard == []


@one_shape
def test_one_attempt_has_one_transaction(workshop: Workshop, database: Database):
    @action("both", catalogue=workshop.catalogue)
    def both(ctx: Context) -> None:
        ctx.sql.exec_driver_sql("select 1")
        ctx.completion_statement()

    @action("the-other-way-round", catalogue=workshop.catalogue)
    def the_other_way_round(ctx: Context) -> None:
        ctx.completion_statement()
        _ = ctx.session

    @action("two-databases", catalogue=workshop.catalogue)
    def two_databases(ctx: Context) -> None:
        ctx.completion_statement(database="main")
        ctx.completion_statement(database="other")

    other = SQLiteFile(database.path.with_name("other.db"))  # type: ignore[attr-defined]
    client = workshop.open(sql={"main": database.url, "other": other.url})
    assert "Use one or the other" in refusal(client, both)
    assert "Use one or the other" in refusal(client, the_other_way_round)
    assert "already uses the database 'main'" in refusal(client, two_databases)


@one_shape
def test_what_it_is_asked_for_is_checked(workshop: Workshop, database: Database):
    @action("ask", catalogue=workshop.catalogue)
    def ask(ctx: Context, result: Any = 1, database: str = "main", style: Any = "?") -> int:
        ctx.completion_statement(result, database=database, style=style)
        return 1

    client = workshop.open()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"database": "shop"}, "no database 'shop'; known: main"),
        ({"style": "@"}, "style='@'"),
        ({"result": "text"}, "does not fit its return hint"),
    ]
    for arguments, text in wrong:
        with pytest.raises(ActionFailed, match=text):
            client.run(ask, **arguments)


@one_shape
def test_statement_may_be_asked_for_again_by_a_transaction_that_is_repeated(workshop: Workshop, database: Database):
    @action("repeats", catalogue=workshop.catalogue)
    def repeats(ctx: Context) -> str:
        for text in ("first", "second"):
            with closing(sqlite3.connect(database.path)) as connection:  # type: ignore[attr-defined]
                connection.execute("insert into notes (text) values (?)", (text,))
                statement = ctx.completion_statement(text, style=":name")
                connection.execute(statement.sql, statement.parameters)
                if text == "first":
                    connection.rollback()
                connection.commit()
        return "second"

    assert workshop.open().run(repeats) == "second"
    assert database.notes() == ["second"]
