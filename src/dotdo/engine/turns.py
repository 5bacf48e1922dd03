"""Whose turn it is to write to a SQLite database: one transaction at a time, in order of asking.

SQLite itself has no queue. Whoever finds the file locked looks again after sleeps that grow to 100 ms, so sync and
async handlers, which have a connection each, would spend more time asleep than the other one needs.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager

PATIENCE = 60.0  # seconds, like that of the pools


class Turns:
    """The queue before one database. A turn that was taken is given back by whoever took it, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self._taken = False
        self._is_over = False

    def take(self) -> None:
        """Waits for a turn, on a thread. Raises TimeoutError."""
        asked = self._ask()
        if asked is not None:
            try:
                asked.result(PATIENCE)
            except BaseException as error:
                self._leave(asked, error)
                raise

    async def take_async(self) -> None:
        """The same on the loop; who is cancelled meanwhile has none."""
        asked = self._ask()
        if asked is not None:
            try:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.wrap_future(asked)
            except BaseException as error:
                self._leave(asked, error)
                raise

    def give_back(self) -> None:
        """The next one may write."""
        with self._lock:
            while self._waiting:
                asked = self._waiting.popleft()
                if asked.set_running_or_notify_cancel():
                    break
            else:
                self._taken = False
                return
        asked.set_result(None)

    def end(self) -> None:
        """Nobody waits any more; whoever did goes on, and finds that its attempt is over."""
        with self._lock:
            self._is_over = True
            waiting = [*self._waiting]
            self._waiting.clear()
        for asked in waiting:
            if asked.set_running_or_notify_cancel():
                asked.set_result(None)

    @contextmanager
    def turn(self) -> Generator[None]:
        """A turn, on a thread."""
        self.take()
        try:
            yield
        finally:
            self.give_back()

    def _ask(self) -> Future[None] | None:
        with self._lock:
            if not self._taken or self._is_over:
                self._taken = True
                return None
            asked: Future[None] = Future()
            self._waiting.append(asked)
            return asked

    def _leave(self, asked: Future[None], error: BaseException) -> None:
        if not asked.cancel():
            self.give_back()  # it had come just now
        if isinstance(error, TimeoutError):
            raise TimeoutError(
                f"The application's SQLite database was in use by other attempts for {PATIENCE:g} s: "
                "SQLite has one writer at a time, from a handler's first statement to its end. Do what is slow before "
                "that statement, or give such actions a `concurrency`."
            ) from None
