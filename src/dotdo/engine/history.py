"""What a run's journal says so far: the state of each step, what was handed to the service, and how the run is ending.

`History.apply` is the only place that turns entries into state; it is fed with stored entries on a claim and with each
new one as it is appended, so a run that lives and a run that is replayed know the same.
"""

from types import MappingProxyType
from typing import Any, cast

import msgspec

from dotdo.engine.doubts import carry_over, doubts_of
from dotdo.engine.step_record import (
    CANCELLED,
    COMMITTED,
    COMPLETED,
    FAILED,
    NO_DELIVERIES,
    NO_REQUESTS,
    NONE,
    Delivery,
    Request,
    StepRecord,
)
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
    Resolved,
    StepFailed,
    Stopping,
    Undone,
    UndoPlanned,
    read,
)

# So often may a run crash its node without getting anywhere; then it is blocked.
MAX_CRASHES = 3
# Entries after which a run has got somewhere: crashes are counted from the last one.
PROGRESS = frozenset(
    {"completed", "committed", "effects_completed", "delivered", "failed", "attempt_failed", "delivery_failed"}
    | {"resolved", "answered", "fired", "event", "child_started", "undo_planned", "undone", "reopened", "accepted"}
)
# Replaced, never changed: most runs get no events.
_NO_SENDERS = cast("dict[str, None]", MappingProxyType({}))

OF_STEPS = ("step", "undone")


class Handover(msgspec.Struct, frozen=True, gc=False):
    """Something that was handed to the service, in the journal's order: a step's outcome or undo, a timer, an event."""

    kind: str
    name: str
    at: int
    event: EventReceived | None = None


