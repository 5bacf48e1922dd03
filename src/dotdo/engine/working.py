"""What the engine has done by workers: attempts of actions, effects and what goes with them, settlements.

An attempt at a worker is one more place where a handler runs: same retries, timeout, journal, and settlement. While no
worker offers what is needed its run leaves memory, and says so.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo import codec
from dotdo.catalogue import described
from dotdo.effect import EffectCall
from dotdo.engine.attempting import Attempt, effect_key
from dotdo.engine.failing import Block
from dotdo.engine.sessions import Handed, NobodyOffers, Session
from dotdo.engine.telling import error_of, failure_of
from dotdo.engine.workers import POLL_SECONDS
from dotdo.errors import AttemptOver, DotdoError, InvalidValue, RunEvicted, UnknownName
from dotdo.journal import Completion, StagedEffect
from dotdo.offer import ExpectedAction, OfferedAction, OfferedEffect
from dotdo.records import WaitingFor
from dotdo.worker_protocol import (
    ActionTask,
    Completed,
    CompletionStart,
    EffectTask,
    EffectUndoTask,
    Failed,
    Failure,
    HandlerResult,
    LookupTask,
    RequestCall,
    RequestState,
    SettleTask,
)

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun
    from dotdo.engine.stepping import StepRun

WORKER = "worker"  # what a run waits for
_result = msgspec.json.Decoder(HandlerResult)
_completion = msgspec.json.Decoder(Completion)
_EFFECT_TASKS = {"effect": EffectTask, "lookup": LookupTask, "effect_undo": EffectUndoTask}


async def perform(run: "LiveRun", task: Handed, step: str, key: str, *, kind: str = WORKER, parks: bool) -> Completed:
    """Has a task done by a worker. Raises WorkerLost, and what the worker says was raised.

    key: under what the run says that it waits. parks: the run may leave memory while there is no such worker.
    """
    workers, waiting, what = run.engine.workers, run.waiting, described(*task.what)
    if task.what[0] == "settle":
        what = f"action {task.what[1]} with its database"
    handed = task.on_handed

    def on_handed(session: Session) -> None:
        waiting.now.pop(key, None)
        handed(session)

    task.on_handed = on_handed
    while True:
        if not workers.is_offered(task.what):
            waiting.now[key] = WaitingFor(kind, f"a worker: none that is connected offers the {what}", None, step)
            try:
                await workers.until_offered(task.what, run if parks else None)
            finally:
                waiting.now.pop(key, None)
        waiting.now[key] = WaitingFor(
            kind, f"a free worker for the {what}; {workers.count(task.what)} are busy", None, step
        )
        workers.hand_out(task)
        try:
            outcome = await task.outcome
        except NobodyOffers:
            task.outcome = run.engine.loop.create_future()
            continue
        except asyncio.CancelledError:
            workers.give_up(task)
            raise
        finally:
            waiting.now.pop(key, None)
        if isinstance(outcome, Failed):
            raise error_of(outcome.error)
        return outcome


async def until_defined(run: "LiveRun", step: str, expected: ExpectedAction) -> Any:
    """Returns when a worker has offered what a service has called by name: that."""
    workers, waiting = run.engine.workers, run.waiting
    name, version = expected.name, expected.wanted
    while (found := run.engine.catalogue.find("action", name, version)) is None:
        asked = name if version is None else f"{name}@{version}"
        waiting.now[step] = WaitingFor(WORKER, f"a worker: none has ever offered the action {asked}", None, step)
        try:
            await workers.until_offered(("expected", name, version or 0), run)
        finally:
            waiting.now.pop(step, None)
    return found


# -- attempts ----------------------------------------------------------------------------------------------------------


async def run_on_worker(step: "StepRun", action: OfferedAction, attempt: Attempt, started: int) -> Completion:
    """Runs an attempt of a handler that is in workers. Raises what it raised, WorkerLost."""
    run, record = step.run, step.record
    timeout, input = step.overrides.timeout or action.timeout, action.schema.renamed(step.input)
    start = CompletionStart(
        action.name, action.version, started, action.undo_action is not None, step.is_fallback(action)
    )

    def make(id: str, token: str) -> ActionTask:
        return ActionTask(
            id=id,
            token=token,
            name=action.name,
            version=action.version,
            run=run.id,
            step=step.id,
            generation=record.generation,
            attempt=attempt.number,
            epoch=record.epoch,
            key=attempt.idempotency_key,
            actor=attempt.actor,
            trail=attempt.trail,
            timeout=timeout,
            input=msgspec.Raw(input),
            completion=start,
            traceparent=attempt.traceparent,
        )

    def on_handed(session: Session) -> None:
        attempt.elsewhere = attempt.elsewhere or bool(session.databases)

    what = ("action", action.name, action.version)
    task = Handed(run.engine.loop, what, make, timeout=timeout, size=len(step.input), on_handed=on_handed)
    task.request = _requests(run, attempt, task)
    try:
        done = await perform(run, task, step.id, step.id, parks=True)
        result = _HandedResult(step, attempt, done)
        attempt.begin_commit()
    except Exception as error:
        if isinstance(error, InvalidValue):
            task.record("refused", error.message)
        if task.outcome.done() and not task.outcome.cancelled() and task.outcome.exception() is None:
            attempt.elsewhere = attempt.elsewhere and not isinstance(task.outcome.result(), Failed)
            attempt.task = task
        raise
    attempt.elsewhere, attempt.task = False, task
    attempt.effects = result.effects
    return step.completed_elsewhere(action, attempt, started, result.data, result.sql)


class _HandedResult:
    """What a worker says that an attempt commits. Raises InvalidValue for what cannot be."""

    def __init__(self, step: "StepRun", attempt: Attempt, done: Completed) -> None:
        try:
            found = HandlerResult() if bytes(done.completion) == b"null" else _result.decode(done.completion)
            self.data = codec.encode_result(codec.decode(bytes(found.result)), "The result")
            self.effects = checked_effects(attempt.run_id, step.id, attempt.epoch, found)
        except (msgspec.MsgspecError, DotdoError) as error:
            raise InvalidValue(f"The worker's completion of {step.id} cannot be taken: {error}") from None
        self.sql = found.sql


def checked_effects(run: str, step: str, epoch: int, found: HandlerResult) -> list[StagedEffect]:
    """Staged calls with the keys that they must have. Raises InvalidValue."""
    counts: dict[str, int] = {}
    staged: list[StagedEffect] = []
    for each in found.effects:
        count = counts.get(each.effect, 0)
        counts[each.effect] = count + 1
        key = effect_key(run, step, each.effect, count, epoch)
        if each.key != key:
            raise InvalidValue(f"the effect {each.effect} number {count} has the key {key}, not {each.key[:200]}")
        codec.decode(bytes(each.input))
        staged.append(StagedEffect(each.effect, each.version, key, each.input))
    return staged


def tell(run: "LiveRun", attempt: Attempt) -> None:
    """Tells a worker what became of the attempt that it had, once that is durable."""
    task = attempt.task
    if task is None:
        return
    if run.over:
        task.record("lease_lost", "The run has left this server.")
    else:
        run.journal.when_durable(
            lambda lost: (
                task.record("accepted")
                if lost is None
                else task.record("lease_lost", "The store did not take it; it is settled.")
            )
        )


# -- requests of handlers in workers -----------------------------------------------------------------------------------


def _requests(run: "LiveRun", attempt: Attempt, task: Handed) -> Callable[[RequestCall], Any]:
    calls: dict[int, asyncio.Task[RequestState]] = {}

    async def request(given: RequestCall) -> RequestState:
        call = calls.get(given.number)
        if call is None:
            call = calls[given.number] = run.engine.loop.create_task(_request(run, attempt, task, given))
            call.add_done_callback(run.engine.swallow)
        await asyncio.wait([call], timeout=max(0.0, min(given.wait, POLL_SECONDS)))
        if not call.done():
            return RequestState("pending")
        return RequestState("over") if call.cancelled() else call.result()

    return request


async def _request(run: "LiveRun", attempt: Attempt, task: Handed, given: RequestCall) -> RequestState:
    """Makes a request for a handler in a worker, as one for a handler that is here."""
    name = ""
    try:
        effect = run.engine.catalogue.find("effect", given.effect, given.version)
        if effect is None:
            raise UnknownName(f"Neither this server nor a worker defines the effect {given.effect}@{given.version}.")
        input, identity = attempt.take_input(effect, effect.schema.accept(codec.decode(bytes(given.input))))
        name = attempt.name_request(effect, identity)
        await attempt.ask(effect, input, name)
        known = run.history.step(attempt.step).requests[name]
        assert known.answer is not None, "it was answered"
        return RequestState("answered", name, known.answer)
    except Block as block:
        if not task.outcome.done():
            task.outcome.set_exception(block)
            run.engine.workers.give_up(task)
        return RequestState("over", name)
    except (AttemptOver, RunEvicted):
        return RequestState("over", name)
    except Exception as error:  # whatever the effect raised is for the handler to see
        return RequestState("failed", name, error=_told(failure_of(error)))


def _told(failure: Failure) -> Failure:
    return msgspec.structs.replace(failure, traceback="")


# -- effects -----------------------------------------------------------------------------------------------------------


async def perform_effect(
    engine: "Engine", kind: str, effect: OfferedEffect, call: EffectCall, input: Any, answer: Any
) -> Any:
    """Has a worker perform, look up or undo an effect: its answer. Raises what it raised, WorkerLost."""
    run = engine.live[call.run_id]
    given = msgspec.Raw(codec.encode_result(input, f"The input of {effect.subject}"))
    more = {"answer": msgspec.Raw(codec.encode_result(answer, "The answer"))} if kind == "effect_undo" else {}

    def make(id: str, token: str) -> EffectTask:
        return _EFFECT_TASKS[kind](
            id=id,
            token=token,
            name=effect.name,
            version=effect.version,
            run=call.run_id,
            step=call.step,
            attempt=call.attempt,
            key=call.key,
            actor=call.actor,
            trail=call.trail,
            timeout=effect.worker_timeout,
            input=given,
            traceparent=call.traceparent,
            **more,
        )

    what = ("effect", effect.name, effect.version)
    task = Handed(engine.loop, what, make, timeout=effect.worker_timeout, size=len(given))
    try:
        # A handler that waits for its answer is not given up for want of a worker.
        done = await perform(run, task, call.step, f"{call.step}/{call.key}", parks=not (run.calls or run.attempts))
    finally:
        task.record("accepted")
    if kind == "lookup" and not done.found:
        return None
    if done.unkept:
        known = run.history.step(call.step).requests.values()
        if any(each.intent.key == call.key for each in known):
            raise InvalidValue(done.unkept)  # a handler waits for it
        engine.log.warning("the answer of %s is not kept: %s", effect.name, done.unkept)
        return None
    return codec.decode(bytes(done.answer)) if kind != "effect_undo" else None


# -- settlements -------------------------------------------------------------------------------------------------------


async def settle_elsewhere(
    run: "LiveRun", name: str, step: str, generation: int, attempt: int, kind: str
) -> Completion | None:
    """Has a worker decide an attempt in its databases. Raises WorkerLost, and what the worker says was raised."""

    def make(id: str, token: str) -> SettleTask:
        return SettleTask(id, token, name, 0, run.id, step, generation, attempt)

    task = Handed(run.engine.loop, ("settle", name, 0), make)
    try:
        done = await perform(run, task, step, step, kind=kind, parks=True)
    finally:
        task.record("accepted")
    if bytes(done.completion).strip() == b"null":
        return None
    try:
        found = _completion.decode(done.completion)
        codec.decode(bytes(found.result))
        return found
    except (msgspec.MsgspecError, DotdoError) as error:
        text = f"What attempt {attempt} of {step} has committed in its worker's database cannot be taken: {error}"
        raise Block("invalid completion", text, step=step) from None
