"""A service in a preview: its code runs on a run loop, and each step it asks for is previewed, one at a time.

Nothing is journaled: outcomes are handed over as they come, timers are skipped in the run's own time, child services
are previewed in place. When it fails, the undo actions of what had completed are previewed, too, then its on_failure
actions, as they would run.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from dotdo import codec
from dotdo.action import Action, undo_input
from dotdo.clock import duration
from dotdo.engine.continuing import continuation
from dotdo.engine.failing import Block, error_record, failure_record, is_failure
from dotdo.engine.history import Handover, History
from dotdo.engine.parking import deadlock
from dotdo.engine.preview_steps import Outcome, preview_step
from dotdo.engine.rehearsing import Rehearsal
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.step_call import TAKING_BACK, Call
from dotdo.engine.step_record import COMPLETED, FAILED, StepRecord
from dotdo.errors import ReplayError
from dotdo.journal import Accepted, Completion
from dotdo.preview import PreviewStatus
from dotdo.records import ErrorRecord, Failure
from dotdo.service import Service

T = TypeVar("T")

MAX_DEPTH = 20  # child services within child services


class Ending(msgspec.Struct, frozen=True):
    """How a run would end. done: what it had completed, newest last, if it is to be undone with its parent."""

    status: PreviewStatus
    result: bytes | None = None
    error: ErrorRecord | None = None
    done: "list[Done]" = []


class _DeadlinePassed(Exception):
    """The run's own time has passed its deadline."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.error = ErrorRecord("DeadlineExceeded", f"The run did not end within its deadline of {seconds} s.")


class _UndoFailed(Exception):
    """Steps that could not be taken back."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__(f"Could not be undone: {'; '.join(steps)}.")


class Done(msgspec.Struct, frozen=True):
    """A step that has completed: an action's outcome, or what a child service did."""

    step: str
    outcome: Outcome | None = None
    child: "list[Done]" = []


async def preview_run(rehearsal: Rehearsal, definition: Any, input: bytes) -> Ending:
    """Previews a run of an action or service. Raises Block where the preview ends."""
    if not isinstance(definition, Action):
        return await ServicePreview(rehearsal, rehearsal.id, definition, input, 0).run()
    action = cast("Action[..., Any]", definition)
    options = rehearsal.options
    retry = None if options.retry is None else msgspec.structs.replace(action.retry, **options.retry)
    outcome = await preview_step(rehearsal, action.name, action, input, timeout=options.timeout, retry=retry)
    if outcome.error is None:
        return Ending("completed", outcome.result)
    await _tell_of_failure(rehearsal, action, rehearsal.id, outcome.error)
    return Ending("failed", error=outcome.error)


