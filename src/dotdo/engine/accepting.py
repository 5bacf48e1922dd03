"""Accepting a run: its id, first entry and row. After the commit of these a caller may be told the id."""

import os
import time
from typing import Any, Protocol

import msgspec

from dotdo.clock import Clock
from dotdo.engine import spans
from dotdo.engine.doubles import Doubles
from dotdo.errors import KeyConflict
from dotdo.journal import GENESIS, LARGE, Accepted, Chain, Entry, anchor, encode_data, input_digest, link
from dotdo.records import Options, RunKind, WaitingFor, keyed_run_id
from dotdo.store.protocol import NewRun
from dotdo.tracing import Tracing


class AcceptedRun(msgspec.Struct):
    """A run that is about to be written. The digests of a large one are not known yet: see spilling.py."""

    id: str
    definition: Any
    data: Accepted
    entry: Entry
    row: NewRun

    @property
    def whole_entry(self) -> Entry:
        """The first entry with its data in it, also when that is stored elsewhere."""
        if len(self.data.input) <= LARGE:
            return self.entry
        return msgspec.structs.replace(self.entry, data=encode_data(self.data).decode())


class _Entropy:
    """The system's random bytes, fetched many at a time: one call costs as much as a fiftieth of a run."""

    def __init__(self) -> None:
        self._bytes, self._at = b"", 0

    def take(self, count: int) -> bytes:
        """That many random bytes, never given twice."""
        start = self._at
        self._at += count
        if self._at > len(self._bytes):
            self._bytes, start, self._at = os.urandom(4096), 0, count
        return self._bytes[start : start + count]

    def forget(self) -> None:
        """In a forked child: the parent gives the rest out."""
        self._bytes, self._at = b"", 0


_entropy = _Entropy()
os.register_at_fork(after_in_child=_entropy.forget)


def run_id(name: str, key: str | None) -> str:
    """A new run's id. With a key it is derived from name and key, so the primary key makes the pair unique; without
    one it is a UUIDv7 (RFC 9562)."""
    if key is not None:
        return keyed_run_id(name, key)
    random = int.from_bytes(_entropy.take(10), "big")
    stamp = int(time.time() * 1000) & 0xFFFFFFFFFFFF
    return f"run_{stamp:012x}7{random >> 68 & 0xFFF:03x}{0x8 | random >> 66 & 0x3:x}{random & 0xFFFFFFFFFFFFFFF:015x}"


def check_same_input(known: str, given: str, key: str, name: str, id: str) -> None:
    """Raises KeyConflict unless the run that is there, by its input's digest, was given this input."""
    if known != given:
        raise KeyConflict(
            f"The key {key!r} was already used for {name} with another input (run {id}). Use a new key for a new "
            "request; the same key is for repeating the same one."
        )


class Acceptor(Protocol):
    """Who accepts a run: an engine, or the client of one in another process."""

    node: str
    clock: Clock
    anchor_key: bytes
    tracing: Tracing | None
    doubles: Doubles | None


def new_run(
    engine: Acceptor,
    id: str,
    definition: Any,
    kind: RunKind,
    input: bytes,
    options: Options,
    *,
    parent: str | None = None,
    parent_step: str | None = None,
    pins: str | None = None,
    identity: bytes | None = None,
    chain: Chain | None = None,
) -> AcceptedRun:
    """A run's first entry and row, owned by this engine unless it is to start later.

    identity: what tells its input from another one, if not the input itself.
    """
    _check_sealed(definition, input)
    options = spans.accepted(engine.tracing, kind, definition, id, options, chain is not None)
    now = engine.clock.now()
    data = Accepted(
        kind=kind,
        name=definition.name,
        version=definition.version,
        input=msgspec.Raw(input),
        seed=_entropy.take(8).hex() if engine.doubles is None else engine.doubles.seed(id),
        node=engine.node,
        options=options,
        parent=parent,
        parent_step=parent_step,
        pins=pins,
        chain=chain,
    )
    is_large = len(input) > LARGE
    entry = _unchained(id, now) if is_large else link(GENESIS, id, 1, "accepted", "", 0, 0, now, encode_data(data))
    due, waiting = _start_of(options, now)
    row = NewRun(
        id=id,
        root=id.partition(".")[0],
        parent=parent,
        parent_step=parent_step,
        kind=kind,
        name=definition.name,
        version=definition.version,
        key=options.key,
        input_digest="" if is_large and identity in (None, input) else input_digest(identity or input),
        trail=options.trail,
        actor=options.actor,
        labels=msgspec.json.encode(options.labels).decode() if options.labels else "{}",
        status="running" if due is None else "pending",
        waiting_for=waiting,
        due_at=due,
        owner=engine.node if due is None else None,
        digest=entry.digest,
        anchor="" if is_large else anchor(engine.anchor_key, id, 1, entry.digest),
        created_at=now,
        priority=options.priority or 0,
    )
    return AcceptedRun(id, definition, data, entry, row)


def left_to_others(row: NewRun, who: str = "a node") -> NewRun:
    """The row of a run that somebody else is to take."""
    if row.due_at is not None:
        return row  # it starts later
    waits = WaitingFor("turn", f"{who} that takes it")
    text = msgspec.json.encode(waits).decode()
    return msgspec.structs.replace(row, status="pending", owner=None, due_at=row.created_at, waiting_for=text)


def _check_sealed(definition: Any, input: bytes) -> None:
    if definition.schema.secrets is not None:
        definition.schema.secrets.check_sealed(definition.subject, input)


def _start_of(options: Options, now: int) -> tuple[int | None, str | None]:
    """When a run is to start, if not at once, and what it waits for until then."""
    if not options.delay:
        return None, None
    due = now + round(options.delay * 1000)
    return due, msgspec.json.encode(WaitingFor("start", "its delayed start", due)).decode()


def _unchained(id: str, now: int) -> Entry:
    return Entry(id, 1, "accepted", "", 0, 0, now, "", "", "")
