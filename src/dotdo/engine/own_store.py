"""What a client without an engine does at its own store: on a thread for reads, and one for writes.

Such a client has no heartbeat, by which a node notices a server that has gone silent without a word. So whoever waits
for long has the server asked over a new connection, and gives up when that is not answered either.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, cast

from dotdo.engine.threads import Threads
from dotdo.errors import StoreUnavailable
from dotdo.store.protocol import Store
from dotdo.store.sharing_protocol import SharedStore

T = TypeVar("T")

SILENT = 3.0  # seconds for which an answer may be missing before the server is asked whether it is there


class OwnStore:
    """The store, and what is under way there. Of use on one event loop. It writes blobs, too (`BlobWriter`)."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        # Daemon threads, because a client may be closed when the interpreter has shut its pools down already.
        self._reading, self._writing, self._asking = (Threads(loop, 1) for _ in range(3))
        self._under_way: set[asyncio.Future[Any]] = set()

    async def apart(self, function: Callable[[], T]) -> T:
        """Runs a read, or something long."""
        return await self._run(self._reading, function)

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a write."""
        return await self._run(self._writing, function)

    async def finish(self) -> None:
        """Returns when nothing is under way any more."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _run(self, threads: Threads, function: Callable[[], T]) -> T:
        shared = cast("SharedStore", self.store) if self.store.shared else None
        if shared is not None and shared.given_up:
            await asyncio.shield(self._asking.run(shared.reach))
        future = threads.run(function)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        if shared is not None:
            await self._answered(future, shared)
        # Shielded: who gives up does not end it, and it is waited for before the store is closed.
        return await asyncio.shield(future)

    async def _answered(self, future: "asyncio.Future[Any]", store: SharedStore) -> None:
        while not (await asyncio.wait([future], timeout=SILENT))[0]:
            try:
                await asyncio.shield(self._asking.run(store.reach))
            except StoreUnavailable as error:
                store.give_up(error.message)
