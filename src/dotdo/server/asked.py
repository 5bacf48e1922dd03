"""What is known of one request while it is handled: for its answer, its span, the counters and the log."""

import os
import re
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.types import Scope

from dotdo.tracing import TracePlace, Tracing, current_place, place_in_trace, place_of, trace_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
KEY = "dotdo.asked"
UNWATCHED = ("/healthz", "/readyz", "/metrics")  # asked every few seconds, for ever: no spans of these


class Asked(msgspec.Struct):
    """One request. id: the caller's X-Request-Id if it is a sound one, else a new one. route: the path of its
    operation. run: that it started or is about. actor: who asks. place: in a trace. counted: whether it was counted
    against the rate of its key. is_authorised: whether it was let in at all. headers: more of them for the answer."""

    id: str
    method: str
    path: str
    client: str | None
    place: TracePlace | None
    route: str = "none"
    run: str | None = None
    actor: str | None = None
    status: int = 0
    span: "Span | None" = None
    counted: bool = False
    is_authorised: bool = False
    headers: dict[str, str] = {}

    @property
    def trace_id(self) -> str | None:
        """Of the trace that it belongs to."""
        return None if self.place is None else trace_id(self.place.traceparent)


def asked_by(scope: Scope, tracing: Tracing | None) -> Asked:
    """Reads what the headers say, and begins the request's span, unless the application around has one already."""
    given: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in (b"x-request-id", b"traceparent", b"tracestate"):
            given[name] = value.decode("latin-1")
    id = given.get(b"x-request-id", "")
    place = place_in_trace(given.get(b"traceparent"), given.get(b"tracestate")) if b"traceparent" in given else None
    client: Any = scope.get("client")
    asked = Asked(
        id if REQUEST_ID.fullmatch(id) else "req_" + os.urandom(12).hex(),
        scope["method"],
        scope["path"],
        client[0] if client else None,
        place,
    )
    scope[KEY] = asked
    if tracing is not None and not asked.path.endswith(UNWATCHED):
        _trace(asked, tracing, scope)
    return asked


def asked_of(request: Request) -> Asked:
    """What is known of a request."""
    found: Asked = request.scope[KEY]
    return found


def _trace(asked: Asked, tracing: Tracing, scope: Scope) -> None:
    if tracing.has_current():
        asked.place = current_place()
        return
    # https://opentelemetry.io/docs/specs/semconv/http/http-spans/
    attributes = {"http.request.method": asked.method, "url.path": asked.path, "url.scheme": scope.get("scheme")}
    attributes |= {"client.address": asked.client, "network.protocol.version": scope.get("http_version")}
    asked.span = tracing.begin(asked.method, "SERVER", attributes, parent=asked.place)
    asked.place = place_of(asked.span) or asked.place


def name_span(asked: Asked, tracing: Tracing) -> None:
    """Tells the span of a request what has become of it."""
    span = asked.span
    if span is not None:
        span.update_name(f"{asked.method} {asked.route}")
        span.set_attribute("http.route", asked.route)
        span.set_attribute("http.response.status_code", asked.status)
        if asked.run is not None:
            span.set_attribute("dotdo.run.id", asked.run)
        if asked.status >= 500:
            tracing.mark_failed(span, str(asked.status), f"answered with {asked.status}")
