"""The application's databases: an attempt's transaction, and the applied row that makes its SQL exactly once.

The last statement of an attempt's transaction inserts the whole completion into `dotdo_applied`. After a crash the next
owner concludes nothing from an absent row: it inserts the same key as `void` first. If that wins, the old transaction
can never commit; if it collides, the row's completion counts.
"""

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    insert,
    select,
    tuple_,
)
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from dotdo.errors import DefinitionError, StoreUnavailable, StoreUnusable
from dotdo.journal import Completion

VOID = "void"
Key = tuple[str, str, int, int]  # run, step, generation, attempt

_metadata = MetaData()
applied = Table(
    "dotdo_applied",
    _metadata,
    Column("run", String(200), primary_key=True),
    Column("step", String(400), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("completion", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Completion)
# Statements that would end the attempt's transaction behind its back.
_ENDS_TRANSACTION = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|abort|rollback(?!(\s+(work|transaction))?\s+to)|prepare\s+transaction)\b",
    re.I,
)
# Quoted text and names, dollar quotes and comments: nothing in them is a statement.
_OPAQUE = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/""", re.S)
_HAS_BODY = re.compile(r"\s*create\b.*\bbegin\b", re.I | re.S)  # a trigger or function with an `end` of its own
_COMMITS_BY_ITSELF = re.compile(r"\s*(create|alter|drop|truncate|rename|grant|revoke|lock\s+tables)\b", re.I)
_SELF_COMMITTING_DIALECTS = frozenset({"mysql", "mariadb", "oracle"})

Given = str | URL | Engine | AsyncEngine


def _refuse(what: str) -> NoReturn:
    raise DefinitionError(
        f"ctx.sql does not take {what}: its transaction is committed with the attempt and rolled back when the handler "
        "raises. Just execute your statements."
    )


class AttemptConnection(Connection):
    """A connection whose transaction belongs to the attempt."""

    def commit(self) -> None:
        """Refused."""
        _refuse("commit()")

    def rollback(self) -> None:
        """Refused."""
        _refuse("rollback()")

    def close(self) -> None:
        """Refused."""
        _refuse("close()")

    def begin(self) -> Any:
        """Refused; `begin_nested` (a savepoint) is fine."""
        _refuse("begin()")

    def get_transaction(self) -> Any:
        """Refused: it could be committed or rolled back."""
        _refuse("get_transaction()")

    def begin_attempt(self) -> Any:
        """Begins the attempt's transaction."""
        return super().begin()

    def close_attempt(self) -> None:
        """Gives the connection back."""
        super().close()

    def execution_options(self, **opt: Any) -> Any:
        """Like SQLAlchemy's, without changing the isolation level."""
        if "isolation_level" in opt:
            _refuse("another isolation level")
        return super().execution_options(**opt)


class AttemptSession(Session):
    """An ORM session on the attempt's transaction."""

    work: "SqlWork"

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # same calls
        """Opens the attempt's connection at first use."""
        return self.work.open()

    def commit(self) -> None:
        """Refused; `flush` is fine."""
        _refuse("session.commit()")

    def rollback(self) -> None:
        """Refused."""
        _refuse("session.rollback()")

    def close(self) -> None:
        """Refused: what was not flushed would be lost without a word. It ends with the attempt."""
        _refuse("session.close()")

    def reset(self) -> None:
        """Refused, for the same reason."""
        _refuse("session.reset()")


class _Unopened:
    """Stands for a connection until its first statement, which opens it."""

    def __init__(self, open: Callable[[], Connection]) -> None:
        self._open = open

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(self._open(), name)(*args, **kwargs)


class AttemptAsyncConnection(AsyncConnection):
    """The same for `async def` handlers; begun at the first awaited statement."""

    def __init__(self, engine: AsyncEngine, work: "SqlWork") -> None:
        super().__init__(engine)
        self._work = work

    @property
    def _proxied(self) -> Any:
        return self._work.opened or _Unopened(self._work.open)

    async def run_sync(self, fn: Callable[..., Any], *arg: Any, **kw: Any) -> Any:
        """Runs a sync function with the sync connection."""
        return await greenlet_spawn(lambda: fn(self._work.open(), *arg, **kw))

    async def commit(self) -> None:
        """Refused."""
        _refuse("commit()")

    async def rollback(self) -> None:
        """Refused."""
        _refuse("rollback()")

    async def close(self) -> None:
        """Refused."""
        _refuse("close()")

    def begin(self) -> Any:
        """Refused; `begin_nested` (a savepoint) is fine."""
        _refuse("begin()")

    async def execution_options(self, **opt: Any) -> Any:
        """Like SQLAlchemy's, without changing the isolation level."""
        if "isolation_level" in opt:
            _refuse("another isolation level")
        return await super().execution_options(**opt)


