"""The spans of runs, steps, attempts and effects, for an engine whose program uses OpenTelemetry.

A run may outlive processes, and a span cannot. So what is kept with the run is the place of a short span that ends when
the run is accepted; each stay of the run in a process is a span below it, with its steps, their attempts and effects.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dotdo.engine.failing import Block, error_record
from dotdo.engine.step_record import FAILED
from dotdo.errors import AttemptOver
from dotdo.records import ErrorRecord, Options
from dotdo.tracing import TracePlace, Tracing, current_place, place_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

    from dotdo.action import Action
    from dotdo.effect import Effect, EffectCall
    from dotdo.engine.attempting import Attempt
    from dotdo.engine.running import LiveRun
    from dotdo.engine.stepping import StepRun
    from dotdo.records import RunKind

T = TypeVar("T")


def accepted(
    tracing: Tracing | None, kind: "RunKind", definition: Any, id: str, options: Options, previous: bool
) -> Options:
    """The options of a run that is about to be accepted, with its place in the trace. previous: it goes on for another
    run, and begins a trace of its own that is linked to that one's, so that services without an end make no trace
    without one."""
    if tracing is None:
        return options
    attributes = {"dotdo.kind": kind, "dotdo.name": definition.name, "dotdo.version": definition.version}
    attributes |= {"dotdo.run.id": id, "dotdo.trail": options.trail}
    given = given_place(options)
    link = tracing.context_of(given) if previous and given is not None else None
    within = "nothing" if previous else "current"
    name = f"start {definition.name}"
    span = tracing.begin(name, "PRODUCER", attributes, parent=given, links=(link,), within=within)
    span.end()
    return carrying(options, place_of(span))


def carrying(options: Options, place: TracePlace | None) -> Options:
    """The options with a place in a trace."""
    if place is None:
        return options
    return msgspec.structs.replace(options, traceparent=place.traceparent, tracestate=place.tracestate)


def carried_here(options: Options) -> Options:
    """The options with the place of the current span, for another process that accepts the run."""
    return carrying(options, current_place())


def given_place(options: Options) -> TracePlace | None:
    """The place in a trace that options name."""
    return None if options.traceparent is None else TracePlace(options.traceparent, options.tracestate)


class RunTrace:
    """The spans of one run, as long as it stays in this process."""

    def __init__(self, tracing: Tracing, run: "LiveRun") -> None:
        self._tracing, self._run = tracing, run
        self._attempts: dict[str, SpanContext] = {}
        data, is_resumed = run.accepted, run.journal.seq > 1
        attributes = {"dotdo.kind": data.kind, "dotdo.name": data.name, "dotdo.version": data.version}
        attributes |= {"dotdo.run.id": run.id, "dotdo.run.resumed": is_resumed, "dotdo.trail": data.options.trail}
        place = given_place(data.options)
        link = tracing.context_of(place) if is_resumed and place is not None else None
        # Whoever wakes the run up may be within a span of something else.
        self._span = tracing.begin(
            f"run {data.name}", "CONSUMER", attributes, parent=place, links=(link,), within="parent"
        )
        self._is_over = False

    def end(self) -> None:
        """The run leaves this process: it has ended, waits for long, or its engine stops."""
        if self._is_over:
            return
        self._is_over = True
        run, ended = self._run, self._run.history.ended
        status = ended.status if ended is not None else "blocked" if run.status == "blocked" else "waiting"
        self._span.set_attribute("dotdo.run.status", status)
        if ended is not None and ended.error is not None:
            self._tracing.fail(self._span, ended.error)
        elif status in ("failed", "blocked"):
            self._tracing.mark_failed(self._span, status, f"the run is {status}")
        self._span.end()

    async def step(self, step: "StepRun", work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One step, from its first attempt here to its end, or until it is left to a later stay."""
        attributes = {"dotdo.run.id": self._run.id, "dotdo.step": step.id, "dotdo.name": step.definition.name}
        attributes |= {"dotdo.version": step.definition.version}
        span = self._begin(f"step {step.definition.name}", "INTERNAL", attributes)
        with self._tracing.inside(span):
            try:
                await work()
            except Block as block:
                self._fail(span, ErrorRecord(block.reason, block.message))
                raise
            finally:
                span.set_attribute("dotdo.step.state", step.record.state)
                if step.record.state == FAILED and step.record.error is not None:
                    self._fail(span, step.record.error)
                self._attempts.pop(step.id, None)

    async def attempt(self, attempt: "Attempt", action: "Action[..., Any]", work: Coroutine[Any, Any, T]) -> T:
        """One attempt: its handler and its commit. A retry is linked to the attempt before."""
        handler = action.handler
        attributes = {"dotdo.run.id": attempt.run_id, "dotdo.step": attempt.step, "dotdo.attempt": attempt.number}
        attributes |= {"dotdo.name": action.name, "dotdo.version": action.version}
        attributes |= {"code.function.name": f"{handler.__module__}.{handler.__qualname__}"}
        before = self._attempts.get(attempt.step)
        span = self._begin(f"attempt {action.name}", "INTERNAL", attributes, before)
        self._attempts[attempt.step] = span.get_span_context()
        with self._tracing.inside(span):
            place = place_of(span)
            attempt.traceparent = attempt.traceparent if place is None else place.traceparent
            return await self._noted(span, work)

    async def effect(self, effect: "Effect[..., Any]", call: "EffectCall", work: Coroutine[Any, Any, T]) -> T:
        """One try of an effect."""
        attributes = {"dotdo.run.id": call.run_id, "dotdo.step": call.step, "dotdo.name": effect.name}
        attributes |= {"dotdo.version": effect.version, "dotdo.attempt": call.attempt}
        span = self._begin(f"effect {effect.name}", "CLIENT", attributes)
        with self._tracing.inside(span):
            place = place_of(span)
            if place is not None:
                call.traceparent, call.tracestate = place.traceparent, place.tracestate
            return await self._noted(span, work)

    def carried(self, options: Options) -> Options:
        """The options of a child, with its place in the trace."""
        return carrying(options, place_of(self._span))

    def bound(self, function: Callable[[], T]) -> Callable[[], T]:
        """The function, to be called on another thread, within the current span."""
        return self._tracing.bound(function)

    def _begin(self, name: str, kind: Any, attributes: dict[str, Any], link: "SpanContext | None" = None) -> "Span":
        return self._tracing.begin(name, kind, attributes, parent=place_of(self._span), links=(link,))

    async def _noted(self, span: "Span", work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except (asyncio.CancelledError, AttemptOver) as error:
            self._tracing.mark_failed(span, type(error).__name__, "it was given up")
            raise
        except BaseException as error:  # noted, and goes on to whoever decides what it means
            self._fail(span, error_record(error))
            raise

    def _fail(self, span: "Span", error: ErrorRecord) -> None:
        secrets = self._run.secrets
        self._tracing.fail(span, error if secrets is None else secrets.clean_error(error))
