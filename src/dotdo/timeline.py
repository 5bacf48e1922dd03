"""A run's journal as a person reads it: steps with their attempts, effects and undo, and the moments between them.

Nothing here prints; the command line and the dashboard show the same timeline, each in its own way.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from dotdo.clock import duration
from dotdo.journal import (
    KINDS,
    Accepted,
    Answered,
    AttemptFailed,
    Blocked,
    CancelRequested,
    ChildStarted,
    Claimed,
    Completion,
    Delivered,
    DeliveryFailed,
    EffectsDropped,
    Ended,
    Entry,
    Erased,
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
from dotdo.records import ErrorRecord
from dotdo.sealing import masked

_PLAIN_STEP = re.compile(r"([^:]+):[0-9a-f]{16}(#\d+)?")
_TIMER = re.compile(r"timer:(\d+)#")

Purpose = Literal["step", "undo", "on_failure"]
StepState = Literal["open", "committed", "completed", "failed", "cancelled"]
EffectState = Literal["pending", "delivered", "answered", "failed", "dropped", "undone", "unknown"]


class Try(msgspec.Struct, kw_only=True):
    """One attempt of a step, or one try to deliver an effect, that failed. next_at: when the next was to be made."""

    number: int
    at: int
    started: int | None = None
    error: ErrorRecord
    next_at: int | None = None


class EffectItem(msgspec.Struct, kw_only=True):
    """An effect of a step: staged (delivered after the commit) or requested (answered while the handler waited)."""

    name: str
    key: str
    requested: bool = False
    state: EffectState = "pending"
    tries: list[Try] = []
    at: int | None = None


class StepItem(msgspec.Struct, kw_only=True):
    """One step. `at` is when its first attempt began, `ended_at` when it had its outcome; times are ms since 1970."""

    id: str
    name: str
    purpose: Purpose
    at: int
    generation: int = 0
    version: int = 0
    state: StepState = "open"
    attempt: int = 0
    ended_at: int | None = None
    failures: list[Try] = []
    effects: list[EffectItem] = []
    input: Any = None
    result: Any = None
    error: ErrorRecord | None = None
    fallback: str | None = None
    child: str | None = None
    undoable: bool = False
    undone: bool = False
    undo_error: ErrorRecord | None = None


class Moment(msgspec.Struct, kw_only=True):
    """Something that happened to the run as a whole, in words."""

    at: int
    kind: str
    text: str
    error: ErrorRecord | None = None


class Timeline(msgspec.Struct, kw_only=True):
    """A run from its first entry to its last. `items` are in order of their beginning."""

    input: Any = None
    items: list[StepItem | Moment] = []

    @property
    def steps(self) -> list[StepItem]:
        """The steps alone."""
        return [item for item in self.items if isinstance(item, StepItem)]


def timeline(entries: list[Entry]) -> Timeline:
    """The timeline of a run's entries. They are taken as they are; whether they are genuine is for the audit to say."""
    builder = Builder()
    for entry in entries:
        builder.add(entry)
    return builder.timeline


