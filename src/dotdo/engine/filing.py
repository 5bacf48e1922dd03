"""Files what a client asks for, in the store of an engine in another process.

Requests that come while others are being written share the next transaction. What is large is written in parts, between
these, on the same thread.
"""

import asyncio
from functools import partial

from dotdo.engine.own_store import OwnStore
from dotdo.errors import ClientClosed, InputError
from dotdo.store.protocol import Filed, Message

# Of a run: the input digest of the one that has its key already, if there is one. Of a message: why it was refused.
Outcome = str | InputError | None


class Filing:
    """The requests of one client."""

    def __init__(self, own: OwnStore) -> None:
        self._own = own
        self._requests: list[tuple[Filed | Message, asyncio.Future[Outcome]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """Takes no more; returns when everything is written."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def file(self, request: Filed | Message) -> Outcome:
        """Returns what came of a request once it is durable. Raises ClientClosed, StoreError."""
        if self._closed:
            raise ClientClosed("The client is closed; open a new one.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._requests.append((request, future))
        if self._writing is None:
            self._writing = loop.create_task(self._write_all())
        return await future

    async def _write_all(self) -> None:
        try:
            while self._requests:
                batch, self._requests = self._requests, []
                requests = [request for request, _ in batch]
                try:
                    outcomes = await self._own.call(partial(self._own.store.file, requests))
                except Exception as error:  # handed to whoever waits
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if not future.done():
                        future.set_result(outcome)
        finally:
            self._writing = None
