"""The ASGI application: routes, and what happens around every request.

Each request has an id, which the answer, the log and problem documents carry. Too many at once are turned away before
any work is done for them. Whatever goes wrong becomes a problem document.
"""

import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from dotdo.errors import DotdoError
from dotdo.server.auth import Gate
from dotdo.server.metrics import Metrics
from dotdo.server.problems import Refused, answer, refused_by
from dotdo.server.routes import OPERATIONS, Endpoint, Operation
from dotdo.server.serving import ROUTE, Served, Site

REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
MOST_AT_ONCE = 20_000  # most of them wait for a run, which costs next to nothing

log = logging.getLogger("dotdo.server")


def make_app(
    open_platform: Callable[[], Awaitable[Served]],
    *,
    open_access: bool = False,
    on_end: Callable[[], Awaitable[None]] | None = None,
) -> "Around":
    """The API over a platform.

    open_platform: gives it, opened, on the loop that serves. open_access: no key is needed; for development only.
    on_end: awaited when the server says that it has ended (ASGI lifespan).
    """

    class _LateKeys:
        """The keys of a platform that is opened with the first request."""

        async def find_api_key(self, digest: str) -> Any:
            return await (await open_platform()).find_api_key(digest)

        async def touch_api_keys(self, used: list[tuple[str, int]]) -> None:
            await (await open_platform()).touch_api_keys(used)

    site = Site(open_platform, Gate(_LateKeys(), open=open_access), Metrics())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        await open_platform()
        yield
        site.draining = True
        await site.gate.flush()
        if on_end is not None:
            await on_end()

    app = Starlette(
        routes=[
            Route(each.path, _named(each), methods=[each.method], name=each.id, include_in_schema=False)
            for each in OPERATIONS
        ],
        lifespan=lifespan,
    )
    app.state.site = site
    return Around(app, site)


def _named(operation: Operation) -> Endpoint:
    """An operation's endpoint that says, for the log and the counters, which route the request took."""

    async def endpoint(request: Request) -> Response:
        request.scope[ROUTE] = operation.path
        return await operation.endpoint(request)

    return endpoint


class Around:
    """What happens around every request."""

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
        began, metrics = time.perf_counter(), self._site.metrics
        request_id = _request_id(scope)
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        metrics.in_flight += 1
        try:
            if metrics.in_flight > MOST_AT_ONCE:
                raise Refused(429, "overloaded", "The server is busy.", retryable=True, headers={"Retry-After": "1"})
            scope["app"] = self._app
            await self._app.router(scope, receive, send_on)
        except Exception as error:  # whatever it is, it becomes a problem document
            if status:
                raise  # the answer has begun: the connection is cut, which says that it is not whole
            await _problem(error, request_id)(scope, receive, send_on)
        finally:
            metrics.in_flight -= 1
            route = scope.get(ROUTE, "none")
            seconds = time.perf_counter() - began
            metrics.count(scope["method"], route, status, seconds)
            log.info(
                "%s %s %s",
                scope["method"],
                route,
                status,
                extra={"request_id": request_id, "status": status, "seconds": round(seconds, 6)},
            )


def _problem(error: Exception, request_id: str) -> Response:
    if isinstance(error, Refused):
        return answer(error, request_id)
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        return answer(Refused(error.status_code, code, error.detail, headers=error.headers), request_id)
    refused = refused_by(error) if isinstance(error, DotdoError) else None
    if refused is not None:
        return answer(refused, request_id)
    log.error("request %s failed", request_id, exc_info=error)
    return answer(
        Refused(500, "internal_error", f"The server failed. Its log says why, under request {request_id}."), request_id
    )


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        raise HTTPException(404, f"There is nothing at {scope['path'][:200]}.")
    raise RuntimeError("The API takes HTTP only.")


def _request_id(scope: Scope) -> str:
    """The caller's X-Request-Id if it is a sound one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if REQUEST_ID.fullmatch(text):
                return text
    return "req_" + os.urandom(12).hex()
