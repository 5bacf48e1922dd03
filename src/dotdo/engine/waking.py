"""The alarm: calls back when the store's clock reaches a time. All durable waits of runs in memory go through it.

It sleeps in real time as the clock says, and looks again whenever the clock was moved by hand.
"""

import asyncio
import heapq
import logging
from collections.abc import Callable

from dotdo.clock import Clock

log = logging.getLogger("dotdo.engine")

# A sleep is cut into pieces, because the system's clock may be set or the machine suspended meanwhile.
LONGEST_SLEEP = 60.0
# From how many entries on those that were cancelled are thrown out, whenever there are twice as many as after the last
# time: a run that leaves memory until next month cancels its wake, which would stay until then.
SWEEP_FROM = 64


class Wake:
    """One callback to come. `cancel` is idempotent."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not be called."""
        self.callback = None


class Alarm:
    """Callbacks by due time, on one loop."""

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock, self._loop = clock, loop
        self._heap: list[tuple[int, int, Wake]] = []
        self._count, self._sweep_at = 0, SWEEP_FROM
        self._timer: asyncio.TimerHandle | None = None
        self._armed: int | None = None
        self._closed = False
        clock.on_change(self._changed)

    def at(self, due: int, callback: Callable[[], None]) -> Wake:
        """Calls back once the clock shows `due` (ms), never from inside this call."""
        self._count += 1
        wake = Wake(callback)
        heapq.heappush(self._heap, (due, self._count, wake))
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        if self._armed is None or due < self._armed:
            self._arm(due)
        return wake

    @property
    def held(self) -> int:
        """How many callbacks it holds, cancelled ones too."""
        return len(self._heap)

    def close(self) -> None:
        """Calls nothing any more."""
        self._closed = True
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].callback is not None]
        heapq.heapify(self._heap)
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._heap))

    def _changed(self) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(self._ring)

    def _arm(self, due: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed = due
        seconds = self._clock.until(due)
        if seconds is not None:
            self._timer = self._loop.call_later(min(seconds, LONGEST_SLEEP), self._ring)

    def _ring(self) -> None:
        if self._closed:
            return
        self._armed = None
        now = self._clock.now()
        while self._heap and (self._heap[0][2].callback is None or self._heap[0][0] <= now):
            wake = heapq.heappop(self._heap)[2]
            callback, wake.callback = wake.callback, None
            if callback is not None:
                try:
                    callback()
                except Exception:  # or everybody else's waits would stand still with this one
                    log.exception("a callback of the alarm failed")
        if self._heap:
            self._arm(self._heap[0][0])
