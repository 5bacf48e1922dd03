"""What a run's journal says so far: the state of each step, what was handed to the service, and how the run is ending.

`History.apply` is the only place that turns entries into state; it is fed with stored entries on a claim and with each
new one as it is appended, so a run that lives and a run that is replayed know the same.
"""

from typing import Any

import msgspec

from dotdo.journal import (
    KINDS,
    Accepted,
    Answered,
    AttemptFailed,
    Blocked,
    ChildStarted,
    Claimed,
    Completion,
    Delivered,
    Delivering,
    DeliveryFailed,
    EffectsDropped,
    Ended,
    Entry,
    EventReceived,
    Fired,
    Published,
    Reopened,
    Requested,
    RequestFailed,
    StepFailed,
    Stopping,
    Undone,
    UndoPlanned,
    read,
)
from dotdo.records import ErrorRecord

# A step's states. `open`: nothing committed. `committed`: effects are being delivered.
OPEN, COMMITTED, COMPLETED, FAILED, CANCELLED = "open", "committed", "completed", "failed", "cancelled"

# So often may a run crash its node without getting anywhere; then it is blocked.
MAX_CRASHES = 3
# Entries after which a run has got somewhere: crashes are counted from the last one.
PROGRESS = frozenset(
    {"completed", "committed", "effects_completed", "delivered", "failed", "attempt_failed", "delivery_failed"}
    | {"answered", "fired", "event", "child_started", "undo_planned", "undone", "reopened", "accepted"}
)


class Request(msgspec.Struct, gc=False):
    """A request of a step: what was asked, and its answer once there is one."""

    intent: Requested
    answer: msgspec.Raw | None = None
    at: int = 0


class Delivery(msgspec.Struct, gc=False):
    """How far the delivery of one staged effect is."""

    tries: int = 0
    delivered: bool = False
    begun: bool = False
    given_up: bool = False
    next_at: int | None = None
    first_at: int | None = None
    error: ErrorRecord | None = None


class StepRecord(msgspec.Struct, gc=False):
    """What the journal says of one step.

    loaded: the output of an attempt that has just ended here, decoded from the bytes that are being journaled; for the
        service, which takes it once.
    """

    id: str
    state: str = OPEN
    seq: int = 0  # of the entry that committed or failed it
    attempt: int = 0  # the last attempt's number
    failures: int = 0  # failed attempts of the current action (the fallback starts anew)
    first_at: int | None = None
    next_at: int | None = None
    last_error: ErrorRecord | None = None
    fallback: bool = False
    completion: Completion | None = None
    at: int = 0
    error: ErrorRecord | None = None
    not_undone: list[str] = []
    requests: dict[str, Request] = {}
    deliveries: list[Delivery] = []
    epoch: int = 0
    generation: int = 0
    child: ChildStarted | None = None
    undone: bool = False
    undo_error: ErrorRecord | None = None
    loaded: tuple[Any] | None = None

    @property
    def is_blank(self) -> bool:
        """Whether the journal says nothing of it, or not any more, or only that attempts were lost."""
        return self.state == OPEN and not self.failures and not self.requests and self.child is None

    @property
    def is_unheard_of(self) -> bool:
        """Whether the journal has never had a word of it."""
        return self.is_blank and not self.attempt and not self.epoch

    @property
    def done(self) -> bool:
        """Whether it has an outcome for the service."""
        return self.state in (COMPLETED, FAILED)


class Handover(msgspec.Struct, frozen=True, gc=False):
    """Something that was handed to the service, in the journal's order: a step's outcome, a timer, an event."""

    kind: str
    name: str
    at: int
    event: EventReceived | None = None


