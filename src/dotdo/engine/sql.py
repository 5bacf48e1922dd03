"""The transaction of one attempt on the application's database, as its handler sees it: sync, async, and ORM sessions.

It begins with the first statement, and only the engine ends it. The last statement is the applied row, with the whole
completion in it (see applying.py).
"""

import asyncio
import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, cast

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
)
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from dotdo.engine.refusing import refuse, refuse_ends, refuse_rolled_back
from dotdo.engine.turns import Turns
from dotdo.journal import Completion

CANCEL = 5.0  # seconds for which a server has time to cancel a statement
ROLLBACKS = 5  # tries: a statement may begin just after the one before was cancelled
Key = tuple[str, str, int, int]  # run, step, generation, attempt

metadata = MetaData()
applied = Table(
    "dotdo_applied",
    metadata,
    Column("run", String(200), primary_key=True),
    Column("step", String(400), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("completion", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)


def applied_row(key: Key, completion: str) -> dict[str, Any]:
    """The row of an attempt."""
    return dict(zip(_COLUMNS, (*key, completion, int(time.time() * 1000)), strict=True))


_COLUMNS = ("run", "step", "generation", "attempt", "completion", "at")
_INSERT = f"insert into {applied.name} ({', '.join(_COLUMNS)}) values (:{', :'.join(_COLUMNS)})"  # noqa: S608
encode_completion = msgspec.json.Encoder().encode
_READS = re.compile(r"\s*(select|savepoint|release)\b", re.I)


class AttemptConnection(Connection):
    """A connection whose transaction belongs to the attempt. check: raises AttemptOver when that has ended; of a
    preview, nobody ends it from outside. may_write: whether a statement was more than a `select`."""

    check: Callable[[], None] | None = None
    may_write = False
    _changes: int | None = None
    _cursors: "weakref.WeakSet[sqlite3.Cursor] | None" = None
    _streams: tuple[Any, ...] = ()
    _one_at_a_time: asyncio.Lock | None = None

    def commit(self) -> None:
        """Refused."""
        refuse("commit()")

    def rollback(self) -> None:
        """Refused."""
        refuse("rollback()")

    def close(self) -> None:
        """Refused."""
        refuse("close()")

    def begin(self) -> Any:
        """Refused; `begin_nested` (a savepoint) is fine."""
        refuse("begin()")

    def get_transaction(self) -> Any:
        """Refused: it could be committed or rolled back."""
        refuse("get_transaction()")

    def begin_attempt(self) -> Any:
        """Begins the attempt's transaction."""
        self._changes = self._count_changes()
        return super().begin()

    def has_only_read(self) -> bool:
        """Whether there is nothing that could be lost, or happen twice. That is known of SQLite only: elsewhere a
        `select` may call a function that writes."""
        return not self.may_write and self._changes is not None and self._changes == self._count_changes()

    def _count_changes(self) -> int | None:
        """How many rows the connection has changed so far, by whatever statement. None: the driver does not say."""
        if self.dialect.name != "sqlite":
            return None
        changes: Any = getattr(self.connection.driver_connection, "total_changes", None)
        return changes if isinstance(changes, int) else None

    def keep_in_mind(self, cursor: Any) -> None:
        """That of a statement, if its result may be left open."""
        if isinstance(cursor, sqlite3.Cursor):
            if self._cursors is None:
                self._cursors = weakref.WeakSet()
            self._cursors.add(cursor)
        elif getattr(cursor, "server_side", False) or getattr(cursor, "name", None):  # others have all rows at once
            self._streams = (*self._streams, cursor)

    def close_results(self) -> None:
        """Those that were not read to their end. On SQLite, whoever keeps one keeps the connection at the moment that
        it reads, also past the transaction: once somebody else has written, no other can begin there any more."""
        cursors = [*(self._cursors or ()), *self._streams]
        self._cursors, self._streams = None, ()
        for cursor in cursors:
            cursor.close()

    def one_at_a_time(self) -> asyncio.Lock:
        """For statements that tasks of a handler execute at once."""
        if self._one_at_a_time is None:
            self._one_at_a_time = asyncio.Lock()
        return self._one_at_a_time

    def close_attempt(self) -> None:
        """Gives the connection back."""
        super().close()

    def execution_options(self, **opt: Any) -> Any:
        """Like SQLAlchemy's, without changing the isolation level."""
        if "isolation_level" in opt:
            refuse("another isolation level")
        return super().execution_options(**opt)

    def forget_options(self) -> None:
        """Those that the handler has set stay with the connection. They are for its own statements: the applied row is
        in no other schema, and its insert has no rows to stream."""
        self._execution_options = self.engine.get_execution_options()


class AttemptSession(Session):
    """An ORM session on the attempt's transaction."""

    work: "SqlWork"

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # same calls
        """Opens the attempt's connection at first use."""
        return self.work.open()

    def commit(self) -> None:
        """Refused; `flush` is fine."""
        refuse("session.commit()")

    def rollback(self) -> None:
        """Refused."""
        refuse("session.rollback()")

    def close(self) -> None:
        """Refused: what was not flushed would be lost without a word. It ends with the attempt."""
        refuse("session.close()")

    def reset(self) -> None:
        """Refused, for the same reason."""
        refuse("session.reset()")


class _Unopened:
    """Stands for a connection until its first statement, which opens it."""

    closed = invalidated = False

    def __init__(self, open: Callable[[], Connection], dialect: Dialect) -> None:
        self._open, self.dialect = open, dialect

    def in_transaction(self) -> bool:
        """It begins with the first statement."""
        return False

    in_nested_transaction = in_transaction

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(self._open(), name)(*args, **kwargs)


class AttemptAsyncConnection(AsyncConnection):
    """The same for `async def` handlers; begun at the first awaited statement."""

    def __init__(self, engine: AsyncEngine, work: "SqlWork") -> None:
        super().__init__(engine)
        self._work = work

    @property
    def _proxied(self) -> Any:
        return self._work.opened or _Unopened(self._work.open, self.sync_engine.dialect)

    async def run_sync(self, fn: Callable[..., Any], *arg: Any, **kw: Any) -> Any:
        """Runs a sync function with the sync connection."""
        return await greenlet_spawn(lambda: fn(self._work.open(), *arg, **kw))

    async def commit(self) -> None:
        """Refused."""
        refuse("commit()")

    async def rollback(self) -> None:
        """Refused."""
        refuse("rollback()")

    async def close(self) -> None:
        """Refused."""
        refuse("close()")

    def begin(self) -> Any:
        """Refused; `begin_nested` (a savepoint) is fine."""
        refuse("begin()")

    async def execution_options(self, **opt: Any) -> Any:
        """Like SQLAlchemy's, without changing the isolation level."""
        if "isolation_level" in opt:
            refuse("another isolation level")
        return await super().execution_options(**opt)


class SqlWork:
    """The transaction of one attempt on one database. Sync methods run on the handler's thread, or in a greenlet."""

    def __init__(
        self,
        database: str,
        engine: Engine,
        async_engine: AsyncEngine | None,
        check: Callable[[], None],
        turns: Turns | None = None,
    ) -> None:
        self.database = database
        self.opened: AttemptConnection | None = None
        self._beginning: AttemptConnection | None = None  # until it is opened, or closed as that has failed
        self.in_doubt = False  # a COMMIT was sent and not answered
        self._engine, self._async_engine, self._check = engine, async_engine, check
        self._turns, self._has_turn = turns, False
        self._opening = threading.Lock() if async_engine is None else asyncio.Lock()
        # Only a thread may still be at it when its work is ended by others.
        self._ending = threading.Lock() if async_engine is None else nullcontext()
        self._abandoned: Any = None  # the driver's connection, once it was taken from a thread that goes on
        self._root: Any = None
        self._session: AttemptSession | None = None
        self._outer: AsyncSession | None = None
        self._async: AttemptAsyncConnection | None = None

    def open(self) -> AttemptConnection:
        """The connection, with its transaction begun. Raises AttemptOver when the attempt is over."""
        self._check()
        if self.opened is not None:
            return self.opened
        # Tasks or threads of a handler may come here at once; a second transaction would never be committed.
        if isinstance(self._opening, asyncio.Lock):
            await_only(self._opening.acquire())
        else:
            self._opening.acquire()
        try:
            return self.opened or self._begin()
        finally:
            self._opening.release()

    def _begin(self) -> AttemptConnection:
        self._check()
        self._take_turn()
        try:
            self._check()
            connection = self._beginning = AttemptConnection(self._engine)
            connection.check = self._check
            try:
                self._root = connection.begin_attempt()
                self._check()  # the attempt may have ended meanwhile, and whoever abandoned it has found nothing open
            except BaseException:
                connection.close_attempt()
                raise
        except BaseException:
            self._end_turn()
            raise
        self.opened, self._beginning = connection, None
        return connection

    def _take_turn(self) -> None:
        if self._turns is not None:
            if self._async_engine is None:
                self._turns.take()
            else:
                await_only(self._turns.take_async())
            self._has_turn = True

    def _end_turn(self) -> None:
        if self._turns is not None and self._has_turn:
            self._has_turn = False
            self._turns.give_back()

    def connection(self) -> Any:
        """What `ctx.sql` is."""
        if self._async_engine is None:
            return self.open()
        if self._async is None:
            self._async = AttemptAsyncConnection(self._async_engine, self)
        return self._async

    def session(self) -> Any:
        """What `ctx.session` is."""
        if self._session is None:
            options: dict[str, Any] = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
            if self._async_engine is None:
                self._session = AttemptSession(**options)
            else:
                self._outer = AsyncSession(sync_session_class=AttemptSession, **options)
                self._session = cast("AttemptSession", self._outer.sync_session)
            self._session.work = self
        return self._session if self._outer is None else self._outer

    def commit(self, key: Key, completion: Completion) -> None:
        """Writes the applied row as the last statement, unless all others have only read, and commits."""
        if self._session is not None:
            self._session.flush()
            if self._session.in_transaction():
                Session.commit(self._session)  # releases the session's savepoint
        opened = self.opened
        if opened is None:
            completion.sql.clear()  # a session or connection that was never used
            return
        try:
            opened.close_results()
            if opened.has_only_read():
                completion.sql.clear()
                row = None
            else:
                row = applied_row(key, encode_completion(completion).decode())
            driver: Any = opened.connection.driver_connection
            if hasattr(driver, "commit_with"):  # of aio_sqlite
                driver.commit_with(None if row is None else partial(self._apply, row), self._end_turn)
            elif row is not None:
                self._insert(opened, row)
            self._root.commit()
            self.in_doubt = False
        except BaseException:
            # SQLAlchemy takes a transaction whose COMMIT has failed for one that has ended. On SQLite it may be open (a
            # constraint was deferred to it), and would keep the file locked.
            if opened.dialect.name == "sqlite" and not opened.closed and not opened.invalidated:
                opened.connection.rollback()
            raise
        finally:
            self._close()

    def _insert(self, opened: AttemptConnection, row: dict[str, Any]) -> None:
        opened.forget_options()
        try:
            opened.execute(insert(applied), row)
        except IntegrityError:
            self.in_doubt = True  # its row is there: as void, or because this very attempt had committed before
            raise
        self.in_doubt = True

    def _apply(self, row: dict[str, Any], connection: sqlite3.Connection) -> None:
        """The same on aio_sqlite's thread, where the COMMIT follows in the same visit."""
        if not connection.in_transaction:
            refuse_rolled_back()
        try:
            connection.execute(_INSERT, row).close()
        except sqlite3.IntegrityError:
            self.in_doubt = True
            raise
        self.in_doubt = True

    def rollback(self) -> None:
        """Rolls back; nothing has happened."""
        with self._ending:
            if self._abandoned is not None:
                self._abandoned.close()
            elif self.opened is not None:
                try:
                    with suppress(Exception):  # whatever it is, the transaction is rolled back
                        self.opened.close_results()
                    self._root.close()  # which rolls back; and in silence if it has ended meanwhile, on the loop
                finally:
                    self._close()

    def abandon(self) -> bool:
        """The attempt has ended while its thread goes on: cancels its statement, rolls back, and takes its connection
        out of the pool, so that nobody waits for it. False when the driver cannot do so from another thread."""
        connection = self.opened
        driver: Any = None if connection is None else connection.connection.driver_connection
        cancel = _canceller(driver)
        if connection is None or cancel is None:
            return connection is None
        cancel()
        with self._ending:  # the thread may be coming to its end
            if self.opened is None:
                return True
            self._abandoned = driver
            connection.detach()
            try:
                self._end(driver, cancel)
            finally:
                self._end_turn()
        return True

    @staticmethod
    def _end(driver: Any, cancel: Callable[[], None]) -> None:
        for left in reversed(range(ROLLBACKS)):
            cancel()
            try:
                if hasattr(driver, "interrupt"):
                    # SQLite would commit by itself what the thread is just about to execute, once its transaction is
                    # rolled back. Now that fails instead; the connection is nobody else's any more.
                    driver.execute("pragma query_only = on")
                return driver.rollback()  # both drivers wait for the statement that was just cancelled
            except Exception:
                if not left:
                    raise

    def _close(self) -> None:
        connection, self.opened = self.opened, None
        if self._session is not None:
            self._session.expunge_all()
        if connection is not None:
            try:
                connection.close_attempt()
            finally:
                self._end_turn()

    async def commit_async(self, key: Key, completion: Completion) -> None:
        """`commit` for an `async def` handler."""
        await greenlet_spawn(self.commit, key, completion)

    async def rollback_async(self) -> None:
        """`rollback` for an `async def` handler."""
        await greenlet_spawn(self.rollback)

    async def bury_async(self) -> None:
        """Rolls back what a killed engine has left: its tasks stand still, wherever they are, be it as they begin."""
        await self.rollback_async()
        if self._beginning is not None:
            await greenlet_spawn(self._beginning.close_attempt)


def _canceller(driver: Any) -> Callable[[], None] | None:
    """What ends a driver's statement from another thread; it does not wait for ever for a server that is silent."""
    prompt = getattr(driver, "cancel_safe", None)  # of psycopg
    if prompt is not None:
        return partial(prompt, timeout=CANCEL)
    return getattr(driver, "interrupt", None) or getattr(driver, "cancel", None)  # of sqlite3; of others


def guard(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    if not isinstance(connection, AttemptConnection) or not connection.in_transaction():
        return
    if connection.check is not None:
        connection.check()  # a handler may have kept the connection, and go on after its timeout
    if statement != "BEGIN IMMEDIATE":
        connection.keep_in_mind(cursor)
        if connection.dialect.name == "sqlite":
            _check_open(connection)
            connection.may_write = connection.may_write or not _READS.match(statement)
        refuse_ends(connection.dialect.name, statement)


def one_at_a_time(method: str, cursor: Any, *given: Any) -> bool | None:
    """Executes a statement on aiosqlite's own connections, when none of the same attempt is on its way. Else one that
    came with others would be committed by itself, if one of those has SQLite roll back the whole transaction. (On
    aio_sqlite's the thread looks.)"""
    connection = given[-1].root_connection
    if not isinstance(connection, AttemptConnection) or connection.check is None:
        return None  # executed as ever
    lock = connection.one_at_a_time()
    await_only(lock.acquire())
    try:
        _check_open(connection)
        getattr(cursor, method)(*given[:-1])
    finally:
        lock.release()
    return True


def _check_open(connection: Connection) -> None:
    """After some errors (a full disk, `insert or rollback`, a trigger's `raise(rollback)`) SQLite has rolled back the
    whole transaction, and would commit each statement that follows by itself."""
    if not cast("Any", connection.connection.driver_connection).in_transaction:
        refuse_rolled_back()
