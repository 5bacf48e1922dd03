"""Group commit: all waiting writes of all runs go into one transaction, on one writer thread.

Each waiter is told when its write is durable, never before. When a batch fails its writes are tried run by run, and
only the guilty run fails: nothing of that run is written afterwards under the same claim, so its journal has no gap.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from dotdo.errors import ClientClosed, FenceLost, NodeExpelled, StoreError, StoreUnavailable
from dotdo.store.protocol import Store, Write

if TYPE_CHECKING:
    from dotdo.engine.spilling import Late

T = TypeVar("T")
log = logging.getLogger("dotdo.engine")

_STOP = object()
MAX_ROWS = 1_000
# In a flood the writer need not wait until the loop has been round: both work at the same time. But each commit costs
# both of them: with 500 runs in flight, flushing at 128 gives 3,600 runs/s, at 256 3,900, at 400 3,800, never 3,400.
FLUSH_AT = 256
MAX_BYTES = 1024 * 1024

Done = Callable[[BaseException | None], None]


class _LoopClosed(Exception):
    """There is no loop any more on which somebody could be told."""


class Writer(Protocol):
    """Something with writes to collect (a run's journal, under one claim)."""

    run: str
    claim: int

    def take_write(self) -> tuple[Write, Done]:
        """Everything that was appended since the last time."""
        ...


class GroupCommit:
    """The writer thread of a store, and the queue before it. Its methods are called on the engine's loop."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.store, self._loop = store, loop
        self._dirty: list[Writer] = []
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._guilty: set[tuple[str, int]] = set()
        self._closed = False
        self._apart: ThreadPoolExecutor | None = None
        self._bringing: set[asyncio.Task[None]] = set()
        self.commits = 0
        self.watched: dict[str, set[asyncio.Event]] = {}  # by run: set when something of it has been written
        self._thread = threading.Thread(target=self._run, name="dotdo-writer", daemon=True)
        self._thread.start()

    def mark(self, writer: Writer) -> None:
        """Has the writer's appended entries written soon, together with those of others."""
        self._dirty.append(writer)
        if len(self._dirty) == 1:
            # Two turns of the loop: results that are ready now let services go on, and what these then
            # append (often their end) shares the commit.
            self._loop.call_soon(self._loop.call_soon, self._flush)
        elif len(self._dirty) > FLUSH_AT:
            # The newest stays for the flush above: it may be in the middle of what must be written together.
            self._flush(keep=1)

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits to be written; what was taken from here may not be durable yet."""
        return not self._dirty and not self._bringing and self._queue.empty()

    def unmark(self, writer: Writer) -> None:
        """Has nothing of the writer written for now: it marks itself again."""
        self._dirty.remove(writer)

    def condemn(self, writer: Writer) -> None:
        """Writes nothing of the writer any more: something that was to come before could not be written."""
        self.call(lambda: self._guilty.add((writer.run, writer.claim)))

    def bring(self, late: "Late", done: Done) -> None:
        """Brings what is large into the store, in parts between others' batches; then calls back."""
        task = self._loop.create_task(late.bring(self))
        self._bringing.add(task)
        task.add_done_callback(partial(self._brought, done))

    def _brought(self, done: Done, task: "asyncio.Task[None]") -> None:
        self._bringing.discard(task)
        if not task.cancelled():
            error = task.exception()
            done(
                error if error is None or isinstance(error, StoreError) else StoreError(f"The store failed: {error!r}")
            )

    def apart(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Runs what is long, because something is large, on a thread for such things."""
        if self._apart is None:
            self._apart = ThreadPoolExecutor(1, thread_name_prefix="dotdo-large")
        return self._loop.run_in_executor(self._apart, function)

    def call(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Runs a function on the writer thread, between batches."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(ClientClosed("The engine was stopped; it takes no more calls."))
        else:
            self._queue.put((function, future))
        return future

    async def close(self) -> None:
        """Writes what waits, then ends the thread."""
        while self._bringing:
            await asyncio.wait(self._bringing)
            await asyncio.sleep(0)  # what was brought is marked in a callback
        self._flush()
        await self.call(lambda: None)
        self._closed = True
        self._queue.put(_STOP)
        self._thread.join()
        if self._apart is not None:
            self._apart.shutdown()

    def abandon(self) -> None:
        """Ends the thread, as the end of its process would: what waits is not written. For `dotdo.testing`."""
        self._closed = True
        self._queue.put(_STOP)
        self._thread.join()
        if self._apart is not None:
            self._apart.shutdown()

    def flush(self) -> None:
        """Has everything that was appended written now."""
        self._flush()

    def _flush(self, keep: int = 0) -> None:
        dirty = self._dirty
        if dirty:
            self._dirty = dirty[len(dirty) - keep :]
            self._queue.put([writer.take_write() for writer in dirty[: len(dirty) - keep]])

    # -- on the writer thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except _LoopClosed:  # by somebody who had not closed the client: nobody is left to be told, or to ask for more
            log.warning("the event loop of %s was closed before its client; close that first", self.store.where)

    def _work(self) -> None:
        item = self._queue.get()
        while item is not _STOP:
            if isinstance(item, tuple):
                function, future = cast("tuple[Callable[[], Any], asyncio.Future[Any]]", item)
                self._call(function, future)
                item = self._queue.get()
                continue
            writes: list[tuple[Write, Done]] = item
            item = None
            # What came while the last batch was written joins this one.
            while item is None and _fits(writes) and not self._queue.empty():
                item = self._queue.get()
                if isinstance(item, list):
                    writes += item
                    item = None
            self._commit(writes)
            if item is None:
                item = self._queue.get()

    def _call(self, function: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        try:
            result, error = function(), None
        except BaseException as failure:  # handed to whoever waits
            result, error = None, failure
        self._on_loop(_resolve, future, result, error)

    def _on_loop(self, tell: Callable[..., None], *given: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(tell, *given)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            raise _LoopClosed from None

    def _commit(self, writes: list[tuple[Write, Done]]) -> None:
        parts = [writes[start : start + MAX_ROWS] for start in range(0, len(writes), MAX_ROWS)]
        writes.clear()  # or this thread would keep the runs of its last batch in memory
        for part in parts:
            outcomes = self._write(part)
            self._on_loop(self._tell, part, outcomes)
        self.store.settle()

    def _write(self, part: list[tuple[Write, Done]]) -> list[BaseException | None]:
        if not self._guilty:
            try:
                self.store.write([write for write, _ in part])
            except (StoreUnavailable, NodeExpelled) as error:
                if self.store.shared:  # it is nobody's fault, and would be the same with each
                    # The next batch may find the store well again: it must not write on behind a gap.
                    self._guilty.update((write.run, write.claim) for write, _ in part)
                    return [error] * len(part)
                return [self._write_alone(write) for write, _ in part]
            except Exception:  # found out run by run
                return [self._write_alone(write) for write, _ in part]
            self.commits += 1
            return [None] * len(part)
        return [self._write_alone(write) for write, _ in part]

    def _write_alone(self, write: Write) -> BaseException | None:
        if (write.run, write.claim) in self._guilty:
            return FenceLost(f"An earlier write of {write.run} failed, so this one was dropped.")
        try:
            self.store.write([write])
        except Exception as error:  # told to the run
            self._guilty.add((write.run, write.claim))
            return error if isinstance(error, StoreError) else StoreError(f"The store failed: {error!r}")
        self.commits += 1
        return None

    def _tell(self, part: list[tuple[Write, Done]], outcomes: list[BaseException | None]) -> None:
        """On the loop: tells each how its write went."""
        for (_, done), outcome in zip(part, outcomes, strict=True):
            done(outcome)
        if self.watched:
            for write, _ in part:
                for event in self.watched.get(write.run, ()):
                    event.set()
        part.clear()

    def forgive_all(self) -> None:
        """The node is a new one: nothing is left of what the old one had to write."""
        self.call(self._guilty.clear)

    def forgive(self, run: str, claim: int) -> None:
        """The run was claimed anew: the old claim can write nothing any more by itself."""
        self._loop.call_soon(self._queue.put, (lambda: self._guilty.discard((run, claim)), self._loop.create_future()))


def _fits(writes: list[tuple[Write, Done]]) -> bool:
    entries = sum(len(write.entries) + len(write.accepts) for write, _ in writes)
    if entries >= MAX_ROWS:
        return False
    return sum(len(entry.data) for write, _ in writes for entry in write.entries) < MAX_BYTES


def _resolve(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if not future.cancelled():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
