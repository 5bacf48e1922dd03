"""The application's databases: an attempt's transaction, and the applied row that makes its SQL exactly once.

The last statement of an attempt's transaction inserts the whole completion into `dotdo_applied`. After a crash the next
owner concludes nothing from an absent row: it inserts the same key as `void` first. If that wins, the old transaction
can never commit; if it collides, the row's completion counts.
"""

import asyncio
import os
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import msgspec
from sqlalchemy import (
    Select,
    create_engine,
    delete,
    event,
    insert,
    select,
    tuple_,
)
from sqlalchemy.engine import URL, Connection, Engine, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from dotdo.context import CompletionStatement, Style
from dotdo.engine.completing import completion_statement
from dotdo.engine.settling import Undecided
from dotdo.engine.sql import (
    AttemptConnection,
    Key,
    SqlWork,
    applied,
    applied_row,
    encode_completion,
    guard,
    metadata,
    one_at_a_time,
)
from dotdo.engine.sweeping import Leftover
from dotdo.engine.turns import Turns
from dotdo.errors import AttemptOver, DefinitionError, StoreUnavailable, StoreUnusable
from dotdo.journal import Completion

VOID = "void"
POOL_SIZE = 15  # connections to a server, of each kind of handler
BUSY = 10_000  # ms for which a SQLite file may be locked by others: other processes, a transaction of the user's own
LOCK_TIMEOUT, LOCK_NOT_AVAILABLE = 2_000, "55P03"  # ms; what PostgreSQL says when it passes
# For PostgreSQL: a server that has gone without a word is noticed in time.
PROMPT = {
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

# SQLAlchemy's events around an execution, and what is called there.
_EXECUTIONS = {"do_execute": "execute", "do_executemany": "executemany", "do_execute_no_params": "execute"}

_KEY = tuple_(*applied.primary_key.columns)

Given = str | URL | Engine | AsyncEngine

_decode = msgspec.json.Decoder(Completion)


class Databases:
    """The application's databases by name; the first one is the default.

    as_they_are: a SQLite file keeps the journal mode that it has. work: what the transactions of attempts are.
    """

    def __init__(
        self, given: Given | Mapping[str, Given], *, as_they_are: bool = False, work: type[SqlWork] = SqlWork
    ) -> None:
        self._work = work
        by_name = given if isinstance(given, Mapping) else {"main": given}
        if not by_name:
            raise DefinitionError("sql={} names no database.")
        self._lasting = not as_they_are
        self._sync: dict[str, Engine] = {}
        self._async: dict[str, AsyncEngine] = {}
        self._own: list[str] = []
        self._urls: dict[str, URL] = {}
        self._turns: dict[str, Turns] = {}  # of those on SQLite
        self._asking: dict[str, Engine] = {}  # where handlers may hold all connections of the pool
        for name, item in by_name.items():
            self._add(name, item)
        self.default = next(iter(by_name))

    def begin(self, name: str | None, is_async: bool, check: Callable[[], None]) -> SqlWork:
        """The transaction of an attempt; opened at its first statement."""
        name = self.known(name)
        if is_async:
            engine = self._async_engine(name)
            return self._work(name, engine.sync_engine, engine, check, self._turns.get(name))
        return self._work(name, self._sync[name], None, check, self._turns.get(name))

    def engines(self, name: str, is_async: bool | None) -> tuple[Engine, AsyncEngine | None]:
        """The engine for handlers of one kind, or (None) one that serves both kinds if there is such a driver."""
        if name not in self._urls:
            raise DefinitionError(f"There is no database {name!r}; known: {', '.join(self._urls)}.")
        was_given = name not in self._own and name not in self._async  # an Engine, with settings of its own
        if is_async is None:
            is_async = not was_given and self._urls[name].get_backend_name() in ("sqlite", "postgresql")
        return self._sync[name], self._async_engine(name) if is_async else None

    def statement(self, name: str | None, style: Style, key: Key, completion: Completion) -> CompletionStatement:
        """What a handler executes that commits the attempt by itself. Raises DefinitionError."""
        engine = self._sync[self.known(name)]
        row = applied_row(key, encode_completion(completion).decode())
        return completion_statement(self.known(name), engine.dialect.name, style, row)

    def known(self, name: str | None) -> str:
        """The name of a database, the default's for None. Raises DefinitionError."""
        name = name or self.default
        if name not in self._urls:
            raise DefinitionError(f"There is no database {name!r}; known: {', '.join(self._urls)}.")
        return name

    def prepare(self) -> None:
        """Creates the table of applied rows where it is missing. Raises StoreUnusable for a database that fails."""
        for name, engine in self._sync.items():
            try:
                if not _is_prepared(engine):
                    metadata.create_all(engine)
            except (SQLAlchemyError, OSError) as error:
                mend = (
                    "Its folder must exist, and this process be allowed to write there."
                    if engine.dialect.name == "sqlite"
                    else f"If this role may not create tables, create {applied.name} once with a role that may."
                )
                raise StoreUnusable(
                    f"The application's database {engine.url!r} ({name}) cannot be used: {_first_line(error)}. {mend}"
                ) from None

    @property
    def names(self) -> list[str]:
        """What they are called, in the order in which they were given."""
        return list(self._sync)

    def settle(self, database: str, key: Key) -> Completion | None:
        """Decides an attempt whose end was not seen: its completion if it committed there, else it never will.

        Raises StoreUnavailable while the database cannot be asked, Undecided while the attempt's transaction is open.
        """
        engine = self._asking.get(database) or self._sync[database]
        try:
            text = self._row(engine, key)
            if text is None:
                text = self._insert_void(engine, key)
        except (SQLAlchemyError, OSError) as error:
            where, why = f"database {database!r} ({engine.url!r})", _first_line(getattr(error, "orig", None) or error)
            if getattr(getattr(error, "orig", None), "sqlstate", None) == LOCK_NOT_AVAILABLE:
                raise Undecided(f"its transaction is still open in the application's {where}.") from error
            raise StoreUnavailable(f"The application's {where} did not answer: {why}.") from error
        return None if text == VOID else _decode.decode(text)

    def forget(self, database: str, keys: Sequence[Key]) -> None:
        """Deletes rows whose attempts' ends are durable in the journal. Raises StoreUnavailable."""
        with self._transaction(database) as connection:
            connection.execute(delete(applied).where(_KEY.in_(list(keys))))

    def leftovers(self, database: str, after: Key, before: int, limit: int) -> list[Leftover]:
        """Rows that were written before a time (ms), after a key, in order of keys. Raises StoreUnavailable."""
        is_void = (applied.c.completion == VOID).label("is_void")
        query: Select[Any] = select(*applied.primary_key.columns, is_void, applied.c.at).where(
            applied.c.at < before, after < _KEY
        )
        with self._transaction(database) as connection:
            found: list[Any] = [*connection.execute(query.order_by(*applied.primary_key.columns).limit(limit))]
        return [Leftover(tuple(row[:4]), bool(row.is_void), row.at) for row in found]

    @contextmanager
    def _transaction(self, database: str) -> Generator[Connection]:
        engine = self._sync[database]
        try:
            turns = self._turns.get(database)
            with nullcontext() if turns is None else turns.turn(), engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            where, why = f"database {database!r} ({engine.url!r})", _first_line(getattr(error, "orig", None) or error)
            raise StoreUnavailable(f"The application's {where} did not answer: {why}.") from error

    def end_turns(self) -> None:
        """Attempts that wait for one to end go on: they are over themselves."""
        for turns in self._turns.values():
            turns.end()

    async def close(self) -> None:
        """Closes the engines that were made here."""
        for name in self._own:
            self._sync[name].dispose()
        for engine in self._async.values():
            await engine.dispose()

    def _row(self, engine: Engine, key: Key) -> str | None:
        """What the row of an attempt holds; None where there is none."""
        where = [column == value for column, value in zip(applied.primary_key.columns, key, strict=True)]
        with engine.begin() as connection:
            return connection.execute(select(applied.c.completion).where(*where)).scalar()

    def _insert_void(self, engine: Engine, key: Key) -> str:
        """Takes the row's place. What is in it, if the attempt commits first."""
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"set local lock_timeout = {LOCK_TIMEOUT}")
                connection.execute(insert(applied), applied_row(key, VOID))
        except IntegrityError:
            text = self._row(engine, key)
            if text is None:
                raise  # it was deleted meanwhile, or it is another constraint: asked again later
            return text
        return VOID

    def _add(self, name: str, item: Given) -> None:
        url = self._urls[name] = _url_of(item)
        if url.get_backend_name() == "sqlite":
            self._turns[name] = Turns()
        if isinstance(item, AsyncEngine):
            self._async[name] = item
        self._sync[name] = item if isinstance(item, Engine) else self._create(name, url)
        if name in self._own and self._sync[name].dialect.driver in ("psycopg", "psycopg2"):
            self._asking[name] = create_engine(_sync_url(url), poolclass=NullPool, connect_args=_prompt(_sync_url(url)))
        for engine in (self._sync[name], *([self._async[name].sync_engine] if name in self._async else [])):
            _refuse_autocommit(name, engine)
            _prepare_engine(engine, lasting=self._lasting)

    def files(self) -> set[str]:
        """The SQLite files among them, as real paths."""
        found = [url.database for url in self._urls.values() if url.get_backend_name() == "sqlite" and url.database]
        return {os.path.realpath(path) for path in found}

    def _create(self, name: str, url: URL) -> Engine:
        try:
            engine = create_engine(_sync_url(url), connect_args=_prompt(_sync_url(url)), **_pool(url))
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
            engine = self._async[name] = create_async_engine(
                _async_url(url), connect_args=_async_options(_async_url(url)), **_pool(url, is_async=True)
            )
            _prepare_engine(engine.sync_engine, lasting=self._lasting)
        return engine


