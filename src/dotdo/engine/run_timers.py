"""The timers of a run loop: known by their delay and a count, so that a journal can name them."""

import heapq

from dotdo.engine.run_tasks import RunTimerHandle

_SWEEP_FROM = 32


class RunTimer:
    """A timer of a run: its key in the journal, when it is due (ms, the store's clock), its place by creation."""

    __slots__ = ("due", "handle", "key", "ordinal")

    def __init__(self, key: str, due: int, ordinal: int, handle: RunTimerHandle) -> None:
        self.key, self.due, self.ordinal, self.handle = key, due, ordinal, handle


class RunTimers:
    """Those of one run. A timer that has fired or was cancelled has a handle without a key."""

    __slots__ = ("_alive", "_counts", "_heap", "_made")

    def __init__(self) -> None:
        self._made = 0
        self._heap: list[tuple[int, int, RunTimer]] = []
        self._alive: dict[str, RunTimer] = {}
        self._counts: dict[int, int] = {}

    def add(self, delay: int, now: int, handle: RunTimerHandle) -> None:
        """Makes a timer. delay, now: ms."""
        self._made += 1
        count = self._counts[delay] = self._counts.get(delay, 0) + 1
        handle.run_key = key = f"timer:{delay}#{count}"
        timer = self._alive[key] = RunTimer(key, now + delay, self._made, handle)
        heapq.heappush(self._heap, (timer.due, timer.ordinal, timer))

    def next(self) -> RunTimer | None:
        """The live timer that is due first; of those due together, the one made first."""
        while self._heap and self._heap[0][2].handle.run_key is None:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def get(self, key: str) -> RunTimer | None:
        """The live timer of that key, or None (never made, fired, cancelled)."""
        return self._alive.get(key)

    def made(self, key: str) -> bool:
        """Whether a timer of that key was made, be it alive, fired or cancelled."""
        delay, _, count = key.removeprefix("timer:").partition("#")
        return self._counts.get(int(delay), 0) >= int(count)

    def end(self, handle: RunTimerHandle) -> None:
        """A timer has fired or was cancelled."""
        if handle.run_key is None:
            return
        self._alive.pop(handle.run_key, None)
        handle.run_key = None
        # A step in a loop under `asyncio.timeout` would fill the heap with timers that are far off and cancelled.
        if len(self._heap) >= _SWEEP_FROM + 2 * len(self._alive):
            self._heap = [entry for entry in self._heap if entry[2].handle.run_key is not None]
            heapq.heapify(self._heap)

    def clear(self) -> None:
        """Forgets all of them."""
        self._heap.clear()
        self._alive.clear()
