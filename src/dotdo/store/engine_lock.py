"""The lock that allows one engine per store file: `flock` on `<store>.lock`, and the name of its process inside.

The kernel frees it when the process ends, however it ends. A forked process inherits the open file, and with it the
lock, which would then outlive the engine; so it closes its copy at once.
"""

import fcntl
import os
import re
import socket
from typing import Self

from dotdo.errors import StoreUnusable

_held: set["EngineLock"] = set()


class EngineElsewhere(StoreUnusable):
    """Another engine, most likely one in another process, runs on the store."""


class EngineLock:
    """The right to run the engine of one store file."""

    def __init__(self, file: int) -> None:
        self._file: int | None = file
        _held.add(self)

    @classmethod
    def take(cls, store: str) -> Self | None:
        """Takes the lock of a store if nobody has it. Raises StoreUnusable when its file cannot be opened."""
        path = store + ".lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreUnusable(f"The lock file {path} cannot be opened: {error.strerror}.") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return None
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError as error:
            os.close(file)
            raise StoreUnusable(f"The lock file {path} cannot be written: {error.strerror}.") from None
        return cls(file)

    def release(self) -> None:
        """Gives the lock back. May be called twice."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # also where a copy is open in a process that was forked unseen
            self.drop()

    def drop(self) -> None:
        """Closes this process's copy, without a word to others who share it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            _held.discard(self)


def lock_holder(store: str) -> str | None:
    """Who holds a store's lock, in words; None when nobody does.

    It is told by trying to share the lock for a moment. An engine that starts in that moment takes this for another
    engine, and looks again.
    """
    try:
        file = os.open(store + ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(file, 500, 0).decode(errors="replace").strip()
        return holder if re.fullmatch(r"process \d+ on .+", holder) else "a process that did not say which"
    finally:
        os.close(file)
    return None


def _let_go_in_child() -> None:
    for lock in list(_held):
        lock.drop()


os.register_at_fork(after_in_child=_let_go_in_child)
