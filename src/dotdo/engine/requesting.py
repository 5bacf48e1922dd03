"""Calls to the outside world: requests made while a handler waits, and the undoing of requests.

The intent is journaled, and durable, before the call; the answer after it. A request whose answer was lost with its
node is never guessed: sent again under the same key where the receiver honours it, else looked up, else as the effect
says, which may be to ask a person.
"""

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.effect import Effect, EffectCall
from dotdo.engine.attempting import Attempt, effect_key
from dotdo.engine.failing import Block, error_record, message_of
from dotdo.engine.history import Request, StepRecord
from dotdo.engine.secrets import arguments_of, plain_input
from dotdo.errors import AttemptTimedOut, Fail, RetryLater
from dotdo.journal import Answered, Requested, RequestFailed

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


async def request(
    run: "LiveRun", record: StepRecord, attempt: Attempt, effect: Effect[..., Any], input: bytes, id: str
) -> Any:
    """Answers a request: from the journal if it was answered before, else by making the call."""
    known = record.requests.get(id)
    if known is not None and known.answer is not None:
        return effect.schema.load(bytes(known.answer))
    if known is None:
        key = effect_key(run.id, attempt.step, id, 0, record.epoch)
        intent = Requested(id, effect.name, effect.version, key, record.epoch, msgspec.Raw(input))
        run.append("requested", intent, attempt.step, attempt.number)
        await run.journal.durable()
    else:
        found = await _recover(run, record, effect, known, attempt)
        if found is not None:
            return found
    return await _ask(run, effect, record.requests[id], attempt)


async def _recover(
    run: "LiveRun", record: StepRecord, effect: Effect[..., Any], known: Request, attempt: Attempt
) -> Any | None:
    """For a request whose answer was lost: its answer if it can be looked up, None to send it again."""
    call = make_call(run, effect, known.intent.key, attempt.step, attempt.number)
    if effect.dedup == "key":
        return None
    if effect.lookup is not None:
        found = await run_function(run, effect.lookup, call, effect, bytes(known.intent.input))
        if found is None:
            return None
        return _answered(run, effect, known, attempt, found)
    if effect.on_unknown == "resend" or run.history.operation == "retry":
        return None
    raise Block(
        "unknown outcome",
        f"Nobody knows whether {effect.name} happened (key {known.intent.key}): no answer came, or it was "
        "lost, the receiver does not honour our key, and it cannot be looked up. Find out at the receiver; to send it "
        'again, retry the run. (An effect that may be sent twice says so with on_unknown="resend".)',
        step=attempt.step,
    )


async def _ask(run: "LiveRun", effect: Effect[..., Any], known: Request, attempt: Attempt) -> Any:
    call = make_call(run, effect, known.intent.key, attempt.step, attempt.number)
    try:
        answer = await run_effect(run, effect, call, bytes(known.intent.input))
    except Exception as error:
        if isinstance(error, Fail | RetryLater):
            # The receiver said no, or not now: it certainly did not happen.
            run.append(
                "request_failed", RequestFailed(known.intent.request, error_record(error)), attempt.step, attempt.number
            )
        raise
    return _answered(run, effect, known, attempt, answer)


def _answered(run: "LiveRun", effect: Effect[..., Any], known: Request, attempt: Attempt, answer: Any) -> Any:
    data, loaded = effect.schema.dump(answer)
    if run.secrets is not None:
        run.secrets.refuse(data, f"The answer of {effect.subject}")
    run.append("answered", Answered(known.intent.request, msgspec.Raw(data)), attempt.step, attempt.number)
    return loaded


async def run_effect(run: "LiveRun", effect: Effect[..., Any], call: EffectCall, input: bytes) -> Any:
    """One try of an effect, within its timeout. Raises what its function raises, AttemptTimedOut in time."""
    arguments = arguments_of(run, effect.schema, input)
    first = (call,) if effect.takes_call else ()
    limit = asyncio.timeout(effect.timeout)
    try:
        async with limit:
            if effect.is_async:
                return await effect.function(*first, **arguments)
            return await run.engine.threads.run(lambda: effect.function(*first, **arguments))
    except TimeoutError:
        if limit.expired():
            raise AttemptTimedOut(f"{effect.name} did not answer within {effect.timeout} s.") from None
        raise


async def run_function(
    run: "LiveRun", function: Any, call: EffectCall, effect: Effect[..., Any], input: bytes, **more: Any
) -> Any:
    """Runs an effect's lookup or undo: the call record first, then those of answer and input that it takes."""
    offered = {**more, "input": plain_input(run, effect.schema, input)}
    names = list(inspect.signature(function).parameters)
    arguments = {name: offered[name] for name in names[1:] if name in offered}
    async with asyncio.timeout(effect.timeout):
        if inspect.iscoroutinefunction(function):
            return await function(call, **arguments)
        return await run.engine.threads.run(lambda: function(call, **arguments))


async def undo_requests(run: "LiveRun", record: StepRecord) -> None:
    """Undoes the answered requests of a step that failed for good, newest first. Raises Block when one cannot be."""
    for known in sorted(record.requests.values(), key=lambda item: -item.at):
        intent = known.intent
        effect = run.engine.catalogue.find("effect", intent.effect, intent.version)
        if effect is None or effect.undo is None or known.answer is None:
            continue
        await run.journal.durable()
        await _undo_one(run, record, effect, known)


async def _undo_one(run: "LiveRun", record: StepRecord, effect: Effect[..., Any], known: Request) -> None:
    assert effect.undo is not None, "the caller looked"
    assert known.answer is not None, "the caller looked"
    intent, tries, first = known.intent, 0, run.engine.clock.now()
    while True:
        tries += 1
        call = make_call(run, effect, f"{intent.key}.undo", record.id, tries)
        try:
            answer = effect.schema.load(bytes(known.answer))
            await run_function(run, effect.undo, call, effect, bytes(intent.input), answer=answer)
        except Exception as error:
            elapsed = (run.engine.clock.now() - first) / 1000
            wait = effect.retry.delay_before(tries + 1, elapsed=elapsed) if effect.retry.retries(error) else None
            if wait is None:
                raise Block(
                    "undo failed",
                    f"The request {intent.effect} (key {intent.key}) of {record.id} could not be undone: "
                    f"{message_of(error)}. Undo it "
                    "at the receiver, then retry the run.",
                    step=record.id,
                ) from error
            await run.waiting.until(
                record.id, run.engine.clock.now() + wait, "retry", f"undoing {intent.effect}, try {tries + 1}"
            )
        else:
            run.append("request_undone", Answered(intent.request, msgspec.Raw(b"null")), record.id)
            return


def make_call(run: "LiveRun", effect: Effect[..., Any], key: str, step: str, attempt: int) -> EffectCall:
    return EffectCall(
        key,
        run.id,
        step,
        attempt,
        actor=run.accepted.options.actor,
        trail=run.accepted.options.trail,
        resources=run.engine.resources,
        secrets=run.look_up_secret,
    )
