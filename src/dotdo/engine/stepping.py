"""One step: look it up in the journal, make attempts, commit, deliver.

An attempt starts when every earlier entry of its run is durable. It ends in exactly one of: an entry that commits it,
an entry that says how it failed, or (if the node dies) nothing, and then the next owner settles it first.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dotdo.action import Action, Overrides
from dotdo.engine import requesting
from dotdo.engine.attempting import Attempt
from dotdo.engine.cancelling import uncancel
from dotdo.engine.delivering import deliver
from dotdo.engine.elsewhere import went_elsewhere
from dotdo.engine.failing import Block, decisive, error_record
from dotdo.engine.handling import HandlerRun
from dotdo.engine.limiting import give_back, take_slots
from dotdo.engine.settling import (
    is_unsettled,
    journal_commit,
    not_executed,
    settle,
    settle_step,
    tell_of_difference,
)
from dotdo.engine.step_record import CANCELLED, COMMITTED, OPEN, StepRecord
from dotdo.engine.working import run_on_worker, tell
from dotdo.errors import AttemptOver, RetryLater, WorkerLost
from dotdo.journal import AttemptFailed, Completion, Empty, StepFailed
from dotdo.offer import OfferedAction
from dotdo.policy import Retry
from dotdo.records import ErrorRecord

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

T = TypeVar("T")

MOST_LOST = 5  # workers that an attempt may take with it, one after the other, before a person must look at it


class StepRun(HandlerRun):
    """Executes one action as a step of a run, from wherever its record stands."""

    __slots__ = (
        "_launched", "_loaded", "_lost", "_started", "attempt", "definition", "id", "input", "overrides", "record",
        "run"
    )  # fmt: skip

    def __init__(
        self,
        run: "LiveRun",
        id: str,
        definition: Action[..., Any],
        input: bytes,
        overrides: Overrides,
        *,
        launched: bool = False,
    ) -> None:
        doubles = run.engine.doubles
        self.definition = definition if doubles is None else doubles.action(definition)
        self.run: LiveRun = run  # pyright: ignore[reportIncompatibleVariableOverride]  # never replaced
        self.id, self.input, self.overrides = id, input, overrides
        self.record: StepRecord = run.history.step(id)
        if self.record.state == CANCELLED:
            self.record.state = OPEN  # given up by a run that was blocked, and asked for again
        self.attempt: Attempt | None = None
        self._started = 0
        self._loaded: tuple[Any] | None = None
        self._launched = launched
        self._lost = 0  # attempts in a row that were lost with their workers

    def execute(self) -> Coroutine[Any, Any, None]:
        """Brings the step to its outcome. Raises Block when a person must decide."""
        trace = self.run.trace
        return self._execute() if trace is None else trace.step(self, self._execute)

    async def _execute(self) -> None:
        record = self.record
        resumed = record.state == COMMITTED
        try:
            if record.state == OPEN and is_unsettled(self.run, self.id):
                await self._settle()
            if isinstance(self.definition, OfferedAction) and record.state == OPEN and await went_elsewhere(self):
                return
            if record.state == OPEN and record.is_unheard_of:
                # Most steps end with their first attempt, which so has one coroutine less behind it.
                await self._attempt(self.definition, self._retry_of(self.definition))
            if record.state == OPEN:
                await self._attempts()
        except asyncio.CancelledError:
            if not self.run.over and record.completion is None:
                await self._interrupted()
            raise
        if self.run.calls:
            await requesting.calls_end(self.run, record)  # those that the handler has left behind
        if record.state == COMMITTED and not await deliver(self.run, record, resumed=resumed):
            await self._undeliverable()

    async def give_up(self) -> None:
        """Brings a step to its end that nobody waits for: what has committed is delivered, nothing new is tried."""
        record = self.record
        resumed = record.state == COMMITTED
        if record.state == OPEN and is_unsettled(self.run, self.id):
            await self._settle()
        if record.state == OPEN:
            await requesting.take_back(self.run, record)
            self.run.append("step_cancelled", Empty(), self.id)
        elif record.state == COMMITTED and not await deliver(self.run, record, resumed=resumed):
            await self._undeliverable()

    async def _interrupted(self) -> None:
        """The step was cancelled, or its run stops, or it waits for a person because of another step."""
        if self.run.status == "blocked":
            await requesting.calls_end(self.run, self.record)  # the step goes on later, with what it has asked for
        else:
            await requesting.take_back(self.run, self.record)

    # -- attempts -----------------------------------------------------------------------------------------------------

    async def _attempts(self) -> None:
        run, record = self.run, self.record
        action = self.definition
        if record.fallback and action.fallback is not None:
            action = action.fallback
        while record.state == OPEN:
            retry = self._retry_of(action)
            # A record with failures but no next attempt had used its retries up: only the fallback is left.
            if record.failures == 0 or record.next_at is not None:
                if record.next_at is not None and record.next_at > run.engine.clock.now():
                    await self._wait_for_retry(retry)
                await self._attempt(action, retry)
                if record.state != OPEN or record.next_at is not None or self._lost:
                    continue
            has_fallback = action is self.definition and action.fallback is not None
            await requesting.take_back(run, record, goes_on=True, fallback=has_fallback)
            if action is self.definition and action.fallback is not None:
                action = action.fallback
                record.fallback, record.failures, record.first_at = True, 0, None
                continue
            self.fail(record.last_error or ErrorRecord("Error", "failed"), [])
            return

    def _retry_of(self, action: Action[..., Any]) -> Retry:
        return self.overrides.retry or action.retry

    async def _wait_for_retry(self, retry: Retry) -> None:
        record = self.record
        assert record.next_at is not None
        of = f" of {retry.attempts}" if retry.attempts else ""
        error = record.last_error.message if record.last_error else ""
        await self.run.waiting.until(
            self.id, record.next_at, "retry", f"attempt {record.failures + 1}{of} of {self.id}, after: {error[:200]}"
        )

    async def _attempt(self, action: Action[..., Any], retry: Retry) -> None:
        run, record = self.run, self.record
        # A service's step is launched when all that led to it is durable; what others append meanwhile need not be. But
        # this process may have stood still in between, for longer than its lease.
        lease = run.engine.lease
        if run.engine.draining or not self._launched or (lease is not None and not lease.lasts):
            await run.may_attempt()
        self._launched = False
        slots = None if action.limits is None else await take_slots(self, action, action.limits)
        number = record.attempt + 1
        started = self._started = run.engine.clock.now()
        attempt = self.attempt = self._new_attempt(action, number)
        run.attempts[attempt] = None
        try:
            work, trace = self.run_handler(action, attempt, started), run.trace
            completion = await (work if trace is None else trace.attempt(attempt, action, work))
        except BaseException as error:  # whatever a handler raises is its attempt's failure
            await self._without_commit(action, retry, attempt, started, error)
        else:
            if attempt.promised is not None:
                await self._without_commit(action, retry, attempt, started, not_executed(attempt), completion)
                return
            # A thread that was committing already, or a handler that swallows it, was cancelled in vain; and an undo of
            # this very step, if one follows, is not what was to be cancelled.
            uncancel()
            self.record.loaded = self._loaded
            self._committed(completion, number)
        finally:
            if attempt.task is not None:
                tell(run, attempt)
            attempt.close()
            run.attempts.pop(attempt, None)
            self.attempt = None
            if slots is not None:
                give_back(run, slots)

    async def _without_commit(
        self,
        action: Action[..., Any],
        retry: Retry,
        attempt: Attempt,
        started: int,
        error: BaseException,
        returned: Completion | None = None,
    ) -> None:
        """An attempt ended and the engine has seen no commit. returned: what it ended with, if it did so well."""
        attempt.end("has ended")  # nothing that the handler has left behind can begin to commit
        run, settled = self.run, attempt.in_doubt
        self._lost = self._lost + 1 if isinstance(error, WorkerLost) else 0
        found = await self._settle_doubt(attempt)
        if found is not None:
            uncancel()  # too late
            tell_of_difference(run, attempt, found, error, returned)
            self._committed(found, attempt.number)
        elif attempt.block is not None or run.over or attempt.is_cancelled or run.engine.claimer.is_cancelled:
            if settled and not run.over:
                run.append("lost", Empty(), self.id, attempt.number)  # its number is void, and taken for ever
            if attempt.block is not None:
                raise attempt.block from None
            attempt.end("was cancelled")
            raise asyncio.CancelledError from error  # also if the handler made another error of it
        elif self._lost:
            self._lose(attempt.number, error)
        else:
            # Who has cancelled it was the handler. It need not even know: before Python 3.13 a TaskGroup that fails may
            # leave its task as if somebody had.
            uncancel()
            self._failed(action, retry, attempt.number, started, error)

    def _lose(self, number: int, error: BaseException) -> None:
        """Its worker was lost, which says nothing of the action; unless it happens again and again."""
        self.run.append("lost", Empty(), self.id, number)
        if self._lost >= MOST_LOST:
            raise Block(
                "worker lost",
                f"{MOST_LOST} attempts of {self.id} in a row were lost with their workers; the last one: {error} Look "
                "at what it does there (memory?), mend it, and retry the run.",
                step=self.id,
            )

    async def _settle_doubt(self, attempt: Attempt) -> Completion | None:
        """If only the database knows whether the attempt has committed, nothing else happens to the step before."""
        while attempt.in_doubt and not self.run.over:
            try:
                return await settle(self.run, self.id, attempt.generation, attempt.number, attempt.database)
            except asyncio.CancelledError:
                if self.run.over:
                    raise
        return None

    def _new_attempt(self, action: Action[..., Any], number: int) -> Attempt:
        run, record = self.run, self.record
        options = run.accepted.options
        return Attempt(
            run_id=run.id,
            step=self.id,
            number=number,
            epoch=record.epoch,
            generation=record.generation,
            actor=options.actor,
            trail=options.trail,
            traceparent=options.traceparent,
            resources=run.engine.resources,
            databases=run.engine.databases,
            owner=self,
            loop=run.engine.loop,
            is_async=action.is_async,
            keeper=run,
        )

    async def make_request(self, attempt: Attempt, effect: Any, input: bytes, id: str) -> Any:
        """Part of AttemptOwner."""
        try:
            return await requesting.request(self.run, self.record, attempt, effect, input, id)
        except Block as block:
            attempt.block = block
            raise

    def complete(self, attempt: Attempt, result: Any) -> Completion:
        """Part of AttemptOwner."""
        action, fallback = self.definition, self.definition.fallback
        if self.record.fallback and fallback is not None:
            action = fallback
        return self.completion(action, attempt, self._started, result)

    async def _run_elsewhere(
        self, action: Action[..., Any], attempt: Attempt, started: int, timeout: float | None
    ) -> Completion:
        if isinstance(action, OfferedAction):
            return await run_on_worker(self, action, attempt, started)
        return await super()._run_elsewhere(action, attempt, started, timeout)

    def completed_elsewhere(
        self, action: Action[..., Any], attempt: Attempt, started: int, data: bytes, sql: list[str]
    ) -> Completion:
        """What an attempt in a worker commits."""
        completion = self._completed(action, attempt, started, data, action.schema.load(data))
        return msgspec.structs.replace(completion, sql=sql, fallback=self.is_fallback(action))

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def _committed(self, completion: Completion, number: int) -> None:
        journal_commit(self.run, self.record, completion, number)

    def _failed(self, action: Action[..., Any], retry: Retry, number: int, started: int, error: BaseException) -> None:
        run, record = self.run, self.record
        now = run.engine.clock.now()
        next_at, error = None, decisive(error, retry)
        if retry.retries(error) and not isinstance(error, AttemptOver):
            first = record.first_at if record.first_at is not None else started
            after = error.after if isinstance(error, RetryLater) else None
            delay = retry.delay_before(record.failures + 2, elapsed=(now - first) / 1000, after=after)
            next_at = None if delay is None else now + delay
        run.append(
            "attempt_failed",
            AttemptFailed(
                action=action.name,
                version=action.version,
                input=msgspec.Raw(self.input),
                error=error_record(error, action=self.definition.name, step=self.id, attempts=record.failures + 1),
                started=started,
                next_at=next_at,
                fallback=action is not self.definition,
            ),
            self.id,
            number,
        )

    def fail(self, error: ErrorRecord, not_undone: list[str]) -> None:
        """Ends the step as failed for good."""
        self.run.append("failed", StepFailed(error, not_undone, self.record.fallback), self.id, self.record.attempt)

    async def _undeliverable(self) -> None:
        """An effect could not be delivered for good: what the step committed is taken back, then it has failed."""
        run, record = self.run, self.record
        completion = record.completion
        assert completion is not None
        pairs = list(zip(completion.effects, record.deliveries, strict=True))
        effect, refused = next((staged.effect, one.error) for staged, one in pairs if one.error and one.given_up)
        assert refused is not None
        message = f"{effect} could not be delivered: {refused.message}"
        error = msgspec.structs.replace(refused, message=message, action=self.definition.name)
        await run.undo_step(record)
        if not completion.undo:  # else its undo has taken back what it had asked for
            await requesting.take_back(run, record, goes_on=True)
        self.fail(error, [staged.effect for staged, delivery in pairs if delivery.delivered])

    # -- after a crash ------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """An attempt of an earlier owner may have committed its SQL unseen: ask the application's database.

        A cancellation meanwhile waits for the answer, because it is too late for what had committed.
        """
        run, record = self.run, self.record
        asking = asyncio.ensure_future(settle_step(run, record))
        cancelled: asyncio.CancelledError | None = None
        while not asking.done():
            try:
                await asyncio.wait([asking])
            except asyncio.CancelledError as error:
                if run.over:
                    asking.cancel()
                    raise
                cancelled = error
        asking.result()
        self._launched = False  # durable before the next attempt: a later owner settles that, not this one again
        if cancelled is not None:
            if record.state == OPEN:
                raise cancelled
            uncancel()


class StepTask(asyncio.Task[None]):
    """The task of a step, which knows whose it is. (Its name may be changed by the handler.)"""

    __slots__ = ("step",)
    step: str


def step_context() -> VariableContext:
    """An empty context for a step's task, so that nothing of whoever woke it up shows through."""
    return VariableContext()