class ServicePreview:
    """One service in a preview; children have one each, which share the rehearsal."""

    def __init__(self, rehearsal: Rehearsal, id: str, service: Service[..., Any], input: bytes, depth: int) -> None:
        self.rehearsal, self.id, self.service, self.depth = rehearsal, id, service, depth
        self.history = History()
        self.history.accepted = Accepted(
            kind="service",
            name=service.name,
            version=service.version,
            input=msgspec.Raw(input),
            seed=os.urandom(8).hex(),
            node="",
            options=rehearsal.options,
        )
        self.history.accepted_at = rehearsal.now
        catalogue = rehearsal.previewer.catalogue
        watch, keeper = rehearsal.previewer.watch, rehearsal.keeper
        self.code = ServiceCode(id, service, self.history, catalogue.snapshot(), catalogue, watch, keeper)
        self.done: list[Done] = []

    async def run(self) -> Ending:
        """Runs the code to its end. Raises Block where the preview ends."""
        try:
            await self._drive()
            return await self._finish()
        except _DeadlinePassed as passed:
            if self.depth:
                await undo(self.rehearsal, self.done)
                raise
            return await self._failed(passed.error)
        except (Block, asyncio.CancelledError):
            raise
        except BaseException as error:  # a result or exception of the user's may raise anything when it is looked at
            return await self._blocked(error)
        finally:
            self.rehearsal.previewer.keep(await self._outside(self.code.end))

    # -- driving the code ---------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        code = self.code
        await self._outside(code.start)
        asked: deque[Call] = deque()
        while not code.main.done():
            asked += code.new
            code.new, code.published = [], []
            self._tell_of_cancelled()
            if asked:
                call = asked.popleft()
                if not call.done:
                    await self._step(call)
                continue
            events = code.awaited_events()
            if events:
                raise Block(
                    "event",
                    f"The service {self.service.name} waits for the event {events[0]!r}: what follows depends on it.",
                )
            await self._next_timer()
        self._tell_of_cancelled()

    async def _outside(self, function: Callable[[], T]) -> T:
        """A service's code is driven from plain callbacks of the loop only, never from inside a task."""
        future: asyncio.Future[T] = self.rehearsal.previewer.loop.create_future()

        def call() -> None:
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.rehearsal.previewer.loop.call_soon(call)
        return await _done(future)

    async def _next_timer(self) -> None:
        timer = self.code.loop.next_timer()
        if timer is None:
            raise deadlock()
        rehearsal = self.rehearsal
        limit = rehearsal.options.deadline
        if limit is not None and timer.due > rehearsal.began + round(limit * 1000):
            rehearsal.now = rehearsal.began + round(limit * 1000)
            raise _DeadlinePassed(limit)
        waited = duration(max(timer.due - rehearsal.now, 0))
        rehearsal.now = max(rehearsal.now, timer.due)
        rehearsal.step_at(timer.key, "timer", waited, None, "completed")
        await self._hand_over("timer", timer.key, timer.due)

    async def _hand_over(self, kind: str, name: str, at: int) -> None:
        item = Handover(kind, name, at)
        await self._outside(lambda: self.code.hand_over([item]))

    def _tell_of_cancelled(self) -> None:
        cancelled, self.code.cancelled = self.code.cancelled, []
        for id in cancelled:
            if id not in self.history.steps:
                call = self.code.calls[id]
                self.rehearsal.step_at(id, _kind_of(call), call.name, call.definition.version, "cancelled")
                self.rehearsal.note(
                    "The service cancelled this step before its turn in the preview. In a run it may have begun, or "
                    "have completed, by then.",
                    id,
                )

    # -- one step -----------------------------------------------------------------------------------------------------

    async def _step(self, call: Call) -> None:
        if call.definition is TAKING_BACK:
            await self._take_back(call.id.removeprefix("undo:"))
            return
        if isinstance(call.definition, Service):
            record = await self._child(call)
        else:
            record = await self._action(call)
        self.history.steps[call.id] = record
        await self._hand_over("step", call.id, self.rehearsal.now)

    async def _take_back(self, id: str) -> None:
        """The service undoes a step by hand."""
        for one in [one for one in self.done if one.step == id]:
            failed = await undo_one(self.rehearsal, one)
            if failed:
                raise _UndoFailed(failed)
            self.done.remove(one)
        self.history.steps[id].undone = True
        await self._hand_over("undone", id, self.rehearsal.now)

    async def _action(self, call: Call) -> StepRecord:
        overrides = call.overrides
        outcome = await preview_step(
            self.rehearsal, call.id, call.definition, call.input, timeout=overrides.timeout, retry=overrides.retry
        )
        if outcome.error is not None:
            return StepRecord(call.id, state=FAILED, error=outcome.error)
        self.done.append(Done(call.id, outcome))
        assert outcome.result is not None, "it has completed"
        return _completed(call, outcome.action, outcome.result)

    async def _child(self, call: Call) -> StepRecord:
        rehearsal, service = self.rehearsal, call.definition
        if self.depth >= MAX_DEPTH:
            raise Block("too deep", f"Child services are previewed {MAX_DEPTH} levels deep.", step=call.id)
        began, place = rehearsal.now, len(rehearsal.steps)
        rehearsal.step_at(
            call.id, "service", service.name, service.version, "incomplete", input=codec.decode(call.input)
        )
        rehearsal.children += 1
        child = ServicePreview(rehearsal, f"{rehearsal.id}.{rehearsal.children}", service, call.input, self.depth + 1)
        ending = await child.run()
        status = "completed" if ending.status == "completed" else "failed"
        result = None if ending.result is None else codec.decode(ending.result)
        rehearsal.steps[place] = msgspec.structs.replace(
            rehearsal.steps[place], status=status, result=result, error=ending.error
        )
        if ending.status == "blocked":
            text = ending.error.message if ending.error else ""
            raise Block("child", f"This child would be blocked, and its parent wait for it: {text}", step=call.id)
        if ending.result is None:
            error = ending.error or ErrorRecord("Cancelled", "the child run was cancelled")
            return StepRecord(call.id, state=FAILED, error=error)
        self.done.append(Done(call.id, child=child.done))
        await self._fire_until(call, began)
        return _completed(call, service, ending.result)

    async def _fire_until(self, call: Call, began: int) -> None:
        """Timers that became due while a child was under way fire before its outcome is handed over."""
        end = self.rehearsal.now
        while not self.code.main.done() and end > began:
            timer = self.code.loop.next_timer()
            if timer is None or timer.due >= end:
                return
            await self._hand_over("timer", timer.key, timer.due)
            if call.step is not None and call.step.cancelled():
                self.rehearsal.note(
                    "The service cancelled this child while it was under way; the preview shows all that it would "
                    "have done.",
                    call.id,
                )
                return

    # -- its end ------------------------------------------------------------------------------------------------------

    async def _finish(self) -> Ending:
        result, error = self.code.outcome()
        if continuation(error) is not None:
            raise Block(
                "continues",
                f"The service {self.service.name} continues as new here: a preview shows one run of a chain.",
            )
        if error is None:
            data, _ = self.service.schema.dump(result)
            if self.rehearsal.keeper.secrets is not None:
                self.rehearsal.keeper.secrets.refuse(data, f"The result of {self.service.subject}")
            left = self.code.never_awaited()
            if left:
                raise ReplayError(f"The step {left[0]} was called but never awaited, so it never ran. Await it.")
            return Ending("completed", data, done=self.done)
        if not is_failure(error) and self.service.on_bug == "block":
            return await self._blocked(error)
        record, _ = failure_record(error)
        return await self._failed(record, cancelled=isinstance(error, asyncio.CancelledError))

    async def _failed(self, error: ErrorRecord, *, cancelled: bool = False) -> Ending:
        rehearsal = self.rehearsal
        if self.depth == 0 and any(effect.kind == "staged" for effect in rehearsal.effects):
            rehearsal.note("What completed steps send would have been sent by the time of the failure.")
        failed = await undo(rehearsal, self.done) if self.service.undoes else []
        if failed:
            return await self._blocked(_UndoFailed(failed))
        if cancelled:
            return Ending("cancelled", error=error)
        await _tell_of_failure(rehearsal, self.service, self.id, error)
        return Ending("failed", error=error)

    async def _blocked(self, error: BaseException) -> Ending:
        record = error_record(error)
        if isinstance(error, _UndoFailed):
            record = ErrorRecord("UndoFailed", str(error))
        self.rehearsal.note("It would be blocked: a person would have to decide.")
        await _tell_of_failure(self.rehearsal, self.service, self.id, record)
        return Ending("blocked", error=record)


