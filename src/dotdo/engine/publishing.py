"""Progress that services publish: journaled like all else, and handed to readers who wait for it.

A reader asks the store; being woken only makes it sooner, so one in another process sees the same a little later.
"""

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec

from dotdo.journal import Entry
from dotdo.records import Progress

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun
    from dotdo.engine.service_code import ServiceCode
    from dotdo.engine.serving import Serving

POLL_SECONDS = 1.0
NEWS = 16  # entries read at a time: they are kept for readers who may be slow


class Listener(Protocol):
    """What is told of news; an `asyncio.Event` is one."""

    def set(self) -> None:
        """There is news."""
        ...


class Readers:
    """Who waits for news of which run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, set[Listener]] = {}

    def wake(self, run: str) -> None:
        """There is news of the run, or its end, and it is durable."""
        for listener in self._waiting.get(run, ()):
            listener.set()

    def join(self, run: str, listener: Listener) -> None:
        """Has a listener told of each piece of news, and of the end."""
        self._waiting.setdefault(run, set()).add(listener)

    def leave(self, run: str, listener: Listener) -> None:
        """Has it told no more."""
        waiting = self._waiting.get(run)
        if waiting is not None:
            waiting.discard(listener)
            if not waiting:
                del self._waiting[run]

    async def news(self, engine: "Serving", run: str, after: int, seconds: float) -> list[Entry]:
        """The run's entries after a number, as soon as there are some; none when so many seconds have passed."""
        event, until = asyncio.Event(), self._loop.time() + seconds
        engine.watched.setdefault(run, set()).add(event)
        try:
            while True:
                found = await engine.read(lambda: engine.store.read_journal(run, after, NEWS))
                left = until - self._loop.time()
                if found or left <= 0:
                    return found
                try:
                    async with asyncio.timeout(min(left, POLL_SECONDS)):
                        await event.wait()
                except TimeoutError:
                    pass
                event.clear()
        finally:
            engine.watched[run].discard(event)
            if not engine.watched[run]:
                del engine.watched[run]

    async def read(self, engine: "Serving", run: str, after: int) -> Progress:
        """What the run has published after an entry's number; waits until there is something, or it has ended."""
        event = asyncio.Event()
        self.join(run, event)
        try:
            while True:
                # The row first: that of an ended run then has its whole journal.
                record = await engine.get(run)
                found = await engine.read(lambda: engine.store.read_published(run, after))
                ended = record.rests
                if found or ended:
                    return Progress(
                        [value for _, value in found], found[-1][0] if found else after, ended, record.continued_as
                    )
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await event.wait()
                except TimeoutError:
                    pass
                event.clear()
        finally:
            self.leave(run, event)


def tell_progress(run: "LiveRun", code: "ServiceCode") -> None:
    """Journals what the code has published."""
    told, code.published = code.published, []
    for each in told:
        run.append("published", each)
    run.journal.when_durable(lambda error: None if error else run.engine.readers.wake(run.id))


def progress_of(raw: msgspec.Raw | None) -> object:
    """The latest progress as plain JSON values; None when there is none."""
    return None if raw is None else msgspec.json.decode(raw)
