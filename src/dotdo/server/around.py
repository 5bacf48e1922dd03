"""What happens around every request.

It gets an id and its place in a trace, which the answer, the log and problem documents carry. Too many at once are
turned away before any work is done for them. Whatever goes wrong becomes a problem document.
"""

import logging
import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from dotdo.errors import DotdoError
from dotdo.server.asked import UNWATCHED, Asked, asked_by, name_span
from dotdo.server.problems import Refused, answer, refused_by
from dotdo.server.serving import Site, busy

MOST_AT_ONCE = 20_000  # most of them wait for a run, which costs next to nothing

log = logging.getLogger("dotdo.server")
access_log = logging.getLogger("dotdo.access")


class Around:
    """The API, and what happens around every request to it."""

    def __init__(self, app: Starlette, site: Site) -> None:
        self._app, self._site = app, site
        # Starlette would answer errors in its own form; they come out here instead.
        app.router.default = _no_route  # type: ignore[method-assign]

    def stop(self) -> None:
        """The server is about to stop: it is not ready any more, and streams end."""
        self._site.draining = True
        self._site.waits.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, tracing = time.perf_counter(), self._site.tracing
        asked = asked_by(scope, tracing)
        try:
            if tracing is None or asked.span is None:
                await self._handle(asked, scope, receive, send)
                return
            with tracing.inside(asked.span):
                try:
                    await self._handle(asked, scope, receive, send)
                finally:
                    name_span(asked, tracing)
        finally:
            seconds = time.perf_counter() - began
            self._site.metrics.count(asked.method, asked.route, asked.status, seconds)
            _tell(asked, seconds)

    async def _handle(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        more = [(b"x-request-id", asked.id.encode())]
        if asked.place is not None:
            more.append((b"traceparent", asked.place.traceparent.encode()))

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked.status = message["status"]
                given = [(name.lower().encode(), value.encode()) for name, value in asked.headers.items()]
                message["headers"] = [*message["headers"], *more, *given]
            await send(message)

        metrics = self._site.metrics
        metrics.in_flight += 1
        try:
            if metrics.in_flight > MOST_AT_ONCE:
                raise busy("The server is busy.")
            scope["app"] = self._app
            await self._app.router(scope, receive, send_on)
        except Exception as error:  # whatever it is, it becomes a problem document
            if asked.status:
                log.error("request %s failed after its answer had begun", asked.id, exc_info=error)
                raise  # the connection is cut, which says that the answer is not whole
            await _problem(error, asked)(scope, receive, send_on)
        finally:
            metrics.in_flight -= 1
            if asked.is_authorised:
                self._site.leave(asked.actor)


def _problem(error: Exception, asked: Asked) -> Response:
    if isinstance(error, Refused):
        return answer(error, asked.id)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        detail = error.detail
        if error.status_code == 405 and error.headers:
            detail = f"This address does not take {asked.method}, but {error.headers.get('Allow', 'other methods')}."
        return answer(Refused(error.status_code, code, detail, headers=error.headers), asked.id)
    refused = refused_by(error) if isinstance(error, DotdoError) else None
    if refused is not None:
        return answer(refused, asked.id)
    extra = {"request_id": asked.id, "trace_id": asked.trace_id}
    log.error("request %s failed", asked.id, exc_info=error, extra=extra)
    text = f"The server failed. Its log says why, under request {asked.id}."
    return answer(Refused(500, "internal_error", text), asked.id)


def _tell(asked: Asked, seconds: float) -> None:
    """One line of the access log. Probes that find nothing wrong, every few seconds, are for debugging."""
    level = logging.DEBUG if asked.path.endswith(UNWATCHED) and asked.status < 400 else logging.INFO
    if not access_log.isEnabledFor(level):
        return
    extra = {
        "request_id": asked.id,
        "method": asked.method,
        "route": asked.route,
        "status": asked.status,
        "seconds": round(seconds, 6),
        "client": asked.client,
        "actor": asked.actor,
        "run": asked.run,
        "trace_id": asked.trace_id,
    }
    access_log.log(level, "%s %.200s %s", asked.method, asked.path, asked.status, extra=extra)


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        path: str = scope["path"][:200]
        twice = " A client is given the address without /v1." if path.startswith("/v1/v1/") else ""
        raise HTTPException(404, f"There is nothing at {path}. What there is, /reference tells.{twice}")
    raise RuntimeError("The API takes HTTP only.")
