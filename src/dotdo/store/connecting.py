"""One connection to PostgreSQL that is opened anew when it is lost, and what the driver's errors mean here.

Behind a pooler (PgBouncer) that gives each transaction another server connection, nothing may be left in a session:
then no statement is prepared, and settings are made in each transaction.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, LiteralString, TypeVar, cast

import psycopg
from psycopg import conninfo, errors
from psycopg.pq import PipelineStatus
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumper

from dotdo.errors import FenceLost, NodeExpelled, StoreError, StoreUnavailable, StoreUnusable

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

OLDEST = 150_000
# ms. A process that was frozen inside a transaction holds others up no longer than this.
IDLE, LOCK = 5_000, 10_000
# So that a server that is gone without a word is noticed, in s and ms.
DEFAULTS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "application_name": "dotdo",
    "target_session_attrs": "read-write",  # among several hosts, the one that is not a standby
}
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
# After such an error the server ends the connection, which the driver may not have noticed yet.
ENDING = ("FATAL", "PANIC")
REPEATABLE = (errors.DeadlockDetected, errors.SerializationFailure)
# Every statement finds its rows by an index, but a planner that sees a small table prefers to read all of it; and that
# plan is kept for a statement that is prepared while the table grows.
SETTINGS = {
    "idle_in_transaction_session_timeout": IDLE,
    "lock_timeout": LOCK,
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}


def settings(*, local: bool) -> str:
    """A statement that has SETTINGS hold for a connection, or for its transaction only."""
    each = (f"set_config('{name}', '{value}', {str(local).lower()})" for name, value in SETTINGS.items())
    return f"select {', '.join(each)}"


SET_LOCAL = settings(local=True)


class CommitUnknown(StoreUnavailable):
    """The connection was lost while a transaction was on its way to its commit."""


@contextmanager
def pipelined(connection: Connection) -> Generator[None]:
    """The driver's pipeline. When the connection breaks in it, raises what broke it first; the driver would raise that
    as well, but warn in the log of each error that follows from it."""
    broken: psycopg.Error | None = None
    try:
        with connection.pipeline():
            try:
                yield
            except psycopg.Error as error:
                broken = error
    except psycopg.Error:
        if broken is None:
            raise
    if broken is not None:
        raise broken


class Link:
    """A connection that is opened when it is needed. Used by one thread at a time.

    opened: called with each new connection; what it raises, the user of the link gets.
    """

    def __init__(self, url: str, where: str, opened: Callable[[Connection], None] | None = None) -> None:
        self._url, self._where, self._opened = url, where, opened
        self._connection: Connection | None = None
        self._plug: socket.socket | None = None
        self._cutting = threading.Lock()
        self._barred = ""
        self._rollbacks = 0
        self.pooled = False
        self.patience = 0.0  # seconds for which it is tried to have a connection again

    def get(self) -> Connection:
        """The connection. Raises the driver's error when there is none to be had."""
        connection = self._connection
        if connection is None or connection.closed:
            self.drop()
            connection = self._connect()
            with self._cutting:
                self._connection = connection  # `opened` may look at the link
                # The same socket under a number of our own: the driver may close its own at any moment, and that number
                # may be another socket's by the time that somebody wants to cut it.
                self._plug = socket.socket(fileno=os.dup(connection.pgconn.socket))
            try:
                if self._opened is not None:
                    self._opened(connection)
            except BaseException:
                self.drop()
                raise
        return connection

    def drop(self) -> None:
        """Closes the connection; the next use opens another one."""
        with self._cutting:
            connection, self._connection = self._connection, None
            plug, self._plug = self._plug, None
        if connection is not None:
            connection.close()
        if plug is not None:
            plug.close()

    def cut(self) -> None:
        """Breaks the connection off, from any thread: whoever waits for an answer on it gets an error now."""
        with self._cutting:
            if self._plug is not None:
                with contextlib.suppress(OSError):  # it is broken already
                    self._plug.shutdown(socket.SHUT_RDWR)

    def bar(self, why: str) -> None:
        """Cuts it, and has `patiently` fail at once from now on; with no reason given, no more."""
        self._barred = why
        if why:
            self.cut()

    def lost(self, error: BaseException) -> bool:
        """Whether an error of the driver means that there is no connection (any more)."""
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return False
        connection = self._connection
        if connection is None or connection.closed or error.diag.severity_nonlocalized in ENDING:
            return True
        # A server that ended in the middle of a pipeline may leave the driver in it ("cannot exit pipeline mode while
        # busy"), on a connection that still looks open and can do nothing more.
        return connection.pgconn.pipeline_status != PipelineStatus.OFF

    def patiently(self, work: Callable[[Connection], T], doing: str) -> T:
        """Does what may be done twice, over as many connections as it takes. Raises StoreError."""
        began, pause = time.monotonic(), SHORTEST_PAUSE
        while True:
            if self._barred:
                raise StoreUnavailable(self._barred)
            try:
                return work(self.get())
            except psycopg.Error as error:
                if self._barred:
                    raise StoreUnavailable(self._barred) from error
                lost = self.lost(error)
                if not lost:
                    self.roll_back()
                # There may be less patience now than at the beginning.
                if not (lost or isinstance(error, REPEATABLE)) or time.monotonic() >= began + self.patience:
                    raise told(error, self._where, doing) from error
                if lost:
                    self.drop()
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def roll_back(self) -> None:
        """Ends whatever transaction the connection is in; closes one that cannot.

        The driver takes a statement for prepared that it sent in a pipeline, also when the server skipped it after an
        error; at a rollback it forgets them all, but only if it has not seen the same text before (psycopg 3.3).
        """
        connection = self._connection
        if connection is None or connection.closed:
            return
        self._rollbacks += 1
        try:
            connection.execute(statement(f"rollback -- {self._rollbacks}"))
        except psycopg.Error:
            self.drop()

    def _connect(self) -> Connection:
        connection: Connection = psycopg.connect(self._url, autocommit=True)
        try:
            version = connection.info.server_version
            if version < OLDEST:
                raise StoreUnusable(
                    f"The server of {self._where} is PostgreSQL {version // 10_000}, and dotdo needs "
                    f"{OLDEST // 10_000} or newer: upgrade it, or name another one."
                )
            pid = connection.execute("select pg_backend_pid()").fetchone()
            self.pooled = pid is not None and pid[0] != connection.info.backend_pid
            if self.pooled:
                connection.prepare_threshold = None
            else:
                connection.execute(statement(settings(local=False)))
            # Types that do not depend on the value, so that each statement is prepared once.
            connection.adapters.register_dumper(str, StrDumper)
            connection.adapters.register_dumper(int, Int8Dumper)
        except BaseException:
            connection.close()
            raise
        return connection


