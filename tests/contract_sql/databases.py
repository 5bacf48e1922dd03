"""The application's databases that the contract is tried on: a SQLite file and a real PostgreSQL server.

What a test finds in them is read over a connection of its own, which knows nothing of SQLAlchemy or the engine.
"""

import itertools
import sqlite3
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

_numbers = itertools.count(1)


class Database(ABC):
    """A database with a table of notes. url: as given to the client."""

    url: str

    def __init__(self) -> None:
        self.execute("create table notes (id integer primary key, text varchar(100) unique not null)")

    @abstractmethod
    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Runs one statement in a transaction of its own; what it returns."""

    def notes(self) -> list[str]:
        """The notes that are committed."""
        return [row[0] for row in self.execute("select text from notes order by id")]

    def applied(self) -> list[tuple[Any, ...]]:
        """The applied rows that are committed: step, generation, attempt, completion."""
        return self.execute("select step, generation, attempt, completion from dotdo_applied order by attempt")


class SQLiteFile(Database):
    """A SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, f"sqlite:///{path}"
        super().__init__()

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement).fetchall()


class PostgresDatabase(Database):
    """A database of its own on a PostgreSQL server."""

    def __init__(self, server: str) -> None:
        name = f"application_{next(_numbers)}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        self.url = f"{server.rpartition('/')[0]}/{name}"
        super().__init__()

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []
