"""The two doors to a platform: embedded, and over HTTP through a real socket. One suite goes through both.

Over HTTP the server runs on the loop of the engine that is behind it; the client knows its URL and a key, no more. The
key bears the name of the embedded client's actor, so what is done through it has the actor `key:` and that name.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from dotdo import AsyncDo, Do
from dotdo.errors import ClientClosed
from dotdo.keys import new_key
from dotdo.server.listening import serve

Door = Literal["embedded", "remote"]
DOORS: tuple[Door, ...] = ("embedded", "remote")
chosen: Door = "embedded"  # through which laboratories and workshops are entered; see the fixture `both_doors`


def actor_through(door: Door, name: str) -> str:
    """The actor in the journal of what the client of that actor does."""
    return name if door == "embedded" else f"key:{name}"


def actor(name: str) -> str:
    """The actor in the journal of what was done with `actor=name` through the chosen door: over HTTP it is the key."""
    return name if chosen == "embedded" else "key:ada"


@asynccontextmanager
async def served(client: AsyncDo) -> AsyncIterator[tuple[str, str]]:
    """Serves an embedded client on its loop: the URL, and a key that allows everything."""
    text, record = new_key(client.actor or "ada", ["*"], now=1)
    engine = cast("Any", await client.platform())
    await engine.committer.call(lambda: engine.store.save_api_key(record))
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    enough = asyncio.Event()
    serving = asyncio.create_task(serve(client, host="127.0.0.1", port=0, on_ready=ready.set_result, until=enough))
    try:
        await asyncio.wait([ready, serving], return_when=asyncio.FIRST_COMPLETED)
        yield ready.result(), text
    finally:
        enough.set()
        await serving


@asynccontextmanager
async def through(door: Door, client: AsyncDo) -> AsyncIterator[AsyncDo]:
    """A client's platform through a door, for as long as this lasts. Whoever opened the client closes it."""
    if door == "embedded":
        yield client
        return
    async with served(client) as (url, key), AsyncDo(url=url, api_key=key) as remote:
        yield remote


@asynccontextmanager
async def open_async(door: Door, store: Path, **options: Any) -> AsyncIterator[AsyncDo]:
    """A platform on a store, through a door. options: as of AsyncDo."""
    async with AsyncDo(f"sqlite:///{store}", **options) as client, through(door, client) as found:
        yield found


@contextmanager
def open_sync(door: Door, store: Path, **options: Any) -> Iterator[Do]:
    """The same without await."""
    with enter(door, Do(f"sqlite:///{store}", **options)) as client:
        yield client


def enter(door: Door, client: Do) -> Do:
    """A client's platform through a door; closing it closes the client, too."""
    return client if door == "embedded" else Remote(client)


class Remote(Do):
    """A client with a URL, and all that is behind it."""

    def __init__(self, behind: Do) -> None:
        self._behind, self._server = behind, contextlib.AsyncExitStack()
        url, key = behind._portal.call(lambda: self._server.enter_async_context(served(behind._inner)))
        super().__init__(url=url, api_key=key)

    def close(self) -> None:
        """Closes the client, then its server, then the engine."""
        super().close()
        with contextlib.suppress(ClientClosed):  # it was closed before
            self._behind._portal.call(self._server.aclose)
        self._behind.close()
