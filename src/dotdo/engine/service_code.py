"""A service's code on its run loop: asks for steps, and is handed their outcomes in the journal's order.

The same for a live run and a replay: it appends nothing and starts nothing, it only says which calls are new and which
were cancelled. Whoever drives it hands over one thing at a time, each after the code has become idle.
"""

import asyncio
import random
import uuid
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import Context
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NoReturn, cast

import msgspec

from dotdo import codec
from dotdo.action import NO_OVERRIDES, Action, Overrides
from dotdo.catalogue import Catalogue, Snapshot
from dotdo.context import current
from dotdo.engine.failing import ContinueAsNew
from dotdo.engine.fitting import asked_for_another, leftover_step, leftover_undo, leftover_wait
from dotdo.engine.history import Handover, History
from dotdo.engine.run_loop import RunLoop
from dotdo.engine.run_tasks import RunFuture
from dotdo.engine.secrets import KeepsSecrets, RunSecrets
from dotdo.engine.step_call import OWN_STEPS, TAKING_BACK, Call
from dotdo.engine.step_record import COMPLETED, FAILED, StepRecord
from dotdo.engine.watching import Watch
from dotdo.errors import (
    ActionFailed,
    CalledOutside,
    DotdoError,
    InvalidOperation,
    InvalidValue,
    ReplayError,
    ReplayMismatch,
)
from dotdo.journal import Accepted, EventReceived, Published
from dotdo.records import ErrorRecord
from dotdo.service import Service
from dotdo.step import Step

MAX_PROGRESS = 16 * 1024  # bytes: readers ask for it often


# What most services never have, so these are shared. They are replaced; who would add to them gets an error.
_NONE_HELD: frozenset[str] = frozenset()
_NONE_COUNTED = cast("dict[str, int]", MappingProxyType({}))
_NO_STEPS = cast("list[str]", ())
_NO_PROGRESS = cast("list[Published]", ())
_NO_EVENTS = cast("dict[str, deque[EventReceived]]", MappingProxyType({}))
_NONE_AWAITED = cast("dict[str, deque[RunFuture]]", MappingProxyType({}))
_NO_TIMERS = cast("list[str]", ())


