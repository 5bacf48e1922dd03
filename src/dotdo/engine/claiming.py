"""Takes runs that are due: after a wait, a message, a release, or the death of their owner.

Polling is the truth, hints only make it sooner. Rescue is a sweep for ever, in bounded batches, never a one-off.
"""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from dotdo.engine.reloading import take_up
from dotdo.engine.waking import Wake
from dotdo.errors import ClientClosed, StoreError

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine

BATCH = 500
POLL_SECONDS = 1.0
RETRY_SECONDS = 1.0


class Claimer:
    """The engine's loop that claims due runs."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._hint = asyncio.Event()
        self._wake: Wake | None = None
        self._next_rescue = self._next_look = 0.0
        self._sleeps = False
        self.coming = 0  # claimed runs on their way into memory
        self._full = False  # there was no room for more
        self._unsure = False  # a sweep failed: runs may have been claimed that nobody has begun
        self._task = engine.loop.create_task(self._work())

    def hint(self) -> None:
        """Something may be due, now or earlier than was known."""
        self._hint.set()

    def made_room(self) -> None:
        """A run has left memory."""
        if self._full:
            self._hint.set()

    @property
    def at_rest(self) -> bool:
        """Whether all that was due has been claimed, and nothing has become due since."""
        return self._sleeps and not self._hint.is_set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to claim nothing any more, be it that the loop ends, and with it whatever runs there."""
        return self._task.cancelling() > 0

    def stop(self) -> None:
        """Claims nothing from now on."""
        self._task.cancel()

    async def close(self) -> None:
        """Claims nothing any more."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _work(self) -> None:
        while True:
            try:
                await self._sweep()
                await self._wait()
            except ClientClosed:
                return
            except StoreError as error:
                # The store may come back; nothing is lost meanwhile. Said once, not with each try.
                level = logging.DEBUG if self._unsure else logging.ERROR
                self._engine.log.log(level, "claiming failed, trying again in %s s: %s", RETRY_SECONDS, error)
                await self._try_later()
            except Exception:  # nobody thought of this; but who claims nothing any more stands still for ever
                self._engine.log.exception("claiming failed, trying again in %s s", RETRY_SECONDS)
                await self._try_later()

    async def _try_later(self) -> None:
        self._unsure = True
        await asyncio.sleep(RETRY_SECONDS)

    async def _sweep(self) -> None:
        engine = self._engine
        if engine.lease is not None:
            if not engine.lease.lasts:
                return
            await engine.lease.take_up_strays()
        if self._unsure:
            for run in await engine.read(lambda: engine.store.own_runs(engine.node)):
                if run not in engine.live:
                    await take_up(engine, run)
            self._unsure = False
        if engine.lease is None or engine.loop.time() >= self._next_rescue:
            # Where nodes come and go, the look at all of them costs more than one for due runs.
            self._next_rescue = engine.loop.time() + POLL_SECONDS
            while await engine.committer.call(lambda: engine.store.rescue(engine.clock.now(), BATCH)) == BATCH:
                pass
        await engine.limiter.sweep()
        while True:
            room = min(BATCH, engine.capacity - len(engine.live) - self.coming)
            self._full = room <= 0
            if self._full:
                return
            node = engine.node
            claim = partial(engine.store.claim_due, node, engine.clock.now(), room)
            claims = await engine.committer.call(claim)
            if not claims:
                return
            await engine.resume(claims, node)

    async def _wait(self) -> None:
        engine = self._engine
        # Without room or a lease nothing can be claimed: what is due then must not ring the alarm over and over.
        may_claim = not self._full and (engine.lease is None or engine.lease.lasts)
        due = await engine.read(engine.store.next_due) if may_claim else None
        if due is not None and not self._hint.is_set():
            if self._wake is not None:
                self._wake.cancel()
            self._wake = engine.alarm.at(due, self.hint)
        # Not asyncio.timeout: it cancels this task for a turn of the loop, as the loop's end does (`is_cancelled`).
        poll = engine.loop.call_later(POLL_SECONDS, self._hint.set)
        try:
            self._sleeps = True
            await self._hint.wait()
        finally:
            poll.cancel()
            self._sleeps = False
            self._hint.clear()
        if engine.host is not None and engine.loop.time() >= self._next_look:
            self._next_look = engine.loop.time() + POLL_SECONDS
            await engine.host.look()