def _is_prepared(engine: Engine) -> bool:
    """Whether the table is there. Asked without SQLite's write lock, which a process taken for dead may hold."""
    try:
        with closing(engine.raw_connection()) as connection:
            connection.cursor().execute(f"select 1 from {applied.name} where run = ''")  # noqa: S608 - our own name
    except (engine.dialect.loaded_dbapi.Error, SQLAlchemyError, OSError):
        return False  # most likely; if it is something else, making the table tells
    return True


def _url_of(item: Given) -> URL:
    """A database's URL. Raises DefinitionError for what is none, or no place that outlives the process."""
    try:
        url = item.url if isinstance(item, Engine | AsyncEngine) else _made(item)
    except (ArgumentError, ValueError):
        raise DefinitionError(f"sql={item!r} is not a database URL, such as sqlite:///app.db.") from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise DefinitionError(
            "An application's database must outlive the process, so sqlite in memory cannot be one: name a file, such "
            "as sqlite:///app.db."
        )
    return url


def _made(given: str | URL) -> URL:
    """A URL. One that names several PostgreSQL servers, as its driver takes it, is written otherwise in SQLAlchemy; of
    them the one that is no standby is meant, as with the store."""
    parts = (
        re.fullmatch(r"(postgres\w*(?:\+\w+)?://(?:[^@/]*@)?)([^/?@]*,[^/?@]*)(.*)", given)
        if isinstance(given, str)
        else None
    )
    if parts is None:
        return make_url(given)
    hosts = [host if ":" in host else f"{host}:5432" for host in parts[2].split(",")]
    url = make_url(f"{parts[1]}{parts[3] or '/'}").update_query_dict({"host": hosts})
    which = {} if "target_session_attrs" in url.query else {"target_session_attrs": "read-write"}
    return url.update_query_dict(which)


