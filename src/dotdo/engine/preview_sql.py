"""The SQL of a preview: one transaction for all its steps, a savepoint for each, every statement noted, rolled back.

It runs on the application's own engines, so with their settings. Handlers of both kinds share its connection: where
that belongs to an async driver, a `def` handler's thread hands what has to be awaited to the event loop.
"""

import asyncio
import inspect
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from greenlet import getcurrent, greenlet
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only, greenlet_spawn

from dotdo.engine.failing import Block, message_of
from dotdo.engine.sql import AttemptConnection, SqlWork
from dotdo.errors import AttemptOver, DefinitionError
from dotdo.preview import PreviewedStatement

T = TypeVar("T")

Run = Callable[[Callable[[], None]], "asyncio.Future[None]"]  # runs a function on a thread

MAX_STATEMENTS = 1000
MAX_PARAMETERS = 20  # sets of parameters that are kept of one statement
MAX_TEXT = 2000  # characters that are kept of one parameter
_WRITES = re.compile(r"\s*(insert|update|delete|replace|with)\b", re.I)
_OWN = re.compile(r"\s*(savepoint|release|rollback|set\s+constraints)\b", re.I)
# PostgreSQL: lock_not_available, query_canceled (by the statement timeout).
_WAITED = {"55P03", "57014"}


log = logging.getLogger("dotdo.engine")


