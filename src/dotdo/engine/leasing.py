"""The lease of a node on a store that several share: renewed by a thread of its own, beside whatever the loop does.

A node that could not renew it in time starts nothing, drops all runs from memory, and comes back as a new node; so does
one that was expelled. Its runs go on wherever they are claimed next. No process ends, and nobody needs to do anything.
"""

import asyncio
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, cast

from dotdo.clock import StoreClock
from dotdo.engine.reloading import take_up
from dotdo.errors import ClientClosed, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun
    from dotdo.store.protocol import SharedStore

# As parts of the lease: how often it is renewed, how soon that is tried again, and for how long the node trusts in it,
# which ends well before others may take it for dead.
RENEW, RETRY, LASTS = 0.2, 0.04, 0.66
PATIENCE = 10.0  # seconds; of callers, while the node comes back
LOOK = 0.05  # seconds between looks at whether it is back


def monotonic() -> float:
    """Seconds, also while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


async def pause(run: "LiveRun") -> None:
    """Returns when the engine may start something for a run; for one that drains, never: the run is released.

    A lease that has lapsed may be renewed after all, if no other node has noticed. The run counts as busy meanwhile:
    it must not be parked without what it is about to do.
    """
    engine = run.engine
    while not engine.draining:
        if engine.lease is None or engine.lease.lasts:
            return
        await asyncio.sleep(LOOK)
    run.leave()
    try:
        await engine.loop.create_future()
    finally:
        run.busy += 1


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """The lease of an engine that has joined. Its methods are called on the engine's loop."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._store = cast("SharedStore", engine.store)
        lease = self._store.lease
        self._every, self._again, self._lasts = RENEW * lease, RETRY * lease, LASTS * lease
        self._until = monotonic() + self._lasts
        self._returning: asyncio.Task[None] | None = None
        self._is_lost, self._trusting = (
            False,
            threading.Lock(),
        )  # a renewal that is just being answered must not undo a loss
        self._losses = self._store.losses
        self._closing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="dotdo-lease", daemon=True)
        self._thread.start()

    @property
    def lasts(self) -> bool:
        """Whether the node may start something now."""
        return monotonic() < self._until

    async def returned(self) -> None:
        """Returns when the node has a lease (again). Raises StoreUnavailable."""
        end = monotonic() + PATIENCE
        while not self.lasts:
            if monotonic() > end or self._closing:
                raise StoreUnavailable(f"The store {self._store.where} cannot be reached. Nothing was accepted.")
            await asyncio.sleep(LOOK)

    def lost(self, error: BaseException) -> None:
        """The lease is over, or it cannot be known whether it is."""
        if self._returning is not None or self._closing:
            return
        engine = self._engine
        with self._trusting:
            self._until, self._is_lost = 0.0, True
        engine.log.warning(
            "%s gives up its %s runs, which go on wherever they are claimed, and comes back as a new node: %s",
            engine.node, len(engine.live), error,
        )  # fmt: skip
        for run in list(engine.live.values()):
            if run.journal.is_late:
                engine.committer.condemn(run.journal)
            run.release()
        engine.dropped.update(engine.live)
        engine.live.clear()
        self._store.give_up()
        engine.committer.flush()  # what is in the queue is written before the node is a new one, or never
        self._returning = engine.loop.create_task(self._return())

    async def _return(self) -> None:
        from dotdo.engine.engine import new_node

        engine, wait = self._engine, 0.05
        before, node = engine.node, new_node()
        host, pid = socket.gethostname(), os.getpid()
        while True:
            asked = monotonic()
            try:
                await engine.committer.call(lambda: self._store.rejoin(before, node, host, pid, engine.clock.now()))
                break
            except ClientClosed:
                return
            except StoreError as error:
                engine.log.info("%s cannot come back yet: %s", before, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, 1.0)
        engine.node, self._until, self._returning = node, asked + self._lasts, None
        self._is_lost = False
        self._losses = self._store.losses
        engine.dropped.clear()  # their rows say now that they are unsettled
        engine.committer.forgive_all()
        engine.log.warning("%s is back as %s", before, node)
        engine.claimer.hint()

    async def take_up_strays(self) -> None:
        """Runs that the store thinks are here: the answer to a claim may have been lost with the connection."""
        engine, losses = self._engine, self._store.losses
        if losses == self._losses or not self.lasts:
            return
        for run in await engine.read(lambda: self._store.own_runs(engine.node)):
            if run not in engine.live:
                await take_up(engine, run)
        self._losses = losses

    async def stop_returning(self) -> None:
        """The engine stops: it does not come back any more."""
        self._closing = True
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait([self._returning])

    def close(self) -> None:
        """Renews no more."""
        self._closing = True
        self._stop.set()
        self._thread.join()

    # -- on the thread of the lease -----------------------------------------------------------------------------------

    def _renew(self) -> None:
        wait = self._every
        while not self._stop.wait(wait):
            wait = self._beat()

    def _beat(self) -> float:
        """Renews the lease, or says that it is over; returns in how many seconds to do that again."""
        engine, node, asked = self._engine, self._engine.node, monotonic()
        error: BaseException | None = None
        now = None
        try:
            now = self._store.renew(node)
        except Exception as failure:  # the next one may do; what matters is how long there was none
            error = failure
        answered = monotonic()
        if now is not None:
            with self._trusting:
                if node == engine.node and not self._is_lost:
                    self._until = asked + self._lasts
            if isinstance(engine.clock, StoreClock):
                engine.clock.correct(now, answered - asked)
            return self._every
        if error is None or answered >= self._until:
            self._tell(node, error or StoreUnavailable("the other nodes took it for dead"))
        return self._again

    def _tell(self, node: str, why: BaseException) -> None:
        try:
            self._engine.loop.call_soon_threadsafe(self._heard, node, why)
        except RuntimeError:
            self._stop.set()  # the loop was closed without a word

    def _heard(self, node: str, why: BaseException) -> None:
        if node == self._engine.node:
            self.lost(why)
