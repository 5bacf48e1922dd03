"""Runs a real server, with uvicorn on a socket, on a thread of its own; and what it offers."""

import asyncio
import contextlib
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import httpx2
import msgspec

from dotdo import AsyncDo, Catalogue, Fail, action, continue_as_new, effect, publish, service, wait_for_event
from dotdo.keys import ApiKey, new_key
from dotdo.server.listening import serve
from dotdo.server.serving import Served
from dotdo.tls import trusted
from tests.patience import PATIENCE

catalogue = Catalogue()
seen: list[str] = []


@action("greet-user", catalogue=catalogue)
async def greet_user(name: str, polite: bool = False) -> dict[str, str]:
    """Greets somebody."""
    seen.append(name)
    return {"text": f"{'Good day' if polite else 'Hello'}, {name}"}


@action("refuse", catalogue=catalogue, retry=1)
async def refuse(reason: str) -> None:
    raise Fail(reason)


@effect("note", catalogue=catalogue, dedup="key")
async def note(text: str) -> None:
    seen.append(text)


@service("approval", catalogue=catalogue)
async def approval(name: str) -> dict[str, Any]:
    """Waits for a word."""
    greeted = await greet_user(name=name)
    publish({"greeted": greeted["text"]})
    return {"said": await wait_for_event("answer"), "text": greeted["text"]}


@service("countdown", catalogue=catalogue)
async def countdown(left: int) -> dict[str, int]:
    """Goes on as a new run for each number."""
    publish(left)
    if left:
        continue_as_new(left=left - 1)
    return {"left": left}


class Line(msgspec.Struct):
    """One line of an order, perhaps with others below it."""

    sku: str
    parts: "list[Line]" = []


@action("price-order", catalogue=catalogue)
async def price_order(lines: list[Line]) -> dict[str, Line]:
    """Takes and gives types that name others."""
    return {line.sku: line for line in lines}


@action("wait-for-ever", catalogue=catalogue)
async def wait_for_ever() -> None:
    await asyncio.Event().wait()


class Running:
    """A server that runs: its URL, its client, and keys for it."""

    def __init__(self, url: str, client: AsyncDo, loop: asyncio.AbstractEventLoop) -> None:
        self.url, self.client, self._loop = url, client, loop

    def call(self, work: Any) -> Any:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def key(self, *scopes: str, name: str = "a test", expires_at: int | None = None, rate: str | None = None) -> str:
        """The text of a new key."""
        text, record = new_key(name, scopes, now=1, expires_at=expires_at, rate=rate)
        self.call(self._save(record))
        self.last = record
        return text

    async def _save(self, record: ApiKey) -> None:
        engine = cast("Any", await self.client.platform())
        await engine.committer.call(lambda: engine.store.save_api_key(record))

    def revoke(self, record: ApiKey) -> None:
        """Revokes a key."""

        async def work() -> None:
            engine = cast("Any", await self.client.platform())
            assert await engine.committer.call(lambda: engine.store.revoke_api_key(record.id, 2))

        self.call(work())

    def served(self) -> Served:
        """The platform behind the server."""
        return self.call(self.client.platform())

    def http(self, *scopes: str) -> httpx2.Client:
        """An HTTP client with a key of those scopes; without any, everything is allowed."""
        headers = {"Authorization": f"Bearer {self.key(*(scopes or ('*',)))}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=PATIENCE, verify=trusted(self.url))


@contextlib.contextmanager
def running(
    store: Path, *, tracer_provider: Any = None, catalogue: Catalogue = catalogue, **options: Any
) -> Generator[Running]:
    """A server on a free port of this machine. options: of `serve`."""
    ready, stopped = threading.Event(), threading.Event()
    found: list[Running] = []
    stop: list[Any] = []

    async def main() -> None:
        async with AsyncDo(str(store), catalogue=catalogue, tracer_provider=tracer_provider) as client:
            loop = asyncio.get_running_loop()

            def on_ready(url: str) -> None:
                found.append(Running(url, client, loop))
                ready.set()

            until = asyncio.Event()
            stop.append(lambda: loop.call_soon_threadsafe(until.set))
            await serve(client, host="127.0.0.1", port=0, on_ready=on_ready, until=until, **options)

    def work() -> None:
        try:
            asyncio.run(main())
        finally:
            stopped.set()

    thread = threading.Thread(target=work, name="server")
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield found[0]
    finally:
        stop[0]()
        assert stopped.wait(PATIENCE)
        thread.join()
