"""PostgreSQL through psycopg 3: connections, transactions under a node's fence, and what became of lost commits.

A batch is sent as one pipeline, from `begin` to `commit`: one round trip, and a process that is stopped after it was
sent leaves no transaction open. Two connections: one writer, used on one thread at a time, and one reader.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from dotdo.errors import FenceLost, NodeExpelled, StoreUnavailable, StoreUnusable
from dotdo.store.connecting import (
    REPEATABLE,
    SET_LOCAL,
    SHORTEST_PAUSE,
    CommitUnknown,
    Connection,
    Link,
    in_words,
    pipelined,
    statement,
    told,
    with_defaults,
)
from dotdo.store.queries import SCHEMA, load_queries

MIGRATION_LOCK = 1_685_021_806
BEGIN = "BEGIN isolation level read committed"
Row = tuple[Any, ...]
Parameters = dict[str, Any] | None


class PostgresDatabase:
    """A database with a store in it. `where` names it in messages.

    migrates: whether the schema is brought up to date. patience: seconds for which a lost connection is sought again.
    """

    dialect, shared = "postgres", True

    def __init__(self, url: str, *, migrates: bool = True, patience: float = 0.0) -> None:
        self._url, self.where, self.migrates = with_defaults(url), in_words(url), migrates
        self._enter, self._raise_epoch = (load_queries(self.dialect)[name] for name in ("enter", "raise_epoch"))
        self._wrapped: dict[str, str] = {}
        self._changes = 0
        self._node: tuple[str, int] | None = None
        self._epoch = 0
        self.losses = 0  # of the writer's connection, since the node joined
        self._writer = Link(self._url, self.where, self._fence_off)
        self._reader = Link(self._url, self.where)
        self._heart = Link(self._url, self.where)
        self._read_lock = threading.Lock()
        self._streaming: set[Link] = set()
        try:
            self._check_server()
        except BaseException:
            self.close()
            raise
        self.patience = patience

    @property
    def patience(self) -> float:
        """Seconds for which a lost connection is sought again, before StoreUnavailable is raised."""
        return self._writer.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._writer.patience = self._reader.patience = seconds

    # -- statements ---------------------------------------------------------------------------------------------------

    def read(self, sql: str, parameters: Parameters = None) -> list[Row]:
        """Rows of a query, on the reader connection. Raises StoreUnavailable."""
        with self._read_lock:
            return self._reader.patiently(lambda reader: reader.execute(statement(sql), parameters).fetchall(), "read")

    def beat(self, sql: str, parameters: Parameters = None) -> list[Row]:
        """Executes a statement on the connection of the heartbeat, at once or not at all."""
        return self._heart.patiently(lambda heart: heart.execute(statement(sql), parameters).fetchall(), "answer")

    def write(self, sql: str, parameters: Parameters = None) -> list[Row]:
        """Executes a statement on the writer connection and returns its rows."""
        cursor = self._writer.get().execute(statement(sql), parameters)
        self._changes = cursor.rowcount
        return cursor.fetchall() if cursor.description else []

    def fill(self, table: str, columns: list[str], rows: Iterable[Sequence[Any]]) -> None:
        """Puts many rows into a table, within a transaction."""
        copying = statement(f"copy {SCHEMA}.{table} ({', '.join(columns)}) from stdin")
        with self._writer.get().cursor() as cursor, cursor.copy(copying) as copy:
            for row in rows:
                copy.write_row(row)

    def changes(self) -> int:
        """How many rows the last statement changed."""
        return self._changes

    def batch(self, steps: list[tuple[str, dict[str, Any], int | None, str]]) -> None:
        """Executes statements in one durable transaction. Raises FenceLost, and then nothing is written, when one does
        not change as many rows as it must; CommitUnknown when the connection was lost."""
        for last in (False, False, False, True):
            connection = self._writer.patiently(lambda writer: writer, "be reached")
            try:
                self._send(connection, steps)
                return
            except REPEATABLE as error:  # two nodes were in each other's way
                self._writer.roll_back()
                if last:
                    raise told(error, self.where, "write") from error
            except psycopg.Error as error:
                if self._writer.lost(error):
                    self._writer.drop()
                    raise CommitUnknown(f"The connection to the store {self.where} was lost in a commit.") from error
                self._writer.roll_back()
                if error.sqlstate == "DD001":
                    why = steps[int(error.diag.message_primary or 0)][3]
                    raise FenceLost(f"A run of this write {why}; nothing was written.") from error
                raise told(error, self.where, "write") from error

    def once(self, sql: str, parameters: Parameters = None) -> list[Row]:
        """One statement in a transaction of its own, in one round trip. Raises CommitUnknown when the connection was
        lost: then it may or may not have been done."""
        connection = self._writer.patiently(lambda writer: writer, "be reached")
        try:
            with pipelined(connection):
                self._begin(connection)
                cursor = connection.execute(statement(sql), parameters)
                connection.execute("COMMIT")
            self._changes = cursor.rowcount
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            if self._writer.lost(error):
                self._writer.drop()
                raise CommitUnknown(f"The connection to the store {self.where} was lost in a commit.") from error
            self._writer.roll_back()
            raise told(error, self.where, "write") from error

    def _send(self, connection: Connection, steps: list[tuple[str, dict[str, Any], int | None, str]]) -> None:
        with pipelined(connection):
            self._begin(connection)
            for number, (sql, parameters, expected, _) in enumerate(steps):
                if expected is None:
                    connection.execute(statement(sql), parameters)
                else:
                    given = {**parameters, "expected": expected, "step": number}
                    connection.execute(statement(self._expecting(sql)), given)
            connection.execute("COMMIT")

    def _expecting(self, sql: str) -> str:
        wrapped = self._wrapped.get(sql)
        if wrapped is None:
            check = f"select {SCHEMA}.expect((select count(*) from done), %(expected)s, %(step)s)"  # noqa: S608
            wrapped = self._wrapped[sql] = f"with done as ({sql} returning 1) {check}"
        return wrapped

    def _begin(self, connection: Connection) -> None:
        connection.execute(BEGIN)
        if self._writer.pooled:
            connection.execute(statement(SET_LOCAL))
        if self._node is not None:
            connection.execute(statement(self._enter), {"number": self._node[1], "epoch": self._epoch})

    @contextmanager
    def transaction(self) -> Generator[None]:
        """One durable transaction on the writer. Rolled back when the body raises; raises StoreUnavailable, and
        CommitUnknown if even asking again did not tell whether it was committed."""

        def begin(connection: Connection) -> None:
            with pipelined(connection):
                self._begin(connection)

        self._writer.patiently(begin, "begin a transaction")
        try:
            yield
            self._commit()
        except psycopg.Error as error:
            if self._writer.lost(error):
                self._writer.drop()  # before its commit was sent: the server has rolled it back
            else:
                self._writer.roll_back()
            raise told(error, self.where, "write") from error
        except BaseException:
            self._writer.roll_back()
            raise

    def _commit(self) -> None:
        connection = self._writer.get()
        [(transaction,)] = connection.execute("select cast(pg_current_xact_id_if_assigned() as text)").fetchall()
        try:
            connection.execute("COMMIT")
        except psycopg.Error as error:
            if not self._writer.lost(error):
                raise
            self._writer.drop()
            if transaction is not None and self._status(transaction) != "committed":
                raise

    def _status(self, transaction: str) -> str:
        """What became of a transaction whose answer was lost. Raises CommitUnknown."""
        end = time.monotonic() + max(self.patience, 1.0)
        while True:
            try:
                [(status,)] = self._writer.patiently(
                    lambda writer: writer.execute("select pg_xact_status(cast(%s as xid8))", (transaction,)).fetchall(),
                    "say what became of a transaction",
                )
            except StoreUnavailable as error:
                raise CommitUnknown(f"{error.message} Whether that was committed is not known.") from error
            if status in ("committed", "aborted"):
                return status
            if status is None or time.monotonic() > end:
                raise CommitUnknown(f"Whether a transaction on {self.where} was committed is not known.")
            time.sleep(SHORTEST_PAUSE)  # the server has not noticed yet that nobody listens

    @contextmanager
    def snapshot(self) -> Generator[Callable[[str, dict[str, Any]], Iterator[Any]]]:
        """Queries of one moment, on a connection of their own: gives a function that streams the rows of one. Raises
        StoreUnavailable."""
        link = Link(self._url, self.where)
        names = iter(range(1_000_000_000))
        self._streaming.add(link)

        def stream(sql: str, parameters: dict[str, Any]) -> Iterator[Row]:
            with link.get().cursor(name=f"dotdo_{next(names)}") as cursor:
                cursor.itersize = 500
                yield from cursor.execute(statement(sql), parameters)

        try:
            link.get().execute("begin isolation level repeatable read, read only")
            link.get().execute("set local idle_in_transaction_session_timeout = 0")  # as slow as its reader
            yield stream
        except psycopg.Error as error:
            raise told(error, self.where, "read") from error
        finally:
            self._streaming.discard(link)
            link.drop()

    def address(self, url: str | None = None) -> tuple[str, str]:
        """What to connect with and how to name it; of another way to the same server, if one is given."""
        return (with_defaults(url), in_words(url)) if url else (self._url, self.where)

    # -- the node that writes here ------------------------------------------------------------------------------------

    def act_as(self, node: str, number: int, epoch: int) -> None:
        """From now on each transaction is one of this node, and fails when that was expelled."""
        self._node, self._epoch = (node, number), epoch

    def act_as_nobody(self) -> None:
        """From now on transactions are no node's."""
        self._node = None

    def bar(self, why: str) -> None:
        """The server is not to be reached, or does not say a word: whoever waits for it is told why now, and so is
        whoever asks, until `reach`. From any thread."""
        for link in (self._writer, self._reader):
            link.bar(why)
        for link in (self._heart, *self._streaming):
            link.cut()

    def reach(self) -> None:
        """Finds out whether the server can be asked again. Raises StoreUnavailable."""
        link = Link(self._url, self.where)
        try:
            link.patiently(lambda connection: connection, "be reached")
        finally:
            link.drop()
        for link in (self._writer, self._reader):
            link.bar("")

    def _fence_off(self, connection: Connection) -> None:
        """A new connection of a node: what is still on its way on the old one must not be done any more."""
        if self._node is None:
            return
        self.losses += 1
        node, number = self._node
        keep_out = load_queries(self.dialect)["keep_out"]
        connection.execute(BEGIN)
        connection.execute(statement(keep_out), {"number": number})
        found = connection.execute(statement(self._raise_epoch), {"node": node}).fetchall()
        connection.execute("COMMIT")
        if not found:
            raise NodeExpelled(f"This node was taken for dead by the others on {self.where}; nothing was written.")
        self._epoch = found[0][0]

    # -- schema -------------------------------------------------------------------------------------------------------

    def version(self) -> int:
        """The number of the last migration."""
        if self.write(f"select to_regclass('{SCHEMA}.schema_version')") == [(None,)]:
            return 0
        return self.write(f"select coalesce(max(number), 0) from {SCHEMA}.schema_version")[0][0]  # noqa: S608

    def apply(self, scripts: list[tuple[int, str]]) -> None:
        """Applies migrations in one transaction, but those that another process has just applied."""
        try:
            with self.transaction():
                # Not for longer than that: whoever waits for a table holds up all who come after.
                self.write("set local lock_timeout = '2s'")
                self.write(f"select pg_advisory_xact_lock({MIGRATION_LOCK})")
                if self.write("select to_regnamespace(%(schema)s)", {"schema": SCHEMA}) == [(None,)]:
                    self.write(f"create schema {SCHEMA}")
                self.write(f"create table if not exists {SCHEMA}.schema_version (number bigint primary key)")
                present = self.version()
                for number, script in scripts:
                    if number > present:
                        self.write(script)
                        self.write(f"insert into {SCHEMA}.schema_version values ({number})")  # noqa: S608
        except StoreUnusable as error:
            raise StoreUnusable(
                f"The schema of the store {self.where} must be brought up to {scripts[-1][0]}, and this role may not "
                f"do that: {error.message} Run `dotdo db migrate` once with a role that may create things there."
            ) from error

    def size(self) -> int:
        """How many bytes the store's tables and indexes take."""
        size = "select coalesce(sum(pg_total_relation_size(oid)), 0)::bigint from pg_class where relkind = 'r'"
        return self.read(f"{size} and relnamespace = to_regnamespace('{SCHEMA}')")[0][0]

    def missing_rights(self) -> list[str]:
        """What an engine needs and this role may not do, in words."""
        wanted = "('select'), ('insert'), ('update'), ('delete')"
        found = self.read(
            f"select relname, string_agg(wanted, ', ') from pg_class, (values {wanted}) as rights (wanted) "  # noqa: S608
            f"where relkind = 'r' and relnamespace = to_regnamespace('{SCHEMA}') and relname <> 'schema_version' "
            "and not has_table_privilege(pg_class.oid, wanted) group by relname order by relname"
        )
        return [f"this role may not {rights} in {SCHEMA}.{table}: grant it that" for table, rights in found]

    def rewrite(self) -> None:
        """Writes the tables anew that had data which was erased, so that no page has it. Raises StoreUnavailable."""
        link = Link(self._url, self.where)
        try:
            connection = link.get()
            refused: list[str] = []
            connection.add_notice_handler(lambda notice: refused.append(notice.message_primary or ""))
            connection.execute("set lock_timeout = '30s'")
            for table in ("journal", "blobs", "inbox", "labels", "runs"):
                connection.execute(statement(f"vacuum (full) {SCHEMA}.{table}"))
        except psycopg.Error as error:
            raise told(error, self.where, "be written anew") from error
        finally:
            link.drop()
        if refused:
            raise StoreUnavailable(
                f"What was erased is gone from all queries, but this role may not have the tables of {self.where} "
                f"written anew ({refused[0]}). Let their owner do `vacuum full`, then ask for it again."
            )

    def settle_log(self) -> None:
        """PostgreSQL does that by itself."""

    def take_turns(self, wanted: bool) -> None:
        """PostgreSQL has many writers."""

    def close(self) -> None:
        """Closes the connections."""
        for link in (self._writer, self._reader, self._heart):
            link.drop()

    def _check_server(self) -> None:
        try:
            [(lasting, standby)] = (
                self._writer.get()
                .execute("select current_setting('synchronous_commit'), pg_is_in_recovery()")
                .fetchall()
            )
        except psycopg.Error as error:
            raise StoreUnusable(f"The store {self.where} cannot be opened: {' '.join(f'{error}'.split())}") from None
        if standby:
            raise StoreUnusable(f"The server of {self.where} is a standby; name its primary.")
        if lasting == "off":
            raise StoreUnusable(
                f"On {self.where}, synchronous_commit is off: what was acknowledged could be lost. Switch it on for "
                "this role: alter role ... set synchronous_commit = on"
            )
