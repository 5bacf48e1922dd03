"""What handlers of requests share: the platform behind them, who asks, and how an answer is made."""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dotdo.journal import Entry
from dotdo.platform import Platform
from dotdo.records import Run
from dotdo.server.asked import asked_of
from dotdo.server.auth import Gate, Keys
from dotdo.server.metrics import Metrics
from dotdo.server.problems import Refused
from dotdo.server.readiness import Readiness
from dotdo.server.waits import Waits
from dotdo.tracing import Tracing, find_tracing

MOST_OF_ONE = 16_000  # requests of one API key under way, out of the 20,000 of a server: others get in, too


class Served(Platform, Keys, Protocol):
    """What a server needs of the platform behind it."""

    async def end_of(self, id: str) -> Run:
        """A run once it has ended or is blocked, also if another one goes on for it. Raises UnknownName."""
        ...

    async def news(self, id: str, after: int, seconds: float) -> list[Entry]:
        """A run's entries after a number, as soon as there are some; none when the time has passed."""
        ...

    async def count_by_status(self) -> dict[str, int]:
        """How many runs are in each state."""
        ...

    async def count_limited(self) -> list[tuple[str, str, int]]:
        """How many steps of each action have their slots (""), or wait for a limit of a kind."""
        ...

    async def is_full(self) -> bool:
        """Whether so many runs are under way that new ones had better come later."""
        ...

    async def check(self) -> None:
        """Raises StoreError unless runs can be accepted now."""
        ...


class Site:
    """One server: its platform, opened when it starts; its access control; its counters."""

    def __init__(
        self, open: Callable[[], Awaitable[Served]], gate: Gate, metrics: Metrics, tracer_provider: Any = None
    ) -> None:
        self.open, self.gate, self.metrics = open, gate, metrics
        self.draining = False
        self.readiness = Readiness(open)
        self.waits = Waits()
        self.streams: Counter[str | None] = Counter()  # by actor
        self.asking: Counter[str | None] = Counter()  # the same, of all requests under way
        self._tracer_provider = tracer_provider

    def leave(self, actor: str | None) -> None:
        """A request has been answered."""
        self.asking[actor] -= 1
        if not self.asking[actor]:
            del self.asking[actor]

    @cached_property
    def tracing(self) -> Tracing | None:
        """Found with the first request: by then the program has set its tracer provider, if it means to."""
        return find_tracing(self._tracer_provider)


def site(request: Request) -> Site:
    """The server that handles a request."""
    found: Site = request.app.state.site
    return found


async def platform(request: Request) -> Served:
    """The platform behind the server. Raises StoreError."""
    return await site(request).open()


def route(request: Request) -> str:
    """The path of the request's operation, such as /v1/actions/{name}/execute."""
    return asked_of(request).route


def path_of_run(request: Request, id: str) -> str:
    """Where a run is found, also when the API is mounted under a prefix."""
    return f"{request.scope.get('root_path', '')}/v1/runs/{id}"


async def actor(request: Request, resource: str, verb: str, name: str | None = None) -> str | None:
    """Authorises a request, and says who asks. name: None is for a first look, before it is known. Raises Refused."""
    who = await site(request).gate.authorise(request, resource, verb, name)
    asked = asked_of(request)
    if not asked.is_authorised:
        here = site(request)
        if here.asking[who] >= MOST_OF_ONE:
            raise busy("Too many requests of this API key are under way.")
        here.asking[who] += 1
        asked.is_authorised, asked.actor = True, who
    return who


def busy(text: str) -> Refused:
    """Turned away for now."""
    return Refused(429, "overloaded", text, retryable=True, headers={"Retry-After": "1"})


async def ended_within(request: Request, behind: Served, id: str, seconds: float) -> Run:
    """A run once it has ended or is blocked, or as it stands when so many seconds have passed, or the wait ended."""
    return await site(request).waits.within(request.receive, seconds, behind.end_of(id)) or await behind.get(id)


_encode = msgspec.json.Encoder().encode


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(_encode(value), status, headers, "application/json")
