"""`/v1/runs`: look at runs and their journals, and steer them."""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dotdo import codec
from dotdo.policy import check_text
from dotdo.records import Run, RunFilter, Status, Undo, cursor_of, place_of
from dotdo.server.asked import asked_of
from dotdo.server.problems import Refused
from dotdo.server.reading import Event, Nothing, Resolution, T, preferred_wait, query, read_body, refusing
from dotdo.server.serving import actor, answer, ended_within, platform, site
from dotdo.server.shapes import Journal, Page, entry_shape, run_shape

FILTERS: dict[str, Any] = {
    "status": Status,
    "undo": Undo,
    "name": str,
    "trail": str,
    "parent": str,
    "label": dict,
    "since": int,
    "limit": int,
    "cursor": str,
}
MOST = 200


async def list_runs(request: Request) -> Response:
    """GET /v1/runs: runs, newest first, in pages."""
    await actor(request, "runs", "read", "*")
    given = query(request, FILTERS)
    limit = given.pop("limit", 50)
    if not 1 <= limit <= MOST:
        raise Refused(400, "invalid_query", f"limit: a number from 1 to {MOST} is needed.")
    before = _position(given.pop("cursor", None))
    labels = given.pop("label", {})
    # One more than asked for tells whether there is a next page.
    found = await (await platform(request)).list_runs(RunFilter(**given, labels=labels, before=before, limit=limit + 1))
    page = found[:limit]
    return answer(
        Page(
            [run_shape(run) for run in page],
            cursor_of(page[-1].created_at, page[-1].id) if len(found) > limit else None,
        )
    )


async def get_run(request: Request) -> Response:
    """GET /v1/runs/{id}: a run as it stands; with `Prefer: wait=30` once it has ended or is blocked, or then."""
    wait = preferred_wait(request, 0.0)
    query(request, {})
    run = await authorised(request, "read")
    behind = await platform(request)
    if wait:  # also for one that is blocked: an answer to it may be on its way
        run = await ended_within(request, behind, run.id, wait)
    return answer(run_shape(run), headers={"Preference-Applied": f"wait={wait:g}"} if wait else None)


async def get_journal(request: Request) -> Response:
    """GET /v1/runs/{id}/journal: its entries, after a number if asked."""
    after = query(request, {"after": int}).get("after", 0)
    wait = preferred_wait(request, 0.0)
    run = await authorised(request, "read")
    behind = await platform(request)
    if wait and not run.rests:
        news = behind.news(run.id, after, wait)
        entries = await site(request).waits.within(request.receive, wait, news) or []
    else:
        entries = await behind.journal(run.id, after)
    return answer(Journal([entry_shape(entry) for entry in entries]))


async def cancel(request: Request) -> Response:
    """POST /v1/runs/{id}/cancel: asks for it to be cancelled; what it did is undone."""
    run, _ = await _steered(request, "cancel", Nothing)
    await (await platform(request)).cancel(run.id, _who(request))
    return await _accepted(request, run.id)


async def retry(request: Request) -> Response:
    """POST /v1/runs/{id}/retry: opens a failed, cancelled or blocked run again."""
    run, _ = await _steered(request, "retry", Nothing)
    await (await platform(request)).retry(run.id, _who(request))
    return await _accepted(request, run.id)


async def undo(request: Request) -> Response:
    """POST /v1/runs/{id}/undo: takes back what an ended run did."""
    run, _ = await _steered(request, "undo", Nothing)
    await (await platform(request)).undo(run.id, _who(request))
    return await _accepted(request, run.id)


async def resolve(request: Request) -> Response:
    """POST /v1/runs/{id}/resolve: answers a question of a blocked run."""
    run, body = await _steered(request, "resolve", Resolution)
    data = (
        None
        if isinstance(body.answer, msgspec.UnsetType)
        else codec.encode(codec.decode(bytes(body.answer)), "The answer")
    )
    await (await platform(request)).resolve(run.id, body.key, body.outcome, data, _who(request))
    return await _accepted(request, run.id)


async def send_event(request: Request) -> Response:
    """POST /v1/runs/{id}/events: sends an event to it."""
    run, event = await _steered(request, "event", Event)
    with refusing():
        check_text(event.name, "event")
        check_text(event.key, "key")
    value = codec.encode(event.value, f"The value of the event {event.name!r}")
    await (await platform(request)).send_event(run.id, event.name, value, event.key, _who(request))
    return await _accepted(request, run.id)


async def authorised(request: Request, verb: str) -> Run:
    """The run of the route, for somebody who may do that to runs of its name. Raises Refused, UnknownName."""
    # First without the name: whoever has no key for that verb at all learns nothing, not even which runs there are.
    await actor(request, "runs", verb)
    run = await (await platform(request)).get(request.path_params["id"])
    asked_of(request).run = run.id
    await actor(request, "runs", verb, run.name)
    return run


async def _steered(request: Request, verb: str, kind: type[T]) -> tuple[Run, T]:
    """The run to be steered, and the body that says how. Raises Refused, UnknownName."""
    query(request, {})
    return await authorised(request, verb), await read_body(request, kind)


def _who(request: Request) -> str | None:
    return asked_of(request).actor


async def _accepted(request: Request, id: str) -> Response:
    return answer(run_shape(await (await platform(request)).get(id)), 202)


def _position(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    try:
        return place_of(cursor)
    except (ValueError, msgspec.MsgspecError):
        raise Refused(400, "invalid_cursor", "cursor: take it from `next` of the page before.") from None