class PreviewTransaction:
    """A transaction that is begun at its first statement and never committed.

    lock: seconds to wait for a lock. statement: seconds for one statement (PostgreSQL). begun: told when it has begun.
    """

    def __init__(
        self,
        database: str,
        engine: Engine,
        async_engine: AsyncEngine | None,
        *,
        lock: float,
        statement: float,
        begun: Callable[[], None],
    ) -> None:
        self.database, self.async_engine = database, async_engine
        self.engine = engine if async_engine is None else async_engine.sync_engine
        self.step = ""
        self._lock, self._statement, self._begun = lock, statement, begun
        self._connection: AttemptConnection | None = None
        self._root: Any = None
        self._pool: Pool | None = None
        self._noted: list[_Noted] = []
        self._count = self.left_out = self._changes = 0
        self._over = False
        self._threads = 0
        self._abandoned = False
        self._closing = threading.Lock()

    @property
    def is_sqlite(self) -> bool:
        """Whether it has the only write lock of its database."""
        return self.engine.dialect.name == "sqlite"

    @property
    def lost(self) -> bool:
        """Whether the transaction ended under the hands of its handlers."""
        connection = self._connection
        if connection is None:
            return False
        return connection.invalidated or not self._root.is_active or not self._is_open(connection)

    def _is_open(self, connection: AttemptConnection) -> bool:
        # `insert or rollback` and triggers can end a SQLite transaction; what follows would commit by itself.
        return not self.is_sqlite or cast("Any", connection.connection.driver_connection).in_transaction

    def open(self) -> AttemptConnection:
        """The connection, on a handler's thread or in a greenlet. Raises Block when the database is busy."""
        if self._connection is not None:
            return self._connection
        # An async driver's connection belongs to the loop, whoever asks.
        return self._begin() if self.async_engine is None else await_only(greenlet_spawn(self._begin))

    def _begin(self) -> AttemptConnection:
        connection, pool = None, self.engine.pool.recreate()
        self._check_file()
        try:
            # A connection of its own, made like the others: waiting in their queue would have no limit, and a session
            # keeps more than a rollback takes back (advisory locks, settings, prepared statements).
            connection = AttemptConnection(self.engine, connection=pool.connect())
            if self.is_sqlite:
                _raw(connection, f"pragma busy_timeout = {round(self._lock * 1000)}")
            root = connection.begin_attempt()
            if self.engine.dialect.name == "postgresql":
                self._limit(connection)
        except BaseException as error:
            _give_back(connection, pool)
            if not isinstance(error, SQLAlchemyError):
                raise
            text = message_of(getattr(error, "orig", None) or error)
            raise Block(
                "no transaction",
                f"The database {self.database!r} gave no transaction within {self._lock:g} s: {text}. Try again when "
                "it is less busy; a real attempt waits longer.",
            ) from error
        with self._closing:
            if not self._over:
                self._root, self._connection, self._pool = root, connection, pool
        if self._connection is None:
            root.rollback()
            _give_back(connection, pool)
            raise AttemptOver("The preview is over.")
        event.listen(connection, "before_cursor_execute", self._check)
        event.listen(connection, "after_cursor_execute", self._note)
        self._begun()
        return connection

    def _check_file(self) -> None:
        path = self.engine.url.database or ""
        if self.is_sqlite and not path.startswith("file:") and not os.path.exists(path):
            raise Block("no database", f"There is no file {path}, and a preview makes none.")

    def _limit(self, connection: AttemptConnection) -> None:
        lock, statement = f"{round(self._lock * 1000)}ms", f"{round(self._statement * 1000)}ms"
        connection.exec_driver_sql(f"set local statement_timeout = '{statement}'")
        connection.exec_driver_sql("set local lock_timeout = '1234567ms'")
        # What is set for a transaction is gone where each statement commits by itself.
        if connection.exec_driver_sql("show lock_timeout").scalar_one() != "1234567ms":
            raise Block(
                "no transaction",
                f"The engine given for {self.database!r} commits each statement by itself (AUTOCOMMIT), so nothing "
                "can be rolled back. Give an engine without that.",
            )
        connection.exec_driver_sql(f"set local lock_timeout = '{lock}'")

    # -- what is noted ------------------------------------------------------------------------------------------------

    def _check(self, connection: AttemptConnection, *_: Any) -> None:
        self.count_late()
        if not self._is_open(connection):
            raise DefinitionError(
                "The transaction of this preview was rolled back by the database, so no further statement can be "
                "previewed. Look for OR ROLLBACK, or RAISE(ROLLBACK) in a trigger."
            )

    def _note(self, _connection: Any, cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if _OWN.match(statement):
            return
        self._count += 1
        if self._count > MAX_STATEMENTS:
            self.left_out += 1
            return
        found = cursor.rowcount
        rows = found if isinstance(found, int) else -1
        # Python's sqlite3 counts the rows of a RETURNING only once all are read; the cursor is not ours to keep.
        late = self.is_sqlite and rows <= 0 and cursor.description is not None and _WRITES.match(statement) is not None
        before = self._changes if late else None
        self._noted.append(_Noted(self.step, statement, _plain_parameters(parameters, many=many), rows, before))

    def count_late(self) -> None:
        """Counts the rows of a statement that was not yet read when it was noted; on a handler's thread."""
        connection = self._connection
        if connection is None or not self.is_sqlite or connection.invalidated:
            return
        changes = cast("Any", connection.connection.driver_connection).total_changes
        noted = self._noted[-1] if self._noted else None
        if noted is not None and noted.before is not None and changes > noted.before:
            noted.rows, noted.before = int(_raw(connection, "select changes()")), None
        self._changes = changes

    def take(self, *, kept: bool) -> list[PreviewedStatement]:
        """What was noted since the last time. kept: whether its step keeps what it wrote."""
        noted, self._noted = self._noted, []
        return [one.statement(kept) for one in noted]

    # -- its end ------------------------------------------------------------------------------------------------------

    async def close(self, run: Run) -> None:
        """Rolls back and gives the connection back."""
        with self._closing:
            self._over = True
        if self._connection is None:
            return
        if self.async_engine is not None:
            await greenlet_spawn(self._roll_back)
        elif self._leave_to_thread():
            await run(self._abandon)
        else:
            await run(self._roll_back)

    # A connection of a sync driver is closed by the thread that uses it, if one does: Python's sqlite3 crashes when
    # another one closes it in the middle of a statement.

    def entered(self) -> None:
        """A handler's thread has begun to use the connection."""
        with self._closing:
            self._threads += 1

    def left(self) -> None:
        """It has ended."""
        with self._closing:
            self._threads -= 1
            closes = self._abandoned and not self._threads
        if closes:
            self._roll_back()

    def _leave_to_thread(self) -> bool:
        with self._closing:
            self._abandoned = self._threads > 0
        return self._abandoned

    def _abandon(self) -> None:
        """Ends the transaction under a handler that goes on; nothing that it executes from here on stays."""
        connection = self._connection
        assert connection is not None
        driver: Any = connection.connection.driver_connection
        try:
            if self.is_sqlite:
                _raw(connection, "pragma query_only = on")
                _raw(connection, "rollback")
            else:
                driver.close()
        except Exception as error:  # of whatever driver: the connection is its handler's, or broken
            log.warning("a preview's transaction could not be ended under a handler that goes on: %r", error)

    async def interrupt(self, run: Run) -> None:
        """Breaks off the statement that is under way, on whatever thread."""
        connection = self._connection
        if connection is None or connection.closed or connection.invalidated:
            return
        driver: Any = connection.connection.driver_connection
        stop = getattr(driver, "interrupt", None) or getattr(driver, "cancel", None)
        if inspect.iscoroutinefunction(stop):
            await stop()
        elif stop is not None:
            await run(stop)

    def _roll_back(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            if connection.invalidated:
                return
            if self.is_sqlite:
                # A handler that goes on may execute something just after the rollback, where it would commit by itself.
                _raw(connection, "pragma query_only = on")
            if self._root.is_active:
                self._root.rollback()
        except SQLAlchemyError:
            connection.invalidate()  # the database rolls back when the connection is gone
        finally:
            _give_back(connection, self._pool)


class PreviewWork(SqlWork):
    """The part of one step in a preview's transaction: from its savepoint until the step ends."""

    def __init__(self, transaction: PreviewTransaction, *, is_async: bool, check: Callable[[], None]) -> None:
        async_engine = transaction.async_engine if is_async else None
        super().__init__(transaction.database, transaction.engine, async_engine, check)
        self._transaction = transaction
        self._savepoint: Any = None
        self._entered = False

    def left(self) -> None:
        """The handler's thread has ended."""
        if self._entered:
            self._transaction.left()

    def _begin(self) -> AttemptConnection:
        connection = self._transaction.open()
        self._check()
        if not self._entered:
            self._entered = True
            self._transaction.entered()
        self._savepoint = connection.begin_nested()
        self.opened = connection
        return connection

    def keep(self) -> None:
        """The step has completed: later steps see what it wrote. Raises what a commit would find."""
        if self._session is not None:
            self._session.flush()
            if self._session.in_transaction():
                Session.commit(self._session)  # releases the session's savepoint
        if self.opened is not None:
            self._transaction.count_late()
            if self.opened.dialect.name == "postgresql":
                self._check_constraints(self.opened)
            self._savepoint.commit()
        self._leave()

    def drop(self) -> None:
        """The step has failed: what it wrote is rolled back to its savepoint."""
        try:
            if self.opened is not None and not self._transaction.lost and self._savepoint.is_active:
                self._transaction.count_late()
                self._savepoint.rollback()
        finally:
            self._leave()

    async def keep_async(self) -> None:
        """`keep` for an `async def` handler."""
        await greenlet_spawn(self.keep)

    async def drop_async(self) -> None:
        """`drop` for an `async def` handler."""
        await greenlet_spawn(self.drop)

    @staticmethod
    def _check_constraints(connection: AttemptConnection) -> None:
        # What is deferred to the commit is checked now, and left deferred for the steps to come.
        probe = connection.begin_nested()
        try:
            connection.exec_driver_sql("set constraints all immediate")
        finally:
            probe.rollback()

    def _leave(self) -> None:
        self.opened = self._savepoint = None
        if self._session is not None:
            self._session.expunge_all()


class _Noted:
    """A statement that was executed. before: what a SQLite connection had changed by then, while its own share is not
    known."""

    def __init__(self, step: str, sql: str, parameters: Any, rows: int, before: int | None) -> None:
        self.step, self.sql, self.parameters, self.rows, self.before = step, sql, parameters, rows, before

    def statement(self, kept: bool) -> PreviewedStatement:
        rows = None if self.rows < 0 else self.rows
        return PreviewedStatement(step=self.step, sql=self.sql, rows=rows, parameters=self.parameters, kept=kept)


def _plain_parameters(parameters: Any, *, many: bool) -> Any:
    if many:
        sets = [_plain_parameters(one, many=False) for one in parameters[:MAX_PARAMETERS]]
        left = len(parameters) - len(sets)
        return [*sets, f"... ({left} more)"] if left else sets
    if isinstance(parameters, dict):
        return {name: _plain(value) for name, value in cast("dict[str, Any]", parameters).items()}
    return [_plain(value) for value in parameters]


def _plain(value: Any) -> Any:
    """A parameter as JSON can show it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception as error:  # a class of the user's
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _give_back(connection: AttemptConnection | None, pool: Pool | None) -> None:
    if connection is not None:
        connection.close_attempt()
    if pool is not None:
        pool.dispose()


def _raw(connection: AttemptConnection, statement: str) -> Any:
    """The first value that a statement gives, unseen by SQLAlchemy, so also outside any transaction."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
        row = cursor.fetchone()
        return row[0] if row else None
    finally:
        cursor.close()


def waited_too_long(error: BaseException | None) -> bool:
    """Whether a statement was given up because it waited for a lock, or ran, longer than a preview may."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, DBAPIError):
            original: Any = error.orig
            if (getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)) in _WAITED:
                return True
        error = error.__cause__ or error.__context__
    return False


class _Bridge(greenlet):
    """Sync code on a thread whose awaitables are run elsewhere; the mark lets SQLAlchemy's drivers hand them over."""

    __sqlalchemy_greenlet_provider__ = True


def run_bridged(function: Callable[[], T], loop: asyncio.AbstractEventLoop) -> T:
    """Runs sync code that uses a connection of an async driver on this thread; what it awaits runs on the loop."""
    here = getcurrent()
    bridge = _Bridge(function, here)
    bridge.gr_context = here.gr_context
    value: Any = bridge.switch()
    while not bridge.dead:
        try:
            answer = asyncio.run_coroutine_threadsafe(_awaited(value), loop).result()
        except BaseException as error:
            value = bridge.throw(error)
        else:
            value = bridge.switch(answer)
    return cast("T", value)


async def _awaited(value: Any) -> Any:
    return await value
