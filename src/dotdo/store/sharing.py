"""A store that several nodes share: leases by the server's clock, and the fence in each transaction of a node.

A node is one incarnation of a process. Whoever sweeps expels nodes whose lease is over, under a lock that every
transaction of a node shares; so when a node is expelled, none of its writes is on its way, and none comes later.
"""

import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.errors import InputError, StoreUnavailable
from dotdo.records import Definition, Node
from dotdo.store.connecting import CommitUnknown
from dotdo.store.enlisting import enlist
from dotdo.store.listening import Listener
from dotdo.store.protocol import CRASHED, UNSETTLED, Claim, Filed, Message, Rows, Statement
from dotdo.store.sql import SqlStore, Step, rows

if TYPE_CHECKING:
    from dotdo.store.postgres import PostgresDatabase

LEASE = 15.0  # seconds
# For how much of a lease a node seeks a lost connection again: while that certainly lasts.
PATIENCE = 0.5
MOST_HINTED = 100  # runs in one hint
CENSUS = 30.0  # seconds from one look for runs of owners that are no nodes to the next

log = logging.getLogger("dotdo.store")


class SharedStore(SqlStore):
    """A store on PostgreSQL."""

    _db: "PostgresDatabase"

    def __init__(self, database: "PostgresDatabase", lease: float = LEASE) -> None:
        """lease: seconds after which a node of which nothing is heard is taken for dead."""
        super().__init__(database)
        self.lease = lease
        self._offers = self._elsewhere = self._definitions = "[]"
        self._listener: Listener | None = None
        self._former = ""  # what the node was called before it came back, or left
        self._next_census = 0.0
        self.given_up = False

    def join(self, node: str, host: str, pid: int, now: int) -> None:
        """A node comes up, for as long as it renews its lease."""
        self._db.act_as_nobody()
        given = {"node": node, "host": host, "pid": pid, "lease": round(self.lease * 1000)}
        given |= {"offers": self._offers, "definitions": self._definitions}
        with self._db.transaction():
            [(number, epoch)] = self._db.write(self._sql["join_shared"], given)
        self._db.act_as(node, number, epoch)
        self._db.patience = PATIENCE * self.lease

    def renew(self, node: str) -> int | None:
        """Lengthens the lease; the server's time, or None when the node was expelled. On a connection of its own."""
        found = self._db.beat(self._sql["renew"], {"node": node, "lease": round(self.lease * 1000)})
        return found[0][0] if found else None

    def leave_to_others(self, definitions: list[str]) -> None:
        """What only other nodes have."""
        self._elsewhere = rows([(one,) for one in definitions])

    def offer(self, definitions: list[str], described: bytes) -> None:
        """What the node has: others are told when it joins or publishes."""
        self._offers, self._definitions = rows(definitions), described.decode()

    def publish(self, node: str) -> None:
        """What the node has is told now."""
        with self._db.transaction():
            given = {"node": node, "offers": self._offers, "definitions": self._definitions}
            self._db.write(self._sql["publish"], given)

    def published(self, nodes: list[str]) -> dict[str, list[Definition]]:
        """What some nodes define, by node; nothing of one that tells names only."""
        found: dict[str, list[Definition]] = {}
        for node, definitions in self._db.read(self._sql["published"], {"rows": rows([(one,) for one in nodes])}):
            try:
                found[node] = msgspec.json.decode(definitions, type=list[Definition])
            except msgspec.MsgspecError as error:  # of another version of dotdo
                log.info("what %s publishes cannot be read: %s", node, error)
        return found

    def expect_offered(self, definitions: list[str], now: int) -> None:
        """Somebody has these now: runs that say that they wait for one of them are due."""
        exact = {one.partition(" ")[2] for one in definitions}
        told = [f"% {each}: %" for each in exact | {one.rpartition("@")[0] for one in exact}]
        told += [f'% {each}"%' for each in exact]
        with self._db.transaction():
            given = {"rows": rows([(one,) for one in sorted(told)]), "now": now}
            self._db.write(self._sql["expect_offered"], given)

    def leave(self, node: str, now: int, unseen: Sequence[str] = ()) -> None:
        """A node goes down in order and gives its runs back; those in `unseen` are rescued as crashed."""
        with self._db.transaction():
            kept = rows([(run,) for run in unseen])
            self._db.write(self._sql["release_runs"], {"node": node, "now": now, "unseen": kept})
            self._db.write(self._sql["resign"], {"node": node, "mark": CRASHED})
            if not unseen:
                self._db.write(self._sql["leave_node"], {"node": node})
        self._db.act_as_nobody()
        self._former = node

    def rejoin(self, before: str, node: str, host: str, pid: int, now: int) -> None:
        """A process that has lost its lease comes back as a new node. What the old one had is freed at once, as
        unsettled, because nobody has crashed. Until that is done, nothing can be written."""
        self._db.patience = 0.0
        self.reach()
        if self._listener is not None:
            self._listener.again()  # what it listens on may be dead without a word
        self._db.act_as_nobody()
        try:
            found = self._db.read(self._sql["number_of_node"], {"node": before})
            with self._db.transaction():
                for (number,) in found:
                    self._db.write(self._sql["keep_out"], {"number": number})
                self._db.write(self._sql["resign"], {"node": before, "mark": UNSETTLED})
            self.join(node, host, pid, now)
            self._former = before
        except BaseException:
            self._db.act_as(before, 0, -1)
            raise

    def claim_due(self, node: str, now: int, limit: int) -> list[Claim]:
        """Takes up to `limit` runs that are due and have no owner, but for those that only other nodes can run. When
        the answer is lost, they are found by `own_runs`."""
        if node == self._former:
            return []  # asked for before it came back, or left: what is claimed under a name that is gone, nobody has
        given = {**self._claiming(node, now, limit), "elsewhere": self._elsewhere}
        try:
            found = self._db.once(self._sql["claim_due"], given)
        except CommitUnknown as error:
            log.info("%s What was claimed is looked for.", error)
            return []
        return self._claims(found, limit)

    def claim_one(self, node: str, run: str) -> Claim | None:
        """Takes one run that is free or already the node's own."""
        return None if node == self._former else super().claim_one(node, run)

    def rescue(self, now: int, limit: int) -> int:
        """Expels nodes whose lease is over, and frees up to `limit` runs of nodes that are gone."""
        lapsed = self._db.read(self._sql["lapsed_nodes"])
        for node, number, expelled in lapsed:
            if not expelled:
                self._expel(node, number)
        self._has_blobs = self._has_blobs or bool(self._db.read(self._sql["any_blob"])[0][0])
        unknown = self._unknown_owners()
        if not (lapsed or unknown):
            return 0
        with self._db.transaction():
            self._db.write(self._sql["rescue_shared"], {"now": now, "limit": limit, "unknown": rows(unknown)})
            freed = self._db.changes()
            if freed < limit:
                self._db.write(self._sql["bury_nodes"])
        return freed

    def _unknown_owners(self) -> list[tuple[str]]:
        """Owners that are no nodes, though each transaction that gives a run an owner is one of a node that is there:
        whatever has gone wrong, no run waits for ever for somebody whom nobody knows."""
        if time.monotonic() < self._next_census:
            return []
        found = [(owner,) for (owner,) in self._db.read(self._sql["unknown_owners"])]
        if found:
            log.error("runs of %s are freed: no such node is known", ", ".join(owner for (owner,) in found[:10]))
        else:
            self._next_census = time.monotonic() + CENSUS
        return found

    def _expel(self, node: str, number: int) -> None:
        try:
            with self._db.transaction():
                self._db.write("set local lock_timeout = '1s'")
                self._db.write(self._sql["keep_out"], {"number": number})
                self._db.write(self._sql["expel"], {"node": node})
        except StoreUnavailable:  # it is frozen inside a transaction; it is expelled at the next sweep
            self._db.read(self._sql["end_transactions"], {"number": number})

    def file(self, requests: Sequence[Filed | Message]) -> list[str | InputError | None]:
        """Leaves the requests of a process without a node, and hints that to the nodes."""
        outcomes = super().file(requests)
        left = [one.run if isinstance(one, Message) else one.run.id for one in requests]
        hint = {"node": "", "left": left} if len(left) <= MOST_HINTED else {"node": "", "all": True}
        try:
            self._db.write(self._sql["notify"], {"hint": msgspec.json.encode(hint).decode()})
        except Exception as error:  # of the driver's; it is found without a hint
            log.debug("a hint could not be given: %s", error)
        return outcomes

    def identity(self) -> str:
        """Which database this is, as long as its server runs."""
        return self._db.read(self._sql["identity"])[0][0]

    def enlist(
        self, filed: Filed, parts: list[tuple[str, int, bytes]], identity: str
    ) -> Generator[Statement, Rows, str | None]:
        """Statements for somebody else's transaction, in which that run is then accepted."""
        return enlist(filed, parts, identity, self.where)

    def server_time(self) -> int:
        """What the server's clock shows, in ms."""
        return self._db.read(self._sql["server_time"])[0][0]

    def agree(self, name: str, value: str) -> str:
        """What the first one who opened the store has said of something that all must agree on."""
        with self._db.transaction():
            self._db.write(self._sql["settle_fact"], {"name": name, "value": value})
            return self._db.write(self._sql["read_fact"], {"name": name})[0][0]

    def notify(self, hint: str) -> None:
        """Tells the other nodes something; it may be lost."""
        self._db.read(self._sql["notify"], {"hint": hint})

    def listen(self, heard: Callable[[str], None] | None) -> None:
        """Has hints of other nodes told, on a thread of their own; None: no more of them."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if heard is not None:
            self._listener = Listener(*self._db.address(os.environ.get("DOTDO_LISTEN")), heard)

    def give_up(self, why: str = "") -> None:
        """A lost connection is not waited for any more: what is to be written fails at once. With a reason, everything
        does until `reach`, also what waits for an answer now. From any thread."""
        self._db.patience = 0.0
        if why:
            self.given_up = True
            self._db.bar(why)

    def reach(self) -> None:
        """Asks the server on a new connection. If it answers, no more is given up. Raises StoreUnavailable. From any
        thread."""
        self._db.reach()
        self.given_up = False

    @property
    def losses(self) -> int:
        """How often the writer's connection was lost: claims may have been made whose answer was lost with it."""
        return self._db.losses

    def list_nodes(self) -> list[Node]:
        """The nodes that are there."""
        return [
            Node(id, host, pid, started_at, lease, _offers_of(id, offers), count)
            for id, host, pid, started_at, lease, offers, count in self._db.read(self._sql["list_nodes"])
        ]

    def _write(self, steps: list[Step], entries: list[Any]) -> None:
        """A batch whose answer was lost is looked for before it is written again: the fence of the new connection sees
        to it that the lost one is there by then, or never will be."""
        end, unknown = time.monotonic() + max(self._db.patience, 1.0), False
        while True:
            try:
                if not (unknown and entries and self._is_there(entries[0])):
                    self._db.batch(steps)
                return
            except CommitUnknown:  # or the connection was lost when that was asked
                if time.monotonic() > end:
                    raise
                unknown = True

    def _is_there(self, entry: Sequence[Any]) -> bool:
        run, seq, digest = entry[0], entry[1], entry[9]
        return self._db.once(self._sql["entry_digest"], {"run": run, "seq": seq}) == [(digest,)]


def _offers_of(node: str, text: str) -> list[str]:
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError as error:  # of another version of dotdo
        log.info("what %s offers cannot be read: %s", node, error)
        return []