async def undo(rehearsal: Rehearsal, done: list[Done]) -> list[str]:
    """Previews what takes completed steps back, newest first, down to the last pivot; tells what could not be."""
    failed: list[str] = []
    for one in reversed(done):
        if one.outcome is not None and one.outcome.action.pivot:
            break
        failed += await undo_one(rehearsal, one)
    return failed


async def undo_one(rehearsal: Rehearsal, one: Done) -> list[str]:
    """Previews what takes one step back; tells what could not be."""
    outcome = one.outcome
    if outcome is None:
        return await undo(rehearsal, one.child)
    action = outcome.action.undo_action
    if action is None:
        return []
    assert outcome.result is not None, "it has completed"
    input = undo_input(action, outcome.result, outcome.input)
    error = (await preview_step(rehearsal, f"undo:{one.step}", action, input, kind="undo")).error
    return [] if error is None else [f"{one.step} ({error.message})"]


async def _tell_of_failure(rehearsal: Rehearsal, definition: Any, run: str, error: ErrorRecord) -> None:
    """Previews the on_failure actions."""
    actions: tuple[Action[..., Any], ...] = definition.on_failure
    for action in actions:
        failure = Failure(run, definition.name, error.step, error, error.attempts)
        first = action.schema.parameters[0].name if action.schema.parameters else None
        input = msgspec.json.encode({first: failure} if first else {})
        await preview_step(rehearsal, f"on_failure:{action.name}", action, input, kind="on_failure")


def _completed(call: Call, definition: Any, result: bytes) -> StepRecord:
    completion = Completion(
        action=definition.name,
        version=definition.version,
        input=msgspec.Raw(call.input),
        result=msgspec.Raw(result),
        started=0,
        undo=isinstance(definition, Service) or definition.undo_action is not None,
    )
    return StepRecord(call.id, state=COMPLETED, completion=completion)


def _kind_of(call: Call) -> Any:
    return "service" if isinstance(call.definition, Service) else "action"


async def _done(future: "asyncio.Future[T]") -> T:
    """Waits for what happens in the next callback, also when cancelled; then it is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()
        raise cancelled
    return future.result()
