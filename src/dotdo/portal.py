"""An event loop on a thread of its own, through which sync code calls async code."""

import asyncio
import atexit
import contextvars
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dotdo.errors import ClientClosed, DefinitionError

T = TypeVar("T")


class Portal:
    """Runs coroutines on its own loop and waits for them. close: what to await before the loop ends."""

    def __init__(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._close = close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Awaits what `make` returns, in the caller's context, and returns its result. Raises ClientClosed."""
        if self._closed:
            raise ClientClosed("The client is closed; open a new one.")
        loop = self._running()
        if threading.current_thread() is self._thread:
            raise DefinitionError(
                "Do was called on its own event loop (from an async handler or callback), where it would wait "
                "for itself. "
                "Use a service to compose actions, or AsyncDo in async code."
            )
        context = contextvars.copy_context()

        async def work() -> T:
            # The coroutine is made here, so that context variables of the caller (the trail) are seen by it.
            return await loop.create_task(make(), context=context)

        return asyncio.run_coroutine_threadsafe(work(), loop).result()

    def close(self) -> None:
        """Closes what was opened and ends the thread. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_serve, args=(self._loop,), name="dotdo-client", daemon=True)
                self._thread.start()
                _at_exit(self)
            return self._loop


def _at_exit(portal: Portal) -> None:
    reference = weakref.ref(portal)

    def close() -> None:
        found = reference()
        if found is not None:
            found.close()

    atexit.register(close)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
