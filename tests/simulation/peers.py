"""A store that several simulated nodes share: the code of store/sharing.py, and its statements, on one SQLite file.

What PostgreSQL does for them is done here in a few functions under the same names. Each node has connections of its
own, which can be cut, and whose answers can be lost. What the witness notes of each entry, no node can know or change.
"""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

import apsw

from dotdo.clock import StoreClock
from dotdo.errors import NodeExpelled, StoreUnavailable
from dotdo.store import queries
from dotdo.store.connecting import CommitUnknown
from dotdo.store.engine_lock import EngineLock
from dotdo.store.sharing import SharedStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.simulation.machine import START

if TYPE_CHECKING:
    from tests.simulation.nodes import Node

LEASE = 60.0  # simulated seconds

# The tables as they are on PostgreSQL; and the witness: which node wrote which entry, and whether it had been expelled.
SCHEMA = """
drop table nodes;
create table nodes (
    number integer primary key autoincrement, id text not null unique, host text not null, pid integer not null,
    started_at integer not null, lease_until integer not null, epoch integer not null default 1,
    expelled_at integer, mark integer not null default 1, offers text not null default '[]',
    definitions text not null default '[]'
);
create table facts (name text primary key, value text not null);
create table witness (run text, seq integer, node text, expelled integer, primary key (run, seq));
create trigger witnessed after insert on journal begin
    insert into witness
    select new.run, new.seq, witnessed_node(),
        not exists (select 1 from nodes where id = witnessed_node() and expelled_at is null);
end;
"""

FAULTS = {"store.before": 0.02, "store.after": 0.03, "store.late": 0.02, "kill.before": 0.004, "kill.after": 0.008}
# A process is stopped in the moments that matter most: with a commit under way, or done and its answer not heard yet.
FREEZE_BEFORE, FREEZE_AFTER = {"freeze.before_commit": 0.015}, {"freeze.after_commit": 0.006}


def statements() -> dict[str, str]:
    """The statements for PostgreSQL alone, as SQLite takes them."""
    text = resources.files("dotdo.store").joinpath("queries", "sharing.postgres.sql").read_text(encoding="utf-8")
    text = re.sub(r"= any \(array\((.*?)\)\)", r"in (\1)", text, flags=re.DOTALL)
    text = re.sub(r"\bfor update( skip locked)?", "", text)
    text = re.sub(r"\bdotdo\.(now|enter)\(", r"dotdo_\1(", text)
    text = re.sub(r"lock table .*?;", "select 1;", text)
    return {**queries.load_queries("sqlite"), **queries._statements(text, "sqlite")}


class PeerClock(StoreClock):
    """A machine's clock that is off, and is corrected as the store's server tells."""

    def __init__(self, node: "Node", error: float) -> None:
        super().__init__()
        self._node, self._error = node, error

    def now(self) -> int:
        """Milliseconds; never back."""
        self._latest = max(self._latest, self._own() + self._offset)
        return self._latest

    def correct(self, told: int, seconds: float) -> None:
        """The server has just told its time."""
        self._offset = told + round(seconds * 500) - self._own()

    def _own(self) -> int:
        return START + int((self._node.loop.time() + self._error) * 1000)