class Builder:
    """Makes a timeline entry by entry; `add` returns what the entry began or changed."""

    def __init__(self) -> None:
        self.timeline = Timeline(items=[])
        self._steps: dict[str, StepItem] = {}
        self._requests: dict[tuple[str, str], EffectItem] = {}

    def add(self, entry: Entry) -> StepItem | Moment | None:
        """Adds an entry."""
        if not entry.data:
            of = f" {step_name(entry.step)}" if entry.step else ""
            return self._moment(entry, f"{entry.kind.replace('_', ' ')}{of} (erased)")
        return _ADD[entry.kind](self, entry, read(entry))

    # -- steps --------------------------------------------------------------------------------------------------------

    def _step(self, entry: Entry, started: int | None = None) -> StepItem:
        step = self._steps.get(entry.step)
        if step is None:
            name, purpose = _name_of(entry.step)
            step = self._steps[entry.step] = StepItem(
                id=entry.step,
                name=name,
                purpose=purpose,
                at=started if started is not None else entry.at,
                generation=entry.generation,
                failures=[],
                effects=[],
            )
            self.timeline.items.append(step)
        step.attempt = max(step.attempt, entry.attempt)
        return step

    def _committed(self, entry: Entry, data: Completion) -> StepItem:
        step = self._step(entry, data.started)
        step.state = "committed"
        step.version, step.input = data.version, _shown(data.input)
        step.result, step.undoable = msgspec.json.decode(data.result), data.undo
        step.fallback = f"{data.action}@{data.version}" if data.fallback else None
        step.effects += [EffectItem(name=staged.effect, key=staged.key, tries=[]) for staged in data.effects]
        return step

    def _completed(self, entry: Entry, data: Completion) -> StepItem:
        step = self._committed(entry, data)
        step.state, step.ended_at = "completed", entry.at
        return step

    def _effects_completed(self, entry: Entry, data: object) -> StepItem:
        step = self._step(entry)
        step.state, step.ended_at = "completed", entry.at
        return step

    def _attempt_failed(self, entry: Entry, data: AttemptFailed) -> StepItem:
        step = self._step(entry, data.started)
        step.version, step.input = data.version, _shown(data.input)
        step.failures.append(
            Try(number=entry.attempt, at=entry.at, started=data.started, error=data.error, next_at=data.next_at)
        )
        return step

    def _lost(self, entry: Entry, data: object) -> StepItem:
        step = self._step(entry)
        error = ErrorRecord("Lost", "its process ended before the attempt did; nothing of it was committed")
        step.failures.append(Try(number=entry.attempt, at=entry.at, error=error))
        return step

    def _failed(self, entry: Entry, data: StepFailed) -> StepItem:
        step = self._step(entry)
        step.state, step.error, step.ended_at = "failed", data.error, entry.at
        return step

    def _step_cancelled(self, entry: Entry, data: object) -> StepItem:
        step = self._step(entry)
        step.state, step.ended_at = "cancelled", entry.at
        return step

    def _child_started(self, entry: Entry, data: ChildStarted) -> StepItem:
        step = self._step(entry)
        step.child, step.input, step.version = data.run, _shown(data.input), data.version
        return step

    def _undone(self, entry: Entry, data: Undone) -> StepItem | None:
        step = self._steps.get(data.step)
        if step is not None:
            step.undone, step.undo_error = data.error is None, data.error
        return step

    # -- effects ------------------------------------------------------------------------------------------------------

    def _effect(self, entry: Entry, number: int) -> EffectItem:
        staged = [effect for effect in self._step(entry).effects if not effect.requested]
        return staged[number]

    def _delivering(self, entry: Entry, data: object) -> StepItem:
        return self._step(entry)

    def _delivered(self, entry: Entry, data: Delivered) -> StepItem:
        effect = self._effect(entry, data.effect)
        effect.state, effect.at = "delivered", entry.at
        return self._step(entry)

    def _delivery_failed(self, entry: Entry, data: DeliveryFailed) -> StepItem:
        effect = self._effect(entry, data.effect)
        effect.tries.append(Try(number=data.tries, at=entry.at, error=data.error, next_at=data.next_at))
        if data.next_at is None:
            effect.state, effect.at = "unknown" if data.unknown else "failed", entry.at
        return self._step(entry)

    def _effects_dropped(self, entry: Entry, data: EffectsDropped) -> StepItem:
        for number in data.effects:
            effect = self._effect(entry, number)
            effect.state, effect.at = "unknown" if number in data.unknown else "dropped", entry.at
        return self._step(entry)

    def _requested(self, entry: Entry, data: Requested) -> StepItem:
        step = self._step(entry)
        effect = self._requests.get((entry.step, data.request))
        if effect is None or effect.key != data.key:
            effect = EffectItem(name=data.effect, key=data.key, requested=True, tries=[])
            self._requests[entry.step, data.request] = effect
            step.effects.append(effect)
        effect.state = "pending"
        return step

    def _answered(self, entry: Entry, data: Answered) -> StepItem:
        effect = self._requests[entry.step, data.request]
        effect.state, effect.at = ("undone" if entry.kind == "request_undone" else "answered"), entry.at
        return self._step(entry)

    _request_undone = _answered

    def _request_failed(self, entry: Entry, data: RequestFailed) -> StepItem:
        effect = self._requests[entry.step, data.request]
        effect.state, effect.at = "unknown" if data.unknown else "failed", entry.at
        effect.tries.append(Try(number=len(effect.tries) + 1, at=entry.at, error=data.error))
        return self._step(entry)

    def _request_undo_failed(self, entry: Entry, data: RequestFailed) -> StepItem:
        effect = self._requests[entry.step, data.request]
        effect.tries.append(Try(number=len(effect.tries) + 1, at=entry.at, error=data.error))
        return self._step(entry)

    # -- moments ------------------------------------------------------------------------------------------------------

    def _moment(self, entry: Entry, text: str, error: ErrorRecord | None = None) -> Moment:
        moment = Moment(at=entry.at, kind=entry.kind, text=text, error=error)
        self.timeline.items.append(moment)
        return moment

    def _accepted(self, entry: Entry, data: Accepted) -> None:
        self.timeline.input = _shown(data.input)

    def _claimed(self, entry: Entry, data: Claimed) -> Moment | None:
        # That a run left memory and came back is everyday; that its process died is not.
        return self._moment(entry, f"taken up by {data.node}, after its process had died") if data.crashed else None

    def _fired(self, entry: Entry, data: Fired) -> Moment:
        delay = _TIMER.match(entry.step)
        return self._moment(entry, f"a timer of {duration(int(delay[1]))} fired" if delay else "a timer fired")

    def _event(self, entry: Entry, data: EventReceived) -> Moment:
        return self._moment(entry, f"event {data.name!r} came{_by(data.actor)}: {bytes(data.value).decode()[:200]}")

    def _published(self, entry: Entry, data: Published) -> Moment:
        return self._moment(entry, f"progress: {bytes(data.value).decode()[:200]}")

    def _cancel_requested(self, entry: Entry, data: CancelRequested) -> Moment:
        return self._moment(entry, f"cancelling was asked for{_by(data.actor)}")

    def _stopping(self, entry: Entry, data: Stopping) -> Moment:
        causes = ", ".join(step_name(step) for step in data.causes)
        why = f", because {causes} failed" if causes else f": {data.error.message}"
        return self._moment(entry, f"stops, to end as {data.status}{why}")

    def _undo_planned(self, entry: Entry, data: UndoPlanned) -> Moment | None:
        if not data.steps:
            return None
        return self._moment(entry, "to be undone: " + ", ".join(step_name(step) for step in data.steps))

    def _blocked(self, entry: Entry, data: Blocked) -> Moment:
        return self._moment(entry, f"blocked ({data.reason.replace('_', ' ')})", data.error)

    def _resolved(self, entry: Entry, data: Resolved) -> Moment:
        step = self._steps.get(entry.step)
        found = [effect for effect in step.effects if effect.key == data.key.removesuffix(".undo")] if step else []
        if found and data.about in ("request", "delivery"):
            states: dict[str, EffectState] = {"happened": "answered" if found[0].requested else "delivered"}
            found[0].state, found[0].at = states.get(data.outcome, "pending"), entry.at
        elif step is not None and data.about == "undo":
            step.undone, step.undo_error = data.outcome == "happened", None
        what = found[0].name if found else "the undo"
        said = {"happened": "it happened", "did_not_happen": "it did not happen", "try_again": "try again"}
        of = f"{what} of {step_name(entry.step)}"
        return self._moment(entry, f"resolved{_by(data.actor)}: {of}: {said[data.outcome]}")

    def _reopened(self, entry: Entry, data: Reopened) -> Moment:
        # What is done again is a new step; what had completed keeps its place.
        for step in data.dropped:
            self._steps.pop(step, None)
        self._steps = {id: step for id, step in self._steps.items() if step.state != "cancelled"}
        return self._moment(entry, f"opened again to {data.operation}{_by(data.actor)}, generation {entry.generation}")

    def _ended(self, entry: Entry, data: Ended) -> Moment:
        for step in self._steps.values():
            if step.state == "open":  # after a crash, nobody was there to say so
                step.state, step.ended_at = "cancelled", entry.at
        text = data.status if data.continued_as is None else f"continued as {data.continued_as}"
        return self._moment(entry, text, data.error)

    def _erased(self, entry: Entry, data: Erased) -> Moment:
        return self._moment(entry, f"all data was erased{_by(data.actor)}")


def _shown(input: msgspec.Raw) -> Any:
    """An input for people, who are shown `***` for each secret."""
    return masked(msgspec.json.decode(input))


def step_name(step: str) -> str:
    """A step's id as people read it: without the digest of its input."""
    return _name_of(step)[0]


def _name_of(step: str) -> tuple[str, Purpose]:
    """The name out of a step's id: `name:digest`, `name:digest#2`, `name:key`, `undo:...`, `on_failure:name`."""
    if step.startswith("undo:"):
        return _name_of(step.removeprefix("undo:"))[0], "undo"
    if step.startswith("on_failure:"):
        return step.removeprefix("on_failure:"), "on_failure"
    plain = _PLAIN_STEP.fullmatch(step)
    if plain:
        return plain[1] + (f" {plain[2]}" if plain[2] else ""), "step"
    name, _, key = step.partition(":")
    return (f"{name} ({key})" if key else name), "step"


def _by(actor: str | None) -> str:
    return f" by {actor}" if actor else ""


_ADD: dict[str, Callable[[Builder, Entry, Any], StepItem | Moment | None]] = {
    kind: vars(Builder)[f"_{kind}"] for kind in KINDS
}
