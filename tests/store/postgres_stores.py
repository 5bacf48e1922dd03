"""Stores on the tests' PostgreSQL server: each test has a database of its own, copied from one that is migrated."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from dotdo.store.postgres import PostgresDatabase
from dotdo.store.sharing import SharedStore

TEMPLATE = "migrated"
_numbers = itertools.count(1)


def open_postgres(url: str) -> SharedStore:
    """A store on a database."""
    return SharedStore(PostgresDatabase(url))


def new_database(server: str, *, template: str = "template1") -> str:
    """The URL of a database that nobody else uses."""
    name = f"store_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name} template {template}".encode())
    return f"{server.rpartition('/')[0]}/{name}"


def make_template(server: str) -> None:
    """Makes the migrated database to copy."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {TEMPLATE}".encode())
    open_postgres(f"{server.rpartition('/')[0]}/{TEMPLATE}").close()


def plan_of(connection: psycopg.Connection[tuple[Any, ...]], statement: str) -> dict[str, Any]:
    """How the server would go about a statement of ours, whatever its parameters; which shows that it understands it.

    (`explain (generic_plan)` is this in one statement, from PostgreSQL 16 on.)
    """
    names = sorted({*re.findall(r"%\((\w+)\)s", statement)})
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement).replace("%%", "%")
    given = f"({', '.join(['null'] * len(names))})" if names else ""
    connection.execute(f"prepare asked as {numbered}".encode())
    try:
        connection.execute("set plan_cache_mode = force_generic_plan")
        [(found,)] = connection.execute(f"explain (format json) execute asked{given}".encode()).fetchall()
    finally:
        connection.execute("reset plan_cache_mode")
        connection.execute("deallocate asked")
    return found[0]["Plan"]


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    """The server, with a migrated database to copy."""
    make_template(postgres_url)
    return postgres_url


@pytest.fixture
def postgres_store(postgres_template: str) -> Iterator[str]:
    """The URL of an empty store."""
    url = new_database(postgres_template, template=TEMPLATE)
    yield url
    with psycopg.connect(postgres_template, autocommit=True) as connection:
        connection.execute(f"drop database {url.rpartition('/')[2]} with (force)".encode())