class PeerDatabase(SQLiteDatabase):
    """The connections of one node."""

    shared = True

    def __init__(self, path: str, node: "Node") -> None:
        self._peer, self._chance = node, node.loop.chance
        self._mine: tuple[str, int] | None = None
        self._epoch = 0
        self._is_lost = False
        self.losses, self.patience = 0, 0.0
        super().__init__(path)

    # -- what a node does with it -------------------------------------------------------------------------------------

    def read(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """Rows of a query."""
        self._reach()
        return super().read(sql, parameters)

    def write(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """A statement within a transaction."""
        return [] if sql.startswith("set local") else super().write(sql, parameters)

    def beat(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """The heartbeat's."""
        self._reach()
        if self._peer.cluster.now < self._peer.heart_stops_until:
            self._chance.seen["heart.missed"] += 1
            raise StoreUnavailable("simulated: the server does not hear the heartbeat")
        with self._errors("answer"):
            return self.writer.execute(sql, parameters).fetchall()

    def batch(self, steps: list[Any]) -> None:
        """One transaction; its answer may be lost, or it arrives when nobody waits for it any more."""
        self._fence_off()
        self._commit(lambda: super(PeerDatabase, self).batch(steps))

    def once(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Any]:
        """One statement in a transaction of its own."""
        found: list[Any] = []

        def work() -> None:
            with self._plainly():
                found.extend(self.writer.execute(sql, parameters).fetchall())

        self._fence_off()
        self._commit(work)
        return found

    @contextmanager
    def transaction(self) -> Generator[None]:
        """One transaction of this node, unless that was expelled."""
        self._fence_off()
        with self._plainly():
            yield

    # -- what becomes of it -------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        if self._peer.loop.dead:
            raise StoreUnavailable("the process is dead")
        if self._peer.is_cut:
            self._is_lost = True
            self._chance.seen["cut.noticed"] += 1
            raise StoreUnavailable("simulated: the server cannot be reached")

    def _commit(self, work: Callable[[], None]) -> None:
        fault = self._chance.fault(FAULTS)
        if fault is None:
            work()
            self._peer.perhaps_freeze(FREEZE_AFTER)
            return
        self._is_lost = True
        if fault.startswith("kill"):
            if fault == "kill.after":
                work()
            self._peer.loop.die()
            raise StoreUnavailable("the process is dead")
        if fault == "store.after":
            work()
        elif fault == "store.late":
            self._peer.cluster.later(self._chance.seconds(2 * LEASE), self._arriving(work, self._epoch))
        raise CommitUnknown("simulated: the connection was lost in a commit")

    def _arriving(self, work: Callable[[], None], epoch: int) -> Callable[[], None]:
        """A commit that was on its way when its connection was lost, and comes to the server later."""

        def arrive() -> None:
            if self._peer.loop.dead:
                return
            now, self._epoch = self._epoch, epoch
            lost, self._is_lost = self._is_lost, False  # it came by the old connection, and opens no new one
            try:
                work()
                self._chance.seen["late.done"] += 1
            except Exception:
                self._chance.seen["late.refused"] += 1
            finally:
                self._epoch, self._is_lost = now, lost

        return arrive

    @contextmanager
    def _plainly(self) -> Generator[None]:
        with super().transaction():
            if self._mine is not None:
                self.enter(self._mine[1], self._epoch)
            yield

    def enter(self, number: int, epoch: int) -> None:
        """What dotdo.enter does. Raises NodeExpelled."""
        query = "select 1 from nodes where number = ? and epoch = ? and expelled_at is null"
        if not self.writer.execute(query, (number, epoch)).fetchall():
            self._chance.seen["fence.refused"] += 1
            raise NodeExpelled("This node was taken for dead by the others; nothing was written.")

    def _fence_off(self) -> None:
        """Opens the connection that was lost: nothing that was sent on it counts any more."""
        self._reach()
        if not self._is_lost:
            return
        self._is_lost = False
        if self._mine is not None:
            self.losses += 1
            sql = "update nodes set epoch = epoch + 1 where id = ? and expelled_at is null returning epoch"
            found = self.writer.execute(sql, (self._mine[0],)).fetchall()
            if not found:
                self._is_lost = True
                self._chance.seen["fence.refused"] += 1
                raise NodeExpelled("This node was taken for dead by the others; nothing was written.")
            self._epoch = int(found[0][0])  # type: ignore[arg-type]

    def bar(self, why: str) -> None:
        """Here nothing waits for an answer."""

    def reach(self) -> None:
        """Raises StoreUnavailable while the server cannot be asked."""
        self._reach()

    def act_as(self, node: str, number: int, epoch: int) -> None:
        """Each transaction is one of this node."""
        self._mine, self._epoch = (node, number), epoch

    def act_as_nobody(self) -> None:
        """Transactions are no node's."""
        self._mine = None

    # -- what is another than on a file of one's own ------------------------------------------------------------------

    def _take_lock(self) -> EngineLock | None:  # type: ignore[override]
        return None

    def _checkpoint(self) -> None:
        """The thread ends at once."""

    def settle_log(self) -> None:
        """The file is short-lived."""

    def _set_up(self, connection: apsw.Connection) -> None:
        super()._set_up(connection)
        peer = self._peer
        functions: dict[str, Callable[..., Any]] = {
            "dotdo_now": lambda *given: peer.cluster.server_time(),
            "pg_advisory_xact_lock": lambda *given: 1,
            "pg_notify": lambda *given: peer.cluster.notify(peer, given[1]),
            "witnessed_node": lambda *given: peer.engine.node if peer.engine else "",
        }
        for name, function in functions.items():
            connection.create_scalar_function(name, function)


class PeerStore(SharedStore):
    """The store as one node sees it."""

    def __init__(self, database: PeerDatabase) -> None:
        super().__init__(database, LEASE)  # type: ignore[arg-type]
        self._sql = statements()

    def listen(self, heard: Callable[[str], None] | None) -> None:
        """Hints come over the simulated net."""
        self._db._peer.heard = heard  # type: ignore[attr-defined]
