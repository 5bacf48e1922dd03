"""An unsteady machine, to find tests whose outcome depends on a race: `pytest -p tests.unsteady tests/guarantees`.

Threads, the store, event loops and the test itself are held up at random moments, as where many processes share few
cores; that costs time but hardly any CPU. A test that fails only so waits for a length of time instead of for a signal,
or changes the world before the engine has come to where it should. Tests that measure speed may fail, too.

DOTDO_UNSTEADY: the seed of what is drawn. It does not repeat a run: threads draw in the order in which they come.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from dotdo.engine.threads import Threads
from dotdo.portal import Portal
from dotdo.store.sql import SqlStore
from dotdo.testing import ManualClock

SEED = int(os.environ.get("DOTDO_UNSTEADY", time.time_ns() % 1_000_000))
drawn = random.Random(SEED)


def hold_up(chance: float, longest: float) -> None:
    """Sleeps, as often as `chance` says (0 to 1), for up to `longest` seconds; mostly much shorter."""
    if drawn.random() < chance:
        time.sleep(longest * drawn.random() ** 2)


def held_up(function: Callable[..., Any], chance: float, longest: float) -> Callable[..., Any]:
    """The function, with a pause before or after it, or both."""

    def unsteady(*args: Any, **kwargs: Any) -> Any:
        hold_up(chance, longest)
        try:
            return function(*args, **kwargs)
        finally:
            hold_up(chance, longest)

    return unsteady


WHERE: list[tuple[type, tuple[str, ...], float, float]] = [
    (SqlStore, ("write", "claim_due", "rescue", "post", "file", "get_run", "read_journals", "next_due"), 0.15, 0.1),
    (Threads, ("_execute",), 0.2, 0.2),
    (ManualClock, ("advance", "time_to_next"), 0.3, 0.05),
    (Portal, ("call",), 0.2, 0.05),
    (threading.Thread, ("run",), 0.2, 0.2),
    (asyncio.events.Handle, ("_run",), 0.002, 0.1),
]


def pytest_report_header() -> str:
    """Says with which seed."""
    return f"unsteady: DOTDO_UNSTEADY={SEED}"


def pytest_configure() -> None:
    """Makes this process unsteady, until it ends."""
    for owner, names, chance, longest in WHERE:
        for name in names:
            setattr(owner, name, held_up(getattr(owner, name), chance, longest))
