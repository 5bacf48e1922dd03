"""An attempt whose end nobody saw is settled in the application's database before anything else happens to its step.

Whatever comes between the loss and the settlement: a dead database, an engine that stops, code that does not fit, a
person who cancels or retries. The losses are real: a killed process, an answer that a wire has lost.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dotdo import AsyncContext, Context, Do, Retry, RunCancelled, action
from dotdo.errors import RunBlocked
from dotdo.records import Run
from tests.contract_sql.databases import Database, PostgresDatabase, SQLiteFile
from tests.contract_sql.lossy import Wire, lossy_wire
from tests.guarantees.unseen import define, kill_one
from tests.workshop import PATIENCE, Workshop, kinds

INSERT = text("insert into notes (text) values (:text)")


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """A workshop; its clients are opened with databases and definitions of the test's."""
    workshop = Workshop(tmp_path)
    yield workshop
    workshop.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    """An application's database."""
    return SQLiteFile(tmp_path / "app.db")


@pytest.fixture
def postgres(postgres_url: str) -> Database:
    """An application's database that can be far away."""
    return PostgresDatabase(postgres_url)


@pytest.fixture
def wire(postgres: Database) -> Iterator[Wire]:
    """What a client reaches that database over."""
    with lossy_wire(postgres.url) as wire:
        yield wire


def only_run(client: Do) -> Run:
    (run,) = client.runs.list()
    return run


def until_it_waits(workshop: Workshop, client: Do, id: str) -> Any:
    """What the run's row says that it waits for, once it says so."""
    workshop.until(lambda: client.runs.get(id).status == "waiting")
    return client.runs.get(id).waiting_for


# -- a dead database ---------------------------------------------------------------------------------------------------


