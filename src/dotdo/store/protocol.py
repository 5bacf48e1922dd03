"""The store as the engine sees it: its operations, and what each one guarantees.

Writes happen on one thread (the engine's writer) and are durable when they return; reads may happen on another at the
same time. The store keeps names and bytes, and never imports a definition.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from dotdo.errors import InputError
from dotdo.journal import Entry, RegistryEntry
from dotdo.keys import ApiKey
from dotdo.records import Run, RunFilter

# What a run's row says of its last owner: it died with the run, or it left attempts whose end it had not seen.
CRASHED, UNSETTLED = 1, 2
ALL = 1 << 53  # a limit that limits nothing


class NewRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run to accept. In the order of the statement `accept_runs`."""

    id: str
    root: str
    parent: str | None
    parent_step: str | None
    kind: str
    name: str
    version: int
    key: str | None
    input_digest: str
    trail: str | None
    actor: str | None
    labels: str
    status: str
    waiting_for: str | None
    due_at: int | None
    owner: str | None
    digest: str
    anchor: str
    created_at: int
    priority: int = 0


class RunUpdate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run's row when it is parked, blocked or ended. In the order of the statement `update_runs`.

    keeps_inbox: whether cancellations and events wait in its inbox until it is blocked, and make it due no sooner.
    """

    id: str
    claim: int
    status: str
    undo: str
    generation: int
    waiting_for: str | None
    due_at: int | None
    owner: str | None
    seq: int
    digest: str
    anchor: str
    ended_at: int | None
    now: int
    crashed: int = 0
    keeps_inbox: int = 0


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message for a run from outside. kind: event, cancel, retry, undo, resolve, child, deadline, slot."""

    run: str
    kind: str
    name: str
    value: str
    sender: str | None
    actor: str | None
    at: int
    id: int = 0


