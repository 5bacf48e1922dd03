"""Turns at a SQLite file that several processes write.

SQLite lets waiting writers try again now and then, so one that writes without a pause keeps all others out: beside a
busy engine a client waited for one to three seconds. Whoever wants to write queues at a second lock first, and holds it
until SQLite has let it in; so the busy one stands behind it the next time, and each waits for one transaction only.
"""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager

from dotdo.errors import StoreUnusable

# In seconds. A process that was frozen in the queue must not stop the others: past this they go in without a turn.
PATIENCE = 0.25
PAUSE = 0.0003


class Turns:
    """The queue before one store's write lock: `flock` on `<store>.turn`."""

    def __init__(self, store: str) -> None:
        path = store + ".turn"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreUnusable(f"The file {path} cannot be opened: {error.strerror}.") from None

    @contextmanager
    def queue(self) -> Generator[None]:
        """Waits for a turn, and gives it on when the body, which begins the transaction, is through."""
        has_turn = self._take()
        try:
            yield
        finally:
            if has_turn:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _take(self) -> bool:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    return False
                time.sleep(PAUSE)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)
