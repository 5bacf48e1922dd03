"""The ASGI application: the routes, over a platform that is opened when the server starts."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dotdo.keys import Rate
from dotdo.server.around import Around
from dotdo.server.asked import asked_of
from dotdo.server.auth import Gate
from dotdo.server.metrics import Metrics
from dotdo.server.routes import OPERATIONS, Operation
from dotdo.server.serving import Served, Site


def make_app(
    open_platform: Callable[[], Awaitable[Served]],
    *,
    open_access: bool = False,
    on_end: Callable[[], Awaitable[None]] | None = None,
    tracer_provider: Any = None,
    rate: Rate | None = None,
) -> Around:
    """The API over a platform.

    open_platform: gives it, opened, on the loop that serves. open_access: no key is needed; for development only.
    on_end: awaited when the server says that it has ended (ASGI lifespan). tracer_provider: of OpenTelemetry.
    rate: how many requests a key may make that has no rate of its own; by default any number.
    """

    class _LateKeys:
        """The keys of a platform that is opened with the first request."""

        async def find_api_key(self, digest: str) -> Any:
            return await (await open_platform()).find_api_key(digest)

        async def touch_api_keys(self, used: list[tuple[str, int]]) -> None:
            await (await open_platform()).touch_api_keys(used)

    site = Site(open_platform, Gate(_LateKeys(), open=open_access, rate=rate), Metrics(), tracer_provider)

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
            Route(each.path, _Endpoint(each), methods=[each.method], name=each.id, include_in_schema=False)
            for each in OPERATIONS
        ],
        lifespan=lifespan,
    )
    app.state.site = site
    return Around(app, site)


class _Endpoint:
    """An operation's endpoint that says, for the log and the counters, which route the request took.

    An ASGI application, not a function, which Starlette would wrap twice to answer exceptions; `Around` does that.
    """

    def __init__(self, operation: Operation) -> None:
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        asked_of(request).route = self._operation.path
        response = await self._operation.endpoint(request)
        await response(scope, receive, send)
