"""`ManualClock`: time that stands still until a test moves it.

Retries, timers, delays and deadlines of days pass in milliseconds, and each as far as the test says.
"""

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Duration = str | float | timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2030, 1, 1, tzinfo=UTC)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS = {
    **{unit: unit for unit in _SECONDS},
    **{"millisecond": "ms", "second": "s", "sec": "s", "minute": "m", "min": "m", "hour": "h", "day": "d", "week": "w"},
}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*,?", re.I)


class ManualClock:
    """A clock for `Do(clock=...)` and `AsyncDo(clock=...)` that only a test moves. Safe to use from any thread.

    start: the time that it shows at first, with a time zone; by default the beginning of 2030 (UTC).

    What the engine measures on it is durable time: backoff between attempts and deliveries, timers of services,
    delayed starts, deadlines. A `timeout=` of an action is real time, because a handler is real work.
    """

    def __init__(self, start: datetime = START) -> None:
        if start.tzinfo is None:
            raise ValueError(f"start={start!r} has no time zone; give it one, such as datetime.UTC.")
        self._now = self.began = _milliseconds(start - EPOCH)
        self._asked: set[int] = set()
        self._callbacks: list[Callable[[], None]] = []
        self._changed = threading.Condition()

    def advance(self, by: Duration) -> None:
        """Moves the time forward and wakes whatever has become due.

        by: seconds, a timedelta, or text such as "3 days", "90 s" or "1 h 30 min". All of it passes at once: what
        becomes due in the middle sees the time at the end. Raises ValueError for a move back.
        """
        step = milliseconds(by)
        if step < 0:
            raise ValueError(f"advance({by!r}): time never goes back.")
        with self._changed:
            self._now += step
            self._asked = {due for due in self._asked if due > self._now}
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def advance_to_next(self, *, within: Duration | None = None, timeout: float = 60.0) -> timedelta:
        """Moves to the earliest time that something waits for, and returns how far that was.

        Parameters and errors as of `time_to_next`, which it waits for.
        """
        step = self.time_to_next(within=within, timeout=timeout)
        self.advance(step)
        return step

    def time_to_next(self, *, within: Duration | None = None, timeout: float = 60.0) -> timedelta:
        """Blocks until something waits for a time to come, and returns how far off the earliest such time is.

        So a test need not guess when an attempt has failed and its backoff begun. Call it from another thread than the
        engine's: with `Do` from any, with `AsyncDo` through `asyncio.to_thread`. A wait that has been given up
        meanwhile still counts.

        within: overlook what is further off, such as a deadline. timeout: seconds of real time after which
        TimeoutError is raised.
        """
        limit = None if within is None else _milliseconds(_timedelta(within))
        with self._changed:
            if not self._changed.wait_for(lambda: self._next(limit) is not None, timeout):
                raise TimeoutError(f"Nothing came to wait for a time within {timeout:g} s.")
            due = self._next(limit)
            assert due is not None
            return timedelta(milliseconds=due - self._now)

    def next_due(self) -> int | None:
        """The earliest time to come (ms) that something has waited for; None when nothing does."""
        with self._changed:
            return self._next(None)

    def _next(self, limit: int | None) -> int | None:
        return min((due for due in self._asked if limit is None or due - self._now <= limit), default=None)

    # -- dotdo.clock.Clock --------------------------------------------------------------------------------------------

    def now(self) -> int:
        """Milliseconds since 1970 (UTC)."""
        return self._now

    def until(self, due: int) -> float | None:
        """0 for a time that has come, else None: no sleep brings it about, only `advance`."""
        with self._changed:
            if due <= self._now:
                return 0.0
            self._asked.add(due)
            self._changed.notify_all()
            return None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back after each move, on the thread that made it."""
        with self._changed:
            self._callbacks.append(callback)


def milliseconds(duration: Duration) -> int:
    """A length of time: seconds, a timedelta, or text such as "3 days". Raises ValueError."""
    return _milliseconds(_timedelta(duration))


def _timedelta(duration: Duration) -> timedelta:
    if isinstance(duration, timedelta):
        return duration
    if isinstance(duration, str):
        return timedelta(seconds=_seconds(duration))
    return timedelta(seconds=duration)


def _seconds(text: str) -> float:
    total, position, end = 0.0, 0, len(text.rstrip())
    while position < end:
        part = _PART.match(text, position)
        name = part[2].lower() if part else ""
        unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"))
        if part is None or unit is None:
            raise ValueError(f"{text!r} is not a duration; write it like '3 days', '90 s' or '1 h 30 min'.")
        total += float(part[1]) * _SECONDS[unit]
        position = part.end()
    if not position:
        raise ValueError("An empty text is not a duration; write it like '3 days', '90 s' or '1 h 30 min'.")
    return total


def _milliseconds(delta: timedelta) -> int:
    return round(delta / timedelta(milliseconds=1))
