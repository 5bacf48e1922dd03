"""The durable waits of a run's steps: for a time, a child, a slot. The store knows of them: the run may leave memory.

While a step waits it does not count as busy; when nothing of a run is busy, the run is parked.
"""

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from dotdo.records import WaitingFor
from dotdo.store.protocol import Message

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


class Waiting:
    """What the steps of one run wait for.

    now: in words and data, by step. early: messages of children that ended before anybody waited for them, in order.
    slots: by ticket; granted: tickets of which that was told before, or after, anybody waited.
    """

    def __init__(self, run: "LiveRun") -> None:
        self._run = run
        self._times: dict[str, asyncio.Future[None]] = {}
        self.now: dict[str, WaitingFor] = {}
        self.children: dict[str, asyncio.Future[Message]] = {}
        self.early: dict[str, list[Message]] = {}
        self.slots: dict[int, asyncio.Future[None]] = {}
        self.granted: set[int] = set()

    async def until(self, key: str, due: int, kind: str, text: str) -> None:
        """Waits until the store's clock shows `due`."""
        run = self._run
        future = self._times[key] = run.engine.loop.create_future()
        wake = run.engine.alarm.at(due, partial(_wake, future))
        self.now[key] = WaitingFor(kind, text, due, key)
        run.leave()
        try:
            await future
        finally:
            wake.cancel()
            self.now.pop(key, None)
            self._times.pop(key, None)
            run.enter()

    async def for_child(self, child: str, text: str, step: str) -> Message:
        """Waits for the message that a child run has ended."""
        early = self.early.get(child)
        if early:
            return early.pop(0)
        run = self._run
        future = self.children[child] = run.engine.loop.create_future()
        self.now[step] = WaitingFor("child", text, None, step)
        run.leave()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it came in the same turn: whoever waits next has it
                self.early.setdefault(child, []).insert(0, future.result())
            raise
        finally:
            self.children.pop(child, None)
            self.now.pop(step, None)
            run.enter()

    async def for_slot(self, step: str, ticket: int, text: str) -> None:
        """Waits for the message that a ticket has all its slots."""
        if ticket in self.granted:
            return
        run = self._run
        future = self.slots[ticket] = run.engine.loop.create_future()
        self.now[step] = WaitingFor("limit", text, None, step)
        run.leave()
        try:
            await future
        finally:
            self.slots.pop(ticket, None)
            self.now.pop(step, None)
            run.enter()

    def grant(self, ticket: int) -> None:
        """A ticket has all its slots."""
        self.granted.add(ticket)
        future = self.slots.get(ticket)
        if future is not None:
            _wake(future)

    def stop_deliveries(self) -> None:
        """Deliveries that wait for their next try look up at once, and see that the run stops."""
        for key, future in self._times.items():
            if self.now[key].kind == "delivery":
                _wake(future)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
