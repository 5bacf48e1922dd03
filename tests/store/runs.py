"""Runs as an engine writes them: accepted, appended to, parked and ended, with true chains and anchors.

Times are small numbers of ms that the tests choose; nothing here looks at a clock.
"""

from typing import Any

import msgspec

from dotdo.journal import GENESIS, Accepted, Data, Empty, Ended, Entry, anchor, encode_data, link
from dotdo.records import WaitingFor
from dotdo.store.protocol import Message, NewRun, RunUpdate, Store, Write

KEY = b"k" * 32
NODE = "node_a"


class Writing:
    """One run under one claim."""

    def __init__(self, id: str, claim: int, seq: int = 0, digest: str = GENESIS) -> None:
        self.id, self.claim, self.seq, self.digest = id, claim, seq, digest

    def accept(self, at: int, row: dict[str, Any]) -> Write:
        """The write that accepts it."""
        data = Accepted("service", row.pop("name", "order"), 1, msgspec.Raw(b"{}"), "seed", NODE)
        entry = self.entry("accepted", data, at)
        values: dict[str, Any] = {
            "id": self.id,
            "root": self.id.partition(".")[0],
            "parent": None,
            "parent_step": None,
            "kind": "service",
            "name": data.name,
            "version": 1,
            "key": None,
            "input_digest": "digest",
            "trail": None,
            "actor": None,
            "labels": "{}",
            "status": "running",
            "waiting_for": None,
            "due_at": None,
            "owner": NODE,
            "digest": entry.digest,
            "anchor": anchor(KEY, self.id, 1, entry.digest),
            "created_at": at,
        }
        return Write(self.id, 1, [], accepts=[(NewRun(**{**values, **row}), entry)])

    def entry(self, kind: str = "completed", data: Data | None = None, at: int = 0, step: str = "") -> Entry:
        """Its next entry."""
        self.seq += 1
        entry = link(self.digest, self.id, self.seq, kind, step, 0, 0, at, encode_data(data or Empty()))
        self.digest = entry.digest
        return entry

    def write(self, *entries: Entry, **more: Any) -> Write:
        """A write under its claim."""
        return Write(self.id, self.claim, list(entries), **more)

    def update(self, status: str = "waiting", *, now: int = 0, **row: Any) -> RunUpdate:
        """Its row at the head that was reached."""
        values: dict[str, Any] = {"undo": "none", "generation": 0, "due_at": None, "owner": None, "ended_at": None}
        values["waiting_for"] = None
        waiting_for = row.pop("waiting_for", None)
        if waiting_for is not None:
            row["waiting_for"] = msgspec.json.encode(waiting_for).decode()
        return RunUpdate(
            id=self.id,
            claim=self.claim,
            status=status,
            seq=self.seq,
            digest=self.digest,
            anchor=anchor(KEY, self.id, self.seq, self.digest),
            now=now,
            **{**values, **row},
        )


class Runs:
    """What tests do to runs of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.join(NODE, "host", 1, 0)

    def accept(self, id: str, at: int = 0, **row: Any) -> Writing:
        """A new run, owned by NODE unless the row says otherwise."""
        run = Writing(id, 1)
        self.store.write([run.accept(at, row)])
        return run

    def park(self, run: Writing, *, due_at: int | None = None, now: int = 0, text: str = "a timer") -> None:
        """The run leaves memory."""
        waiting_for = WaitingFor("timer", text, due_at)
        self.store.write([run.write(update=run.update(now=now, due_at=due_at, waiting_for=waiting_for))])

    def end(self, run: Writing, status: str = "completed", *, at: int = 0, undo: str = "none") -> None:
        """The run ends."""
        entry = run.entry("ended", Ended(status, msgspec.Raw(b'"done"'), undo=undo), at)
        self.store.write([run.write(entry, update=run.update(status, now=at, ended_at=at, undo=undo))])

    def block(self, run: Writing) -> None:
        """The run waits for a person."""
        self.store.write([run.write(update=run.update("blocked"))])

    def claim(self, id: str, node: str = NODE) -> Writing:
        """The run under a newer claim."""
        claim = self.store.claim_one(node, id)
        assert claim is not None
        head = self.store.read_journal(id)[-1]
        return Writing(id, claim.claim, head.seq, head.digest)

    def take_over(self, node: str, now: int) -> None:
        """Another node comes up and the one before is dead: a file has one engine only; elsewhere its lease is over."""
        if self.store.shared:
            self.store._db.write("update dotdo.nodes set lease_until = 0")  # type: ignore[attr-defined]
        self.store.join(node, "host", 2, now)

    def journal(self, id: str) -> list[tuple[int, str]]:
        """Numbers and kinds of a run's entries."""
        return [(entry.seq, entry.kind) for entry in self.store.read_journal(id)]


def message(run: str, kind: str = "event", name: str = "", *, at: int = 0, sender: str | None = None) -> Message:
    """A message from outside."""
    return Message(run, kind, name, "null", sender, "ada", at)