def define_write(workshop: Workshop, shape: str) -> Any:
    @action("write-sync", retry=Retry(attempts=2, delay=0), catalogue=workshop.catalogue)
    def write_sync(ctx: Context) -> str:
        ctx.sql.execute(INSERT, {"text": f"attempt {ctx.attempt}"})
        return f"attempt {ctx.attempt}"

    @action("write-async", retry=Retry(attempts=2, delay=0), catalogue=workshop.catalogue)
    async def write_async(ctx: AsyncContext) -> str:
        await ctx.sql.execute(INSERT, {"text": f"attempt {ctx.attempt}"})
        return f"attempt {ctx.attempt}"

    return {"sync": write_sync, "async": write_async}[shape]


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_step_waits_while_the_database_that_lost_its_commit_is_dead(
    workshop: Workshop, postgres: Database, wire: Wire, shape: str
):
    """It says which database, and why; it does not fail, however long that takes; it goes on by itself."""
    client = workshop.open(sql={"shop": wire.url})
    wire.lose, wire.down_with_loss = "after", True
    handle = client.start(define_write(workshop, shape))

    waiting_for = until_it_waits(workshop, client, handle.id)
    assert (waiting_for.kind, waiting_for.step) == ("settlement", f"write-{shape}")
    assert f"how attempt 1 of write-{shape} ended" in waiting_for.text
    assert "'shop' (postgresql+psycopg://postgres@127.0.0.1" in waiting_for.text
    assert "did not answer: connection" in waiting_for.text
    waits = [workshop.clock.advance_to_next().total_seconds() for _ in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    workshop.clock.time_to_next()  # the ninth question has been refused, too: it must not meet a database that is back
    assert wire.refused >= 9
    assert kinds(handle) == ["accepted"]

    wire.down = False
    workshop.clock.advance_to_next()
    assert handle.result(timeout=PATIENCE) == "attempt 1"
    assert kinds(handle) == ["accepted", "completed", "ended"]
    assert postgres.notes() == ["attempt 1"]
    assert wire.cuts == 1


# -- the process dies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment, result", [("after-commit", "attempt 1"), ("before-commit", "attempt 2")])
def test_process_dies_and_so_does_the_database(
    workshop: Workshop, tmp_path: Path, postgres: Database, wire: Wire, moment: str, result: str
):
    """The next process starts, and then the database goes before it could be asked. That process stops as well."""
    kill_one(tmp_path, {"main": postgres.url}, "write", moment)
    wire.down_at = b"FROM dotdo_applied"
    with workshop.open(sql=wire.url, catalogue=define()) as client:
        run = only_run(client)
        waiting_for = until_it_waits(workshop, client, run.id)
        assert waiting_for.kind == "settlement"
        assert wire.down
    wire.down = False

    client = workshop.open(sql=wire.url, catalogue=define())
    assert client.runs.wait(run.id, timeout=PATIENCE).result == result
    assert postgres.notes() == [result]
    claims = [entry.kind for entry in client.runs.journal(run.id) if entry.kind == "claimed"]
    assert len(claims) == 2, "the engine that waited has not claimed it anew for each question"


@pytest.mark.parametrize("cancelled_in_memory", [True, False], ids=["while it waits", "between processes"])
def test_cancel_waits_for_the_settlement(
    workshop: Workshop, tmp_path: Path, postgres: Database, wire: Wire, cancelled_in_memory: bool
):
    """What had committed unseen is undone, not forgotten."""
    kill_one(tmp_path, {"main": postgres.url}, "writes", "after-commit")
    wire.down_at = b"FROM dotdo_applied"
    client = workshop.open(sql=wire.url, catalogue=define())
    run = only_run(client)
    until_it_waits(workshop, client, run.id)
    client.runs.cancel(run.id)
    if cancelled_in_memory:
        workshop.until(lambda: "stopping" in [entry.kind for entry in client.runs.journal(run.id)])
        assert client.runs.get(run.id).waiting_for.kind == "settlement"  # type: ignore[union-attr]
        wire.down = False
        workshop.clock.advance_to_next()
    else:
        client.close()
        wire.down = False
        client = workshop.open(sql=wire.url, catalogue=define())
    with pytest.raises(RunCancelled):
        client.handle(run.id).result(timeout=PATIENCE)
    assert postgres.notes() == ["attempt 1", "attempt 1 undone"]
    assert client.runs.get(run.id).undo == "all"


@pytest.mark.parametrize("moment, result", [("after-commit", "attempt 1"), ("before-commit", "attempt 2")])
@pytest.mark.parametrize("word", ["retry", "cancel"])
def test_code_that_does_not_fit_cannot_make_a_commit_be_forgotten(
    workshop: Workshop, tmp_path: Path, sqlite: Database, word: str, moment: str, result: str
):
    """The run is blocked before anybody could tell which steps were under way; a person says how it goes on."""
    kill_one(tmp_path, {"main": sqlite.url}, "writes", moment)
    with workshop.open(sql=sqlite.url, catalogue=define(first="something else")) as client:
        run = only_run(client)
        with pytest.raises(RunBlocked, match="something else"):
            client.handle(run.id).result(timeout=PATIENCE)

    client = workshop.open(sql=sqlite.url, catalogue=define())
    if word == "retry":
        client.runs.retry(run.id)
        assert client.handle(run.id).result(timeout=PATIENCE) == result
        assert sqlite.notes() == [result]
    else:
        client.runs.cancel(run.id)
        with pytest.raises(RunCancelled):
            client.handle(run.id).result(timeout=PATIENCE)
        assert sqlite.notes() == (["attempt 1", "attempt 1 undone"] if moment == "after-commit" else [])
    writes = {row[3] == "void" for row in sqlite.applied() if row[0].startswith("write:") and row[1:3] == (0, 1)}
    assert writes == {moment == "before-commit"}


def test_process_without_the_definition_cannot_make_a_commit_be_forgotten(
    workshop: Workshop, tmp_path: Path, sqlite: Database
):
    kill_one(tmp_path, {"main": sqlite.url}, "writes", "after-commit")
    with workshop.open(sql=sqlite.url, catalogue=define(without="writes")) as client:
        run = only_run(client)
        assert until_it_waits(workshop, client, run.id).kind == "action"

    client = workshop.open(sql=sqlite.url, catalogue=define())
    workshop.clock.advance("1 min")
    assert client.runs.wait(run.id, timeout=PATIENCE).result == "attempt 1"
    assert sqlite.notes() == ["attempt 1"]


@pytest.mark.parametrize("moment, result", [("after-commit", "attempt 2"), ("before-commit", "attempt 3")])
def test_fallback_is_settled_before_it_is_tried_again(
    workshop: Workshop, tmp_path: Path, sqlite: Database, moment: str, result: str
):
    kill_one(tmp_path, {"main": sqlite.url}, "write-or-else", moment)
    client = workshop.open(sql=sqlite.url, catalogue=define())
    run = client.runs.wait(only_run(client).id, timeout=PATIENCE)
    assert run.result == result
    assert sqlite.notes() == [result]


@pytest.mark.parametrize("moment, result", [("after-commit", "attempt 1"), ("before-commit", "attempt 2")])
def test_each_of_several_databases_is_asked(
    workshop: Workshop, tmp_path: Path, sqlite: Database, moment: str, result: str
):
    """An attempt may have used any of them."""
    second = SQLiteFile(tmp_path / "second.db")
    databases = {"first": sqlite.url, "second": second.url}
    kill_one(tmp_path, databases, "write-elsewhere", moment)
    client = workshop.open(sql=databases, catalogue=define())
    assert client.runs.wait(only_run(client).id, timeout=PATIENCE).result == result
    assert second.notes() == [result]
    assert sqlite.notes() == []
    assert [row[3] for row in sqlite.applied()] == ["void"]