def _pool(url: URL, *, is_async: bool = False) -> dict[str, Any]:
    # SQLite has one writer at a time, and who is to be it is a matter of turns (see turns.py). An async driver has one
    # connection more: the next attempt begins while the last one's is on its way back, through the loop.
    # Elsewhere as many as SQLAlchemy opens at most, but kept: of those beyond the pool's size it closes each that comes
    # back while nobody is waiting just then.
    is_sqlite = url.get_backend_name() == "sqlite"
    size = POOL_SIZE if not is_sqlite else 2 if is_async else 1
    return {"pool_size": size, "max_overflow": 0, "pool_timeout": 60}


def _prompt(url: URL) -> dict[str, Any]:
    if url.drivername not in ("postgresql+psycopg", "postgresql+psycopg2"):
        return {}
    return {name: value for name, value in PROMPT.items() if name not in url.query}


def _async_options(url: URL) -> dict[str, Any]:
    if url.drivername != "sqlite+aiosqlite":
        return _prompt(url)
    from dotdo.engine import aio_sqlite  # here: aiosqlite is needed with the first async handler that uses SQL

    return {"async_creator_fn": aio_sqlite.connect} if aio_sqlite.fits() else {}


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


def _refuse_autocommit(name: str, engine: Engine) -> None:
    # Such an engine commits each statement by itself: nothing of an attempt that fails could be rolled back.
    chosen = engine.get_execution_options().get("isolation_level")
    made = getattr(engine.dialect, "_on_connect_isolation_level", None)  # create_engine(isolation_level=...)
    if "AUTOCOMMIT" in (str(chosen).upper(), str(made).upper()):
        raise DefinitionError(
            f"The engine given for the database {name!r} commits each statement by itself (AUTOCOMMIT), so an attempt "
            "would have no transaction. Give an engine without that."
        )


