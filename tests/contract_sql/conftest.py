"""Fixtures of the SQL contract: each test runs on every kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract_sql.databases import Database, PostgresDatabase, SQLiteFile
from tests.workshop import Workshop


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """The application's database, with an empty table of notes."""
    if request.param == "sqlite":
        return SQLiteFile(tmp_path / "app.db")
    return PostgresDatabase(request.getfixturevalue("postgres_url"))


@pytest.fixture
def bare_workshop(tmp_path: Path) -> Iterator[Workshop]:
    """A workshop; its client is opened with the test's database."""
    workshop = Workshop(tmp_path)
    yield workshop
    workshop.close()


@pytest.fixture
def workshop(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """A workshop whose clients use that database. Applied rows stay until it closes, to be looked at."""
    monkeypatch.setattr("dotdo.engine.forgetting.DELAY_SECONDS", 3600)
    workshop = Workshop(tmp_path, sql=database.url)
    yield workshop
    workshop.close()
    assert [row for row in database.applied() if row[3] != "void"] == []  # forgotten once the journal has them
