"""The simulated nodes on a real PostgreSQL server: all is done as there, only time and trouble are decided.

The server tells the simulated time; the connections of a node are cut as the seed says.
"""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from dotdo.errors import StoreUnavailable
from dotdo.store.connecting import CommitUnknown, Connection, Link
from dotdo.store.postgres import PostgresDatabase
from dotdo.store.sharing import SharedStore
from tests.simulation.cases import Case
from tests.simulation.nodes import ClusterPlay, Node, play_on_nodes
from tests.simulation.peers import FREEZE_AFTER, LEASE
from tests.simulation.simulating import Played
from tests.stores import SERVER, url_of

FAULTS = {"store.before": 0.02, "store.after": 0.03, "kill.before": 0.004, "kill.after": 0.008}

# The witness and the notes as on the files that are simulated; and time, which the driver sets.
SCHEMA = """
create table dotdo.witness (run text, seq bigint, node text, expelled integer, primary key (run, seq));
create table dotdo.changes (was text, now text, count bigint, primary key (was, now));
create table dotdo.simulated (now bigint not null);
insert into dotdo.simulated values (0);
create or replace function dotdo.now() returns bigint language sql volatile as $$ select now from dotdo.simulated $$;
create function dotdo.witnessed() returns trigger language plpgsql as $$
declare node text := coalesce(current_setting('simulation.node', true), '');
begin
    insert into dotdo.witness
    values (new.run, new.seq, node,
        (not exists (select 1 from dotdo.nodes where id = node and expelled_at is null))::integer);
    return new;
end $$;
create trigger witnessed after insert on dotdo.journal for each row execute function dotdo.witnessed();
create function dotdo.noted() returns trigger language plpgsql as $$
begin
    insert into dotdo.changes values (old.status, new.status, 1)
    on conflict (was, now) do update set count = changes.count + 1;
    return new;
end $$;
create trigger noted after update of status on dotdo.runs for each row when (old.status <> new.status)
execute function dotdo.noted();
"""


class ServedDatabase(PostgresDatabase):
    """The connections of one node, which are cut as the seed says."""

    def __init__(self, url: str, node: Node) -> None:
        self._peer, self._chance = node, node.loop.chance
        self._is_closed = False
        self._writer = self._reader = self._heart = Link("", "")  # as long as there are none
        self._reach()
        super().__init__(url)

    def read(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """Rows of a query."""
        self._reach()
        return super().read(sql, parameters)

    def beat(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """The heartbeat's."""
        self._reach()
        if self._peer.cluster.now < self._peer.heart_stops_until:
            self._chance.seen["heart.missed"] += 1
            self._heart.drop()
            raise StoreUnavailable("simulated: the server does not hear the heartbeat")
        return super().beat(sql, parameters)

    def batch(self, steps: list[Any]) -> None:
        """One transaction; its answer may be lost."""
        self._reach()
        self._strike(lambda: super(ServedDatabase, self).batch(steps))

    def once(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """One statement in a transaction of its own; its answer may be lost."""
        found: list[Any] = []
        self._reach()
        self._strike(lambda: found.extend(super(ServedDatabase, self).once(sql, parameters)))
        return found

    @contextmanager
    def transaction(self) -> Generator[None]:
        """One transaction."""
        self._reach()
        with super().transaction():
            yield

    def reach(self) -> None:
        """Raises StoreUnavailable while the server cannot be asked."""
        self._reach()
        super().reach()

    def close(self) -> None:
        """For good."""
        self._is_closed = True
        super().close()

    def act_as(self, node: str, number: int, epoch: int) -> None:
        """Each transaction is one of this node, which the witness can tell."""
        super().act_as(node, number, epoch)
        connection = self._writer._connection
        if connection is not None and not connection.closed:
            with suppress(psycopg.Error):  # the server has ended it: the next one is told when it is fenced off
                self._tell(connection)

    def _fence_off(self, connection: Connection) -> None:
        super()._fence_off(connection)
        self._tell(connection)

    def _tell(self, connection: Connection) -> None:
        if self._node is not None:
            connection.execute("select set_config('simulation.node', %s, false)", (self._node[0],))

    def _reach(self) -> None:
        if self._peer.loop.dead:
            raise StoreUnavailable("the process is dead")
        if self._is_closed:  # the simulated executor does not wait, when it ends, for what it was given before
            raise StoreUnavailable("the store is closed")
        if self._peer.is_cut:
            super().close()
            self._chance.seen["cut.noticed"] += 1
            raise StoreUnavailable("simulated: the server cannot be reached")
        self._peer.cluster.tell_time()  # type: ignore[attr-defined]

    def _strike(self, work: Callable[[], None]) -> None:
        fault = self._chance.fault(FAULTS)
        if fault is None:
            work()
            self._peer.perhaps_freeze(FREEZE_AFTER)
            return
        if fault.endswith("after"):
            work()
        if fault.startswith("kill"):
            self._peer.loop.die()
            raise StoreUnavailable("the process is dead")
        self._writer.drop()
        raise CommitUnknown("simulated: the connection was lost in a commit")


class ServedStore(SharedStore):
    """The store as one node sees it. Hints go over the simulated net, whose delays the seed decides."""

    def __init__(self, database: ServedDatabase) -> None:
        super().__init__(database, LEASE)
        self._peer = database._peer

    def notify(self, hint: str) -> None:
        """Tells the other nodes."""
        self._peer.cluster.notify(self._peer, hint)

    def listen(self, heard: Callable[[str], None] | None) -> None:
        """Hears the other nodes."""
        self._peer.heard = heard


class ServedPlay(ClusterPlay):
    """One case on several nodes that share a database of a real server."""

    def __init__(self, case: Case, folder: Path) -> None:
        self._told = -1
        super().__init__(case, folder)
        self.world.is_intended = self._intended

    def prepare(self) -> None:
        """Makes the tables of the witness."""
        self._url = url_of(self.store)
        self._own = psycopg.connect(self._url, autocommit=True)
        self._own.execute("set synchronous_commit = off")
        self._own.execute(SCHEMA.encode())

    def open_store(self, node: Node) -> ServedStore:
        """The store as a node sees it."""
        return ServedStore(ServedDatabase(self._url, node))

    def is_there(self, node: str) -> bool:
        """Whether a node has joined, and was not expelled."""
        query = "select 1 from dotdo.nodes where id = %s and expelled_at is null"
        return bool(self._own.execute(query, (node,)).fetchall())

    def tell_time(self) -> None:
        """The server's clock shows what the simulation's does."""
        if self._told != self.server_time():
            self._told = self.server_time()
            self._own.execute("update dotdo.simulated set now = %s", (self._told,))

    def to_end(self) -> Played:
        """Plays until nothing is left to do."""
        try:
            return super().to_end()
        finally:
            self._own.close()
            with psycopg.connect(os.environ[SERVER], autocommit=True) as server:
                server.execute(f"drop database {self._url.rpartition('/')[2]} with (force)".encode())

    def _intended(self, run: str, key: str) -> bool:
        query = "select 1 from dotdo.journal where run = %s and kind in ('requested', 'committed')"
        return bool(self._own.execute(query.encode() + b" and strpos(data, %s) > 0", (run, key)).fetchall())


def play_on_server(case: Case) -> Played:
    """Plays a case on the server that `tests.stores` knows of."""
    return play_on_nodes(case, ServedPlay)
