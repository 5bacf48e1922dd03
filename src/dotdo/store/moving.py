"""Moves a store's rows from a SQLite file to PostgreSQL: one transaction there, under the file's write lock here.

The file is marked just before the other side commits, first as perhaps moved. So at every moment at most one of the two
goes on with the runs; a crash between the two commits is settled by looking whether the other side has them.
"""

import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dotdo.errors import StoreUnusable
from dotdo.store.moved import READ_MARK, Mark
from dotdo.store.queries import SCHEMA
from dotdo.store.sqlite import SQLiteDatabase

if TYPE_CHECKING:
    from dotdo.store.postgres import PostgresDatabase

# In an order in which what refers to something comes after it. `nodes` stay: those of the file are gone.
TABLES = (
    "definitions", "runs", "journal", "links", "labels", "blobs", "inbox", "registry", "leftovers", "erasing",
    "api_keys", "offers", "tickets", "slots", "rates",
)  # fmt: skip
# What a store has before anything was asked of it.
_NOTHING_YET = ("definitions",)
_WRITTEN = ("runs", "journal", "inbox", "nodes", "api_keys", "tickets", "slots")
_MOVE_LOCK = 1_685_021_805
_PROMOTION = "promotion"
_REPORT = 10_000  # rows between two reports of how far it is

# table, rows that were written, rows that there are
Progress = Callable[[str, int, int], None]


def read_mark(source: SQLiteDatabase) -> Mark | None:
    """Whether a file has moved, or perhaps has."""
    if not source.read("select 1 from sqlite_schema where name = 'moved'"):
        return None
    return Mark(*source.read(READ_MARK)[0])


def be_sure(source: SQLiteDatabase) -> None:
    """The other side has all."""
    with source.transaction():
        source.write("update moved set sure = 1")


def unmark(source: SQLiteDatabase) -> None:
    """The other side has nothing: the file can be used as before."""
    with source.transaction():
        _unmark(source)


@contextmanager
def receiving(target: "PostgresDatabase") -> Generator[None]:
    """A transaction into which a store is moved: nobody else writes there. Raises StoreUnusable when somebody is."""
    with target.transaction():
        target.write("set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0")
        target.write(f"select pg_advisory_xact_lock({_MOVE_LOCK})")
        names = ", ".join(f"{SCHEMA}.{table}" for table in (*TABLES, "nodes", "facts"))
        target.write(f"lock table {names} in exclusive mode")
        yield


def has_arrived(target: "PostgresDatabase", id: str) -> bool:
    """Whether that move was committed."""
    return target.write(f"select value from {SCHEMA}.facts where name = '{_PROMOTION}'") == [(id,)]  # noqa: S608


def refuse_used(target: "PostgresDatabase", key: str) -> None:
    """Raises StoreUnusable unless nothing was ever asked of the target. key: what its audit key must be known by."""
    nodes = target.write(f"select host, pid from {SCHEMA}.nodes where lease_until > {SCHEMA}.now()")  # noqa: S608
    if nodes:
        raise StoreUnusable(
            f"A node runs on {target.where} (process {nodes[0][1]} on {nodes[0][0]}): stop all nodes there until the "
            "store has moved. Nothing was changed."
        )
    for table in TABLES:
        if table not in _NOTHING_YET:
            [(count,)] = target.write(f"select count(*) from {SCHEMA}.{table}")  # noqa: S608
            if count:
                raise StoreUnusable(
                    f"The store {target.where} is not empty ({count:,} in {SCHEMA}.{table}). Two stores cannot be made "
                    f"one: name another database, or let go of what is there (drop schema {SCHEMA} cascade). Nothing "
                    "was changed."
                )
    if target.write(f"select value from {SCHEMA}.facts where name = 'audit key' and value <> '{key}'"):  # noqa: S608
        raise StoreUnusable(
            f"The store {target.where} is empty, but was first opened under another audit key. Let go of it "
            f"(drop schema {SCHEMA} cascade), and ask again. Nothing was changed."
        )


