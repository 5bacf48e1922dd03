"""W3C Trace Context, and OpenTelemetry where the program uses it (extra `otel`).

Which trace a run belongs to is kept with the run, as the text of a `traceparent`, so it outlives processes. Spans are
made only while the program has set a tracer provider; nothing is imported, and next to nothing done, otherwise.
"""

import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from dotdo.records import ErrorRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, TracerProvider

T = TypeVar("T")

Kind = Literal["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
Value = str | int | bool

# https://www.w3.org/TR/trace-context/#traceparent-header; of later versions the part that this one knows
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?P<rest>-.*)?"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


class TracePlace(msgspec.Struct, frozen=True):
    """A place in a trace, as headers carry it."""

    traceparent: str
    tracestate: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """For a request that continues the trace."""
        state = {} if self.tracestate is None else {"tracestate": self.tracestate}
        return {"traceparent": self.traceparent, **state}


def place_in_trace(traceparent: str | None, tracestate: str | None = None) -> TracePlace | None:
    """The place that headers name; None when there is none, or it is not sound: then a new trace begins."""
    found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent.strip())
    if found is None or (found[1] == "00" and found["rest"]):
        return None
    state = tracestate if tracestate and _TRACESTATE.fullmatch(tracestate) else None
    return TracePlace(f"00-{found[2]}-{found[3]}-{int(found[4], 16) & 1:02x}", state)


def trace_id(traceparent: str | None) -> str | None:
    """The id of the trace, for logs."""
    return None if traceparent is None else traceparent[3:35]


def find_tracing(provider: "TracerProvider | None" = None) -> "Tracing | None":
    """Tracing with that tracer provider; by default with the one that the program has set, if it has."""
    if provider is not None:
        return Tracing(provider)
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    found: Any = trace.get_tracer_provider()
    is_set = not isinstance(found, trace.ProxyTracerProvider | trace.NoOpTracerProvider)
    return Tracing(found) if is_set else None


def current_place() -> TracePlace | None:
    """Where in a trace the caller is; None without OpenTelemetry, and outside of a span."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    return _place(trace.get_current_span().get_span_context())


class Tracing:
    """Makes spans. Raises ModuleNotFoundError without opentelemetry-api."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import context, trace

        self._trace, self._context = trace, context
        self._tracer = provider.get_tracer("dotdo")

    def begin(
        self,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Value | None],
        *,
        parent: TracePlace | None = None,
        links: "tuple[SpanContext | None, ...]" = (),
        within: Literal["current", "parent", "nothing"] = "current",
    ) -> "Span":
        """Begins a span. Attributes that are None are left out.

        within: the current span, or else the parent's place; the parent's place only; or it begins a trace.
        """
        trace = self._trace
        return self._tracer.start_span(
            name,
            context=self._context_in(parent, within),
            kind=trace.SpanKind[kind],
            attributes={name: value for name, value in attributes.items() if value is not None},
            links=[trace.Link(each) for each in links if each is not None and each.is_valid],
        )

    def _context_in(self, parent: TracePlace | None, within: str) -> "Context | None":
        if within == "current" and (parent is None or self.has_current()):
            return None
        if within == "nothing" or parent is None:
            return self._context.Context()
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(self.context_of(parent)))

    def context_of(self, place: TracePlace) -> "SpanContext":
        """The span that a place names."""
        trace = self._trace
        _, of_trace, of_span, flags = place.traceparent.split("-")
        return trace.SpanContext(
            int(of_trace, 16),
            int(of_span, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(int(flags, 16)),
            trace_state=trace.TraceState.from_header([place.tracestate]) if place.tracestate else None,
        )

    @contextmanager
    def inside(self, span: "Span") -> Generator[None]:
        """Makes the span the current one, and ends it. Whatever is raised is for the caller to note."""
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield
        finally:
            self._context.detach(token)
            span.end()

    def bound(self, function: Callable[[], T]) -> Callable[[], T]:
        """The function, to be called on a thread that has a context of its own, within the current span."""
        here = self._context.get_current()

        def there() -> T:
            self._context.attach(here)
            return function()

        return there

    def fail(self, span: "Span", error: ErrorRecord) -> None:
        """Notes an error, from which secrets are gone already, by the conventions for exceptions."""
        event = {"exception.type": error.type, "exception.message": error.message}
        if error.traceback:
            event["exception.stacktrace"] = error.traceback
        span.add_event("exception", event)
        self.mark_failed(span, error.type, f"{error.type}: {error.message}")

    def mark_failed(self, span: "Span", error_type: str, text: str) -> None:
        """Sets the status of a span to an error."""
        span.set_attribute("error.type", error_type)
        span.set_status(self._trace.StatusCode.ERROR, text)

    def has_current(self) -> bool:
        """Whether the caller is within a span."""
        return self._trace.get_current_span().get_span_context().is_valid


def place_of(span: "Span") -> TracePlace | None:
    """Where a span is in its trace."""
    return _place(span.get_span_context())


def _place(found: "SpanContext") -> TracePlace | None:
    if not found.is_valid:
        return None
    text = f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags & 1:02x}"
    return TracePlace(text, found.trace_state.to_header() or None)
