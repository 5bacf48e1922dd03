"""What a store that several nodes share does beside: leases, hints, and what each node defines."""

from collections.abc import Callable, Generator
from typing import Protocol

from dotdo.records import Definition, Node
from dotdo.store.protocol import Filed, Rows, Statement, Store


class SharedStore(Store, Protocol):
    """What a store that several nodes share does beside. A node is one incarnation of a process; every write of one
    that was expelled raises NodeExpelled."""

    lease: float  # seconds after which a node of which nothing is heard is taken for dead
    given_up: bool  # everything fails at once, until `reach`
    losses: int  # how often the writer's connection was lost, and perhaps the answer to a claim with it

    def renew(self, node: str) -> int | None:
        """Lengthens a node's lease. The store's time in ms, or None when it was expelled. On a thread of its own."""
        ...

    def rejoin(self, before: str, node: str, host: str, pid: int, now: int) -> None:
        """A process that has lost its lease comes back as a new node; the runs of the old one are free."""
        ...

    def offer(self, definitions: list[str], described: bytes) -> None:
        """What this node can run, told when it joins or publishes. described: the same with schemas, as JSON."""
        ...

    def publish(self, node: str) -> None:
        """Tells at once what this node can run."""
        ...

    def leave_to_others(self, definitions: list[str]) -> None:
        """What this node claims no runs of, because only others can run it."""
        ...

    def published(self, nodes: list[str]) -> dict[str, list[Definition]]:
        """What nodes have published, by node."""
        ...

    def expect_offered(self, definitions: list[str], now: int) -> None:
        """Somebody has these now: runs that wait for that are due."""
        ...

    def list_nodes(self) -> list[Node]:
        """The nodes that are there, oldest first."""
        ...

    def identity(self) -> str:
        """Which database this is, as long as its server runs."""
        ...

    def enlist(
        self, filed: Filed, parts: list[tuple[str, int, bytes]], identity: str
    ) -> Generator[Statement, Rows, str | None]:
        """Statements for somebody else's transaction, in which that run is then accepted, with the parts (digest,
        number, data) of its large input. Sent each one's rows, it returns None, or the digest of the input of the run
        that has the id already. Raises DefinitionError when the transaction is none, or elsewhere."""
        ...

    def give_up(self, why: str = "") -> None:
        """A lost connection is not waited for any more: what is to be written fails at once. why: the store cannot be
        reached, so everything fails until `reach`, also what waits for an answer now. On any thread."""
        ...

    def reach(self) -> None:
        """Asks the server on a new connection. If it answers, no more is given up. Raises StoreUnavailable."""
        ...

    def listen(self, heard: Callable[[str], None] | None) -> None:
        """Has what other nodes hint told, on a thread of its own; None: no more of it."""
        ...

    def notify(self, hint: str) -> None:
        """Tells the other nodes something; it may be lost. On the reader's thread."""
        ...