class History:
    """The state that a run's journal amounts to."""

    __slots__ = (
        "accepted", "accepted_at", "blocked", "crashed_seq", "crashes", "ended", "generation", "handovers", "operation",
        "plan", "progress", "published", "redone", "senders", "steps", "stopping", "stopping_seq"
    )  # fmt: skip

    def __init__(self) -> None:
        self.accepted: Accepted | None = None
        self.accepted_at = 0
        self.steps: dict[str, StepRecord] = {}
        self.handovers: list[Handover] = []
        self.senders = _NO_SENDERS  # of events, in order: the same key twice is one event
        self.published = 0  # how much progress was told, so that a replay does not tell it again
        self.progress: msgspec.Raw | None = None
        self.generation = 0
        self.crashes = 0  # takeovers after a crash since the run last got somewhere
        self.crashed_seq = 0  # the last one of these takeovers
        self.stopping: Stopping | None = None
        self.stopping_seq = 0
        self.operation = ""  # what reopened this generation: retry, undo, undo on, or nothing
        self.redone = 0  # the generation in which steps were last dropped, to be done again
        self.plan: list[str] | None = None
        self.ended: Ended | None = None
        self.blocked: Blocked | None = None

    @property
    def deadline_at(self) -> int | None:
        """When the whole run must have ended (ms), if it has a deadline.

        None once it stops or has ended: a time that has passed would bring it back into memory over and over.
        """
        options = self.accepted.options if self.accepted else None
        if options is None or options.deadline is None or self.stopping is not None or self.ended is not None:
            return None
        return self.accepted_at + round(((options.delay or 0) + options.deadline) * 1000)

    @property
    def is_poison(self) -> bool:
        """Whether it has crashed its node too often, and nobody who knows that has said anything since: it is about to
        be blocked, and may have left memory while it told of that."""
        return self.crashes >= MAX_CRASHES and self.blocked is None and self.stopping_seq < self.crashed_seq

    def step(self, id: str) -> StepRecord:
        """The record of a step; a new one is open."""
        record = self.steps.get(id)
        if record is None:
            record = self.steps[id] = StepRecord(
                id, generation=self.generation, not_undone=NONE, requests=NO_REQUESTS, deliveries=NO_DELIVERIES
            )
        return record

    def load(self, entries: list[Entry]) -> None:
        """Applies stored entries."""
        for entry in entries:
            self.apply(entry, read(entry))

    def apply(self, entry: Entry, data: Any) -> None:
        """Applies one entry; `data` is its decoded data."""
        # What is told of a run that is blocked for its crashes gets it nowhere.
        if self.crashes and entry.kind in PROGRESS and not (self.crashes >= MAX_CRASHES and _tells(entry.step)):
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
            self.crashes, self.crashed_seq = self.crashes + 1, entry.seq

    def _completed(self, entry: Entry, data: Completion) -> None:
        record = self._committed(entry, data)
        record.state = COMPLETED
        self.handovers.append(Handover("step", entry.step, entry.at))

    def _committed(self, entry: Entry, data: Completion) -> StepRecord:
        record = self.step(entry.step)
        record.state, record.completion, record.seq, record.at = COMMITTED, data, entry.seq, entry.at
        record.attempt = max(record.attempt, entry.attempt)
        record.deliveries = [Delivery() for _ in data.effects] if data.effects else NO_DELIVERIES
        if record.doubts:
            carry_over(record, data)
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
        _count_tries_anew(record)

    def _lost(self, entry: Entry, data: Any) -> None:
        self.step(entry.step).attempt = entry.attempt

    def _requested(self, entry: Entry, data: Requested) -> None:
        record = self.step(entry.step)
        before = record.requests.get(data.request)
        first_at = before.first_at if before is not None and before.intent.key == data.key else entry.at
        if not record.requests:
            record.requests = {}
        record.requests[data.request] = Request(data, at=entry.seq, first_at=first_at)

    def _answered(self, entry: Entry, data: Answered) -> None:
        known = self.step(entry.step).requests[data.request]
        known.answer, known.tries, known.tried_at = data.answer, 0, None

    def _request_failed(self, entry: Entry, data: RequestFailed) -> None:
        known = self.step(entry.step).requests[data.request]
        known.refused, known.error, known.again = not data.unknown, data.error, False
        _count_try(known, entry)

    def _request_undo_failed(self, entry: Entry, data: RequestFailed) -> None:
        _count_try(self.step(entry.step).requests[data.request], entry)

    def _request_undone(self, entry: Entry, data: Answered) -> None:
        _forget_request(self.step(entry.step), data.request)

    def _delivering(self, entry: Entry, data: Delivering) -> None:
        delivery = self.step(entry.step).deliveries[data.effect]
        delivery.begun, delivery.again = True, False

    def _delivered(self, entry: Entry, data: Delivered) -> None:
        delivery = self.step(entry.step).deliveries[data.effect]
        delivery.delivered, delivery.tries, delivery.begun = True, data.tries, False

    def _delivery_failed(self, entry: Entry, data: DeliveryFailed) -> None:
        delivery = self.step(entry.step).deliveries[data.effect]
        delivery.tries, delivery.next_at, delivery.begun = data.tries, data.next_at, False
        delivery.unknown, delivery.again = data.unknown, False
        if not data.unknown:
            delivery.known_at = entry.at
        delivery.given_up = data.next_at is None
        if delivery.first_at is None:
            delivery.first_at = entry.at
        delivery.error = data.error

    def _effects_dropped(self, entry: Entry, data: EffectsDropped) -> None:
        for index in data.effects:
            delivery = self.step(entry.step).deliveries[index]
            delivery.given_up, delivery.begun, delivery.unknown = True, False, index in data.unknown

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
            if self.senders is _NO_SENDERS:
                self.senders = {}
            self.senders[data.sender] = None

    def _published(self, entry: Entry, data: Published) -> None:
        self.published += 1
        self.progress = data.value

    def _child_started(self, entry: Entry, data: ChildStarted) -> None:
        self.step(entry.step).child = data

    def _stopping(self, entry: Entry, data: Stopping) -> None:
        self.stopping, self.stopping_seq, self.blocked = data, entry.seq, None
        for record in self.steps.values():
            for known in record.requests.values():
                known.again = False  # nothing new begins, unless a person says so from here on

    def _undo_planned(self, entry: Entry, data: UndoPlanned) -> None:
        self.plan = data.steps

    def _undone(self, entry: Entry, data: Undone) -> None:
        record = self.step(data.step)
        record.undone, record.undo_error, record.partly = data.error is None, data.error, data.partly
        record.undone_at = entry.seq
        if data.left:
            record.not_undone = data.left
        if data.error is None:
            self.handovers.append(Handover("undone", data.step, entry.at))

    def _blocked(self, entry: Entry, data: Blocked) -> None:
        self.blocked = data

    def _resolved(self, entry: Entry, data: Resolved) -> None:
        assert self.blocked is not None, "only a blocked run asks"
        left = [question for question in self.blocked.questions if question.key != data.key]
        self.blocked = msgspec.structs.replace(self.blocked, questions=left)
        resolve(self, entry, data)

    def _ended(self, entry: Entry, data: Ended) -> None:
        self.ended, self.blocked = data, None

    def _reopened(self, entry: Entry, data: Reopened) -> None:
        """A new generation forgets the steps that are to be done again, and how the last one ended."""
        asked = {question.key for question in self.blocked.questions} if self.blocked is not None else set[str]()
        self.generation, self.operation, self.blocked, self.plan = entry.generation, data.operation, None, None
        gone = set(data.dropped)
        if any(self.steps[id].undone for id in gone & self.steps.keys()):
            self.published = 0  # what was undone is done again, and told again
        self.handovers = [item for item in self.handovers if item.kind not in OF_STEPS or item.name not in gone]
        for id in gone & self.steps.keys():
            self.do_again(id)
        if data.operation == "retry":
            self.stopping = self.ended = None
            if gone:
                # What is done again may come out otherwise, and then later steps are others, too.
                self.redone = self.generation
        for record in self.steps.values():
            _count_tries_anew(record)
        if data.operation != "resolve":
            for record in self.steps.values():
                record.undo_error = None
                if asked:
                    _try_again(record, asked)  # a person said to go on, whatever was asked

    def do_again(self, id: str) -> None:
        """Forgets a step. The epoch goes on, so that what is done again is done under new keys; but not what nobody
        knows of: that keeps its key until it is known."""
        old = self.steps[id]
        requests = {name: known for name, known in old.requests.items() if known.in_doubt}
        for known in requests.values():
            known.carried = True
        self.steps[id] = StepRecord(
            id, epoch=old.epoch + 1, generation=self.generation, requests=requests, doubts=doubts_of(old)
        )