def statement(sql: str) -> LiteralString:
    """Marks a statement of ours: its text comes from files and constants, never from a value."""
    return cast("LiteralString", sql)


def with_defaults(url: str) -> str:
    """What to connect with: a URL, with settings of ours where it has none."""
    given = conninfo.conninfo_to_dict(url)
    return conninfo.make_conninfo("", **{**DEFAULTS, **given})


def in_words(url: str) -> str:
    """A URL without what must not be told."""
    given = conninfo.conninfo_to_dict(url)
    user, hosts = given.get("user"), str(given.get("host") or "localhost").split(",")
    ports = str(given.get("port") or "").split(",")
    ports *= len(hosts) if len(ports) == 1 else 1  # one port is that of all hosts
    places = ",".join(host + (port and f":{port}") for host, port in zip(hosts, ports, strict=False))
    return f"postgresql://{f'{user}@' if user else ''}{places}/{given.get('dbname') or user or ''}"


def told(error: psycopg.Error, where: str, doing: str) -> StoreError:
    """What an error of the driver means."""
    text = " ".join(f"{error}".split())
    if error.sqlstate == "DD002":
        return NodeExpelled(f"This node was taken for dead by the others on {where}; nothing was written.")
    if error.sqlstate == "DD001":
        return FenceLost("A run of this write belongs to a newer claim; nothing was written.")
    if isinstance(error, errors.InsufficientPrivilege):
        return StoreUnusable(f"The role that opens {where} may not do that: {text}.")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedFunction | errors.InvalidSchemaName):
        return StoreUnusable(f"The store {where} is not as this dotdo needs it ({text}); look at `dotdo db check`.")
    if isinstance(error, psycopg.IntegrityError | psycopg.DataError | psycopg.ProgrammingError):
        return StoreError(f"The store {where} refused a write: {text}.")
    return StoreUnavailable(f"The store {where} could not {doing}: {text}.")
