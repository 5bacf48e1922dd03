"""Rows that nothing needs any more are removed from the application's database; those that may be needed stay."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dotdo import Do
from dotdo.engine import sweeping
from tests.contract_sql.databases import Database, PostgresDatabase, SQLiteFile
from tests.guarantees.unseen import define, kill_one
from tests.workshop import PATIENCE, Workshop

DAY = 24 * 3600
COMPLETION = '{"action":"write","version":1,"input":{},"result":null,"started":0,"sql":["main"]}'


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """A workshop on the store that a killed process has left."""
    workshop = Workshop(tmp_path)
    yield workshop
    workshop.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """The application's database."""
    if request.param == "sqlite":
        return SQLiteFile(tmp_path / "app.db")
    return PostgresDatabase(request.getfixturevalue("postgres_url"))


def sweep(client: Do, after: float) -> int:
    """Has the engine sweep as it will in so many seconds."""
    engine: Any = client._portal.call(client._inner.platform)
    return client._portal.call(lambda: engine.sweeper.sweep(time.time() + after))


def put(database: Database, run: str, step: str, attempt: int, completion: str) -> None:
    """A row as a kill leaves it."""
    at = round(time.time() * 1000)
    database.execute(f"insert into dotdo_applied values ('{run}', '{step}', 0, {attempt}, '{completion}', {at})")


def rows(database: Database) -> list[tuple[str, int]]:
    """Which rows there are: step and attempt."""
    return sorted((row[0], row[2]) for row in database.applied())


def test_rows_are_swept_when_nothing_can_need_them(
    workshop: Workshop, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweeping, "BATCH", 2)
    kill_one(tmp_path, {"main": database.url}, "write", "before-commit")
    with workshop.open(sql=database.url, catalogue=define()) as client:
        (run,) = client.runs.list()
        assert client.runs.wait(run.id, timeout=PATIENCE).result == "attempt 2"
    assert rows(database) == [("write", 1)]  # void; the row of attempt 2 was deleted with its engine's end

    put(database, run.id, "write", 2, COMPLETION)  # as if the process had been killed before it deleted that
    put(database, run.id, "write", 3, "void")  # of an attempt that the journal has not heard of: it may be coming
    put(database, run.id, "other", 1, COMPLETION)  # the same, of a step
    put(database, "run_of_another_store", "write", 1, "void")
    client = workshop.open(sql=database.url, catalogue=define())
    everything = rows(database)
    assert sweep(client, 0) == 0
    assert rows(database) == everything
    assert sweep(client, 2 * 3600) == 1
    assert rows(database) == [("other", 1), ("write", 1), ("write", 1), ("write", 3)]
    assert sweep(client, 7 * DAY - 60) == 0  # a process that was taken for dead may still wake up
    assert sweep(client, 7 * DAY + 60) == 1
    assert rows(database) == [("other", 1), ("write", 1), ("write", 3)]
    assert sweep(client, 70 * DAY) == 0


def test_dead_database_is_swept_later(workshop: Workshop, database: Database, caplog: pytest.LogCaptureFixture):
    client = workshop.open(sql={"main": database.url}, catalogue=define())
    database.execute("alter table dotdo_applied rename to elsewhere")
    assert sweep(client, DAY) == 0
    assert "rows of dotdo_applied are swept later: The application's database 'main'" in caplog.text
    database.execute("alter table elsewhere rename to dotdo_applied")
    assert sweep(client, DAY) == 0
