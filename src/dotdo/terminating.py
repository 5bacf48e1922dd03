"""SIGTERM, which service managers and containers send first: the client drains, then the signal takes its usual course.

A second SIGTERM while the client drains is not kept waiting: it takes its usual course at once.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from dotdo.errors import DefinitionError

Restore = Callable[[], None]


def drain_first(close: Callable[[], Coroutine[Any, Any, None]]) -> Restore:
    """On SIGTERM awaits `close` on the running loop, then sends the signal again, to whatever handled it before.

    Returns what takes that back. Raises DefinitionError where signals do not arrive: on a loop of another thread.
    """
    loop, before = asyncio.get_running_loop(), _handler()
    kept: list[asyncio.Task[None]] = []

    def restore() -> None:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)

    async def drain() -> None:
        await close()
        os.kill(os.getpid(), signal.SIGTERM)

    def begin() -> None:
        restore()
        kept.append(loop.create_task(drain()))

    loop.add_signal_handler(signal.SIGTERM, begin)
    return restore


def drain_first_sync(close: Callable[[], None]) -> Restore:
    """The same for a client that is closed without await, whatever the main thread is doing."""
    before = _handler()

    def restore() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    def drain(_number: int, _frame: Any) -> None:
        restore()
        close()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, drain)
    return restore


def _handler() -> Any:
    if threading.current_thread() is not threading.main_thread():
        raise DefinitionError(
            "drain_on_sigterm=True works in the main thread only, because only there Python hears signals: open the "
            "client there, or close it yourself when your framework is told to stop."
        )
    # None: a handler that Python did not install, and cannot give back.
    return signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