def _tells(step: str) -> bool:
    return step.startswith("on_failure:")


def _count_try(known: Request, entry: Entry) -> None:
    known.tries += 1
    if known.tried_at is None:
        known.tried_at = entry.at


def _count_tries_anew(record: StepRecord) -> None:
    for known in record.requests.values():
        known.tries, known.tried_at = 0, None


def resolve(history: History, entry: Entry, data: Resolved) -> None:
    """A person has answered a question."""
    if data.about == "undo":
        _resolve_undo(history, entry, data)
        return
    record = history.step(entry.step)
    if entry.step.startswith("undo:"):
        # It was not known how the undo would end; now it goes on.
        history.step(entry.step.removeprefix("undo:")).undo_error = None
    if data.about == "delivery":
        assert record.completion is not None, "it was committed"
        (index,) = [n for n, effect in enumerate(record.completion.effects) if effect.key == data.key]
        delivery = record.deliveries[index]
        delivery.delivered = data.outcome == "happened"
        delivery.begun = False
        delivery.unknown = delivery.again = data.outcome == "try_again"
        delivery.given_up = delivery.given_up and data.outcome == "did_not_happen"
        delivery.known_at = entry.at
        return
    key = data.key.removesuffix(".undo") if data.about == "request_undo" else data.key
    (id,) = [id for id, known in record.requests.items() if known.intent.key == key]
    known = record.requests[id]
    if data.about == "request_undo":
        if data.outcome == "happened":
            _forget_request(record, id)
        known.left = data.outcome == "did_not_happen"
        return
    if data.outcome == "happened":
        known.answer = data.answer
    else:
        known.refused, known.again = data.outcome == "did_not_happen", data.outcome == "try_again"
    if data.outcome != "did_not_happen":
        _allow_attempts(record)


def _allow_attempts(record: StepRecord) -> None:
    """A person has said how the step goes on; so it does, also if its retries were used up."""
    record.failures, record.first_at, record.next_at = 0, None, None


def _resolve_undo(history: History, entry: Entry, data: Resolved) -> None:
    record = history.step(entry.step)
    if data.outcome == "happened":  # by hand
        record.undone, record.undone_at, record.undo_error = True, entry.seq, None
        history.handovers.append(Handover("undone", entry.step, entry.at))
    elif data.outcome == "did_not_happen":
        record.left = True
        history.handovers.append(Handover("undone", entry.step, entry.at))
    else:
        record.undo_error = None
        if f"undo:{entry.step}" in history.steps:
            history.do_again(f"undo:{entry.step}")


def _forget_request(record: StepRecord, id: str) -> None:
    """An undone request is never replayed, whatever else the step asked for; the next one gets a new key."""
    del record.requests[id]
    record.epoch += 1


def _try_again(record: StepRecord, asked: set[str]) -> None:
    """What the person was asked about, and nothing else that nobody knows."""
    staged = record.completion.effects if record.completion is not None else []
    for effect, delivery in zip(staged, record.deliveries, strict=False):
        if delivery.in_doubt and effect.key in asked:
            delivery.again, delivery.given_up = True, False
    for known in record.requests.values():
        known.again = known.in_doubt and known.intent.key in asked
        if known.again:
            _allow_attempts(record)


# By an entry's kind: the method of the same name behind an underscore.
_CHANGES: dict[str, Any] = {kind: vars(History)["_" + kind] for kind in KINDS if "_" + kind in vars(History)}