class SqlWork:
    """The transaction of one attempt on one database. Sync methods run on the handler's thread, or in a greenlet."""

    def __init__(
        self, database: str, engine: Engine, async_engine: AsyncEngine | None, check: Callable[[], None]
    ) -> None:
        self.database = database
        self.opened: AttemptConnection | None = None
        self.in_doubt = False  # a COMMIT was sent and not answered
        self._engine, self._async_engine, self._check = engine, async_engine, check
        self._opening = threading.Lock() if async_engine is None else asyncio.Lock()
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
        connection = AttemptConnection(self._engine)
        try:
            self._root = connection.begin_attempt()
        except BaseException:
            connection.close_attempt()
            raise
        self.opened = connection
        return connection

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
        """Writes the applied row as the last statement, and commits."""
        if self._session is not None:
            self._session.flush()
            if self._session.in_transaction():
                Session.commit(self._session)  # releases the session's savepoint
        if self.opened is None:
            completion.sql.clear()  # a session or connection that was never used
            return
        values = (*key, _encode(completion).decode(), int(time.time() * 1000))
        names = ("run", "step", "generation", "attempt", "completion", "at")
        try:
            self.opened.execute(insert(applied), dict(zip(names, values, strict=True)))
            self.in_doubt = True
            self._root.commit()
            self.in_doubt = False
        finally:
            self._close()

    def rollback(self) -> None:
        """Rolls back; nothing has happened."""
        if self.opened is not None:
            try:
                if self._root.is_active:
                    self._root.rollback()
            finally:
                self._close()

    def _close(self) -> None:
        connection, self.opened = self.opened, None
        if self._session is not None:
            self._session.expunge_all()
        if connection is not None:
            connection.close_attempt()

    async def commit_async(self, key: Key, completion: Completion) -> None:
        """`commit` for an `async def` handler."""
        await greenlet_spawn(self.commit, key, completion)

    async def rollback_async(self) -> None:
        """`rollback` for an `async def` handler."""
        await greenlet_spawn(self.rollback)


class Databases:
    """The application's databases by name; the first one is the default."""

    def __init__(self, given: Given | Mapping[str, Given]) -> None:
        by_name = given if isinstance(given, Mapping) else {"main": given}
        if not by_name:
            raise DefinitionError("sql={} names no database.")
        self._sync: dict[str, Engine] = {}
        self._async: dict[str, AsyncEngine] = {}
        self._own: list[str] = []
        self._urls: dict[str, URL] = {}
        for name, item in by_name.items():
            self._add(name, item)
        self.default = next(iter(by_name))

    def begin(self, name: str | None, is_async: bool, check: Callable[[], None]) -> SqlWork:
        """The transaction of an attempt; opened at its first statement."""
        name = name or self.default
        if name not in self._urls:
            raise DefinitionError(f"There is no database {name!r}; known: {', '.join(self._urls)}.")
        if is_async:
            engine = self._async_engine(name)
            return SqlWork(name, engine.sync_engine, engine, check)
        return SqlWork(name, self._sync[name], None, check)

    def prepare(self) -> None:
        """Creates the table of applied rows where it is missing. Raises StoreUnusable for a database that fails."""
        for name, engine in self._sync.items():
            try:
                _metadata.create_all(engine)
            except (SQLAlchemyError, OSError) as error:
                raise StoreUnusable(
                    f"The application's database {engine.url!r} ({name}) cannot be used: {_first_line(error)}. "
                    "If this role "
                    f"may not create tables, create {applied.name} once with a role that may."
                ) from None

    def settle(self, key: Key) -> Completion | None:
        """Decides an attempt whose end was not seen: its completion if it committed, else it never will.

        Raises StoreUnavailable while a database cannot be asked.
        """
        for engine in self._sync.values():
            found = self._settle_in(engine, key)
            if found is not None:
                return found
        return None

    def forget(self, database: str, keys: Sequence[Key]) -> None:
        """Deletes applied rows whose completions are durable in the journal."""
        columns = tuple_(applied.c.run, applied.c.step, applied.c.generation, applied.c.attempt)
        with self._sync[database].begin() as connection:
            connection.execute(delete(applied).where(columns.in_(list(keys))))

    async def close(self) -> None:
        """Closes the engines that were made here."""
        for name in self._own:
            self._sync[name].dispose()
        for engine in self._async.values():
            await engine.dispose()

    def _settle_in(self, engine: Engine, key: Key) -> Completion | None:
        run, step, generation, attempt = key
        row = {"run": run, "step": step, "generation": generation, "attempt": attempt, "completion": VOID}
        try:
            try:
                with engine.begin() as connection:
                    connection.execute(insert(applied), {**row, "at": int(time.time() * 1000)})
                return None
            except IntegrityError:
                where = [applied.c[name] == row[name] for name in ("run", "step", "generation", "attempt")]
                with engine.begin() as connection:
                    text = connection.execute(select(applied.c.completion).where(*where)).scalar_one()
                return None if text == VOID else _decode.decode(text)
        except DBAPIError as error:
            raise StoreUnavailable(
                f"The application's database {engine.url!r} did not answer: {error.orig}."
            ) from error

    def _add(self, name: str, item: Given) -> None:
        url = self._urls[name] = _url_of(item)
        if isinstance(item, AsyncEngine):
            self._async[name] = item
        self._sync[name] = item if isinstance(item, Engine) else self._create(name, url)
        for engine in (self._sync[name], *([self._async[name].sync_engine] if name in self._async else [])):
            _prepare_engine(engine)

    def files(self) -> set[str]:
        """The SQLite files among them, as real paths."""
        found = [url.database for url in self._urls.values() if url.get_backend_name() == "sqlite" and url.database]
        return {os.path.realpath(path) for path in found}

    def _create(self, name: str, url: URL) -> Engine:
        try:
            engine = create_engine(_sync_url(url), **_pool(url))
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise DefinitionError(
                f"sql={url!r} needs a driver that is not installed: {error}. For PostgreSQL: pip install "
                "'dotdo[postgres]'."
            ) from None
        self._own.append(name)
        return engine

    def _async_engine(self, name: str) -> AsyncEngine:
        engine = self._async.get(name)
        if engine is None:
            url = self._urls[name]
            engine = self._async[name] = create_async_engine(_async_url(url), **_pool(url))
            _prepare_engine(engine.sync_engine)
        return engine


