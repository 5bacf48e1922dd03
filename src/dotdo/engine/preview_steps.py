"""One step of a preview: its handler is run once, with stand-ins for the outside world, in a transaction that will be
rolled back.

A handler that fails is rolled back to the savepoint of its step. What cannot be previewed raises Block, which ends the
preview there.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec
from msgspec import UNSET

from dotdo import codec
from dotdo.action import Action
from dotdo.context import AsyncContext, CompletionStatement, Context, Style, current
from dotdo.effect import Effect, EffectCall, Staged, StandIn
from dotdo.engine.attempting import Attempt, effect_key
from dotdo.engine.calling import run_companion
from dotdo.engine.cancelling import is_cancelled
from dotdo.engine.failing import Block, error_record, message_of
from dotdo.engine.rehearsing import Rehearsal
from dotdo.engine.secrets import arguments_of, plain_input
from dotdo.errors import AttemptTimedOut
from dotdo.journal import StagedEffect
from dotdo.offer import OfferedAction
from dotdo.preview import EffectKind, PreviewedEffect, StepKind
from dotdo.records import ErrorRecord

if TYPE_CHECKING:
    from dotdo.engine.preview_sql import PreviewWork

# How long a handler whose time is over is given to end, in seconds.
ENDING = 1.0


class Outcome(msgspec.Struct, frozen=True):
    """How a step ended: with a result, as JSON, of an action (a fallback's differs from the step's), or an error."""

    action: Action[..., Any]
    input: bytes
    result: bytes | None = None
    error: ErrorRecord | None = None


class PreviewAttempt(Attempt):
    """An attempt that sends nothing: it keeps what was staged, with the effects' definitions."""

    def __init__(self, rehearsal: Rehearsal, step: str, action: Action[..., Any]) -> None:
        previewer, options = rehearsal.previewer, rehearsal.options
        super().__init__(
            run_id=rehearsal.id,
            step=step,
            number=1,
            epoch=0,
            generation=0,
            actor=options.actor,
            trail=options.trail,
            resources=previewer.resources,
            databases=None if previewer.databases is None else _OneTransaction(rehearsal, self),  # type: ignore[arg-type]
            owner=None,
            loop=previewer.loop,
            is_async=action.is_async,
            keeper=rehearsal.keeper,
        )
        self.rehearsal = rehearsal
        self.staged: list[tuple[Effect[..., Any], StagedEffect]] = []
        self.answered: list[tuple[Effect[..., Any], bytes]] = []

    @property
    def part(self) -> "PreviewWork | None":
        """Its part in the preview's transaction, once it has used it."""
        return cast("PreviewWork | None", self.work)

    def stage(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        """Keeps the effect."""
        staged = super().stage(effect, args, kwargs)
        self.staged.append((effect, self.effects[-1]))
        return staged

    def completion_statement(self, result: Any, database: str | None, style: Style) -> CompletionStatement:
        """Refused: nobody could roll back what the handler's own transaction commits."""
        self.cannot(
            "its handler commits in a transaction of its own (completion_statement), which a preview cannot roll back. "
            "What it writes through ctx.sql can be previewed."
        )

    async def ask(self, effect: Effect[..., Any], input: bytes, request: str) -> Any:
        """What stands in for the answer of a request."""
        self.heartbeat()
        key = effect_key(self.run_id, self.step, request, 0, self.epoch)
        if effect.preview is None:
            self.found("requested", effect, input)
            self.cannot(
                f"{effect.name} is requested, and nothing stands in for its answer: what follows depends on it. Give "
                f"the effect a stand-in, @effect({effect.name!r}, preview=...)."
            )
        shown = await self.shown(effect, key, input)
        if shown.answer is UNSET:
            self.found("requested", effect, input, shown.text)
            self.cannot(
                f"{effect.name} is requested, and its preview= gives no answer that could stand in for the real one: "
                "what follows depends on it. An effect of your own, with a preview= that answers, goes further."
            )
        data, answer = effect.schema.dump(shown.answer)
        self.found("requested", effect, input, shown.text, codec.decode(data))
        self.answered.append((effect, input))
        return answer

    async def shown(self, effect: Effect[..., Any], key: str, input: bytes) -> StandIn:
        """What an effect's `preview=` gives. Raises what it raises."""
        function = effect.preview
        assert function is not None, "the caller looked"
        resources = self.rehearsal.previewer.resources
        call = EffectCall(
            key,
            self.run_id,
            self.step,
            1,
            actor=self.actor,
            trail=self.trail,
            resources=resources,
            secrets=self.secret,
        )
        offered = {"input": plain_input(self.rehearsal.keeper, effect.schema, input)}
        found = await run_companion(self.rehearsal.previewer.threads, function, call, effect.timeout, offered)
        return found if isinstance(found, StandIn) else StandIn(answer=found)

    def found(
        self, kind: EffectKind, effect: Effect[..., Any], input: bytes, text: str | None = None, answer: Any = None
    ) -> None:
        """One more effect."""
        self.rehearsal.effects.append(
            PreviewedEffect(
                step=self.step,
                kind=kind,
                name=effect.name,
                version=effect.version,
                input=codec.decode(input),
                text=text,
                answer=answer,
            )
        )

    def cannot(self, why: str) -> NoReturn:
        """Ends the preview here, also if the handler swallows this."""
        self.block = Block("no preview", why, step=self.step)
        raise self.block


class _OneTransaction:
    """Stands for the application's databases: whoever asks gets a savepoint in the preview's transaction."""

    def __init__(self, rehearsal: Rehearsal, attempt: PreviewAttempt) -> None:
        assert rehearsal.previewer.databases is not None
        self._rehearsal, self._attempt, self._databases = rehearsal, attempt, rehearsal.previewer.databases
        self.default = self._databases.default

    def begin(self, name: str, is_async: bool, check: Callable[[], None]) -> "PreviewWork":
        rehearsal = self._rehearsal
        transaction = rehearsal.transaction
        if transaction is None:
            transaction = rehearsal.transaction = rehearsal.previewer.begin(rehearsal, name, is_async)
        if transaction.database != name:
            self._attempt.cannot(
                f"It uses the database {name!r}, and the steps before it used {transaction.database!r}: a preview is "
                "made on one transaction."
            )
        if is_async and transaction.async_engine is None:
            self._attempt.cannot(
                f"Its `async def` handler cannot use the connection of the Engine given for {name!r}. Give the client "
                "a URL or an AsyncEngine to preview services with such handlers."
            )
        transaction.step = self._attempt.step
        return rehearsal.previewer.work(transaction, is_async, check)


async def preview_step(
    rehearsal: Rehearsal,
    id: str,
    action: Action[..., Any],
    input: bytes,
    *,
    kind: StepKind = "action",
    timeout: float | None = None,
    retry: Any = None,
) -> Outcome:
    """Previews an action as a step, and its fallback when it fails. Raises Block where the preview ends."""
    outcome, error = await _once(rehearsal, id, action, input, kind, timeout)
    if outcome.error is None:
        return outcome
    policy = retry or action.retry
    if error is not None and policy.retries(error) and policy.attempts != 1:
        many = f"up to {policy.attempts} attempts" if policy.attempts else f"attempts for {policy.max_elapsed:g} s"
        rehearsal.note(
            f"{action.name} would be tried again ({many}); the preview takes its first failure for its last.", id
        )
    if action.fallback is None:
        return outcome
    outcome, _ = await _once(rehearsal, id, action.fallback, input, kind, timeout)
    return outcome


async def _once(
    rehearsal: Rehearsal, id: str, action: Action[..., Any], input: bytes, kind: StepKind, timeout: float | None
) -> tuple[Outcome, BaseException | None]:
    attempt = PreviewAttempt(rehearsal, id, action)
    given = {"input": codec.decode(input)}
    place = (id, kind, action.name, action.version)
    try:
        if isinstance(action, OfferedAction):
            raise Block("in a worker", f"{action.name} runs in a worker: what it would do is not known here.", step=id)
        data = await _Handler(rehearsal, attempt, action).run(input, timeout or action.timeout)
    except BaseException as error:  # whatever a handler raises is its failure
        _take_statements(rehearsal, kept=False)
        out_of_time = isinstance(error, asyncio.CancelledError) and is_cancelled()
        ends = error if out_of_time else attempt.block or _ends_the_preview(rehearsal, id, error)
        if ends is not None:
            rehearsal.step_at(*place, "incomplete", **given)
            raise ends from None
        record = error_record(error, action=action.name, step=id)
        rehearsal.step_at(*place, "failed", error=record, **given)
        for effect, asked in reversed(attempt.answered):
            if effect.undo is not None:
                attempt.found("undone", effect, asked)
        return Outcome(action, input, error=record), error
    finally:
        attempt.close()
    _take_statements(rehearsal, kept=True)
    rehearsal.step_at(*place, "completed", result=codec.decode(data), **given)
    for effect, staged in attempt.staged:
        await _show_staged(attempt, effect, staged)
    return Outcome(action, input, data), None


async def _show_staged(attempt: PreviewAttempt, effect: Effect[..., Any], staged: StagedEffect) -> None:
    shown = StandIn()
    if effect.preview is not None:
        try:
            shown = await attempt.shown(effect, staged.key, bytes(staged.input))
        except BaseException as error:  # a rendering that fails takes nothing from what would be sent
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            attempt.rehearsal.note(
                f"How {effect.name} would look is not known: its preview= raised {type(error).__name__}: "
                f"{message_of(error)}",
                attempt.step,
            )
    answer: Any = None
    if shown.answer is not UNSET:
        answer = codec.decode(effect.schema.dump(shown.answer)[0])
    attempt.found("staged", effect, bytes(staged.input), shown.text, answer)


def _take_statements(rehearsal: Rehearsal, *, kept: bool) -> None:
    if rehearsal.transaction is not None:
        rehearsal.statements += rehearsal.transaction.take(kept=kept)


def _ends_the_preview(rehearsal: Rehearsal, step: str, error: BaseException) -> Block | None:
    if isinstance(error, Block):
        return Block(error.reason, error.message, step=step)
    transaction = rehearsal.transaction
    if transaction is None:
        return None
    if rehearsal.previewer.waited_too_long(error):
        text = (
            f"A statement waited for others, or ran, longer than a preview may ({message_of(error)}). Try again when "
            "the database is less busy; a real attempt waits longer."
        )
        return Block("busy", text, step=step)
    if transaction.lost:
        return Block(
            "no transaction", f"Its transaction was lost: {message_of(error) or type(error).__name__}", step=step
        )
    return None


class _Handler:
    """One call of a handler, which ends when its time is over, or the preview counts it as stuck."""

    def __init__(self, rehearsal: Rehearsal, attempt: PreviewAttempt, action: Action[..., Any]) -> None:
        self.rehearsal, self.attempt, self.action = rehearsal, attempt, action

    async def run(self, input: bytes, timeout: float | None) -> bytes:
        """Its result as JSON. Raises what it raises, AttemptTimedOut in time, Block when it refuses to end."""
        arguments = arguments_of(self.rehearsal.keeper, self.action.schema, input)
        previewer = self.rehearsal.previewer
        work: asyncio.Future[bytes | BaseException]
        if self.action.is_async:
            work = previewer.loop.create_task(self._on_loop(arguments), context=VariableContext())
        else:
            work = previewer.on_thread(self.rehearsal, lambda: self._on_thread(arguments))
        try:
            done, _ = await asyncio.wait([work], timeout=timeout)
        except asyncio.CancelledError:
            await self._end(work, "was given up, because the preview is over")
            raise
        if not done:
            await self._end(work, "timed out")
            raise AttemptTimedOut(f"The attempt did not end within {timeout} s.")
        found = work.result()
        if isinstance(found, BaseException):
            raise found
        return found

    async def _end(self, work: "asyncio.Future[bytes | BaseException]", why: str) -> None:
        self.attempt.end(why)
        if isinstance(work, asyncio.Task):
            work.cancel()
        elif self.rehearsal.transaction is not None:
            await self.rehearsal.transaction.interrupt(self.rehearsal.previewer.cleaners.run)
        done, _ = await asyncio.wait([work], timeout=ENDING)
        if not done:
            self.rehearsal.previewer.outlives(work)
            raise Block("stuck", f"Its handler {why} and did not end.", step=self.attempt.step)
        if not work.cancelled():
            work.exception()  # it was to end

    def _dumped(self, result: Any) -> bytes:
        data, _ = self.action.schema.dump(result)
        secrets = self.rehearsal.keeper.secrets
        if secrets is not None:
            secrets.refuse_completion(self.action.subject, data, self.attempt.effects)
        return data

    async def _on_loop(self, arguments: dict[str, Any]) -> bytes | BaseException:
        attempt, action = self.attempt, self.action
        context = AsyncContext(attempt)
        current.set(context)
        try:
            result = await action.handler(*((context,) if action.takes_context else ()), **arguments)
            attempt.begin_commit()
            data = self._dumped(result)
            if attempt.part is not None:
                await attempt.part.keep_async()
            return data
        except BaseException as error:
            if attempt.part is not None:
                await attempt.part.drop_async()
            return error  # not raised: a task lets what `sys.exit()` raises through to the loop

    def _on_thread(self, arguments: dict[str, Any]) -> bytes | BaseException:
        attempt, action = self.attempt, self.action
        context = Context(attempt)
        current.set(context)
        try:
            result = action.handler(*((context,) if action.takes_context else ()), **arguments)
            attempt.begin_commit()
            data = self._dumped(result)
            if attempt.part is not None:
                attempt.part.keep()
            return data
        except BaseException as error:
            if attempt.part is not None:
                attempt.part.drop()
            return error
        finally:
            if attempt.part is not None:
                attempt.part.left()
