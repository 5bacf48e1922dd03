"""One claimed run in memory: replays it, continues it, parks it, and brings it to its end.

A service may run ahead of durability, because it is pure; no attempt starts and no answer leaves before every earlier
entry of the run is durable. The code of a service is only ever driven from plain callbacks of the engine's loop.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from dotdo.action import Action, Overrides
from dotdo.engine import finishing, parking, undoing
from dotdo.engine.attempting import Attempt
from dotdo.engine.children import has_child, start_child
from dotdo.engine.failing import Block
from dotdo.engine.giving_up import give_up, take_up_left
from dotdo.engine.guarding import broke, guarded
from dotdo.engine.history import History
from dotdo.engine.journaling import RunJournal
from dotdo.engine.leasing import pause
from dotdo.engine.messages import apply_message
from dotdo.engine.publishing import tell_progress
from dotdo.engine.secrets import RunSecrets, SecretKeeping
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.settling import Unsettled, is_left, is_unsettled, leaves_unsettled, steps_in_flight
from dotdo.engine.spans import RunTrace
from dotdo.engine.step_call import TAKING_BACK, Call
from dotdo.engine.step_record import OPEN, StepRecord
from dotdo.engine.stepping import StepRun, StepTask, step_context
from dotdo.engine.timing import Times
from dotdo.engine.waiting import Waiting
from dotdo.errors import InvalidInput, InvalidValue, ReplayError, RunEvicted
from dotdo.journal import Accepted, Data, Empty, Ended, Entry, Stopping
from dotdo.policy import with_numbers
from dotdo.records import WaitingFor
from dotdo.service import Service
from dotdo.store.protocol import Message

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine


_NO_STEPS: frozenset[str] = frozenset()
_NONE_UNMATCHED = cast("list[StepRecord]", ())
_NO_CALLS: Mapping[tuple[str, str], asyncio.Task[Any]] = MappingProxyType({})


class LiveRun(SecretKeeping):
    """A run that this engine has claimed.

    calls: requests under way, by step and request. asked: what a person must be asked once all that is in flight has
    ended. Both are replaced, never changed: most runs need neither.
    """

    # More attributes than instances may share the names of: without this each run had a dictionary of 1.5 KB.
    # fmt: off
    __slots__ = (
        "_fresh", "_launching", "_parking", "_pumping", "_times", "_unmatched", "_waiting", "accepted",
        "asked", "attempts", "began", "busy", "calls", "code", "conductor", "continuing", "crashed",
        "definition", "engine", "given_up", "history", "id", "is_stopping", "journal", "on_failure", "over",
        "secrets", "status", "steps", "taken", "tasks", "trace", "undoes", "unsettled"
    )
    # fmt: on

    def __init__(self, engine: "Engine", history: History, journal: RunJournal, definition: Any) -> None:
        accepted = history.accepted
        assert accepted is not None
        self.engine, self.history, self.journal, self.definition = engine, history, journal, definition
        self.id = journal.run
        self.accepted: Accepted = accepted
        self.over = False
        self.crashed = 0  # the number of the entry with which it was claimed, if it was under way when a process died
        self.began = False  # a suspect waits for its turn before it begins
        self.is_stopping = self.continuing = False
        self.status = "running"
        self.undoes: bool = getattr(definition, "undoes", True)
        self.on_failure: tuple[Action[..., Any], ...] = definition.on_failure
        self.code: ServiceCode | None = None
        self.trace: RunTrace | None = None
        self.steps: dict[str, StepRun] = {}
        self.attempts: dict[Attempt, None] = {}  # under way, those of undos too
        self.tasks: dict[str, StepTask] = {}
        self.calls: Mapping[tuple[str, str], asyncio.Task[Any]] = _NO_CALLS
        self.asked: tuple[Block, ...] = ()
        self._waiting: Waiting | None = None
        self.secrets: RunSecrets | None = None
        self.taken = 0  # the newest message that was taken
        self._fresh = False
        self.busy = 0
        self._unmatched = _NONE_UNMATCHED
        self.unsettled: Unsettled | None = None  # what earlier owners may have left
        self.given_up: frozenset[str] = _NO_STEPS
        self._launching = False
        self.conductor: asyncio.Task[None] | None = None
        self._times = Times()
        self._parking: asyncio.TimerHandle | None = None
        self._pumping = False

    # -- beginning ----------------------------------------------------------------------------------------------------

    def start(self, messages: list[Message], *, fresh: bool) -> None:
        """Begins or resumes the run; a plain callback of the engine's loop."""
        self.began = True
        if self.engine.tracing is not None:
            self.trace = RunTrace(self.engine.tracing, self)
        try:
            # A cancellation comes after the replay: only that tells which attempts a dead owner had in flight.
            late = [m for m in messages if m.kind in ("cancel", "deadline") and self.history.blocked is None]
            for message in messages:
                if message not in late:
                    apply_message(self, message)
            if self.over or self.is_stopping:
                return
            if self.history.blocked is not None:
                finishing.stay_blocked(self)
                return
            self._fresh = fresh
            self._times.arm_deadline(self)
            self._start(fresh)
            for message in late:
                apply_message(self, message)
        except Block as block:
            self.block(block)

    def _start(self, fresh: bool) -> None:
        history = self.history
        if history.ended is not None:
            self.conduct(undoing.undo_ended(self, history.ended))
        elif history.stopping is not None:
            self.is_stopping = True
            self.conduct(undoing.stop(self, history.stopping))
        elif isinstance(self.definition, Service):
            self._start_service(fresh)
        else:
            self._start_action()

    def _start_service(self, fresh: bool) -> None:
        engine = self.engine
        pins = engine.pinned.of(self.accepted.pins)
        self.code = ServiceCode(self.id, self.definition, self.history, pins, engine.catalogue, engine.watch, self)
        try:
            self.code.start()
        except (ReplayError, InvalidInput) as error:
            self.block_for(error)
            return
        self.pump(replaying=not fresh)

    def _start_action(self) -> None:
        record = self.history.step(self.accepted.name)
        if self.unsettled is not None:
            self.unsettled.replayed([] if record.done else [record.id])
        if record.done:
            finishing.finish_action(self)
            return
        options = self.accepted.options
        overrides = Overrides(timeout=options.timeout, retry=with_numbers(self.definition.retry, options.retry))
        self.busy += 1
        launch = partial(self._launch_action, record.id, self.definition, bytes(self.accepted.input), overrides)
        if self.journal.is_durable:
            launch()
        else:
            self.journal.when_durable(
                lambda error: None if error or self.over else self.leave() if self.is_stopping else launch()
            )

    # -- the journal --------------------------------------------------------------------------------------------------

    def append(self, kind: str, data: Data, step: str = "", attempt: int = 0) -> Entry:
        """Appends an entry and applies it to the history. Raises RunEvicted when the run is over here."""
        if self.over:
            raise RunEvicted(f"The run {self.id} has left this process.")
        if self.secrets is not None:
            data = self.secrets.clean(data)
        entry = self.journal.append(kind, data, step, attempt)
        suspect = self.history.crashes
        self.history.apply(entry, data)
        if suspect and not self.history.crashes:
            self.engine.suspects.next()
        return entry

    # -- driving the service ------------------------------------------------------------------------------------------

    def pump(self, *, replaying: bool = False) -> None:
        """Hands over what the journal has and the service has not seen, one by one; then starts what it asked for."""
        if self.over or self.is_stopping or self._pumping:
            return
        code = self.code
        if code is None:
            finishing.finish_action(self)
            return
        self._pumping = True
        try:
            code.hand_over(self.history.handovers)
        except (ReplayError, InvalidValue) as error:
            self.block_for(error)
            return
        finally:
            self._pumping = False
        self._after(code, replaying)

    def _after(self, code: ServiceCode, replaying: bool) -> None:
        if code.published:
            tell_progress(self, code)
        if replaying:
            take_up_left(self, code)
        if code.main.done():
            if not self._launching:
                finishing.finish(self, code, fresh=self._fresh)
            return
        new, code.new = code.new, []
        if replaying:
            self._unmatched = code.unmatched()
        if self._unmatched:
            self._unmatched = code.unmatched(self._unmatched)  # what is asked for live is new, so these only get fewer
            mismatch = code.mismatch(self._unmatched, new)
            if mismatch is not None:
                if self.unsettled is not None:
                    self.unsettled.forget()
                self.block_for(mismatch)
                return
        if code.cancelled:
            self._cancel_steps(code)
        if new:
            self._launch_when_durable(new)
        self._times.arm_timer(self, code)
        if self.busy == 0:
            self._idle()

    def _launch_when_durable(self, calls: list[Call]) -> None:
        """No attempt starts before every earlier entry of its run is durable."""
        self.busy += len(calls)
        if self.journal.is_durable:
            self._launch_all(calls, None)
        else:
            # After a crash these may be under way already: the service does not end before they are looked after.
            self._launching = self._launching or bool(self.unsettled and self.unsettled.steps)
            self.journal.when_durable(partial(self._launch_all, calls))

    @guarded
    def _launch_all(self, calls: list[Call], error: BaseException | None) -> None:
        if self.over or error is not None:
            return
        code = self.code
        for call in calls:
            if self.is_stopping or code is None:
                self.busy -= 1
            elif not (call.done or code.main.done()):
                self._launch(call)
            elif call.id not in self.tasks and is_left(self, call.id):
                self.only_end(call.id)
                self.launch_task(call.id, give_up(self, call))
            else:
                self.busy -= 1
        if self._launching:
            self._launching = False  # the service may have ended meanwhile: nothing is left that it would wait for
            self.pump()
        elif self.busy == 0 and not self._pumping:
            self._idle()

    def _launch(self, call: Call) -> None:
        if isinstance(call.definition, Service) or (not self._fresh and has_child(self, call)):
            self.launch_task(call.id, start_child(self, call))
        elif call.definition is TAKING_BACK:
            self.launch_task(call.id, undoing.take_back(self, call))
        else:
            self._launch_action(call.id, call.definition, call.input, call.overrides)

    def _launch_action(self, id: str, definition: Action[..., Any], input: bytes, overrides: Overrides) -> None:
        step = self.steps[id] = StepRun(self, id, definition, input, overrides, launched=True)
        self.launch_task(id, step.execute())

    def launch_task(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs what a step does; the run counts as busy until it has ended."""
        # Not by the loop: an application's task factory might start it here and now.
        task = self.tasks[id] = StepTask(work, loop=self.engine.loop, name=id, context=step_context())
        task.step = id
        task.add_done_callback(self._step_done)

    def only_end(self, id: str) -> None:
        """From here on a step only comes to its end: nobody waits for it any more."""
        self.given_up |= {id}

    @guarded
    def _step_done(self, task: StepTask) -> None:
        id = task.step
        self.busy -= 1
        if self.engine.draining:
            self.engine.quiet.set()
        self.tasks.pop(id, None)
        step = self.steps.pop(id, None)
        if self.over:
            self.engine.swallow(task)
            return
        error = None if task.cancelled() else task.exception()
        if error is not None:
            broke(self, error, id)
        elif task.cancelled() and self._ended_without_outcome(self.history.step(id)):
            if step is not None and is_unsettled(self, id):  # it was cancelled before it could begin
                self.busy += 1
                self.only_end(id)
                self.launch_task(id, step.give_up())
            else:
                self.append("step_cancelled", Empty(), id)
        if self.is_stopping and self.busy == 0:
            self._idle()  # what it still waits for was waited for already when this step ended
        self.pump()

    def _ended_without_outcome(self, record: StepRecord) -> bool:
        # Steps of a blocked run go on later, with what they have asked for, and so do their children.
        return record.state == OPEN and self.status != "blocked"

    def _cancel_steps(self, code: ServiceCode) -> None:
        cancelled, code.cancelled = code.cancelled, []
        for id in cancelled:
            task = self.tasks.get(id)
            # What has committed goes on to its delivery: after the commit, everything will happen.
            if task is not None and self.history.step(id).completion is None:
                self._interrupt(id, task)

    def _interrupt(self, id: str, task: "asyncio.Task[None]") -> None:
        step = self.steps.get(id)
        attempt = None if step is None else step.attempt
        # One that is on its way out already may be taking back what it asked for: it is not cancelled twice.
        if not (task.cancelling() if attempt is None else attempt.is_cancelled):
            if attempt is not None:
                attempt.is_cancelled = True
            task.cancel()

    # -- waiting ------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> Waiting:
        """What the run's steps wait for; made when the first one does."""
        if self._waiting is None:
            self._waiting = Waiting(self)
        return self._waiting

    def enter(self) -> None:
        """One more part of the run is busy."""
        self.busy += 1

    def leave(self) -> None:
        """One part less; when all wait, the run may be parked."""
        self.busy -= 1
        if self.busy == 0 and not self._pumping:
            self._idle()

    async def may_attempt(self) -> None:
        """Returns when an attempt may start: every earlier entry is durable, and the engine is not draining."""
        lease = self.engine.lease
        while not self.journal.is_durable or self.engine.draining or not (lease is None or lease.lasts):
            await self.journal.durable()
            await pause(self)

    def _idle(self) -> None:
        self.engine.quiet.set()
        if not (self.over or self._parking is not None or self.engine.draining):
            if self.code is not None and not self.is_stopping and not parking.may_move(self, self.code):
                self.block_for(parking.deadlock())
            else:
                self._parking = self.engine.loop.call_later(parking.linger(self), self._park)

    @guarded
    def _park(self) -> None:
        self._parking = None
        if not (self.over or self.busy or (self.conductor is not None and not self.waiting.now)):
            parking.park(self)

    # -- ending -------------------------------------------------------------------------------------------------------

    def conduct(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what brings the run to its end, as a task of the engine's loop."""
        self.busy += 1
        self.conductor = self.engine.loop.create_task(work, context=step_context())
        self.conductor.add_done_callback(self._conducted)

    @guarded
    def _conducted(self, task: "asyncio.Task[None]") -> None:
        self.busy -= 1
        if self.conductor is task:
            self.conductor = None
        self.engine.quiet.set()
        if self.over:
            self.engine.swallow(task)
        elif not task.cancelled() and task.exception() is not None:
            broke(self, task.exception() or RuntimeError("unknown"))

    def stop(self, stopping: Stopping) -> None:
        """Stops the run: no code of the service runs any more, and what it did is undone."""
        if self.over or self.is_stopping or self.history.ended is not None:
            return  # of one that has ended, and is undone by an operator, all is being undone already
        self.is_stopping = True
        in_flight = {id: self.history.step(id).attempt + 1 for id in steps_in_flight(self)}
        stopping = self.cleaned(msgspec.structs.replace(stopping, in_flight=in_flight))
        if self.code is not None:
            self.engine.keep(self.code.end())
        self.waiting.stop_deliveries()
        self.conduct(undoing.stop(self, stopping))

    async def settle_in_flight(self) -> None:
        """Ends every attempt in flight: cancels what has not committed, waits for what is being sent."""
        for id, task in list(self.tasks.items()):
            if self.history.step(id).completion is None and id not in self.given_up:
                self._interrupt(id, task)
        while self.tasks:
            self.leave()
            try:
                await asyncio.wait(list(self.tasks.values()))
            finally:
                self.busy += 1

    def end(self, ended: Ended) -> None:
        """Appends the terminal entry."""
        self.append("ended", ended)
        self.journal.update(ended.status, undo=ended.undo, ended=True)
        self.engine.ended(self, ended)

    def block_for(self, error: BaseException) -> None:
        """Blocks the run for an error of its service's code."""
        self.block(finishing.block_of(error))

    def block(self, block: Block) -> None:
        """The run waits for a person: what is in flight ends, then it leaves memory."""
        if self.over:
            return
        self.asked = (*self.asked, block)
        if self.conductor is not None or self.status == "blocked":
            return  # who conducts its end asks when all of it has ended
        self.status = "blocked"
        self.is_stopping = True
        if self.code is not None:
            self.engine.keep(self.code.end())
        self.waiting.stop_deliveries()
        self.conduct(finishing.settle_and_block(self))

    def take_asked(self) -> list[Block]:
        """What a person must be asked by now."""
        asked, self.asked = list(self.asked), ()
        return asked

    def acting(self) -> list[asyncio.Task[Any]]:
        """The tasks of the run on the engine's loop."""
        return [*self.tasks.values(), *self.calls.values(), *([self.conductor] if self.conductor else [])]

    def give_back(self) -> bool:
        """The engine stops in order: the run leaves memory, and the next engine knows that no attempt ended unseen.

        False when an attempt has begun to commit, and may yet do so: the next engine must settle it.
        """
        committing = [one for one in self.attempts if not one.end("was given up, because its engine stopped")]
        if not committing and not self.over and self.began:
            waiting_for = WaitingFor("turn", "an engine: the one that had it was stopped")
            status = "stopping" if self.is_stopping else "waiting"
            due, unsettled = self.engine.clock.now(), leaves_unsettled(self)
            self.journal.update(status, waiting_for=waiting_for, due_at=due, unsettled=unsettled)
        self.release()
        return not committing

    def release(self) -> None:
        """Leaves memory at once: nothing of it acts any more."""
        if self.over:
            return
        self.over = True
        if self.trace is not None:
            self.trace.end()
        self.engine.suspects.next()
        self._times.cancel()
        if self._parking is not None:
            self._parking.cancel()
        for attempt in self.attempts:
            attempt.end("was given up, because its run left this process")
        for task in self.acting():
            task.cancel()
        if self.code is not None:
            self.engine.keep(self.code.end())
            self.code = None
        self._waiting = None  # it knows the run: a cycle that only the collector would free

    # -- children and messages ----------------------------------------------------------------------------------------

    @guarded
    def take(self, messages: list[Message]) -> None:
        """Takes messages from outside into the journal."""
        if not self.began:
            return  # they are read again then; before, nobody knows what an earlier owner has left under way
        for message in messages:
            if self.over:
                return
            if message.id > self.taken:
                apply_message(self, message)
        self.pump()

    async def undo_step(self, record: StepRecord) -> None:
        """Takes one committed step back."""
        await undoing.undo_step(self, record)
