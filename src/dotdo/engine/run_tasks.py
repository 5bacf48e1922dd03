"""The tasks, futures and handles of run loops: known by counters of their run, never by address."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

import msgspec

from dotdo.errors import RunEvicted

EVICTED = "The run was evicted from this process: its code must end."
EVICTION_TRIES = 3  # how often a coroutine may catch RunEvicted and wait again before it counts as refusing to end


class RunTask(asyncio.Task[Any]):
    """A task whose place in a set is the same on every replay. Made by `RunLoop.create_task` only."""

    __slots__ = ("run_context", "run_hash")
    run_context: Context  # Python 3.11 does not tell a task's context, and eviction has to run in it
    run_hash: int

    def __hash__(self) -> int:
        return self.run_hash


class RunFuture(asyncio.Future[Any]):
    """A future whose place in a set is the same on every replay. Made by `RunLoop.create_future` only."""

    __slots__ = ("run_hash",)
    run_hash: int

    def __hash__(self) -> int:
        return self.run_hash


class RunHandle(msgspec.Struct):
    """A callback that is ready to run. What `asyncio.Handle` is, at a fifth of its cost; its names are asyncio's."""

    _callback: Callable[..., object] | None
    _args: tuple[Any, ...] | None
    _context: Context

    def cancel(self) -> None:
        """It will not run."""
        self._callback = self._args = None

    def cancelled(self) -> bool:
        """Whether it will not run."""
        return self._callback is None


class RunTimerHandle(asyncio.TimerHandle):
    """A timer's callback; `run_key` is its key while it waits, None once it fired or was cancelled."""

    __slots__ = ("run_key",)
    run_key: str | None


def is_unread(task: Any) -> bool:
    """Whether the task has failed and nobody has looked at its exception."""
    return task._log_traceback  # asyncio's mark of it


def ends(task: Any) -> bool:
    """Whether the task's coroutine ended when told that its run is evicted."""
    task._log_destroy_pending = False  # or asyncio logs what we did on purpose
    coroutine = task.get_coro()  # None for a task that ended eagerly
    return coroutine is None or any(task.run_context.run(_evicts, coroutine) for _ in range(EVICTION_TRIES))


def _evicts(coroutine: Any) -> bool:
    try:
        # Unlike close(), throw() also unwinds an async generator that the coroutine waits in (Python 3.11 and 3.12).
        coroutine.throw(RunEvicted(EVICTED))
    except BaseException:
        return True  # whatever it raised, it has ended
    return False
