"""The tasks, futures and handles of run loops: known by counters of their run, never by address."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

import msgspec


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
