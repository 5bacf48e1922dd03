"""Requests: calls to the outside world that a handler waits for, and how they are settled and undone.

The intent is journaled, and durable, before the call; the answer after it. A call that has begun when its step is
cancelled or its run stops goes on to its answer, so that it can be taken back; only the attempt's own timeout, and the
end of the process, cut it short. What nobody knows is decided by `deciding.next_move`.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.effect import Effect
from dotdo.engine import asking
from dotdo.engine.attempting import Attempt, effect_key
from dotdo.engine.calling import answer_of, make_call, run_effect, run_function
from dotdo.engine.deciding import leaves_unknown, next_move
from dotdo.engine.failing import Block, error_record, together
from dotdo.engine.step_record import Request, StepRecord
from dotdo.errors import RetryLater
from dotdo.journal import Answered, Requested, RequestFailed
from dotdo.records import ErrorRecord, WaitingFor

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

NOT_THERE = ErrorRecord("LookedUp", "It was looked up by its key, and is not there.")
NOT_SENT = ErrorRecord("Interrupted", "It was not sent: the attempt was over before its intent was durable.")
CUT_SHORT = ErrorRecord("Interrupted", "The attempt was over before the answer came.")


async def request(
    run: "LiveRun", record: StepRecord, attempt: Attempt, effect: Effect[..., Any], input: bytes, id: str
) -> Any:
    """Answers a request: from the journal if it was answered before, else by making the call."""
    call = run.calls.get((record.id, id))
    if call is not None and call.cancelling():
        await asyncio.wait([call])  # cut short when an earlier attempt ended; it may have its answer all the same
        call = None
    known = record.requests.get(id)
    if known is not None and known.answer is not None:
        return effect.schema.load(bytes(known.answer))
    if call is None:
        if known is not None and known.in_doubt and not known.again:
            await _find_out(run, record, effect, known, attempt.number)
            if known.answer is not None:
                return effect.schema.load(bytes(known.answer))
        if known is None or known.refused or known.again:
            key = known.intent.key if known is not None else effect_key(run.id, attempt.step, id, 0, record.epoch)
            was_unknown = known is not None and known.in_doubt
            intent = Requested(id, effect.name, effect.version, key, record.epoch, msgspec.Raw(input))
            run.append("requested", intent, attempt.step, attempt.number)
            await _durable(run, record, id, attempt.number, was_unknown=was_unknown)
        else:
            was_unknown = True
        call = _begin(run, record, effect, id, attempt.number, was_unknown=was_unknown)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        if not attempt.is_cancelled:
            call.cancel()
        raise


async def _durable(run: "LiveRun", record: StepRecord, id: str, attempt: int, *, was_unknown: bool) -> None:
    """Waits until the intent is durable; who is cancelled meanwhile has not sent anything, and says so."""
    try:
        await run.journal.durable()
    except asyncio.CancelledError:
        if not run.over:
            run.append("request_failed", RequestFailed(id, NOT_SENT, was_unknown), record.id, attempt)
        raise


async def _find_out(run: "LiveRun", record: StepRecord, effect: Effect[..., Any], known: Request, attempt: int) -> None:
    """Before a call is repeated: looks it up where that is needed. Raises Block when a person must say."""
    move = next_move(effect, known.first_at, run.engine.clock.now())
    if move == "look up":
        await _look_up(run, record, effect, known, attempt)
    elif move == "ask":
        raise asking.about_request(run, record, effect, known)


async def _look_up(run: "LiveRun", record: StepRecord, effect: Effect[..., Any], known: Request, attempt: int) -> None:
    """Journals what a lookup finds: the answer, or that it did not happen. Raises what the lookup raises."""
    assert effect.lookup is not None, "the caller looked"
    call = make_call(run, effect, known.intent.key, record.id, attempt)
    found = await run_function(run, effect.lookup, call, effect, bytes(known.intent.input))
    if found is None:
        run.append("request_failed", RequestFailed(known.intent.request, NOT_THERE), record.id, attempt)
    else:
        data, _ = answer_of(run, effect, found)
        run.append("answered", Answered(known.intent.request, msgspec.Raw(data)), record.id, attempt)


def _begin(
    run: "LiveRun", record: StepRecord, effect: Effect[..., Any], id: str, attempt: int, *, was_unknown: bool
) -> "asyncio.Task[Any]":
    """Makes the call in a task of its own, which journals how it ends, whatever becomes of who asked."""
    work = _call(run, record, effect, id, attempt, was_unknown)
    call = run.engine.loop.create_task(work)
    run.calls = {**run.calls, (record.id, id): call}
    call.add_done_callback(run.engine.swallow)  # perhaps nobody waits for it any more
    return call


async def _call(
    run: "LiveRun", record: StepRecord, effect: Effect[..., Any], id: str, attempt: int, was_unknown: bool
) -> Any:
    intent = record.requests[id].intent
    run.enter()
    try:
        call = make_call(run, effect, intent.key, record.id, attempt)
        try:
            answer = await run_effect(run, effect, call, bytes(intent.input))
            data, loaded = answer_of(run, effect, answer)
        except (Exception, asyncio.CancelledError) as error:
            if not run.over:
                unknown = leaves_unknown(effect, error, was_unknown=was_unknown)
                why = CUT_SHORT if isinstance(error, asyncio.CancelledError) else error_record(error)
                run.append("request_failed", RequestFailed(id, why, unknown), record.id, attempt)
            raise
        run.append("answered", Answered(id, msgspec.Raw(data)), record.id, attempt)
        return loaded
    finally:
        run.calls = {asked: call for asked, call in run.calls.items() if asked != (record.id, id)}
        run.leave()


# -- of a step that ends without a commit ------------------------------------------------------------------------------


async def calls_end(run: "LiveRun", record: StepRecord) -> None:
    """Returns when no call of the step is under way any more."""
    if run.calls:
        calls = [call for (step, _), call in run.calls.items() if step == record.id]
        if calls:
            names = ", ".join(known.intent.effect for known in record.requests.values() if known.in_doubt)
            run.waiting.now[record.id] = WaitingFor("answer", f"the answer of {names}", None, record.id)
            try:
                await asyncio.wait(calls)
            finally:
                run.waiting.now.pop(record.id, None)


async def take_back(run: "LiveRun", record: StepRecord, *, goes_on: bool = False, fallback: bool = False) -> None:
    """Settles what a step has asked for that ends without a commit, then undoes it, newest first.

    goes_on: the service is told of the step's end, and may act on it. fallback: another action is to start. Raises
    Block when a person must say what happened, or must undo something.
    """
    await calls_end(run, record)
    if not record.requests:
        return
    newest_first = sorted(record.requests.values(), key=lambda known: -known.at)
    asked: list[Block] = []
    for known in newest_first:
        if known.in_doubt:
            asked += await _settle(run, record, known, goes_on=goes_on, fallback=fallback)
    if asked:
        raise together(asked)  # before anything is undone: what is undone first may depend on it
    for known in [record.requests[known.intent.request] for known in newest_first]:
        if known.answer is not None and not known.left:
            asked += await _undo(run, record, known)
    if asked:
        raise together(asked)


async def _settle(run: "LiveRun", record: StepRecord, known: Request, *, goes_on: bool, fallback: bool) -> list[Block]:
    """Finds out whether a request has happened, as often as the effect's `retry` says; else what to ask, if anything
    depends on it."""
    effect = run.engine.catalogue.find("effect", known.intent.effect, known.intent.version)
    if effect is None:
        return [_not_defined(known, record)]
    while (move := _settling_move(run, effect, known)) != "ask":
        try:
            if move == "look up":
                await _look_up(run, record, effect, known, record.attempt)
            else:
                if known.again:  # a person said so, and it is so once
                    run.append("requested", known.intent, record.id, record.attempt)
                    known = record.requests[known.intent.request]
                    await run.journal.durable()
                await _begin(run, record, effect, known.intent.request, record.attempt, was_unknown=True)
        except Exception as error:
            if not known.in_doubt:
                return []
            if move == "look up":
                _note_failure(run, record, known, "request_failed", error)
            no_more = _settling_move(run, effect, known) == "ask"
            if no_more or not await _wait_for_next(run, record, effect, known, error):
                break
        else:
            return []
    depends = effect.undo is not None or fallback or (goes_on and effect.on_unknown == "ask")
    return [asking.about_request(run, record, effect, known)] if depends else []


def _settling_move(run: "LiveRun", effect: Effect[..., Any], known: Request) -> str:
    if known.again and effect.undo is not None:
        return "send"  # a person has said so since the run stopped
    if effect.lookup is not None:
        return "look up"  # which changes nothing in the world
    if effect.dedup != "key" or effect.undo is None:
        return "ask"  # the step has ended: nothing is sent for it that cannot be taken back
    return next_move(effect, known.first_at, run.engine.clock.now())


async def _undo(run: "LiveRun", record: StepRecord, known: Request) -> list[Block]:
    intent = known.intent
    effect = run.engine.catalogue.find("effect", intent.effect, intent.version)
    if effect is None:
        return [_not_defined(known, record)]
    if effect.undo is None:
        return []
    assert known.answer is not None, "the caller looked"
    await run.journal.durable()
    while True:
        call = make_call(run, effect, f"{intent.key}.undo", record.id, known.tries + 1)
        try:
            answer = effect.schema.load(bytes(known.answer))
            await run_function(run, effect.undo, call, effect, bytes(intent.input), answer=answer)
        except Exception as error:
            _note_failure(run, record, known, "request_undo_failed", error)
            if not await _wait_for_next(run, record, effect, known, error, "undoing "):
                return [asking.about_request_undo(run, record, known, error)]
        else:
            run.append("request_undone", Answered(intent.request, msgspec.Raw(b"null")), record.id)
            return []


def _note_failure(run: "LiveRun", record: StepRecord, known: Request, kind: str, error: Exception) -> None:
    if not run.over:
        run.append(kind, RequestFailed(known.intent.request, error_record(error), True), record.id, record.attempt)


async def _wait_for_next(
    run: "LiveRun",
    record: StepRecord,
    effect: Effect[..., Any],
    known: Request,
    error: Exception,
    what: str = "settling ",
) -> bool:
    """Waits as the effect's policy says; False when there is no further try. The journal counts the tries, because the
    run may leave memory while it waits."""
    if run.over or not effect.retry.retries(error):
        return False
    now, tries = run.engine.clock.now(), known.tries
    elapsed = (now - (now if known.tried_at is None else known.tried_at)) / 1000
    after = error.after if isinstance(error, RetryLater) else None
    wait = effect.retry.delay_before(tries + 1, elapsed=elapsed, after=after)
    if wait is None:
        return False
    due = run.engine.clock.now() + wait
    await run.waiting.until(f"{record.id}/{known.intent.key}", due, "retry", f"{what}{effect.name}, try {tries + 1}")
    return True


def _not_defined(known: Request, record: StepRecord) -> Block:
    return Block(
        "unknown effect",
        f"The effect {known.intent.effect}@{known.intent.version} of {record.id} is not defined in this process. "
        "Import the module that defines it, then retry the run.",
        step=record.id,
    )