class ServiceCode:
    """One execution of a service's code. Implements `context.Runner` and `step.StepOwner`."""

    __slots__ = (
        "_accepted", "_awaited", "_catalogue", "_counts", "_early_timers", "_events", "_held", "_history", "_keeper",
        "_pins", "_publishes", "_random", "_secrets", "_uuids", "calls", "cancelled", "loop", "main", "new",
        "published", "run_id", "service"
    )  # fmt: skip

    def __init__(
        self,
        run_id: str,
        service: Service[..., Any],
        history: History,
        pins: Snapshot,
        catalogue: Catalogue,
        watch: Watch | None = None,
        keeper: KeepsSecrets | None = None,
    ) -> None:
        accepted = history.accepted
        assert accepted is not None
        self.run_id, self.service, self._history = run_id, service, history
        self._accepted: Accepted = accepted
        self._pins, self._catalogue, self._keeper = pins.newest, catalogue, keeper
        self._secrets: RunSecrets | None = None  # of the code: what its input holds, or it revealed
        self.loop = RunLoop(salt=zlib.crc32(run_id.encode()), now=_start_of(history), watch=watch)
        self.calls: dict[str, Call] = {}
        self.new: list[Call] = []
        self.cancelled: list[str] = _NO_STEPS
        self.published: list[Published] = _NO_PROGRESS  # not journaled yet
        self._publishes = 0
        self._counts = _NONE_COUNTED  # of calls that are equal, or were dropped
        self._events: dict[str, deque[EventReceived]] = _NO_EVENTS
        self._awaited: dict[str, deque[RunFuture]] = _NONE_AWAITED
        self._early_timers: list[str] = _NO_TIMERS
        self._held: frozenset[str] = _NONE_HELD  # steps that were handed over before the code asked for them
        self._uuids: random.Random | None = None
        self._random: random.Random | None = None
        self.main: Any = None

    # -- driving ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the code and runs it until it waits."""
        context = Context()
        context.run(current.set, self)
        schema, input = self.service.schema, bytes(self._accepted.input)
        arguments = schema.arguments(input) if schema.secrets is None else self._run_secrets().arguments(schema, input)
        self.main = self.loop.create_task(self.service.handler(**arguments), context=context)
        self.loop.drain()

    def hand_over(self, items: list[Handover]) -> None:
        """Hands things over, one by one, and each time runs the code until it waits again or has ended. What it was
        given is taken out of the list."""
        handed = 0

        def more() -> bool:
            nonlocal handed
            if self._early_timers and self._fire_early():
                return True
            if handed >= len(items) or self.main.done():
                return False
            handed += 1
            self._take(items[handed - 1])
            return True

        try:
            self.loop.drain(more)
        finally:
            del items[:handed]

    def _take(self, item: Handover) -> None:
        loop = self.loop
        loop.advance(item.at)
        if item.kind == "step":
            call = self.calls.get(item.name)
            if call is None or not call.begun:
                if not item.name.startswith(OWN_STEPS):
                    self._held |= {item.name}  # nobody asked for it yet: kept until somebody does
            elif not call.done:
                self._fulfil(call, self._history.steps[item.name])
        elif item.kind == "undone":
            call = self.calls.get(f"undo:{item.name}")
            if call is None or not call.begun:
                self._held |= {f"undo:{item.name}"}
            elif not call.done:
                self._taken_back(call, self._history.steps[item.name])
        elif item.kind == "timer":
            timer = loop.timer(item.name)
            if timer is not None:
                loop.fire(timer)
            elif not loop.made(item.name):
                self._early_timers = [*self._early_timers, item.name]
            # else it fired while the step that it was to cut short had just ended: it was cancelled, and is late
        else:
            self._event(item)

    def outcome(self) -> tuple[Any, BaseException | None]:
        """The result or exception of the code; only when `main` is done."""
        if self.main.cancelled():
            return None, asyncio.CancelledError("the service cancelled itself")
        error = self.main.exception()
        return (None, error) if error is not None else (self.main.result(), None)

    def end(self) -> "Sequence[asyncio.Task[Any]]":
        """Ends what is left of the code; returns the tasks that refuse to."""
        over = self.main is not None and self.main.done()
        self.main = None  # it knows this object through its context: a cycle that only the collector would free
        refusing = self.loop.evict()
        if not over:
            for call in self.calls.values():
                if call.step is not None:
                    call.step.leave_memory()
        return refusing

    def unmatched(self, among: Iterable[StepRecord] | None = None) -> list[StepRecord]:
        """Recorded steps (all, or those given) that the code has not asked for."""
        return [
            record
            for record in (self._history.steps.values() if among is None else among)
            if ((call := self.calls.get(record.id)) is None or not call.begun)
            and not record.id.startswith(OWN_STEPS)
            and record.generation >= self._history.redone
            and not record.is_blank
        ]

    def mismatch(self, unmatched: list[StepRecord], new: list[Call]) -> ReplayMismatch | None:
        """Why the code does not fit its journal, when a new call shares its name with unmatched records."""
        for call in new:
            found = asked_for_another(self.service, unmatched, call.name, call.id, call.input)
            if found is not None:
                return found
        return None

    def leftover(self, *, fresh: bool) -> ReplayMismatch | None:
        """Why the finished code does not fit its journal, when records were never asked for. fresh: nothing was
        replayed, so every record is of a step that was asked for."""
        records = [] if fresh else self.unmatched()
        if records:
            return leftover_step(self.service, records[0])
        held = [] if fresh else [id.removeprefix("undo:") for id in self._held if id.startswith("undo:")]
        # Not asked for: the undo of what could not be delivered, and a person's word on that of a whole run.
        steps = [self._history.steps[id] for id in held]
        taken_back = [step.id for step in steps if step.state != FAILED and not step.left]
        if taken_back:
            return leftover_undo(self.service, min(taken_back))
        if self._early_timers:
            return leftover_wait(self.service, self._early_timers[0])
        return None

    def never_awaited(self) -> list[str]:
        """Calls that were made but never awaited."""
        return [call.id for call in self.calls.values() if not call.begun]

    def awaited_events(self) -> list[str]:
        """Names of the events that the code waits for."""
        return [name for name, futures in self._awaited.items() if any(not future.done() for future in futures)]

    # -- context.Runner -----------------------------------------------------------------------------------------------

    def call(self, definition: Any, args: tuple[Any, ...], kwargs: dict[str, Any], overrides: Any) -> Step[Any]:
        """A service calls an action or service by its object."""
        return self._call(self._pinned(definition, overrides.version), args, kwargs, overrides, typed=True)

    def call_by_name(self, name: str, version: int | None, params: dict[str, Any]) -> Step[Any]:
        """A service calls an action or service by name; the result comes as plain JSON values."""
        kind = self._catalogue.kind_of(name) or "action"
        pin = self._pins.get(name) if version is None else None
        found = self._catalogue.called(kind, name, version) if pin is None else self._kept(kind, name, pin, None)
        return self._call(found, (), params, NO_OVERRIDES, typed=False)

    def now(self) -> datetime:
        """The time of the latest journal entry handed over."""
        return datetime.fromtimestamp(self.loop.now / 1000, UTC)

    def uuid(self) -> uuid.UUID:
        """From the seed that the first entry recorded."""
        if self._uuids is None:
            self._uuids = random.Random(f"{self._accepted.seed}/uuid")  # noqa: S311 - must be the same on replay
        return uuid.UUID(int=self._uuids.getrandbits(128), version=4)

    def random(self) -> random.Random:
        """From the seed that the first entry recorded."""
        if self._random is None:
            self._random = random.Random(f"{self._accepted.seed}/random")  # noqa: S311 - must be the same on replay
        return self._random

    def wait_for_event(self, name: str) -> RunFuture:
        """A future of the next event of that name."""
        future = self.loop.create_future()
        early = self._events.get(name)
        if early:
            future.set_result(codec.decode(bytes(early.popleft().value)))
        else:
            if self._awaited is _NONE_AWAITED:
                self._awaited = {}
            self._awaited.setdefault(name, deque()).append(future)
        return future

    def publish(self, value: Any) -> None:
        """Progress for readers; what an earlier execution of the code told is not told again."""
        data = codec.encode(value, "What is published")
        if self._secrets is not None:
            self._secrets.refuse(data, "What is published")
        if len(data) > MAX_PROGRESS:
            raise InvalidValue(
                f"What is published is {len(data):,} bytes as JSON; at most {MAX_PROGRESS:,} are carried. Publish how "
                "far the run is, and keep what it works on elsewhere."
            )
        self._publishes += 1
        if self._publishes > self._history.published:
            if self.published is _NO_PROGRESS:
                self.published = []
            self.published.append(Published(msgspec.Raw(data)))

    def hide(self, text: str) -> None:
        """The code has revealed a secret."""
        self._run_secrets().hide(text)

    def continue_as_new(self, params: dict[str, Any]) -> NoReturn:
        """Ends the code; the run goes on as another one."""
        if asyncio.current_task() is not self.main:
            raise CalledOutside(
                "continue_as_new() was called in a task that the service had started. The service as a whole goes on "
                "as new: call it in the service's own code, once its tasks have ended."
            )
        service, newest = self.service, self._catalogue.newest("service", self.service.name)
        # As with calls: whoever took the newest version at first meant the newest.
        if self._pins.get(service.name) == service.version and newest is not None:
            service = self._catalogue.get("service", service.name, newest)
        input = service.schema.accept(params)
        if self._secrets is not None:
            self._secrets.at_rest(service.schema, input)  # refuses a secret in the clear
        raise ContinueAsNew(service, input)

    def undo(self, step: Step[Any]) -> Step[None]:
        """A step is taken back by the service itself. Part of Runner."""
        id, call = f"undo:{step.identity}", self.calls.get(step.identity)
        known = self.calls.get(id)
        if known is not None:
            assert known.step is not None, "only steps of actions and services are let go"
            return known.step
        if call is None or step.get_loop() is not self.loop or not step.done() or step.cancelled():
            raise InvalidOperation(f"{step!r} cannot be undone: it has not completed. Await it before you undo it.")
        record = self._history.steps[step.identity]
        undo: Step[None] = Step(id, self, self.loop, self.loop.future_hash())
        if record.state == FAILED:
            undo.begun = True
            undo.set_result(None)
            undo.settled()
            return undo
        if record.completion is None or not record.completion.undo:
            raise InvalidOperation(f"{step!r} cannot be undone: {call.name} declares no undo.")
        self.calls[id] = Call(undo, f"undo of {call.name}", TAKING_BACK, b"null", NO_OVERRIDES, typed=True)
        return undo

    def left_events(self) -> list[EventReceived]:
        """Events that the code has not awaited, in order for each name."""
        left = [event for events in self._events.values() for event in events]
        return left + [item.event for item in self._history.handovers if item.event is not None]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _pinned(self, definition: Any, version: int | None) -> Any:
        kind = _kind_of(definition)
        if version is not None and version != definition.version:
            found = self._catalogue.find(kind, definition.name, version)
            found = found or self._catalogue.expected(definition.name, version, like=definition)
            return found or self._catalogue.get(kind, definition.name, version)
        pin = self._pins.get(definition.name)
        if pin is None or pin == definition.version or version is not None:
            return definition
        # Only "the newest" is subject to the run's pins; an older object was meant as such.
        if definition.version == self._catalogue.newest(kind, definition.name):
            return self._kept(kind, definition.name, pin, definition)
        return definition

    def _kept(self, kind: str, name: str, pin: int, like: Any) -> Any:
        """The version that the run started with and keeps."""
        kept = self._catalogue.find(kind, name, pin) or self._catalogue.expected(name, pin, like)
        if kept is None:
            raise ReplayError(
                f"The run keeps version {pin} of the {kind} {name}, the newest when it started, and this process does "
                f"not define that version. Define it beside the newer one (version={pin}), then retry the run."
            )
        return kept

    def _call(
        self, definition: Any, args: tuple[Any, ...], kwargs: dict[str, Any], overrides: Overrides, *, typed: bool
    ) -> Step[Any]:
        plain = input = identity = definition.schema.pack(args, kwargs)
        name = definition.name
        if definition.schema.secrets is not None or self._secrets is not None:
            input, identity = self._run_secrets().at_rest(definition.schema, plain)
            self._run_secrets().refuse(overrides.step_key or "", f"The key of a step {name}")
        base = f"{name}:{overrides.step_key}" if overrides.step_key else f"{name}:{codec.digest(identity)}"
        id = base
        if base in self.calls or base in self._counts:
            count = self._counts.get(base, 1) + 1
            self._counted()[base] = count
            id = f"{base}#{count}"
        if id not in self._history.steps:
            definition.schema.check(plain)
        step: Step[Any] = Step(id, self, self.loop, self.loop.future_hash())
        self.calls[id] = Call(step, name, definition, input, overrides, typed)
        return step

    def _counted(self) -> dict[str, int]:
        if self._counts is _NONE_COUNTED:
            self._counts = {}
        return self._counts

    def _run_secrets(self) -> RunSecrets:
        if self._secrets is None:
            if self._keeper is None:
                raise ReplayError(f"The service {self.service.name} uses secrets, and cannot be replayed without keys.")
            self._secrets = self._keeper.keep_secrets()
        return self._secrets

    # -- step.StepOwner -----------------------------------------------------------------------------------------------

    def begin(self, step: Step[Any]) -> None:
        """Part of StepOwner: asks for the step, or fulfils it with what the journal has."""
        if self.loop.finalising:
            raise CalledOutside("An async generator that was left may not start a step while it cleans up.")
        call = self.calls[step.identity]
        if call.id in self._held:
            self._held -= {call.id}
            try:
                if call.definition is TAKING_BACK:
                    self._taken_back(call, self._history.steps[call.id.removeprefix("undo:")])
                else:
                    self._fulfil(call, self._history.steps[call.id])
            except DotdoError as error:
                step.set_exception(error)
        else:
            self.new.append(call)

    def cancel(self, step: Step[Any]) -> None:
        """Part of StepOwner: the attempt in flight shall end too."""
        if self.cancelled is _NO_STEPS:
            self.cancelled = []
        self.cancelled.append(step.identity)

    def drop(self, step: Step[Any]) -> None:
        """Part of StepOwner: the call is not forgotten, but whoever was to await it was cancelled first."""
        del self.calls[step.identity]
        self._counted().setdefault(step.identity, 1)

    def _taken_back(self, call: Call, record: StepRecord) -> None:
        step = call.step
        assert step is not None, "it is not done"
        if record.undone:
            step.set_result(None)
        else:  # a person said so
            error = record.undo_error or ErrorRecord("NotUndone", "it was left as it is")
            step.set_exception(ActionFailed(call.name, error.type, error.message, step=call.id, run_id=self.run_id))
        step.settled()

    def _fulfil(self, call: Call, record: StepRecord) -> None:
        if call.definition is TAKING_BACK:
            return  # when the step itself is marked as undone
        step = call.step
        assert step is not None, "it is not done"
        if record.state == COMPLETED and record.completion is not None:
            loaded, record.loaded = record.loaded, None
            step.set_result(self._load(call, record) if loaded is None or not call.typed else loaded[0])
            # A run may be in memory for long. What the code has got need not be here once more.
            call.step, call.input = None, b""
            record.spend()
        elif record.error is not None:
            error = record.error
            step.set_exception(
                ActionFailed(
                    call.name,
                    error.type,
                    error.message,
                    attempts=error.attempts,
                    step=call.id,
                    run_id=self.run_id,
                )
            )
        step.settled()

    def _load(self, call: Call, record: StepRecord) -> Any:
        completion = record.completion
        assert completion is not None
        raw = bytes(completion.result)
        if not call.typed:
            return codec.decode(raw)
        definition = call.definition
        if (completion.action, completion.version) != (definition.name, definition.version):
            kind = _kind_of(definition)
            definition = self._catalogue.find(kind, completion.action, completion.version) or definition
        return definition.schema.load(raw)

    def _event(self, item: Handover) -> None:
        assert item.event is not None
        waiting = self._awaited.get(item.name)
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(codec.decode(bytes(item.event.value)))
                return
        if self._events is _NO_EVENTS:
            self._events = {}
        self._events.setdefault(item.name, deque()).append(item.event)

    def _fire_early(self) -> bool:
        """Fires the first timer that the code has made since, and says whether there was one."""
        for key in list(self._early_timers):
            timer = self.loop.timer(key)
            if timer is not None or self.loop.made(key):
                self._early_timers.remove(key)
            if timer is not None:
                self.loop.fire(timer)
                return True
            # else it was cancelled, if it was made: what it was to cut short was there at once
        return False


def _kind_of(definition: object) -> str:
    return "action" if isinstance(definition, Action) else "service"


def _start_of(history: History) -> int:
    """When the run was to start: the time that its code sees first, the same on every replay."""
    delay = history.accepted.options.delay if history.accepted else None
    return history.accepted_at + round((delay or 0) * 1000)
