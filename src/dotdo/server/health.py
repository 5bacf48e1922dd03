"""`/healthz`, `/readyz` and `/metrics`: whether the process lives, whether it can accept runs now, and its counters."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from dotdo.server.problems import Refused
from dotdo.server.serving import actor, answer, platform, site

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def healthz(request: Request) -> Response:
    """The process answers. For restarting it when it does not; says nothing about the store. Needs no key."""
    return answer({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Runs can be accepted now: the server does not drain, and the store answers. Needs no key."""
    here = site(request)
    if here.draining:
        raise Refused(503, "draining", "The server is stopping.", retryable=True, headers={"Retry-After": "1"})
    if not await here.readiness.is_ready():
        # Whoever has no key is not told why; the log is.
        text = "Runs cannot be accepted now."
        raise Refused(503, "not_ready", text, retryable=True, headers={"Retry-After": "1"})
    return answer({"status": "ready"})


async def metrics(request: Request) -> Response:
    """Counters in the text format of Prometheus."""
    await actor(request, "metrics", "read", "*")
    behind = await platform(request)
    runs, limited = await behind.count_by_status(), await behind.count_limited()
    return PlainTextResponse(site(request).metrics.text(runs, limited), media_type=METRICS_TYPE)
