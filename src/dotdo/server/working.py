"""`/v1/worker/*`: the worker protocol (contract/worker-protocol.md). Workers speak with the engine that is here.

Unlike elsewhere in the API unknown fields are ignored, so that newer workers can speak with this server.
"""

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dotdo.engine.workers import POLL_SECONDS, Workers
from dotdo.errors import DefinitionError
from dotdo.server.problems import Refused
from dotdo.server.reading import query, read_body
from dotdo.server.serving import actor, answer, platform, site
from dotdo.worker_protocol import (
    MOST_BYTES,
    Batch,
    Claim,
    Complete,
    Done,
    Heartbeat,
    OfWorker,
    Register,
    RequestCall,
    RequestState,
)

T = TypeVar("T", bound=msgspec.Struct)


async def register(request: Request) -> Response:
    """POST /v1/worker/register."""
    who, given = await _read(request, Register)
    for name in {each.name for each in (*given.actions, *given.effects)}:
        await actor(request, "workers", "serve", name)
    if site(request).draining:
        raise _stopping()
    try:
        return answer(await (await _workers(request)).register(given, who))
    except DefinitionError as error:
        raise Refused(422, "invalid_definition", error.message) from None


async def claim(request: Request) -> Response:
    """POST /v1/worker/claim."""
    who, given = await _read(request, Claim)
    workers = await _workers(request)
    if site(request).draining:
        return answer(Batch(given.after))
    wait = min(given.wait, POLL_SECONDS)
    if not wait > 0:
        return answer(await workers.claim(given, who))
    found = await site(request).waits.within(request.receive, wait, workers.claim(given, who))
    return answer(found or Batch(given.after))


async def complete(request: Request) -> Response:
    """POST /v1/worker/complete."""
    who, given = await _read(request, Complete)
    return answer(await (await _workers(request)).complete(given, who))


async def request(request: Request) -> Response:
    """POST /v1/worker/request."""
    who, given = await _read(request, RequestCall)
    work = (await _workers(request)).request(given, who)
    wait = min(given.wait, POLL_SECONDS)
    found = await site(request).waits.within(request.receive, wait, work) if wait > 0 else await work
    return answer(found or RequestState("pending"))


async def heartbeat(request: Request) -> Response:
    """POST /v1/worker/heartbeat."""
    who, given = await _read(request, Heartbeat)
    return answer((await _workers(request)).heartbeat(given, who))


async def drain(request: Request) -> Response:
    """POST /v1/worker/drain."""
    who, given = await _read(request, OfWorker)
    (await _workers(request)).drain(given.worker, who)
    return answer(Done())


async def leave(request: Request) -> Response:
    """POST /v1/worker/leave."""
    who, given = await _read(request, OfWorker)
    (await _workers(request)).leave(given, who)
    return answer(Done())


async def _read(request: Request, kind: type[T]) -> tuple[str | None, T]:
    who = await actor(request, "workers", "serve")
    query(request, {})
    return who, await read_body(request, kind, MOST_BYTES)


async def _workers(request: Request) -> Workers:
    found: Any = getattr(await platform(request), "workers", None)
    if found is None:
        raise Refused(
            503,
            "no_engine",
            "The engine of this store runs in another process; workers speak with the server of that one.",
            retryable=True,
            headers={"Retry-After": "5"},
        )
    return found


def _stopping() -> Refused:
    return Refused(503, "draining", "The server is stopping.", retryable=True, headers={"Retry-After": "1"})