class Succession(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run goes on for another. In the order of the statement `link_runs`."""

    run: str
    chain: str
    previous: str
    number: int


class Filed(msgspec.Struct, frozen=True, gc=False):
    """A run that a client of an engine in another process wants: nobody's yet, and due. With its first entry."""

    run: NewRun
    entry: Entry


class Write(msgspec.Struct, gc=False):
    """What one run wants to be made durable together, under one claim. accepts: new runs, each with its first entry;
    they are claimed by whoever writes them. succession: one of them goes on for this run, and gets its messages."""

    run: str
    claim: int
    entries: list[Entry]
    accepts: list[tuple[NewRun, Entry]] = []
    update: RunUpdate | None = None
    taken: list[int] = []
    messages: list[Message] = []
    succession: Succession | None = None


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """How many may be in `scope` at a time; or, of a rate, may start within `lasts` ms."""

    scope: str
    most: int
    lasts: int = 0


class SlotAsk(msgspec.Struct, frozen=True):
    """A step that asks for slots of an action (its pool). limits: in the order in which all who ask take them."""

    pool: str
    run: str
    step: str
    claim: int
    priority: int
    limits: tuple[Limit, ...]


class Place(msgspec.Struct, frozen=True):
    """Where a step stands that has asked: its ticket, and for which limit it waits; None: it may start."""

    ticket: int
    scope: str | None


class Settled(msgspec.Struct, frozen=True):
    """What came of asks, in their order; runs that have been left a message, because a step of theirs may start; and
    when (ms) time frees the next slot that somebody waits for."""

    places: list[Place]
    woken: list[str]
    next_at: int | None


class Offer(msgspec.Struct, frozen=True):
    """A definition that workers have offered: its kind (action, effect), name and version, and the offer as JSON.
    databases: where its attempts commit. at: when it was offered last (ms)."""

    kind: str
    name: str
    version: int
    definition: str
    databases: list[str]
    at: int


class Claim(msgspec.Struct, frozen=True):
    """A run taken by a node. crashed: the owner before died with it. unseen: attempts may have ended that its journal
    does not know, also without a crash."""

    run: str
    claim: int
    crashed: bool
    unseen: bool = False


class Head(msgspec.Struct, frozen=True, gc=False):
    """A run's anchored head and what else its row says, for the audit."""

    run: str
    seq: int
    digest: str
    anchor: str
    status: str
    undo: str
    name: str
    version: int
    kind: str
    key: str | None
    trail: str | None
    actor: str | None
    labels: str
    priority: int
    root: str
    parent: str | None
    parent_step: str | None
    created_at: int
    ended_at: int | None


class Erasable(msgspec.Struct, frozen=True):
    """An ended run whose data is to be erased, with the head of its journal."""

    id: str
    name: str
    version: int
    status: str
    undo: str
    generation: int
    seq: int
    at: int
    digest: str
    continued_as: str | None


# A statement with its parameters by name, and the rows that it gives.
Statement = tuple[str, dict[str, Any]]
Rows = Sequence[Sequence[Any]]

# Makes the last entry of a run, and its anchor.
Sign = Callable[[Erasable], tuple[Entry, str]]

# One journal entry as the audit sees it: run, kind, header, data, data_digest, digest.
Link = tuple[str, str, str, str, str, str]


class Store(Protocol):
    """All persistence. Errors are StoreError and its kinds; after one, nothing of the operation was done, except that
    StoreUnavailable from `write` may also mean that the outcome is unknown."""

    where: str
    shared: bool  # whether several nodes may run on it at the same time: then it is a SharedStore, too

    # Writes: on the writer's thread.
    def write(self, writes: list[Write]) -> None:
        """One durable transaction for all. Raises FenceLost when any claim is old or any accepted id exists."""
        ...

    def write_blob(self, run: str, digest: str, part: int, data: bytes) -> None:
        """One part of something large, durable when this returns; the row that has it is written after all parts."""
        ...

    def join(self, node: str, host: str, pid: int, now: int) -> None:
        """A node comes up; runs of nodes that are gone become free for rescue, and runs that nobody defined are due."""
        ...

    def leave(self, node: str, now: int, unseen: Sequence[str] = ()) -> None:
        """A node goes down in order and gives its runs back, but for those in `unseen`, whose attempts may yet end."""
        ...

    def touch(self, node: str) -> None:
        """Writes something that leaves all as it was. Raises StoreError when the store cannot be written."""
        ...

    def claim_due(self, node: str, now: int, limit: int) -> list[Claim]:
        """Takes up to `limit` runs that are due and have no owner, all of one priority; others may be due, too."""
        ...

    def claim_one(self, node: str, run: str) -> Claim | None:
        """Takes one run that is free or the node's own, with a new claim number; its row says that it is unsettled."""
        ...

    def rescue(self, now: int, limit: int) -> int:
        """Frees up to `limit` runs of dead nodes; returns how many."""
        ...

    def post(self, message: Message) -> str | None:
        """Leaves a message for a run and makes it due; returns its owner. Raises UnknownName, InvalidOperation."""
        ...

    def file(self, requests: Sequence[Filed | Message]) -> list[str | InputError | None]:
        """Leaves the requests of a client of an engine in another process, in one durable transaction. For each: None;
        or the input's digest of the run that has that id already; or why the message was refused (see `post`)."""
        ...

    def save_definitions(self, id: str, newest: dict[str, int], now: int) -> None:
        """Keeps a snapshot of versions."""
        ...

    def delete_trees(
        self, roots: list[str], before: int, register: Callable[[RegistryEntry | None, str], RegistryEntry]
    ) -> int:
        """Deletes the rows of trees that ended before, and writes that down; returns how many runs that were."""
        ...

    def delete_leftovers(self, limit: int) -> bool:
        """Clears about so many journal entries of deleted runs; returns whether there may be more."""
        ...

    def begin_erasing(self, roots: list[str], sign: Sign) -> int:
        """From here on the data of these ended trees is gone for good; returns how many runs that are. Raises
        UnknownName, InvalidOperation."""
        ...

    def erase_some(self, entries: int, parts: int) -> bool:
        """Erases about so many entries and parts of large values; returns whether there may be more."""
        ...

    def end_erasing(self) -> None:
        """Sees to it that nothing of what was erased is left in the file."""
        ...

    def save_api_key(self, key: ApiKey) -> None:
        """Keeps a new key."""
        ...

    def revoke_api_key(self, id: str, now: int) -> bool:
        """The key allows nothing from now on; whether there is such a key."""
        ...

    def touch_api_keys(self, used: list[tuple[str, int]]) -> None:
        """Notes when keys (by id) were last used (ms)."""
        ...

    def settle_slots(self, asks: Sequence[SlotAsk], gone: Sequence[tuple[str, str, str]], now: int) -> Settled:
        """Gives back what steps (run, step, pool) had, and hands out all slots that are free: by priority, then in
        order of asking. Who asks again keeps its place, and what it has."""
        ...

    def sweep_slots(self, now: int, before: int) -> Settled:
        """Hands out what time has freed, what runs had that have come to rest, and what was handed out before `before`
        to a claim that is over and was not asked for again."""
        ...

    def settle(self) -> None:
        """Housekeeping between writes."""
        ...

    def take_turns(self, wanted: bool) -> None:
        """Whether other processes write, too: then each waits for its turn, and none is kept out."""
        ...

    # Reads: on any thread.
    def save_offers(self, offers: list[Offer]) -> None:
        """Keeps what a worker offers, each instead of an earlier offer of that kind, name and version."""
        ...

    def list_offers(self) -> list[Offer]:
        """Everything that workers have ever offered, by name."""
        ...

    def expect_workers(self, now: int) -> None:
        """A worker has come: runs that wait for one are due."""
        ...

    def find_api_key(self, digest: str) -> ApiKey | None:
        """A key by the digest of its text."""
        ...

    def list_api_keys(self) -> list[ApiKey]:
        """Every key, oldest first."""
        ...

    def next_due(self) -> int | None:
        """When the earliest free run is due."""
        ...

    def get_run(self, run: str) -> Run | None:
        """One run."""
        ...

    def input_digest(self, run: str) -> str | None:
        """The digest of a run's input, to compare keys; None when there is no such run."""
        ...

    def stray_runs(self, node: str, run: str) -> list[str]:
        """Unfinished runs of a node that are children of a run, or go on for it."""
        ...

    def own_runs(self, node: str) -> list[str]:
        """Unfinished runs that a node has."""
        ...

    def open_runs(self, after: str, limit: int) -> list[str]:
        """Ids of runs that have not ended, blocked ones too, in order, after an id."""
        ...

    def unfinished_runs(self, limit: int) -> list[tuple[str, int]]:
        """Runs that have not ended and are not blocked, with their claims."""
        ...

    def mark_crashed(self, runs: list[str]) -> None:
        """Whoever claims these runs next settles what may have been in flight."""
        ...

    def latest_time(self) -> int:
        """When a run was last accepted, or ended (ms); 0 when there are none."""
        ...

    def newest_of_chain(self, run: str) -> str | None:
        """The last of the runs that go on for this one, or for the same one as it; None when it never continued."""
        ...

    def runs_of_chain(self, first: str) -> list[str]:
        """The runs that went on for a first one, and it itself, newest first."""
        ...

    def runs_over(self, runs: list[str]) -> list[str]:
        """Which of these have ended, are blocked, or do not exist."""
        ...

    def runs_with_messages(self, node: str) -> list[str]:
        """Runs of a node for which messages wait."""
        ...

    def list_runs(self, filter: RunFilter) -> list[Run]:
        """Runs, newest first."""
        ...

    def read_journals(self, runs: list[str]) -> dict[str, list[Entry]]:
        """Whole journals by run."""
        ...

    def read_journal(self, run: str, after: int = 0, limit: int = ALL) -> list[Entry]:
        """One journal from an entry on, up to so many entries."""
        ...

    def read_published(self, run: str, after: int) -> list[tuple[int, Any]]:
        """What a run has published after an entry's number: each entry's number and value."""
        ...

    def read_inbox(self, runs: list[str]) -> dict[str, list[Message]]:
        """Messages not yet taken, by run, in order of arrival."""
        ...

    def load_definitions(self, id: str) -> dict[str, int]:
        """A snapshot of versions; empty when it is not there."""
        ...

    def retention_window(
        self, before: int, name: str | None, status: str | None, after: tuple[int, str], limit: int
    ) -> tuple[list[str], tuple[int, str] | None]:
        """Of the next runs by age: roots of trees that may be deleted, and where to go on."""
        ...

    def is_erasing(self) -> bool:
        """Whether there are runs whose data is not wholly gone."""
        ...

    def leftover_runs(self) -> set[str]:
        """Deleted runs whose journals are not cleared yet."""
        ...

    def read_registry(self) -> list[RegistryEntry]:
        """What was deleted, in order."""
        ...

    def read_chains(self, first: str, last: str) -> AbstractContextManager[tuple[Iterator[Head], Iterator[Link]]]:
        """For the audit: heads and journals of a range of ids, both in order of run, of one moment. Streamed, so that
        memory stays bounded; what is written meanwhile waits in the log until the context ends."""
        ...

    def find_runs(self, prefix: str, limit: int) -> list[str]:
        """Ids that begin like that, newest first."""
        ...

    def count_by_status(self) -> dict[str, int]:
        """How many runs are in each state."""
        ...

    def count_limited(self) -> list[tuple[str, str, int]]:
        """How many steps of each action have their slots (""), or wait for a limit of a kind (concurrency, rate)."""
        ...

    def close(self) -> None:
        """Closes the store."""
        ...