def move(source: SQLiteDatabase, target: "PostgresDatabase", key: str, now: int, progress: Progress) -> dict[str, int]:
    """Copies every table within the transactions of both; returns how many rows each has. Raises StoreError, also when
    the target has another number of rows in the end."""
    moved: dict[str, int] = {}
    target.write(f"delete from {SCHEMA}.definitions")  # noqa: S608 - of nodes that are gone, and have left no run
    for table in TABLES:
        [(count,)] = source.write(f"select count(*) from {table}")  # noqa: S608
        found = target.write(
            "select column_name from information_schema.columns where table_schema = %(schema)s "
            "and table_name = %(table)s order by ordinal_position",
            {"schema": SCHEMA, "table": table},
        )
        columns = [name for (name,) in found]
        rows = source.stream(f"select {', '.join(columns)} from {table}")  # noqa: S608
        if table == "runs":
            rows = _freed(rows, columns, now)
        target.fill(
            table, columns, _reported(rows, lambda done, table=table, count=count: progress(table, done, count))
        )
        [(there,)] = target.write(f"select count(*) from {SCHEMA}.{table}")  # noqa: S608
        if there != count:
            raise StoreUnusable(
                f"Of {count:,} rows in {table} {there:,} have arrived in {target.where}. Nothing was changed."
            )
        moved[table] = count
    for table, last in source.write("select name, seq from sqlite_sequence where name in ('inbox', 'tickets')"):
        target.write(f"select setval(pg_get_serial_sequence('{SCHEMA}.{table}', 'id'), {last + 1}, false)")
    target.write(f"insert into {SCHEMA}.facts values ('audit key', '{key}') on conflict do nothing")  # noqa: S608
    return moved


def mark(source: SQLiteDatabase, target: "PostgresDatabase", now: int) -> None:
    """Says in both, within their transactions, that the store has moved; the source is not sure of it yet."""
    id = uuid.uuid4().hex
    _unmark(source)
    source.write("create table moved (id text not null, target text not null, at integer not null, sure integer)")
    source.write("insert into moved values (:id, :at_whom, :now, 0)", {"id": id, "at_whom": target.where, "now": now})
    # Whoever has the file open already, or is an older dotdo, writes nothing more that would be lost.
    why = f"it has moved to {target.where}".replace("'", "''")
    for table in _WRITTEN:
        for change in ("insert", "update", "delete"):
            trigger = f"create trigger moved_{table}_{change} before {change} on {table}"
            source.write(f"{trigger} begin select raise(abort, '{why}'); end")
    target.write(f"delete from {SCHEMA}.facts where name = '{_PROMOTION}'")  # noqa: S608
    target.write(f"insert into {SCHEMA}.facts values ('{_PROMOTION}', '{id}')")  # noqa: S608


def _unmark(source: SQLiteDatabase) -> None:
    for table in _WRITTEN:
        for change in ("insert", "update", "delete"):
            source.write(f"drop trigger if exists moved_{table}_{change}")
    source.write("drop table if exists moved")


def _freed(rows: Iterator[Any], columns: list[str], now: int) -> Iterator[Any]:
    """Runs of nodes that are gone, as a rescue frees them: what was in flight is settled by whoever claims them."""
    owner, due_at, crashed, ended = (columns.index(name) for name in ("owner", "due_at", "crashed", "ended_at"))
    for row in rows:
        if row[owner] is not None and row[ended] is None:
            freed = list(row)
            freed[owner], freed[due_at], freed[crashed] = None, now, 1
            yield freed
        else:
            yield row


def _reported(rows: Iterator[Any], report: Callable[[int], None]) -> Iterator[Any]:
    done = 0
    for done, row in enumerate(rows, 1):
        yield row
        if done % _REPORT == 0:
            report(done)
    report(done)


class Arriving:
    """What the target will be, as seen from within its transaction: a database that is read only."""

    dialect, shared, migrates = "postgres", True, False

    def __init__(self, target: "PostgresDatabase") -> None:
        self._target, self.where = target, target.where
        self._cursors = 0

    def version(self) -> int:
        """The number of the last migration."""
        return self._target.version()

    def read(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """Rows of a query."""
        return self._target.write(sql, parameters)

    @contextmanager
    def snapshot(self) -> Generator[Callable[[str, dict[str, Any]], Iterator[Any]]]:
        """Queries whose rows are streamed."""
        opened: list[str] = []

        def stream(sql: str, parameters: dict[str, Any]) -> Iterator[Any]:
            self._cursors += 1
            name = f"arriving_{self._cursors}"
            self._target.write(f"declare {name} no scroll cursor for {sql}", parameters)
            opened.append(name)
            while found := self._target.write(f"fetch 500 from {name}"):
                yield from found

        try:
            yield stream
        finally:
            for name in opened:
                self._target.write(f"close {name}")

    def close(self) -> None:
        """It stays open: it is the target's."""