class History:
    """The state that a run's journal amounts to."""

    def __init__(self) -> None:
        self.accepted: Accepted | None = None
        self.accepted_at = 0
        self.steps: dict[str, StepRecord] = {}
        self.handovers: list[Handover] = []
        self.senders: dict[str, None] = {}  # of events, in order: the same key twice is one event
        self.published = 0  # how much progress was told, so that a replay does not tell it again
        self.progress: msgspec.Raw | None = None
        self.generation = 0
        self.crashes = 0  # takeovers after a crash since the run last got somewhere
        self.stopping: Stopping | None = None
        self.stopping_seq = 0
        self.operation = ""  # what reopened this generation: retry, undo, undo on, or nothing
        self.redone = 0  # the generation in which steps were last dropped, to be done again
        self.plan: list[str] | None = None
        self.ended: Ended | None = None
        self.blocked: Blocked | None = None

    @property
    def deadline_at(self) -> int | None:
        """When the whole run must have ended (ms), if it has a deadline."""
        options = self.accepted.options if self.accepted else None
        if options is None or options.deadline is None or self.ended is not None:
            return None
        return self.accepted_at + round(((options.delay or 0) + options.deadline) * 1000)

    def step(self, id: str) -> StepRecord:
        """The record of a step; a new one is open."""
        record = self.steps.get(id)
        if record is None:
            record = self.steps[id] = StepRecord(id, generation=self.generation, requests={}, deliveries=[])
        return record

    def load(self, entries: list[Entry]) -> None:
        """Applies stored entries."""
        for entry in entries:
            self.apply(entry, read(entry))

    def apply(self, entry: Entry, data: Any) -> None:
        """Applies one entry; `data` is its decoded data."""
        if entry.kind in PROGRESS:
            self.crashes = 0
        change = _CHANGES.get(entry.kind)
        if change is not None:
            change(self, entry, data)

    # -- how each kind changes the state ------------------------------------------------------------------------------

    def _accepted(self, entry: Entry, data: Accepted) -> None:
        self.accepted, self.accepted_at = data, entry.at
        if data.chain is not None:
            self.senders = dict.fromkeys(data.chain.senders)

    def _claimed(self, entry: Entry, data: Claimed) -> None:
        if data.crashed:
            self.crashes += 1

    def _completed(self, entry: Entry, data: Completion) -> None:
        record = self._committed(entry, data)
        record.state = COMPLETED
        self.handovers.append(Handover("step", entry.step, entry.at))

    def _committed(self, entry: Entry, data: Completion) -> StepRecord:
        record = self.step(entry.step)
        record.state, record.completion, record.seq, record.at = COMMITTED, data, entry.seq, entry.at
        record.attempt = max(record.attempt, entry.attempt)
        record.deliveries = [Delivery() for _ in data.effects] if data.effects else []
        return record

    def _effects_completed(self, entry: Entry, data: Any) -> None:
        record = self.step(entry.step)
        record.state, record.at = COMPLETED, entry.at
        self.handovers.append(Handover("step", entry.step, entry.at))

    def _attempt_failed(self, entry: Entry, data: AttemptFailed) -> None:
        record = self.step(entry.step)
        if record.fallback != data.fallback:
            record.fallback, record.failures, record.first_at = data.fallback, 0, None
        record.attempt, record.failures = entry.attempt, record.failures + 1
        record.next_at, record.last_error = data.next_at, data.error
        if record.first_at is None:
            record.first_at = data.started

    def _lost(self, entry: Entry, data: Any) -> None:
        self.step(entry.step).attempt = entry.attempt

    def _requested(self, entry: Entry, data: Requested) -> None:
        self.step(entry.step).requests[data.request] = Request(data, at=entry.seq)

    def _answered(self, entry: Entry, data: Answered) -> None:
        self.step(entry.step).requests[data.request].answer = data.answer

    def _request_failed(self, entry: Entry, data: RequestFailed) -> None:
        if not data.unknown:
            self.step(entry.step).requests.pop(data.request, None)

    def _request_undone(self, entry: Entry, data: Answered) -> None:
        record = self.step(entry.step)
        # An undone request is never replayed, whatever else the step asked for; the next one gets a new key.
        del record.requests[data.request]
        record.epoch += 1

    def _delivering(self, entry: Entry, data: Delivering) -> None:
        self.step(entry.step).deliveries[data.effect].begun = True

    def _delivered(self, entry: Entry, data: Delivered) -> None:
        delivery = self.step(entry.step).deliveries[data.effect]
        delivery.delivered, delivery.tries, delivery.begun = True, data.tries, False

    def _delivery_failed(self, entry: Entry, data: DeliveryFailed) -> None:
        delivery = self.step(entry.step).deliveries[data.effect]
        delivery.tries, delivery.next_at, delivery.begun = data.tries, data.next_at, False
        delivery.given_up = data.next_at is None
        if delivery.first_at is None:
            delivery.first_at = entry.at
        delivery.error = data.error

    def _effects_dropped(self, entry: Entry, data: EffectsDropped) -> None:
        for index in data.effects:
            self.step(entry.step).deliveries[index].given_up = True

    def _failed(self, entry: Entry, data: StepFailed) -> None:
        record = self.step(entry.step)
        record.state, record.error, record.seq, record.at = FAILED, data.error, entry.seq, entry.at
        record.not_undone = data.not_undone
        self.handovers.append(Handover("step", entry.step, entry.at))

    def _step_cancelled(self, entry: Entry, data: Any) -> None:
        record = self.step(entry.step)
        record.state, record.at = CANCELLED, entry.at

    def _fired(self, entry: Entry, data: Fired) -> None:
        self.handovers.append(Handover("timer", entry.step, entry.at))

    def _event(self, entry: Entry, data: EventReceived) -> None:
        self.handovers.append(Handover("event", data.name, entry.at, data))
        if data.sender is not None:
            self.senders[data.sender] = None

    def _published(self, entry: Entry, data: Published) -> None:
        self.published += 1
        self.progress = data.value

    def _child_started(self, entry: Entry, data: ChildStarted) -> None:
        self.step(entry.step).child = data

    def _stopping(self, entry: Entry, data: Stopping) -> None:
        self.stopping, self.stopping_seq = data, entry.seq

    def _undo_planned(self, entry: Entry, data: UndoPlanned) -> None:
        self.plan = data.steps

    def _undone(self, entry: Entry, data: Undone) -> None:
        record = self.step(data.step)
        record.undone, record.undo_error = data.error is None, data.error

    def _blocked(self, entry: Entry, data: Blocked) -> None:
        self.blocked = data

    def _ended(self, entry: Entry, data: Ended) -> None:
        self.ended, self.blocked = data, None

    def _reopened(self, entry: Entry, data: Reopened) -> None:
        """A new generation forgets the steps that are to be done again, and how the last one ended."""
        self.generation, self.operation, self.blocked, self.plan = entry.generation, data.operation, None, None
        gone = set(data.dropped)
        if any(self.steps[id].undone for id in gone & self.steps.keys()):
            self.published = 0  # what was undone is done again, and told again
        self.handovers = [item for item in self.handovers if item.kind != "step" or item.name not in gone]
        for id in gone & self.steps.keys():
            # The epoch goes on, so that what is done again is done under new keys.
            epoch = self.steps[id].epoch + 1
            self.steps[id] = StepRecord(id, epoch=epoch, generation=self.generation, requests={}, deliveries=[])
            if id.startswith("undo:"):
                self.steps[id.removeprefix("undo:")].undo_error = None
        if data.operation == "retry":
            self.stopping = self.ended = None
            if gone:
                # What is done again may come out otherwise, and then later steps are others, too.
                self.redone = self.generation
        for record in self.steps.values():
            for delivery in record.deliveries:
                delivery.begun = False  # a person said to go on: send again


# By an entry's kind: the method of the same name behind an underscore.
_CHANGES: dict[str, Any] = {kind: vars(History)["_" + kind] for kind in KINDS if "_" + kind in vars(History)}
