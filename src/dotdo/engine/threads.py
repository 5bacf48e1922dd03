"""Daemon threads for sync handlers: made on demand, reused, and never waited for at exit.

The standard pool joins its threads when the interpreter ends, so one stuck handler would keep a process from ending.
What is user code runs as an `OnThread`: its time begins when it does, however long it waits for a thread, and once it
was called off it does not begin any more.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any, Generic, TypeVar

from dotdo.errors import ClientClosed

T = TypeVar("T")

MAX_THREADS = 64
IDLE_SECONDS = 10.0


class Threads:
    """Runs functions on daemon threads, at most `limit` at a time; others wait in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int = MAX_THREADS) -> None:
        self._loop, self._limit = loop, limit
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # How many threads there are, and how many of them are left when each function in the queue has got one (below
        # zero: how many functions have none). That one was taken from the queue changes neither, so there is no moment
        # in which a thread that is about to be busy is taken for a free one.
        self._count = self._spare = 0

    def run(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Starts the function in an empty context; the future gives its result. Cancelling does not stop it."""
        future: asyncio.Future[T] = self._loop.create_future()
        with self._lock:
            if self._spare <= 0 and self._count < self._limit:
                self._start()
            self._spare -= 1
            self._queue.put((function, future))
        return future

    def drain(self, seconds: float) -> bool:
        """Drops what has not begun and waits until all else has ended, so long at most; returns whether it has."""
        with self._lock, contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
                self._spare += 1
        end = time.monotonic() + seconds
        while self._spare < self._count and time.monotonic() < end:
            time.sleep(0.0005)
        return self._spare >= self._count

    def lend(self) -> None:
        """One of the threads does not come back for now: another one may take its place."""
        with self._lock:
            self._limit += 1
            if self._spare < 0:
                self._start()

    def take_back(self) -> None:
        """It has come back."""
        with self._lock:
            self._limit -= 1

    def _start(self) -> None:
        threading.Thread(target=self._work, name="dotdo-handler", daemon=True).start()
        self._count += 1
        self._spare += 1

    def _work(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._spare > 0:
                        self._spare -= 1
                        self._count -= 1
                        return
                continue  # something is on its way to this thread, or to another one
            self._execute(*item)
            item = None  # an idle thread must not keep the run that it worked for
            with self._lock:
                self._spare += 1

    def _execute(self, function: Callable[[], T], future: "asyncio.Future[T]") -> None:
        try:
            result, error = Context().run(function), None
        except BaseException as failure:  # handed to whoever waits
            result, error = None, failure
        try:
            self._loop.call_soon_threadsafe(_resolve, future, result, error)
        except RuntimeError:
            # The engine's loop is closed: nobody waits for this handler any more.
            return


class TimeIsUp(TimeoutError):
    """A function on a thread did not end in the time that it had; it may go on."""


class OnThread(Generic[T]):
    """A function that begins as soon as a thread is free, unless it is called off before. future: of its result."""

    __slots__ = ("_began", "_function", "_is_off", "future")

    def __init__(self, threads: Threads, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._began: float | None = None
        self._is_off = False
        self.future: asyncio.Future[T] = threads.run(self._run)

    async def result(self, timeout: float | None) -> T:
        """Its result. Raises what it raises, and TimeIsUp when that has not come so many seconds after it began."""
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while True:
            limit = asyncio.timeout_at(until)
            try:
                async with limit:
                    return await asyncio.shield(self.future)
            except TimeoutError:
                if timeout is None or not limit.expired():
                    raise  # the function's own
            left = timeout if self._began is None else self._began + timeout - time.monotonic()
            if left <= 0:
                raise TimeIsUp
            until = loop.time() + left

    def call_off(self) -> bool:
        """It does not begin any more; returns whether it had not begun, so that nothing of it has happened or will."""
        self._is_off = True
        if self._began is None:
            self.future.cancel()
            return True
        if not self.future.done():
            self.future.add_done_callback(_ignore)
        return False

    def _run(self) -> T:
        self._began = time.monotonic()  # before it looks: whoever calls it off and sees no beginning can be sure
        function, self._function = self._function, None
        if self._is_off or function is None:
            raise asyncio.CancelledError
        return function()


def on_pool(loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor, work: Callable[[], T]) -> "asyncio.Future[T]":
    """Runs work on a pool's thread. Raises ClientClosed when the interpreter ends: then no pool takes anything."""
    try:
        return loop.run_in_executor(pool, work)
    except RuntimeError:
        raise ClientClosed("The program ends; nothing more is begun.") from None


def _ignore(future: "asyncio.Future[Any]") -> None:
    """Nobody waits for it: asyncio need not say that nobody has seen its error."""
    if not future.cancelled():
        future.exception()


def _resolve(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration | GeneratorExit):
        # A future cannot carry these.
        future.set_exception(RuntimeError(f"the handler raised {type(error).__name__}"))
    else:
        future.set_exception(error)
