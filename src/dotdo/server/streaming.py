"""`/v1/runs/{id}/stream`: a run's journal as it grows, as server-sent events that resume where they broke off.

Each event has the entry's number as its id, so a reader who comes back with `Last-Event-ID` misses nothing. Entries are
read in pages and only as fast as the reader takes them, so one that never reads costs a page of memory.
"""

from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from dotdo.errors import DotdoError
from dotdo.server.asked import asked_of
from dotdo.server.problems import Refused
from dotdo.server.reading import query
from dotdo.server.runs import authorised
from dotdo.server.serving import Served, Site, busy, platform, site
from dotdo.server.shapes import entry_shape

BEAT_SECONDS = 15.0
MOST_STREAMS = 1_000  # of one API key
_encode = msgspec.json.Encoder().encode


async def stream(request: Request) -> Response:
    """GET /v1/runs/{id}/stream: its entries, those to come as they come; ends after the run's end."""
    after = query(request, {"after": int}).get("after", 0)
    last = request.headers.get("last-event-id")
    if last is not None:
        if not (last.isascii() and last.isdecimal() and len(last) < 16):
            raise Refused(400, "invalid_last_event_id", "Last-Event-ID: the number of an entry is needed.")
        after = int(last)
    run = await authorised(request, "read")
    here, who = site(request), asked_of(request).actor
    if here.streams[who] >= MOST_STREAMS:
        raise busy(f"This API key has {MOST_STREAMS} streams open already.")
    body = _counted(here, who, _events(await platform(request), here, run.id, after))
    return StreamingResponse(body, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _counted(here: Site, who: str | None, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    here.streams[who] += 1
    try:
        async for event in events:
            yield event
    finally:
        here.streams[who] -= 1


async def _events(behind: Served, here: Site, id: str, after: int) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    while not here.draining:
        try:
            entries = await here.waits.within(None, BEAT_SECONDS, behind.news(id, after, BEAT_SECONDS)) or []
        except DotdoError:
            return  # the reader comes back, and is told then
        for entry in entries:
            after = entry.seq
            data = _encode(entry_shape(entry)).decode()
            yield f"id: {entry.seq}\nevent: {entry.kind}\ndata: {data}\n\n".encode()
        if not entries:
            run = await behind.get(id)
            if run.ended:
                yield b"event: end\ndata: {}\n\n"
                return
            yield b": still here\n\n"
        elif entries[-1].kind == "ended":
            run = await behind.get(id)
            if run.ended:
                yield b"event: end\ndata: {}\n\n"
                return
