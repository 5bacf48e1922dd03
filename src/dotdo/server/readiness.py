"""Whether runs can be accepted now: found out by a write and a read of the store, at most once a second.

Whoever may ask needs no key, so many who ask cost one write together, and one that takes too long is an answer, too.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dotdo.errors import DotdoError

KEPT_SECONDS = 1.0
PATIENCE_SECONDS = 5.0

log = logging.getLogger("dotdo.server")


class Readiness:
    """The readiness of one server. open: gives its platform, opened."""

    def __init__(self, open: Callable[[], Awaitable[Any]]) -> None:
        self._open = open
        self._checking: asyncio.Task[bool] | None = None
        self._found: tuple[float, bool] = (-KEPT_SECONDS, False)

    async def is_ready(self) -> bool:
        """Whether it is, as of a second ago or later."""
        at, ready = self._found
        if time.monotonic() - at < KEPT_SECONDS:
            return ready
        if self._checking is None:
            self._checking = asyncio.create_task(self._check())
            self._checking.add_done_callback(self._checked)
        # Not cancelled: others wait for the same, and a write that hangs is still the one that is under way later.
        done, _ = await asyncio.wait([self._checking], timeout=PATIENCE_SECONDS)
        return bool(done) and done.pop().result()

    async def _check(self) -> bool:
        try:
            await (await self._open()).check()
        except DotdoError as error:
            log.warning("not ready: %s", error.message)
            return False
        return True

    def _checked(self, task: asyncio.Task[bool]) -> None:
        self._checking = None
        if not task.cancelled() and task.exception() is None:
            self._found = (time.monotonic(), task.result())
