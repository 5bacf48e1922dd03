"""SqlStore: the operations of protocol.py, written once over any database with a DB-API-like shape.

A batch goes through a handful of statements however many rows it has: each takes one JSON array. SQLite gives up
Python's global lock at each statement, so beside a busy thread this is what keeps a commit fast.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, cast

import msgspec

from dotdo.errors import FenceLost, InputError, InvalidOperation, UnknownName
from dotdo.journal import Entry, EventReceived
from dotdo.records import ENDED, Run, RunFilter
from dotdo.store.api_keys import ApiKeys
from dotdo.store.blobs import Blobs
from dotdo.store.erasing import Erasing
from dotdo.store.fairness import Shares
from dotdo.store.limiting import Limiting
from dotdo.store.migrate import Migratable, migrate
from dotdo.store.offering import Offering
from dotdo.store.protocol import ALL, CRASHED, UNSETTLED, Claim, Filed, Head, Link, Message, Write
from dotdo.store.queries import load_queries, narrowed
from dotdo.store.reading import progress_of, run_of
from dotdo.store.retaining import Retaining

_encode = msgspec.json.Encoder().encode
_keys: "msgspec.json.Decoder[list[str] | None]" = msgspec.json.Decoder(list[str] | None)
_event = msgspec.json.Decoder(EventReceived)

_DATA = 7  # where an entry's data is in its row
_HEAD_KIND = -4  # where a run's row has the kind of its last entry
SOON = 60_000  # ms; the engine looks for missing definitions no less often
NEVER = 1 << 62  # a lease without an end, for the only engine of a file


# A statement of a batch, its parameters, how many rows it must change (None: any number), and why it may not have.
Step = tuple[str, dict[str, Any], int | None, str]


class Database(Migratable, Protocol):
    """What SqlStore needs of a database. shared: whether several nodes may write at the same time."""

    shared: bool

    def read(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]: ...
    def write(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]: ...
    def changes(self) -> int: ...
    def batch(self, steps: list[Step]) -> None: ...
    def transaction(self) -> AbstractContextManager[None]: ...
    def snapshot(self) -> AbstractContextManager[Callable[[str, dict[str, Any]], Iterator[Any]]]: ...
    def settle_log(self) -> None: ...
    def take_turns(self, wanted: bool) -> None: ...
    def rewrite(self) -> None: ...
    def close(self) -> None: ...


def rows(items: list[Any]) -> str:
    """Records as the JSON array that `each(:rows)` reads."""
    return _encode(items).decode()


_FILTERS = ("status", "undo", "name", "trail", "parent", "since")  # of a RunFilter, as the queries call them, too


class SqlStore(Retaining, Erasing, ApiKeys, Offering, Limiting):
    """A store on a SQL database."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self.where, self.shared = database.where, database.shared
        self._sql = load_queries(database.dialect)
        self._last = ""  # the name whose turn came last, when runs were claimed
        self._shares = Shares()
        self._slot_shares = Shares()
        try:
            migrate(database)
            self._has_blobs = bool(database.read(self._sql["any_blob"])[0][0])
        except BaseException:
            database.close()
            raise
        self._blobs = Blobs(self._sql["read_blob"], database.read)
        self._whole = self._blobs.whole

    # -- writes -------------------------------------------------------------------------------------------------------

    def write(self, writes: list[Write]) -> None:
        """One durable transaction for all."""
        accepted = [run for write in writes for run, _ in write.accepts]
        entries = [(*msgspec.structs.astuple(e), 1) for write in writes for _, e in write.accepts]
        entries += [(*msgspec.structs.astuple(e), write.claim) for write in writes for e in write.entries]
        # A run may be in a batch twice; its last row is the one that holds.
        updates = list({write.run: write.update for write in writes if write.update is not None}.values())
        taken = [(id,) for write in writes for id in write.taken]
        messages = [message for write in writes for message in write.messages]
        ended = [(update.id,) for update in updates if update.ended_at is not None]
        continued = [write.succession for write in writes if write.succession is not None]
        labelled = [(run.id, run.labels) for run in accepted if run.labels != "{}"]
        steps: list[Step] = []
        if self.shared and (messages or any(update.ended_at is None for update in updates)):
            # What comes for a run while it is parked must be seen by one of the two, whoever is first.
            locked = {update.id for update in updates} | {message.run for message in messages}
            self._step(steps, "lock_runs", sorted((id,) for id in locked))
        self._step(steps, "accept_runs", accepted, "was accepted already")
        self._step(steps, "label_runs", labelled)
        self._step(steps, "append_entries", entries, "belongs to a newer claim")
        self._step(steps, "take_messages", taken)
        if messages:
            self._step(steps, "post_messages", messages)
            receivers = [(message.run,) for message in messages]
            steps.append((self._sql["wake_receivers"], {"rows": rows(receivers), "now": messages[0].at}, None, ""))
        self._step(steps, "link_runs", continued)
        self._step(steps, "move_messages", continued)
        self._step(steps, "update_runs", updates, "belongs to a newer claim")
        self._step(steps, "clear_inbox", ended)
        if self._has_blobs:
            self._step(steps, "clear_blobs", ended)
        self._write(steps, entries)

    def _step(self, steps: list[Step], name: str, items: list[Any], otherwise: str = "") -> None:
        """Adds a statement that takes these rows, if there are any, and must change each of them if it says so."""
        if items:
            steps.append((self._sql[name], {"rows": rows(items)}, len(items) if otherwise else None, otherwise))

    def _write(self, steps: list[Step], entries: list[Any]) -> None:
        """Writes what `write` has put together."""
        self._db.batch(steps)

    def write_blob(self, run: str, digest: str, part: int, data: bytes) -> None:
        """One part of something large, durable before the row that has it."""
        self._has_blobs = True
        with self._db.transaction():
            self._db.write(self._sql["write_blob"], {"run": run, "digest": digest, "part": part, "data": data})

    def _expect(self, name: str, items: list[Any], otherwise: str) -> None:
        if not items:
            return
        self._db.write(self._sql[name], {"rows": rows(items)})
        if self._db.changes() != len(items):
            raise FenceLost(f"A run of this write {otherwise}; nothing was written.")

    def join(self, node: str, host: str, pid: int, now: int) -> None:
        """A node comes up. On a store that allows one engine only, every other node is known to be gone."""
        with self._db.transaction():
            self._db.write(self._sql["expel_others"], {"node": node})
            self._db.write(self._sql["expect_definitions"], {"now": now, "soon": now + SOON})
            self._db.write(
                self._sql["join_node"], {"node": node, "host": host, "pid": pid, "now": now, "lease_until": NEVER}
            )

    def leave(self, node: str, now: int, unseen: Sequence[str] = ()) -> None:
        """A node goes down in order and gives its runs back; those in `unseen` stay, and are rescued as crashed."""
        with self._db.transaction():
            kept = rows([(run,) for run in unseen])
            self._db.write(self._sql["release_runs"], {"node": node, "now": now, "unseen": kept})
            self._db.write(self._sql["leave_node"], {"node": node})

    def touch(self, node: str) -> None:
        """Writes something that changes nothing, to see whether that can be done."""
        with self._db.transaction():
            for by in (1, -1):
                self._db.write(self._sql["touch_node"], {"node": node, "by": by})

    def claim_due(self, node: str, now: int, limit: int) -> list[Claim]:
        """Takes up to `limit` runs that are due and have no owner."""
        with self._db.transaction():
            found = self._db.write(self._sql["claim_due"], self._claiming(node, now, limit))
        return self._claims(found, limit)

    def _claiming(self, node: str, now: int, limit: int) -> dict[str, Any]:
        return {"node": node, "now": now, "limit": limit, "last": self._last, "patient": self._shares.is_patient()}

    def _claims(self, found: Sequence[tuple[Any, ...]], limit: int) -> list[Claim]:
        """What was claimed; the next batch begins with the names after these."""
        if found:
            self._last = max((name <= self._last, name) for *_, name in found)[1]
        # A batch with room left has passed nobody over: the next one fills it. Unless it was for whoever had waited the
        # longest: that turn is over however small it was, because others may be more urgent.
        if len(found) == limit or (found and self._shares.is_patient()):
            self._shares.count()
        return [Claim(run, claim, crashed == CRASHED, crashed == UNSETTLED) for run, claim, crashed, _ in found]

    def claim_one(self, node: str, run: str) -> Claim | None:
        """Takes one run that is free or already the node's own."""
        with self._db.transaction():
            found = self._db.write(self._sql["claim_one"], {"node": node, "run": run})
        return Claim(run, found[0][1], found[0][2] == CRASHED, found[0][2] == UNSETTLED) if found else None

    def rescue(self, now: int, limit: int) -> int:
        """Frees up to `limit` runs of dead nodes."""
        with self._db.transaction():
            self._db.write(self._sql["rescue"], {"now": now, "limit": limit})
            return self._db.changes()

    def post(self, message: Message) -> str | None:
        """Leaves a message for a run, if the run's state allows it, and makes the run due."""
        with self._db.transaction():
            return self._post(message)

    def _post(self, message: Message) -> str | None:
        state = self._db.write(self._sql["run_state"], {"run": message.run})
        if not state:
            raise UnknownName(f"There is no run {message.run!r}.")
        status, undo, _, owner, _ = cast("tuple[str, str, str, str | None, int]", state[0])
        newest = self._newest_of_chain(self._db.write, message.run) if status in ENDED else None
        if newest not in (None, message.run) and message.kind != "undo":  # an undo is of this very run
            message = msgspec.structs.replace(message, run=newest)
            state = self._db.write(self._sql["run_state"], {"run": newest})
            status, undo, _, owner, _ = cast("tuple[str, str, str, str | None, int]", state[0])
        if message.kind == "event" and status in ENDED and self._was_taken(message):
            return owner  # sent again, after the run that took it has ended: it is the same one event
        if message.kind in ("retry", "undo") and status in ENDED:
            self._refuse_erased(message.run, message.kind)
            if message.kind == "retry" and status != "completed":
                self._refuse_child(message.run, status)
        _check_allowed(message, status, undo)
        if message.kind == "retry" and status == "blocked":
            self._refuse_unseen(message)
        reopens = message.kind in ("retry", "undo") or (message.kind == "cancel" and status == "blocked")
        if message.kind == "resolve":
            reopens = self._is_last_answer(message)
        self._db.write(self._sql["post_messages"], {"rows": rows([message])})
        if message.kind == "resolve" and not reopens:
            self._db.write(self._sql["wake_blocked"], {"run": message.run, "now": message.at})
        elif reopens:
            self._db.write(self._sql["reopen_run"], {"run": message.run, "now": message.at})
        elif message.kind != "event" or status != "pending":  # an event does not start a delayed run early
            self._db.write(self._sql["wake_run"], {"run": message.run, "now": message.at})
        return owner

    def _refuse_erased(self, run: str, kind: str) -> None:
        if self._db.write(self._sql["get_run"], {"run": run})[0][_HEAD_KIND] == "erased":
            raise InvalidOperation(f"The data of the run {run} was erased; there is nothing left to {kind} it from.")

    def _refuse_child(self, run: str, status: str) -> None:
        # Its parent has taken its end, and starts another child if it is retried itself: both would do the work.
        parent = run_of(self._db.write(self._sql["get_run"], {"run": run})[0]).parent
        if parent is not None:
            raise InvalidOperation(
                f"The run {run} is {status}, and a step of the run {parent}, which was told so. Retry {parent}, which "
                "does that step again, or start a run of its own."
            )

    def file(self, requests: Sequence[Filed | Message]) -> list[str | InputError | None]:
        """Leaves the requests of a client of an engine in another process."""
        with self._db.transaction():
            return [self._file(request) for request in requests]

    def _file(self, request: Filed | Message) -> str | InputError | None:
        if isinstance(request, Message):
            try:
                self._post(request)
            except InputError as error:  # refused before anything was written
                return error
            return None
        self._db.write(self._sql["accept_runs"], {"rows": rows([request.run])})
        if not self._db.changes():
            return self._db.write(self._sql["get_run"], {"run": request.run.id})[0][8]
        if request.run.labels != "{}":
            self._db.write(self._sql["label_runs"], {"rows": rows([(request.run.id, request.run.labels)])})
        entry = (*msgspec.structs.astuple(request.entry), 1)
        self._expect("append_entries", [entry], "was claimed before it was there")
        return None

    def _asked(self, run: str) -> set[str]:
        """The keys of a blocked run's questions."""
        row = self._db.write(self._sql["get_run"], {"run": run})[0]
        return {question.key for question in run_of(row, self._blobs).questions}

    def _refuse_unseen(self, message: Message) -> None:
        # A retry says "try again" to every question, and what is tried again may happen twice: whoever asked for it
        # before the run asked has not said so. It may have been long on its way here.
        known = _keys.decode(self._blobs.whole(message.run, message.value)) or []
        if unseen := self._asked(message.run).difference(known):
            raise InvalidOperation(
                f"The run {message.run} has asked meanwhile, before the retry reached it: {', '.join(sorted(unseen))}. "
                "Look at it again: resolve its questions, or retry it once more, which tries again what they are about."
            )

    def _is_last_answer(self, message: Message) -> bool:
        """Whether every other question of a blocked run is answered. Raises InvalidOperation when this one is not
        open."""
        asked = self._asked(message.run)
        inbox = self._db.write(self._sql["read_inbox"], {"runs": rows([(message.run,)])})
        answered = {row[3] for row in inbox if row[2] == "resolve"}
        if message.name not in asked - answered:
            which = "was answered already" if message.name in asked else "is not open"
            raise InvalidOperation(f"The question {message.name!r} of the run {message.run} {which}.")
        return asked - answered == {message.name}

    def _was_taken(self, message: Message) -> bool:
        if message.sender is None:
            return False
        taken = self._db.write(self._sql["taken_events"], {"run": message.run})
        events = (_event.decode(self._blobs.whole(message.run, data)) for (data,) in taken if data)
        return any(event.sender == message.sender for event in events)

    def save_definitions(self, id: str, newest: dict[str, int], now: int) -> None:
        """Keeps a snapshot of versions."""
        with self._db.transaction():
            self._db.write(self._sql["save_definitions"], {"id": id, "newest": _encode(newest).decode(), "now": now})

    def settle(self) -> None:
        """Housekeeping between writes."""
        self._db.settle_log()

    def take_turns(self, wanted: bool) -> None:
        """Whether other processes write, too."""
        self._has_blobs = True  # as far as is known here
        self._db.take_turns(wanted)

    # -- reads --------------------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """When the earliest free run is due."""
        return self._db.read(self._sql["next_due"])[0][0]

    def get_run(self, run: str) -> Run | None:
        """One run."""
        found = self._db.read(self._sql["get_run"], {"run": run})
        return run_of(found[0], self._blobs) if found else None

    def input_digest(self, run: str) -> str | None:
        """The digest of a run's input."""
        found = self._db.read(self._sql["get_run"], {"run": run})
        return found[0][8] if found else None

    def stray_runs(self, node: str, run: str) -> list[str]:
        """Unfinished runs of a node that are children of a run, or go on for it."""
        return [row[0] for row in self._db.read(self._sql["stray_runs"], {"node": node, "run": run})]

    def own_runs(self, node: str) -> list[str]:
        """What the store thinks a node has in memory."""
        return [row[0] for row in self._db.read(self._sql["own_runs"], {"node": node})]

    def open_runs(self, after: str, limit: int) -> list[str]:
        """Ids of runs that have not ended, in order, after an id."""
        return [row[0] for row in self._db.read(self._sql["open_runs"], {"after": after, "limit": limit})]

    def unfinished_runs(self, limit: int) -> list[tuple[str, int]]:
        """Runs that have not ended and are not blocked, with their claims."""
        return [(row[0], row[1]) for row in self._db.read(self._sql["unfinished_runs"], {"limit": limit})]

    def mark_crashed(self, runs: list[str]) -> None:
        """Whoever claims these runs next settles what may have been in flight."""
        with self._db.transaction():
            self._db.write(self._sql["mark_crashed"], {"rows": rows([(run,) for run in runs])})

    def latest_time(self) -> int:
        """When a run was last accepted, or ended."""
        return self._db.read(self._sql["latest_time"])[0][0] or 0

    def newest_of_chain(self, run: str) -> str | None:
        """The last of the runs that go on for this one."""
        return self._newest_of_chain(self._db.read, run)

    def _newest_of_chain(self, ask: Callable[[str, dict[str, Any]], list[tuple[Any, ...]]], run: str) -> str | None:
        found = ask(self._sql["newest_of_chain"], {"run": run})
        return found[0][0] if found else None

    def runs_of_chain(self, first: str) -> list[str]:
        """The runs that went on for a first one, and it itself, newest first."""
        return [*(row[0] for row in self._db.read(self._sql["runs_of_chain"], {"first": first})), first]

    def runs_over(self, runs: list[str]) -> list[str]:
        """Which of these have nothing to come."""
        return [row[0] for row in self._db.read(self._sql["runs_over"], {"runs": rows([(run,) for run in runs])})]

    def runs_with_messages(self, node: str) -> list[str]:
        """Runs of a node for which messages wait."""
        return [row[0] for row in self._db.read(self._sql["runs_with_messages"], {"node": node})]

    def list_runs(self, filter: RunFilter) -> list[Run]:
        """Runs, newest first."""
        given = {name: value for name in _FILTERS if (value := getattr(filter, name)) is not None}
        if filter.before is not None:
            given["before_at"], given["before_id"] = filter.before
        if filter.status is not None and filter.status != "completed":
            given["running" if filter.status == "running" else "notable"] = True
        if filter.labels:
            given |= {"labels": rows(list(filter.labels.items())), "count": len(filter.labels)}
        statement = narrowed(self._sql["list_runs"], frozenset(given))
        found = self._db.read(statement, {**given, "limit": filter.limit})
        return [run_of(row) for row in found]

    def read_journals(self, runs: list[str]) -> dict[str, list[Entry]]:
        """Whole journals by run."""
        found: dict[str, list[Entry]] = {run: [] for run in runs}
        journals = self._db.read(self._sql["read_journals"], {"runs": rows([(run,) for run in runs])})
        for row in self._blobs.whole_rows(journals, _DATA):
            found[row[0]].append(Entry(*row))
        return found

    def read_journal(self, run: str, after: int = 0, limit: int = ALL) -> list[Entry]:
        """One journal from an entry on."""
        journal = self._db.read(self._sql["read_journal"], {"run": run, "after": after, "limit": limit})
        return [Entry(*row) for row in self._blobs.whole_rows(journal, _DATA)]

    def read_published(self, run: str, after: int) -> list[tuple[int, Any]]:
        """What a run has published after an entry's number."""
        found = self._db.read(self._sql["read_published"], {"run": run, "after": after})
        return [(seq, progress_of(data)) for seq, data in found if data]

    def read_inbox(self, runs: list[str]) -> dict[str, list[Message]]:
        """Messages not yet taken, by run, in order of arrival."""
        found: dict[str, list[Message]] = {run: [] for run in runs}
        for id, run, kind, name, value, sender, actor, at in self._db.read(
            self._sql["read_inbox"], {"runs": rows([(run,) for run in runs])}
        ):
            found[run].append(Message(run, kind, name, self._blobs.whole(run, value), sender, actor, at, id))
        return found

    def load_definitions(self, id: str) -> dict[str, int]:
        """A snapshot of versions."""
        found = self._db.read(self._sql["load_definitions"], {"id": id})
        return msgspec.json.decode(found[0][0], type=dict[str, int]) if found else {}

    @contextmanager
    def read_chains(self, first: str, last: str) -> Generator[tuple[Iterator[Head], Iterator[Link]]]:
        """Heads and journals of a range of ids, of one moment."""
        with self._db.snapshot() as stream:
            wanted = {"first": first, "last": last}
            heads = (Head(*row) for row in stream(self._sql["read_heads"], wanted))
            blobs = Blobs(self._sql["read_blob"], stream)
            yield heads, cast("Iterator[Link]", blobs.whole_rows(stream(self._sql["read_chains"], wanted), 3))

    def find_runs(self, prefix: str, limit: int) -> list[str]:
        """Ids that begin like that, newest first."""
        return [row[0] for row in self._db.read(self._sql["find_runs"], {"prefix": prefix, "limit": limit})]

    def count_by_status(self) -> dict[str, int]:
        """How many runs are in each state."""
        return {row[0]: row[1] for row in self._db.read(self._sql["count_by_status"])}

    def close(self) -> None:
        """Closes the store."""
        self._db.close()


def _check_allowed(message: Message, status: str, undo: str) -> None:
    run, kind = message.run, message.kind
    if kind in ("event", "cancel", "deadline", "child"):
        if status in ENDED:
            raise InvalidOperation(f"The run {run} has ended ({status}); it takes no {kind} any more.")
    elif kind == "resolve":
        if status != "blocked":
            raise InvalidOperation(f"The run {run} is {status}; only a blocked run has questions to resolve.")
    elif kind == "retry":
        if status not in ("failed", "cancelled", "blocked"):
            raise InvalidOperation(
                f"The run {run} is {status}; only a failed, cancelled or blocked run can be retried."
            )
    elif kind == "undo" and (status not in ENDED or undo == "all"):
        why = "everything it did is undone already" if undo == "all" else f"it is {status}; only an ended run can be"
        raise InvalidOperation(f"The run {run} cannot be undone: {why}.")
