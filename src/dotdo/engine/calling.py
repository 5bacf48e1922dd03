"""One call of an effect's function, its lookup or its undo, within the effect's timeout. Journals nothing."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dotdo.effect import Effect, EffectCall
from dotdo.engine.cancelling import is_cancelled
from dotdo.engine.failing import message_of
from dotdo.engine.secrets import arguments_of, plain_input
from dotdo.engine.threads import OnThread, Threads, TimeIsUp
from dotdo.errors import AttemptTimedOut

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


def run_effect(run: "LiveRun", effect: Effect[..., Any], call: EffectCall, input: bytes) -> Coroutine[Any, Any, Any]:
    """One try of an effect, within its timeout. Raises what its function raises, AttemptTimedOut in time."""
    work, trace = _run_effect(run, effect, call, input), run.trace
    return work if trace is None else trace.effect(effect, call, work)


async def _run_effect(run: "LiveRun", effect: Effect[..., Any], call: EffectCall, input: bytes) -> Any:
    if run.engine.doubles is not None:
        effect = run.engine.doubles.effect(effect)
    arguments = arguments_of(run, effect.schema, input)
    first = (call,) if effect.takes_call else ()
    if not effect.is_async:
        job = OnThread(run.engine.threads, _bound(run, lambda: effect.function(*first, **arguments)))
        try:
            with _as_failure():
                return await job.result(effect.timeout)
        except TimeIsUp:
            raise _timed_out(effect) from None
        finally:
            job.call_off()
    limit = asyncio.timeout(effect.timeout)
    try:
        async with limit:
            return await _in_a_task(lambda: effect.function(*first, **arguments))
    except TimeoutError:
        if limit.expired():
            raise _timed_out(effect) from None
        raise


async def _in_a_task(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Awaits code of users in a task of its own. What it does to its task is not done to that of the step then: it may
    cancel it, and before Python 3.13 a TaskGroup that fails may leave it as if somebody had."""

    async def guarded() -> Any:
        with _as_failure():
            return await work()  # made here: the task may be cancelled before it has begun

    with _as_failure():
        return await asyncio.create_task(guarded())


@contextmanager
def _as_failure() -> Generator[None]:
    """Whatever an effect's code raises is a failure of its try. It may have been cancelled somewhere inside, or want to
    end the program: passed on as that, it would end the task of its step, with nobody left to go on."""
    try:
        yield
    except (asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        if isinstance(error, GeneratorExit) and _is_closing(error):
            raise
        text = f"It raised {type(error).__name__}: {message_of(error)}".removesuffix(": ")
        raise RuntimeError(text).with_traceback(error.__traceback__) from error


def _is_closing(error: GeneratorExit) -> bool:
    """Whether the coroutine that has the `with` is being closed, as at the end of its loop; users' code may also raise
    GeneratorExit of its own accord. Python closes what a coroutine awaits first, and then raises a new one in its own
    frame; what was raised further down has the frames on its way in its traceback."""
    traceback = error.__traceback__
    return traceback is not None and (traceback.tb_next is None or traceback.tb_next.tb_next is None)


def _timed_out(effect: Effect[..., Any]) -> AttemptTimedOut:
    return AttemptTimedOut(f"{effect.name} did not answer within {effect.timeout} s.")


def _bound(run: "LiveRun", function: Callable[[], Any]) -> Callable[[], Any]:
    return function if run.trace is None else run.trace.bound(function)


async def run_function(
    run: "LiveRun", function: Any, call: EffectCall, effect: Effect[..., Any], input: bytes, **more: Any
) -> Any:
    """Runs an effect's lookup or undo: the call record first, then those of answer and input that it takes."""
    if run.engine.doubles is not None:
        function = run.engine.doubles.companion(effect, function)
    offered = {**more, "input": plain_input(run, effect.schema, input)}
    return await run_companion(run.engine.threads, function, call, effect.timeout, offered)


async def run_companion(
    threads: Threads, function: Any, call: EffectCall, timeout: float | None, offered: dict[str, Any]
) -> Any:
    """Runs what goes with an effect: the call record first, then those of what is offered that it takes."""
    names = list(inspect.signature(function).parameters)
    arguments = {name: offered[name] for name in names[1:] if name in offered}
    if inspect.iscoroutinefunction(function):
        async with asyncio.timeout(timeout):
            return await _in_a_task(lambda: function(call, **arguments))
    job = OnThread(threads, lambda: function(call, **arguments))
    try:
        with _as_failure():
            return await job.result(timeout)
    except TimeIsUp:
        raise TimeoutError from None
    finally:
        job.call_off()


def answer_of(run: "LiveRun", effect: Effect[..., Any], answer: Any) -> tuple[bytes, Any]:
    """An answer as it is journaled, and as a handler gets it. Raises InvalidValue, SecretExposed."""
    data, loaded = effect.schema.dump(answer)
    if run.secrets is not None:
        run.secrets.refuse(data, f"The answer of {effect.subject}")
    return data, loaded


def make_call(run: "LiveRun", effect: Effect[..., Any], key: str, step: str, attempt: int) -> EffectCall:
    """The call record that the function is given."""
    options = run.accepted.options
    return EffectCall(
        key,
        run.id,
        step,
        attempt,
        actor=options.actor,
        trail=options.trail,
        traceparent=options.traceparent,
        tracestate=options.tracestate,
        resources=run.engine.resources,
        secrets=run.look_up_secret,
    )
