"""Waiting for what commits bring about, instead of for a length of time."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from dotdo.engine.engine import Engine
from tests.patience import PATIENCE


class Commits:
    """The commits of an engine in this process. Made on the engine's loop."""

    def __init__(self, engine: Engine) -> None:
        self._next = asyncio.Event()
        loop, committer, write = asyncio.get_running_loop(), engine.committer, engine.store.write

        def watched(writes: Any) -> None:
            try:
                write(writes)
            finally:
                loop.call_soon_threadsafe(announce)

        def announce() -> None:
            # What the writer does next is done after the engine has told everybody of this commit.
            committer.call(lambda: None).add_done_callback(self._tell)

        engine.store.write = watched  # type: ignore[method-assign]

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Returns when the condition holds; it is looked at now and after each commit."""
        async with asyncio.timeout(PATIENCE):
            while True:
                following = self._next
                holds = condition()
                if await holds if inspect.isawaitable(holds) else holds:
                    return
                await following.wait()

    def _tell(self, done: "asyncio.Future[None]") -> None:
        done.exception()  # the committer may have been closed meanwhile
        following, self._next = self._next, asyncio.Event()
        following.set()
