"""Requests that wait: for a run's end, or for its next entries.

A wait ends with what it waits for, when its time is over, when its caller has hung up, and when the server stops; so
nobody waits for those who have gone, and a server that drains answers its long-polls at once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]

LISTEN_AFTER = 1.0  # seconds; most waits are over by then, and have cost no task that listens


class Waits:
    """The waits of one server."""

    def __init__(self) -> None:
        self._limits: dict[asyncio.Timeout, asyncio.AbstractEventLoop] = {}
        self._ended = False

    def __len__(self) -> int:
        return len(self._limits)

    def end(self) -> None:
        """The server stops: all waits are over, and later ones at once. Safe in a signal's handler."""
        self._ended = True
        for limit, loop in list(self._limits.items()):
            loop.call_soon_threadsafe(self._cut, limit)

    async def within(self, receive: Receive | None, seconds: float, work: Awaitable[T]) -> T | None:
        """What `work` gives, or None when the wait has ended before.

        receive: of the request, whose body has been read; None where something else listens to the caller.
        """
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(0 if self._ended else seconds)
        listeners: list[asyncio.Task[None]] = []
        listen = loop.call_later(LISTEN_AFTER, self._listen, receive, limit, listeners) if receive is not None else None
        self._limits[limit] = loop
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            return None
        finally:
            del self._limits[limit]
            if listen is not None:
                listen.cancel()
            for listener in listeners:
                listener.cancel()

    def _listen(self, receive: Receive, limit: asyncio.Timeout, listeners: list[asyncio.Task[None]]) -> None:
        listeners.append(self._limits[limit].create_task(self._cut_when_gone(receive, limit)))

    async def _cut_when_gone(self, receive: Receive, limit: asyncio.Timeout) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass  # what is left of a body that nobody asked for
        self._cut(limit)

    def _cut(self, limit: asyncio.Timeout) -> None:
        if limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())
