"""The API as an ASGI application, to mount into another one (FastAPI, Starlette, Django) or to serve by itself.

A mounted application is not told when its server starts and ends, so the platform opens with the first request, and
whoever owns the client closes it. Served by itself it is told (ASGI lifespan), and what it has opened it closes.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from dotdo.keys import read_rate
from dotdo.server.app import make_app
from dotdo.server.serving import Served


def mountable(
    platform: Callable[[], Awaitable[Any]],
    close: Callable[[], Awaitable[None]],
    is_open: Callable[[], bool],
    *,
    open_access: bool,
    tracer_provider: Any = None,
    rate: str | None = None,
) -> Any:
    """The application. platform: gives it, opened; the application closes it only if it was not open before."""
    opened_here = False

    async def opened() -> Served:
        nonlocal opened_here
        opened_here = opened_here or not is_open()
        return cast("Served", await platform())

    async def on_end() -> None:
        if opened_here:
            await close()

    of_keys = None if rate is None else read_rate(rate)
    return make_app(opened, open_access=open_access, on_end=on_end, tracer_provider=tracer_provider, rate=of_keys)
