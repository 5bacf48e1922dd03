"""The journal of one claimed run, from the engine's side: appends entries, chains them, and knows what is durable.

Entries are numbered and chained when they are appended; the group commit collects them. What must not happen before
they are durable (an attempt, an answer) awaits `durable()`.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec

from dotdo.clock import Clock
from dotdo.engine.committing import Done, GroupCommit
from dotdo.engine.spilling import Late
from dotdo.journal import LARGE, Data, Entry, anchor, encode_data, link, weight
from dotdo.records import WaitingFor
from dotdo.store.protocol import UNSETTLED, Message, NewRun, RunUpdate, Succession, Write

if TYPE_CHECKING:
    from dotdo.engine.accepting import AcceptedRun

_encode_waiting = msgspec.json.Encoder().encode
# Shared by all journals. They are replaced; who would add to them gets an error.
_NO_ACCEPTS = cast("list[tuple[NewRun, Entry]]", ())
_NO_NUMBERS = cast("list[int]", ())
_NO_MESSAGES = cast("list[Message]", ())
_NO_WAITERS = cast("list[tuple[int, Done]]", ())
_NONE_WRITTEN = cast("list[Done]", ())


class RunJournal:
    """Appends to one run's journal under one claim. on_lost: called once, with the journal, when a write failed."""

    __slots__ = (
        "_accepts",
        "_anchor_key",
        "_clock",
        "_committer",
        "_entries",
        "_late",
        "_marked",
        "_messages",
        "_on_lost",
        "_succession",
        "_taken",
        "_update",
        "_waiters",
        "_written",
        "at",
        "claim",
        "digest",
        "durable_seq",
        "generation",
        "kept",
        "lost",
        "run",
        "seq",
    )

    def __init__(
        self,
        run: str,
        claim: int,
        *,
        committer: GroupCommit,
        clock: Clock,
        anchor_key: bytes,
        head: Entry,
        generation: int,
        on_lost: "Callable[[RunJournal, BaseException], None]",
    ) -> None:
        self.run, self.claim, self.generation = run, claim, generation
        self.seq = self.durable_seq = head.seq
        self.digest, self.at = head.digest, head.at
        self.lost: BaseException | None = None
        self.kept: list[Entry] | None = None  # in development: for the replay that checks the run
        self._committer, self._clock, self._anchor_key, self._on_lost = committer, clock, anchor_key, on_lost
        self._waiters = _NO_WAITERS
        self._written = _NONE_WRITTEN
        self._late: Late | None = None
        self._clear()

    def _clear(self) -> None:
        self._entries: list[Entry] = []
        # The shared empty lists are replaced, never appended to: most writes have entries only.
        self._accepts = _NO_ACCEPTS
        self._taken = _NO_NUMBERS
        self._messages = _NO_MESSAGES
        self._update: RunUpdate | None = None
        self._succession: Succession | None = None
        self._marked = False

    def append(self, kind: str, data: Data, step: str = "", attempt: int = 0) -> Entry:
        """Appends an entry; it is durable some time later."""
        now = self._clock.now()
        if now > self.at:
            self.at = now
        self.seq += 1
        if self._late is not None or weight(data) > LARGE:
            return self._append_late(kind, data, step, attempt)
        entry = link(self.digest, self.run, self.seq, kind, step, self.generation, attempt, self.at, encode_data(data))
        self.digest = entry.digest
        self._entries.append(entry)
        if self.kept is not None:
            self.kept.append(entry)
        self._mark()
        return entry

    def accept(self, accepted: "AcceptedRun") -> None:
        """Has a run (this one, or a child) accepted in one transaction with the entry that names it, which is appended
        together with this call; it is durable when that entry is."""
        is_own = accepted.id == self.run
        if is_own:
            self.durable_seq = 0
        if not accepted.entry.digest:
            self._be_late().accept(accepted)
        else:
            self._accept(accepted, is_own)

    def _accept(self, accepted: "AcceptedRun", is_own: bool) -> None:
        self._accepts = [*self._accepts, (accepted.row, accepted.entry)]
        if is_own:
            self.digest = accepted.entry.digest
            if self.kept is not None:
                self.kept.append(accepted.whole_entry)
        self._mark()

    def take(self, message: int) -> None:
        """Deletes a message in the same transaction as the entry that was made of it."""
        self._taken = [*self._taken, message]
        self._mark()

    def send(self, message: Message) -> None:
        """Leaves a message for another run in the same transaction."""
        if self._late is not None or len(message.value) > LARGE:
            self._be_late().send(message)
            return
        self._messages = [*self._messages, message]
        self._mark()

    def succeed(self, succession: Succession) -> None:
        """Has another run, accepted in the same transaction, go on for this one."""
        self._succession = succession
        self._mark()

    def update(
        self,
        status: str,
        *,
        undo: str = "none",
        waiting_for: WaitingFor | None = None,
        due_at: int | None = None,
        owner: str | None = None,
        ended: bool = False,
        unsettled: bool = False,
        keeps_inbox: bool = False,
    ) -> None:
        """Has the run's row written together with what was appended. unsettled: whoever claims it next, also without a
        crash, must settle attempts. keeps_inbox: see `RunUpdate`."""
        if self._late is not None:
            self._late.update = partial(
                self.update,
                status,
                undo=undo,
                waiting_for=waiting_for,
                due_at=due_at,
                owner=owner,
                ended=ended,
                unsettled=unsettled,
                keeps_inbox=keeps_inbox,
            )
            return
        now = self._clock.now()
        self._update = RunUpdate(
            self.run,
            self.claim,
            status,
            undo,
            self.generation,
            _encode_waiting(waiting_for).decode() if waiting_for else None,
            due_at,
            owner,
            self.seq,
            self.digest,
            anchor(self._anchor_key, self.run, self.seq, self.digest),
            self.at if ended else None,
            now,
            UNSETTLED if unsettled else 0,
            int(keeps_inbox),
        )
        self._mark()

    @property
    def is_late(self) -> bool:
        """Whether something large is on its way, so that the entries since are not chained yet."""
        return self._late is not None

    @property
    def is_durable(self) -> bool:
        """Whether everything appended so far is durable."""
        return self.durable_seq == self.seq

    async def durable(self) -> None:
        """Returns when everything appended so far is durable. Raises the store's error if it was lost."""
        if self.lost is not None:
            raise self.lost
        if self.durable_seq < self.seq:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_durable(lambda error: _settle(future, error))
            await future

    def when_durable(self, callback: Done) -> None:
        """Calls back, with None or the store's error, once everything appended so far is durable."""
        if self._waiters is _NO_WAITERS:
            self._waiters = []
        self._waiters.append((self.seq, callback))

    def when_written(self, callback: Done) -> None:
        """Calls back once the next write is through; for an update without entries."""
        if self._written is _NONE_WRITTEN:
            self._written = []
        self._written.append(callback)
        self._mark()

    def _mark(self) -> None:
        if not self._marked and self._late is None:
            self._marked = True
            self._committer.mark(self)

    # -- large data: see spilling.py ----------------------------------------------------------------------------------

    def _be_late(self) -> Late:
        """From here on, until what is large has been written, nothing of this run is."""
        late = self._late
        if late is None:
            late = self._late = Late()
            if self._marked:
                self._committer.unmark(self)
                self._marked = False
            self._committer.bring(late, self._no_more_late)
        return late

    def _append_late(self, kind: str, data: Data, step: str, attempt: int) -> Entry:
        entry = Entry(self.run, self.seq, kind, step, self.generation, attempt, self.at, "", "", "")
        self._be_late().append(entry, data, large=weight(data) > LARGE)
        return entry

    def _no_more_late(self, error: BaseException | None) -> None:
        late, self._late = self._late, None
        assert late is not None, "only this ends it"
        if error is not None:
            self._committer.condemn(self)
            written, self._written = self._written, _NONE_WRITTEN
            self._done(self.seq, written, error)
            return
        for accepted in late.accepted(self._anchor_key):
            self._accept(accepted, accepted.id == self.run)
        for entry, large in late.entries(self.digest):
            self.digest = entry.digest
            self._entries.append(entry)
            if self.kept is not None:
                full = entry if large is None else msgspec.structs.replace(entry, data=large.whole())
                self.kept.append(full)
        self._messages = [*self._messages, *late.messages()]
        if late.update is not None:
            late.update()
        self._mark()

    def take_write(self) -> tuple[Write, Done]:
        """For the group commit: everything appended since the last time."""
        write = Write(self.run, self.claim, self._entries, self._accepts, self._update, self._taken, self._messages)
        write.succession = self._succession
        written = self._written
        if written:
            self._written = _NONE_WRITTEN
        self._clear()
        return write, partial(self._done, self.seq, written)

    def _done(self, seq: int, written: list[Done], error: BaseException | None) -> None:
        if error is None:
            self.durable_seq = seq
        elif self.lost is None:
            self.lost = error
            self._on_lost(self, error)
        for callback in written:
            callback(self.lost)
        waiters = self._waiters
        if waiters:
            left = [waiter for waiter in waiters if waiter[0] > seq and self.lost is None]
            self._waiters = left or _NO_WAITERS
            for needed, callback in waiters:
                if needed <= seq or self.lost is not None:
                    callback(self.lost)


def _settle(future: "asyncio.Future[None]", error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
