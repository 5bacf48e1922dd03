"""An event loop on a thread of its own, through which sync code calls async code.

Every call ends: with its result, or with ClientClosed when the portal closes meanwhile. An open portal is closed when
the program ends, also if nobody holds it any more: its engine still runs.
"""

import asyncio
import atexit
import contextvars
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, TypeVar

from dotdo.context import refuse_in_service
from dotdo.errors import CalledOutside, ClientClosed

T = TypeVar("T")
log = logging.getLogger("dotdo.client")

# Named, so that it is loaded now: a thread may open its client when Python has begun to end, and then it is too late.
LOADED_EARLY = ThreadPoolExecutor

STRAGGLER_SECONDS = 1.0


class Portal:
    """Runs coroutines on its own loop and waits for them. close: what to await before the loop ends."""

    def __init__(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._close = close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Reentrant, because a signal's handler may close the client in the middle of a call.
        self._lock = threading.RLock()
        self._process = 0
        self._stopping = threading.Event()
        self._closed = False

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Awaits what `make` returns, in the caller's context, and returns its result. Raises ClientClosed."""
        refuse_in_service()
        self._refuse_own_thread()
        context = contextvars.copy_context()

        async def work() -> T:
            # The coroutine is made here, so that context variables of the caller (the trail) are seen by it.
            return await loop.create_task(make(), context=context)

        with self._lock:  # whatever gets in before `close` is answered by it
            loop = self._running()
            answer = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return answer.result()
        except CancelledError:
            if self._closed:
                raise ClientClosed("The client was closed meanwhile.") from None
            raise

    async def forward(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The same for a caller on another event loop, which goes on meanwhile."""
        refuse_in_service()
        self._refuse_own_thread()
        with self._lock:
            loop = self._running()
            answer = asyncio.run_coroutine_threadsafe(_made_there(make), loop)
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task is not None and task.cancelling()):
                raise ClientClosed("The client was closed meanwhile.") from None
            raise

    def close(self) -> None:
        """Closes what was opened and ends the thread. May be called twice."""
        self._refuse_own_thread()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loop, thread = self._loop, self._thread
        atexit.unregister(self.close)
        if loop is None or thread is None or self._process != os.getpid():
            return  # never opened, or only in the process that this one was forked from
        try:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result()
        finally:
            self._stopping.set()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise ClientClosed("The client is closed; open a new one.")
        if self._loop is None:
            self._loop, self._process = asyncio.new_event_loop(), os.getpid()
            self._thread = threading.Thread(
                target=_serve, args=(self._loop, self._stopping, self._ran), name="dotdo-client", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)
        elif self._process != os.getpid():
            raise ClientClosed(
                "The client was opened before this process was forked from another one, where its engine runs. "
                "Open a client after the fork."
            )
        return self._loop

    def _ran(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Runs the loop until it is stopped; False when a task has thrown it over."""
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            self._thrown_over(loop, error)
            return False
        return True

    def _thrown_over(self, _loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
        # asyncio lets these through from a task, such as one that an `async def` handler has made. On this thread there
        # is no program that they could end; who awaits the task is told, and others must not suffer from it.
        log.error(
            "a task of a handler raised %s; its awaiter is told, and everything else goes on", type(error).__name__
        )

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise CalledOutside(
                "Do was called on its own event loop (from an async handler or callback), where it would wait "
                "for itself. Use a service to compose actions, or AsyncDo in async code."
            )


async def _made_there(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Makes the coroutine on the loop on which it is awaited."""
    return await make()


def _serve(
    loop: asyncio.AbstractEventLoop, stopping: threading.Event, ran: Callable[[asyncio.AbstractEventLoop], bool]
) -> None:
    asyncio.set_event_loop(loop)
    try:
        while not ran(loop):
            if stopping.is_set():
                break
    finally:
        stragglers = asyncio.all_tasks(loop)
        for task in stragglers:
            task.cancel()  # its caller is told
        if stragglers:
            loop.run_until_complete(asyncio.wait(stragglers, timeout=STRAGGLER_SECONDS))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
