"""The store under test: one conformance suite for every kind of store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dotdo.store.protocol import Store
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.store.runs import Runs

OPENERS: dict[str, Callable[[Path], Store]] = {
    "sqlite": lambda folder: SqlStore(SQLiteDatabase(str(folder / "dotdo.db"))),
}


@pytest.fixture(params=sorted(OPENERS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    opened = OPENERS[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def runs(store: Store) -> Runs:
    """Writes runs into the store, as an engine does."""
    return Runs(store)
