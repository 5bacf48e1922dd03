"""aiosqlite with few visits to its thread: each is a turn of the event loop, for which all wait who want to write.

Making a cursor, executing, fetching and closing were four visits. Here the first rows come with the execution, and a
cursor that has given all its rows is closed already. A transaction begins in the visit of its first statement, its
commit executes what belongs to it in the same visit, and where there is nothing to roll back nobody is asked to.
"""

import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from threading import Thread
from typing import Any, Literal, cast

import aiosqlite

AHEAD = 100  # rows; a statement with more of them, as one that is streamed, fetches the others when they are asked for
OnConnection = Callable[[sqlite3.Connection], Any]


class _Attempt:
    """How far the transaction of one attempt is. A statement belongs to the one in which it was asked for, whenever the
    thread comes to it."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Literal["begins", "begun", "ended"] = "begins"


class Connection(aiosqlite.Connection):
    """A connection with such cursors, on which attempts begin and end in the visits that they make anyway."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, AHEAD)
        self._attempt: _Attempt | None = None
        self._at_commit: tuple[OnConnection | None, Callable[[], None]] | None = None

    def cursor(self) -> "Cursor":  # pyright: ignore[reportIncompatibleMethodOverride]  # needs no await, takes one
        """Makes nothing on the thread yet."""
        return Cursor(self)

    @property
    def in_transaction(self) -> bool:
        """Also when it is to begin with the next statement."""
        return (self._attempt is not None and self._attempt.state == "begins") or self._conn.in_transaction

    def begin_with_next(self) -> None:
        """An attempt's transaction, for writing, begins together with its first statement. Once that has ended,
        nothing is executed here until the next one begins: it would be committed by itself."""
        self._attempt = _Attempt()

    def commit_with(self, before: OnConnection | None, after: Callable[[], None]) -> None:
        """What the next commit does on the thread: before it (or else there is none), and as soon as it is done."""
        self._at_commit = before, after

    async def commit(self) -> None:
        """See aiosqlite."""
        at_commit, self._at_commit = self._at_commit, None
        await self.visit(self._commit, self._attempt, *(at_commit or (None, None)))

    async def rollback(self) -> None:
        """See aiosqlite."""
        self._at_commit = None
        if self._attempt is None or self._attempt.state != "ended":  # else there is nothing to roll back
            await self.visit(self._roll_back, self._attempt)  # behind a statement for which nobody waits any more

    async def visit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Does something on the thread, wherever the transaction is."""
        return await cast("Any", super())._execute(fn, *args, **kwargs)

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if fn != self._conn.close:
            fn = partial(self._in_transaction, self._attempt, fn)
        return await self.visit(fn, *args, **kwargs)

    # -- on the thread ------------------------------------------------------------------------------------------------

    def new_cursor(self) -> sqlite3.Cursor:
        """For one statement."""
        return self._conn.cursor()

    def _in_transaction(self, attempt: _Attempt | None, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._begin(attempt)
        # A statement may have come with others, and one of those have met an error after which SQLite has rolled back
        # the whole transaction: this one would be committed by itself.
        if attempt is not None and not self._conn.in_transaction:
            raise sqlite3.ProgrammingError("SQLite has rolled back this attempt's whole transaction.")
        return fn(*args, **kwargs)

    def _begin(self, attempt: _Attempt | None) -> None:
        if attempt is None:
            return
        if attempt.state == "ended":
            raise sqlite3.ProgrammingError("The transaction has ended.")
        if attempt.state == "begins":
            self._conn.execute("BEGIN IMMEDIATE").close()
            attempt.state = "begun"

    def _commit(self, attempt: _Attempt | None, before: OnConnection | None, after: Callable[[], None] | None) -> None:
        self._begin(attempt)
        if before is not None:
            before(self._conn)
        self._conn.commit()
        self._end(attempt)
        if after is not None:
            after()

    def _roll_back(self, attempt: _Attempt | None) -> None:
        self._conn.rollback()
        self._end(attempt)

    @staticmethod
    def _end(attempt: _Attempt | None) -> None:
        if attempt is not None:
            attempt.state = "ended"


class Cursor(aiosqlite.Cursor):
    """Executes, and fetches what comes first, in one visit."""

    def __init__(self, connection: Connection) -> None:
        self._new_cursor, self._visit_anyway = connection.new_cursor, connection.visit
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
            await self._visit_anyway(self._cursor.close)

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
    connection = Connection(connector)
    thread_of(connection).daemon = True  # as SQLAlchemy does with aiosqlite's own
    return connection


def thread_of(connection: Any) -> Thread:
    """Before aiosqlite 0.22 a connection was its thread; since then it has one."""
    return connection if isinstance(connection, Thread) else connection._thread


def fits() -> bool:
    """Whether aiosqlite has the insides that are used here. If not, its own cursors do, with more visits."""
    insides = ((aiosqlite.Connection, "_conn"), (aiosqlite.Connection, "_execute"), (aiosqlite.Cursor, "_execute"))
    return all(hasattr(*one) for one in insides)
