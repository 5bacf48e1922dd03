"""`/v1/actions` and `/v1/services`: what can be called, and calling it."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dotdo.errors import UnknownName
from dotdo.records import Options, Run, RunKind, keyed_run_id
from dotdo.server.asked import asked_of
from dotdo.server.problems import Refused
from dotdo.server.reading import DEFAULT_WAIT, Call, options_of, preferred_wait, query, read_body
from dotdo.server.serving import Served, actor, answer, busy, ended_within, path_of_run, platform, route
from dotdo.server.shapes import Definitions, preview_shape, run_shape


def kind_of(request: Request) -> RunKind:
    """Which of the two the route is about."""
    return "action" if route(request).startswith("/v1/actions") else "service"


async def list_definitions(request: Request) -> Response:
    """GET /v1/actions, /v1/services: what can be called, with schemas."""
    kind = kind_of(request)
    await actor(request, f"{kind}s", "read", "*")
    query(request, {})
    return answer(Definitions(await (await platform(request)).definitions(kind)))


async def show_definition(request: Request) -> Response:
    """GET /v1/actions/{name}: every version of it."""
    kind, name = kind_of(request), request.path_params["name"]
    await actor(request, f"{kind}s", "read", name)
    query(request, {})
    found = [each for each in await (await platform(request)).definitions(kind) if each.name == name]
    if not found:
        raise UnknownName(f"There is no {kind} {name!r}.")
    return answer(Definitions(found))


async def execute(request: Request) -> Response:
    """POST /v1/actions/{name}/execute: runs it, and answers with the run once it has ended or the wait is over."""
    kind, name = kind_of(request), request.path_params["name"]
    who = await actor(request, f"{kind}s", "execute", name)
    behind = await platform(request)
    if await behind.is_full():
        raise busy("Too many runs are under way.")
    wait = preferred_wait(request, DEFAULT_WAIT)
    call = await read_body(request, Call)
    options = options_of(request, call, who)
    replayed = options.key is not None and await _is_repeated(request, behind, kind, name, call.params, options)
    run = await _run(request, behind, kind, name, call.params, options, wait)
    headers = {"Idempotent-Replayed": "true"} if replayed else {}
    if wait:
        headers["Preference-Applied"] = f"wait={wait:g}"
    if run.rests:
        return answer(run_shape(run), 200, headers)
    return answer(run_shape(run), 202, {**headers, "Location": path_of_run(request, run.id)})


async def _is_repeated(
    request: Request, behind: Served, kind: RunKind, name: str, params: dict[str, Any], options: Options
) -> bool:
    """Whether the key was used before. Raises Refused while the run of the first request goes on."""
    assert options.key is not None
    try:
        run = await behind.get(keyed_run_id(name, options.key))
    except UnknownName:
        return False
    if not run.ended and run.status != "blocked":
        await behind.accept(kind, name, params, options)  # another input under this key is a conflict, also meanwhile
        path = path_of_run(request, run.id)
        raise Refused(
            409,
            "still_running",
            f"The run {run.id} of this Idempotency-Key is under way; its answer is at {path}.",
            retryable=True,
            run=run.id,
            headers={"Retry-After": "1", "Location": path},
        )
    return True


async def _run(
    request: Request, behind: Served, kind: RunKind, name: str, params: dict[str, Any], options: Options, wait: float
) -> Run:
    # Shielded: a caller who hangs up does not keep the run from being accepted.
    id = await asyncio.shield(asyncio.ensure_future(behind.accept(kind, name, params, options)))
    asked_of(request).run = id
    return await (ended_within(request, behind, id, wait) if wait else behind.get(id))


async def preview(request: Request) -> Response:
    """POST /v1/actions/{name}/preview: what a run would do; nothing happens."""
    kind, name = kind_of(request), request.path_params["name"]
    who = await actor(request, f"{kind}s", "preview", name)
    seconds = preferred_wait(request, DEFAULT_WAIT)
    call = await read_body(request, Call)
    options = options_of(request, call, who)
    found = await (await platform(request)).preview(kind, name, call.params, options, seconds)
    return answer(preview_shape(found))
