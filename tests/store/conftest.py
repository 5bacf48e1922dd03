"""The store under test: one conformance suite for every kind of store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dotdo.store.protocol import Store
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.store.postgres_stores import open_postgres
from tests.store.runs import Runs

KINDS = ("sqlite", "postgres")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    if request.param == "sqlite":
        opened: Store = SqlStore(SQLiteDatabase(str(tmp_path / "dotdo.db")))
    else:
        opened = open_postgres(request.getfixturevalue("postgres_store"))
    yield opened
    opened.close()


@pytest.fixture
def runs(store: Store) -> Runs:
    """Writes runs into the store, as an engine does."""
    return Runs(store)