def _url_of(item: Given) -> URL:
    """A database's URL. Raises DefinitionError for what is none, or no place that outlives the process."""
    try:
        url = item.url if isinstance(item, Engine | AsyncEngine) else make_url(item)
    except ArgumentError:
        raise DefinitionError(f"sql={item!r} is not a database URL, such as sqlite:///app.db.") from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise DefinitionError(
            "An application's database must outlive the process, so sqlite in memory cannot be one: name a file, such "
            "as sqlite:///app.db."
        )
    return url


def _pool(url: URL) -> dict[str, Any]:
    # SQLite has one writer at a time: attempts queue for the one connection, in order, instead of polling a busy file.
    return {"pool_size": 1, "max_overflow": 0, "pool_timeout": 60} if url.get_backend_name() == "sqlite" else {}


def _sync_url(url: URL) -> URL:
    drivers = {
        "sqlite+aiosqlite": "sqlite",
        "postgresql+asyncpg": "postgresql+psycopg",
        "postgresql": "postgresql+psycopg",
    }
    return url.set(drivername=drivers.get(url.drivername, url.drivername))


def _async_url(url: URL) -> URL:
    drivers = {
        "sqlite": "sqlite+aiosqlite",
        "sqlite+pysqlite": "sqlite+aiosqlite",
        "postgresql": "postgresql+psycopg",
        "postgresql+psycopg2": "postgresql+psycopg",
    }
    return url.set(drivername=drivers.get(url.drivername, url.drivername))


def _prepare_engine(engine: Engine) -> None:
    event.listen(engine, "before_cursor_execute", _guard)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        engine.dispose()  # connections from before know nothing of this


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions late and by itself; SQLAlchemy's documentation has this recipe.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode = wal")
    cursor.execute("pragma synchronous = full")
    cursor.execute("pragma busy_timeout = 10000")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # Immediate: two deferred transactions that both come to write cannot wait for each other, one fails at once.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _guard(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    if not isinstance(connection, AttemptConnection) or not connection.in_transaction():
        return
    if statement != "BEGIN IMMEDIATE":
        for one in _statements(statement):
            if _ENDS_TRANSACTION.match(one):
                _refuse(one.split(None, 1)[0].upper())
    if connection.dialect.name in _SELF_COMMITTING_DIALECTS and _COMMITS_BY_ITSELF.match(statement):
        _refuse(f"{statement.strip().split(None, 1)[0].upper()}, which commits by itself on this database")


def _statements(text: str) -> list[str]:
    """The statements in a text, as far as it matters how they begin. Some drivers take several at once."""
    if ";" not in text and "--" not in text and "/*" not in text:
        return [text]
    bare = _OPAQUE.sub(" ", text)
    return [bare] if _HAS_BODY.match(bare) else bare.split(";")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
