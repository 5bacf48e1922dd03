"""Executes statements on a connection that the caller is in a transaction on: psycopg, asyncpg, SQLAlchemy, or another
driver with the shape of the DB-API. None of them is imported here: the caller has its own.
"""

import re
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from dotdo.errors import DefinitionError
from dotdo.records import Options, RunKind

T = TypeVar("T")
Work = Generator[tuple[str, dict[str, Any]], Any, T]
Execute = Callable[[str, dict[str, Any]], Any]

_PARAMETER = re.compile(r"%\((\w+)\)s|%%")
_SHOULD_BE = "give a psycopg, asyncpg or SQLAlchemy connection, or a SQLAlchemy session"


def is_within(definition: Any, arguments: dict[str, Any]) -> bool:
    """Whether a call's `within` is a connection, and no argument of the definition's own."""
    if "within" not in arguments:
        return False
    return "within" not in getattr(getattr(definition, "schema", None), "names", ())


async def work_within(platform: Any, url: str | None, kind: RunKind, name: str, params: Any, options: Options) -> Any:
    """What is executed so that a run starts within a transaction. url: of the platform's server, if it has one. Raises
    InputError, DefinitionError, StoreError."""
    if url is not None:
        raise DefinitionError(f"within= needs a client that opens the store itself; this one asks the server at {url}.")
    from dotdo.engine.enlisting import enlisting  # here: whoever only defines actions loads no engine

    return await enlisting(platform, kind, name, params, options)


def execute(work: "Work[T]", connection: Any) -> T:
    """Executes what a piece of work asks for; returns what it returns. The driver's errors are its own. Raises
    DefinitionError for a connection of another kind."""
    ask = _sync(connection)
    try:
        statement = next(work)
        while True:
            statement = work.send(ask(*statement))
    except StopIteration as end:
        return end.value


async def execute_async(work: "Work[T]", connection: Any) -> T:
    """The same on an async connection."""
    ask = await _async(connection)
    try:
        statement = next(work)
        while True:
            statement = work.send(await ask(*statement))
    except StopIteration as end:
        return end.value


def _sync(connection: Any) -> Execute:
    of, name = _kind(connection)
    if (of, name) in _ASYNC:
        raise DefinitionError(
            f"within= was given an async connection ({of}), and this client is sync: use AsyncDo, or a sync connection."
        )
    if of == "sqlalchemy" and name == "Session":
        connection = connection.connection()
    if of == "sqlalchemy":
        style = _style(connection)
        return lambda sql, given: _fetched(connection.exec_driver_sql(*_bound(sql, given, style)))
    if of == "sqlite" or not hasattr(connection, "cursor"):
        raise _refused(connection)

    def ask(sql: str, given: dict[str, Any]) -> Any:
        cursor = connection.cursor()
        try:
            cursor.execute(*_bound(sql, given, "format"))
            return [_plain(row) for row in cursor.fetchall()]
        finally:
            cursor.close()

    return ask


async def _async(connection: Any) -> Execute:
    of, name = _kind(connection)
    if (of, name) not in _ASYNC:
        if of in ("psycopg", "sqlalchemy") or hasattr(connection, "cursor"):
            raise DefinitionError(
                f"within= was given a sync connection ({type(connection).__module__.partition('.')[0]}), and this "
                "client is async: use Do, or an async connection."
            )
        raise _refused(connection)
    if of == "asyncpg":
        if not connection.is_in_transaction():
            raise DefinitionError(
                "The connection given as within= is in no transaction: `async with connection.transaction():` first."
            )

        async def ask(sql: str, given: dict[str, Any]) -> Any:
            text, values = _bound(sql, given, "numeric_dollar")
            return [tuple(row) for row in await connection.fetch(text, *values)]

        return ask
    if of == "sqlalchemy":
        if name == "AsyncSession":
            connection = await connection.connection()
        style = _style(connection)

        async def ask_alchemy(sql: str, given: dict[str, Any]) -> Any:
            return _fetched(await connection.exec_driver_sql(*_bound(sql, given, style)))

        return ask_alchemy

    async def ask_psycopg(sql: str, given: dict[str, Any]) -> Any:
        async with connection.cursor() as cursor:
            await cursor.execute(*_bound(sql, given, "format"))
            return [_plain(row) for row in await cursor.fetchall()]

    return ask_psycopg


# By distribution, and the class as its documentation calls it.
_KINDS = {
    ("sqlalchemy", "Connection"), ("sqlalchemy", "Session"), ("sqlalchemy", "AsyncConnection"),
    ("sqlalchemy", "AsyncSession"), ("psycopg", "Connection"), ("psycopg", "AsyncConnection"),
    ("asyncpg", "Connection"), ("sqlite", "Connection"),
}  # fmt: skip
_ASYNC = {
    ("sqlalchemy", "AsyncConnection"), ("sqlalchemy", "AsyncSession"), ("psycopg", "AsyncConnection"),
    ("asyncpg", "Connection"),
}  # fmt: skip
_STAND_INS = {
    "scoped_session": "Session",
    "async_scoped_session": "AsyncSession",
    "PoolConnectionProxy": "Connection",
}
_SQLITE = ("sqlite3", "apsw", "aiosqlite")


def _kind(connection: Any) -> tuple[str, str]:
    for each in type(connection).__mro__:
        of, name = each.__module__.partition(".")[0], _STAND_INS.get(each.__name__, each.__name__)
        if of in _SQLITE:
            return "sqlite", name
        if (of, name) in _KINDS:
            return of, name
    return "", ""


def _refused(connection: Any) -> DefinitionError:
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    return DefinitionError(f"within= was given a {kind}: {_SHOULD_BE} to the store's PostgreSQL database.")


def _style(connection: Any) -> str:
    if connection.dialect.name != "postgresql":
        raise _refused(connection)
    return connection.dialect.paramstyle


def _plain(row: Any) -> tuple[Any, ...]:
    return tuple(row.values() if hasattr(row, "keys") else row)  # of a row factory that makes dictionaries


def _fetched(result: Any) -> Any:
    return [tuple(row) for row in result.fetchall()]


def _bound(sql: str, given: dict[str, Any], style: str) -> tuple[str, tuple[Any, ...]]:
    """A statement as a driver takes it, with its values in order."""
    values: list[Any] = []

    def place(found: re.Match[str]) -> str:
        if found[1] is None:
            return "%" if style == "numeric_dollar" else "%%"
        values.append(given[found[1]])
        return f"${len(values)}" if style == "numeric_dollar" else "%s"

    return _PARAMETER.sub(place, sql), tuple(values)
