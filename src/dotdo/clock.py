"""Time as a parameter: the engine asks a clock, so that tests can move it.

Times are integer milliseconds since 1970 (UTC). A clock never goes back, so a jump of the system's clock cannot re-arm
a timer that has fired.
"""

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What the engine needs of time."""

    def now(self) -> int:
        """Milliseconds since 1970; never less than before."""
        ...

    def until(self, due: int) -> float | None:
        """Real seconds to sleep until `due`; None when only `on_change` can tell."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back, on whatever thread, each time the clock was moved by hand."""
        ...


_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic() -> float:
    """Seconds, also while the machine sleeps; nobody can set them."""
    return time.clock_gettime(_BOOT)


class SystemClock:
    """The machine's clock, made monotonic: `time.time` at the start, then never back."""

    def __init__(self) -> None:
        self._latest = 0

    def now(self) -> int:
        """Milliseconds since 1970."""
        now = int(time.time() * 1000)
        if now > self._latest:
            self._latest = now
        return self._latest

    def until(self, due: int) -> float | None:
        """Seconds of real time until `due`, at least 0."""
        return max(0.0, (due - self.now()) / 1000)

    def on_change(self, callback: Callable[[], None]) -> None:
        """The system's clock is not moved by hand, so there is nothing to call back."""


class StoreClock(SystemClock):
    """The clock of a store that several machines share, as its server tells it now and then; in between, seconds are
    counted here. A machine whose own clock is wrong, or is just being set right, changes nothing about it."""

    def __init__(self) -> None:
        super().__init__()
        self._offset = int((time.time() - monotonic()) * 1000)  # until the server has told its time

    def now(self) -> int:
        """Milliseconds since 1970."""
        now = int(monotonic() * 1000) + self._offset
        if now > self._latest:
            self._latest = now
        return self._latest

    def correct(self, told: int, seconds: float) -> None:
        """The server has just told its time (ms), to a question that took so long."""
        self._offset = told + round(seconds * 500) - int(monotonic() * 1000)


def duration(ms: int) -> str:
    """A length of time in words that are short: `340 ms`, `2.5 s`, `3 min 20 s`, `2 d 4 h`."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.3g} s" if ms < 59_950 else "60 s"
    seconds = round(ms / 1000)
    sizes = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)]
    large = next(index for index, (_, size) in enumerate(sizes) if seconds >= size)
    (unit, size), (smaller, part) = sizes[large], sizes[large + 1]
    rest = seconds % size // part
    return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest else "")
