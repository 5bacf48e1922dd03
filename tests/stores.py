"""The store that a test's clients open: a file, or a database of its own on the tests' PostgreSQL server.

A test that asks for the fixture `each_store` runs once with each. Programs that tests start learn of it by their
environment, so both find the same store by the same path.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest
from psycopg.rows import dict_row

from tests.postgres import postgres_server
from tests.store.postgres_stores import TEMPLATE, make_template

SERVER = "DOTDO_TEST_SERVER"
# Seconds. So short that what a killed process had is soon taken over. On a busy machine nodes that live lose it, too:
# where that matters and nobody is killed it lasts, and where somebody is and it matters it is a bit longer.
LEASE = 0.6
LASTING, PATIENT = "30", "2"


@pytest.fixture(params=["sqlite", "postgres"])
def each_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of store that the test's clients open."""
    if request.param == "postgres":
        use_postgres(request, monkeypatch)
    return request.param


@pytest.fixture
def on_postgres(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's clients open stores on PostgreSQL."""
    use_postgres(request, monkeypatch)


def use_postgres(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on paths name databases."""
    use_server(request.getfixturevalue("postgres_template"), monkeypatch)


def use_server(server: str, monkeypatch: pytest.MonkeyPatch, lease: float = LEASE) -> None:
    """The same with a server that has the migrated database to copy. lease: seconds."""
    monkeypatch.setenv(SERVER, server)
    monkeypatch.setenv("DOTDO_LEASE", f"{lease}")
    monkeypatch.setenv("DOTDO_AUDIT_KEY", "00112233445566778899aabbccddeeff")
    hurry()


@contextmanager
def own_server() -> Iterator[None]:
    """For programs, which have no fixtures: meanwhile paths name databases of a server that ends with it."""
    with postgres_server() as server, pytest.MonkeyPatch.context() as patch:
        make_template(server)
        use_server(server, patch)
        yield


def settings() -> dict[str, str]:
    """What a program must have in its environment to find the same stores."""
    return {name: os.environ[name] for name in (SERVER, "DOTDO_LEASE", "DOTDO_AUDIT_KEY") if name in os.environ}


def hurry() -> None:
    """Has this process look for the runs of dead nodes more often than once a second."""
    if os.environ.get(SERVER):
        from dotdo.engine import claiming

        claiming.POLL_SECONDS = 0.1


def url_of(path: Path | str) -> str:
    """What a client opens for the store at a path."""
    server = os.environ.get(SERVER)
    if not server:
        return f"sqlite:///{path}"
    name = f"store_{hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()[:16]}"
    with psycopg.connect(server, autocommit=True) as connection:
        if not connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchall():
            connection.execute(f"create database {name} template {TEMPLATE}".encode())
    return f"{server.rpartition('/')[0]}/{name}"


def rows_of(path: Path | str, statement: str, *values: Any) -> list[dict[str, Any]]:
    """Rows of a store, read without its code. Values stand for `?`."""
    url = url_of(path)
    if url.startswith("sqlite"):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            cursor = connection.execute(statement, values)
            names: list[str] = []
            found: list[dict[str, Any]] = []
            for row in cursor:
                names = names or [column[0] for column in cursor.getdescription()]
                found.append(dict(zip(names, row, strict=True)))
            return found
        finally:
            connection.close()
    with psycopg.connect(url, options="-c search_path=dotdo") as reader:
        cursor = reader.cursor(row_factory=dict_row)
        return cursor.execute(statement.replace("?", "%s").encode(), values).fetchall()


def forget(path: Path | str) -> None:
    """Drops the database of a store that is on PostgreSQL; of a file nothing is left once its folder is gone."""
    url = url_of(path)
    if not url.startswith("sqlite"):
        server, _, name = url.rpartition("/")
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())