def _withhold(connection: Connection, *_: Any) -> None:
    """What a statement brings whose attempt has ended meanwhile is not handed out. It may be nothing, without an error:
    sqlite3 asks SQLite what was wrong only after an interrupted statement, and by then the rollback was right."""
    if isinstance(connection, AttemptConnection) and connection.check is not None:
        connection.check()


def _keep_connection(context: ExceptionContext) -> None:
    """SQLAlchemy throws a connection away when something that is no `Exception` comes out of a statement. That an
    attempt is over says nothing against its connection, which is rolled back by who has ended it, maybe just now."""
    if isinstance(context.original_exception, AttemptOver):
        context.is_disconnect = False


def _prepare_engine(engine: Engine, *, lasting: bool) -> None:
    event.listen(engine, "before_cursor_execute", guard)
    event.listen(engine, "after_cursor_execute", _withhold)
    event.listen(engine, "handle_error", _keep_connection)
    if engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg":
        event.listen(engine, "connect", _prepare_nothing_behind_a_pooler)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        if lasting:
            event.listen(engine, "connect", _use_wal)
        event.listen(engine, "begin", _begin_sqlite)
        if engine.dialect.driver == "aiosqlite":
            for moment, method in _EXECUTIONS.items():
                event.listen(engine, moment, partial(_one_at_a_time, method))
        event.listen(engine, "invalidate", _roll_back_first)
        engine.dispose()  # connections from before know nothing of this


def _prepare_nothing_behind_a_pooler(connection: Any, _record: Any) -> None:
    # One that gives each transaction another server connection (PgBouncer) shows by the process that it tells of. What
    # the driver has prepared in one session it would not find in the next.
    cursor, driver = connection.cursor(), getattr(connection, "driver_connection", connection)
    cursor.execute("select pg_backend_pid()")
    if cursor.fetchone()[0] != driver.info.backend_pid:
        driver.prepare_threshold = None
    cursor.close()
    connection.rollback()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions late and by itself; SQLAlchemy's documentation has this recipe.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("pragma synchronous = full")
    cursor.execute(f"pragma busy_timeout = {BUSY}")
    cursor.close()


def _use_wal(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("pragma journal_mode = wal")  # kept in the file
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # Immediate: two deferred transactions that both come to write cannot wait for each other, one fails at once.
    driver = connection.connection.driver_connection
    is_attempt = isinstance(connection, AttemptConnection) and connection.check is not None
    if is_attempt and hasattr(driver, "begin_with_next"):  # of aio_sqlite; a preview is to know at once if it is locked
        cast("Any", driver).begin_with_next()
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _roll_back_first(connection: Any, _record: Any, error: BaseException | None) -> None:
    # SQLAlchemy throws a connection away when something that is no `Exception` comes out of a statement: an `async def`
    # handler is cancelled. But closing it ends nothing while the traceback keeps a cursor alive: the file stayed locked
    # until a collection.
    if error is not None and not isinstance(error, Exception):
        try:
            connection.rollback()
        except asyncio.CancelledError:
            pass  # once more; the driver's thread has the rollback in its queue, and makes it


def _one_at_a_time(method: str, cursor: Any, statement: str, *given: Any) -> bool | None:
    driver = given[-1].root_connection.connection.driver_connection
    if hasattr(driver, "begin_with_next") or statement == "BEGIN IMMEDIATE":
        return None
    return one_at_a_time(method, cursor, statement, *given)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
