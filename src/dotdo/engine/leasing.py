"""The lease of a node on a store that several share: renewed by a thread of its own, beside whatever the loop does.

A node that could not renew it in time starts nothing, drops all runs from memory, and comes back as a new node; so does
one that was expelled. Its runs go on wherever they are claimed next. No process ends, and nobody needs to do anything.
"""

import asyncio
import os
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, cast

from dotdo.clock import StoreClock, monotonic
from dotdo.engine.failing import message_of
from dotdo.engine.reloading import take_up
from dotdo.errors import ClientClosed, NodeExpelled, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun
    from dotdo.store.sharing_protocol import SharedStore

# As parts of the lease: how often it is renewed, how soon that is tried again, and for how long the node trusts in it,
# which ends well before others may take it for dead; how long one renewal may go without an answer once it has ended.
RENEW, RETRY, LASTS, SILENT = 0.2, 0.04, 0.66, 0.3
PATIENCE = 10.0  # seconds; of callers, while the node comes back
LOOK = 0.05  # seconds between looks at whether it is back
PROMPT = 1.0  # seconds in which a renewal is answered, as a rule


def not_known(error: BaseException) -> StoreUnavailable:
    """What whoever has asked for a run is told when its first commit was not answered, and nobody can be asked."""
    return StoreUnavailable(
        f"{message_of(error)} Whether the run was accepted is not known; ask again, with the same key."
    )


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


class Lease:
    """The lease of an engine that has joined. Its methods are called on the engine's loop."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._store = cast("SharedStore", engine.store)
        lease = self._store.lease
        self._every, self._again, self._lasts = RENEW * lease, RETRY * lease, LASTS * lease
        self._silent = SILENT * lease
        self._until = monotonic() + self._lasts
        self._asked: float | None = None  # when the renewal was asked for that has no answer yet
        self._returning: asyncio.Task[None] | None = None
        self.is_lost = False  # until the node has come back as a new one
        self._trusting = threading.Lock()  # an answer that just comes must not undo a loss
        self._losses = self._store.losses
        self._closing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="dotdo-lease", daemon=True)
        self._thread.start()
        self._looking = engine.loop.call_later(self._again, self._look)

    @property
    def lasts(self) -> bool:
        """Whether the node may start something now."""
        return monotonic() < self._until

    async def returned(self) -> None:
        """Returns when the node has a lease (again). Raises StoreUnavailable."""
        end = monotonic() + PATIENCE
        while not self.lasts:
            if monotonic() > end or self._closing:
                raise self._refusal()
            await asyncio.sleep(LOOK)

    def check(self) -> None:
        """Raises StoreUnavailable while the node is gone: what it has accepted then, no live node would have."""
        if self.is_lost:
            raise self._refusal()

    def _refusal(self) -> StoreUnavailable:
        return StoreUnavailable(f"The store {self._store.where} cannot be reached. Nothing was accepted.")

    def lost(self, error: BaseException) -> None:
        """The lease is over, or it cannot be known whether it is."""
        if self._closing:
            return
        if self._returning is not None:
            self._give_up_runs(error)  # those that were being accepted at that moment
            return
        engine = self._engine
        with self._trusting:
            self._until, self.is_lost = 0.0, True
        engine.outliving.excused = True
        engine.log.warning(
            "%s gives up its %s runs, which go on wherever they are claimed, and comes back as a new node: %s",
            engine.node, len(engine.live), error,
        )  # fmt: skip
        self._give_up_runs(error)
        self._store.give_up(message_of(error) if isinstance(error, StoreUnavailable) else "")
        engine.committer.flush()  # what is in the queue is written before the node is a new one, or never
        self._returning = engine.loop.create_task(self._return())

    def _give_up_runs(self, error: BaseException) -> None:
        engine = self._engine
        for run in list(engine.live.values()):
            if run.journal.is_late:
                engine.committer.condemn(run.journal)
            run.release()
            if isinstance(error, StoreUnavailable) and not run.journal.durable_seq:
                engine.answers.fail(run.id, not_known(error))
        engine.dropped.update(dict.fromkeys(engine.live, str(error)))
        engine.live.clear()

    def _look(self) -> None:
        """A server, or a net, that goes silent breaks no connection: then the thread waits for an answer for ever."""
        now, asked = monotonic(), self._asked
        if now >= self._until and asked is not None and now - asked >= self._silent and not self.is_lost:
            error = StoreUnavailable(f"The store {self._store.where} has not said a word for {now - asked:.1f} s.")
            if self._closing:
                self._store.give_up(error.message)
            else:
                self.lost(error)
        self._looking = self._engine.loop.call_later(self._again, self._look)

    async def _return(self) -> None:
        from dotdo.engine.engine import new_node

        engine, wait = self._engine, 0.05
        before, host, pid = engine.node, socket.gethostname(), os.getpid()
        while True:
            # Under another name with each try: if only the answer was lost, somebody of the first name is there by now.
            node, asked = new_node(), monotonic()
            try:
                await engine.committer.call(partial(self._store.rejoin, before, node, host, pid, engine.clock.now()))
                break
            except ClientClosed:
                return
            except StoreError as error:
                engine.log.info("%s cannot come back yet: %s", before, error)
            except Exception as error:  # whatever it is: who beats on and never comes back keeps its runs for ever
                engine.log.error("%s cannot come back yet: %s: %s", before, type(error).__name__, message_of(error))
            await asyncio.sleep(wait)
            wait = min(2 * wait, 1.0)
        engine.node, self._until, self._returning = node, asked + self._lasts, None
        self.is_lost = False
        self._losses = self._store.losses
        engine.outliving.excused = False
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
        self._looking.cancel()
        self._stop.set()
        self._thread.join(PROMPT)
        if self._thread.is_alive():
            self._store.give_up(f"The store {self._store.where} does not answer.")
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
        now, self._asked = None, asked
        try:
            now = self._store.renew(node)
        except Exception as failure:  # the next one may do; what matters is how long there was none
            error = failure
        self._asked = None
        answered = monotonic()
        if now is not None:
            with self._trusting:
                if node == engine.node and not self.is_lost:
                    self._until = asked + self._lasts
            if isinstance(engine.clock, StoreClock):
                engine.clock.correct(now, answered - asked)
            return self._every
        if error is None or answered >= self._until:
            self._tell(node, error or NodeExpelled("the other nodes took it for dead"))
        return self._again

    def _tell(self, node: str, why: BaseException) -> None:
        try:
            self._engine.loop.call_soon_threadsafe(self._heard, node, why)
        except RuntimeError:
            self._stop.set()  # the loop was closed without a word

    def _heard(self, node: str, why: BaseException) -> None:
        if node == self._engine.node:
            self.lost(why)
