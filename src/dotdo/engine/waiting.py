"""The durable waits of a run's steps: for a time, a child, a slot. The store knows of them: the run may leave memory.

While a step waits it does not count as busy; when nothing of a run is busy, the run is parked.
"""

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dotdo.records import WaitingFor
from dotdo.store.protocol import Message

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

T = TypeVar("T")


class Pause(asyncio.Future[T]):
    """A future that a part of a run waits for, idle: `await pause.over()`.

    The run is busy from the moment in which the future is settled, not only from the later turn of the loop in which
    its waiter goes on. Or it could be parked in between, when the message that woke it has been taken already: nothing
    would wake it again.
    """

    def __init__(self, run: "LiveRun") -> None:
        super().__init__(loop=run.engine.loop)
        self._run = run

    async def over(self) -> T:
        """Waits; meanwhile the run is less busy by one."""
        self._run.leave()
        return await self

    def set_result(self, result: T, /) -> None:
        """What was waited for has come."""
        super().set_result(result)
        self._run.enter()

    def cancel(self, msg: Any | None = None) -> bool:
        """Whoever waits gives up."""
        settled = super().cancel(msg)
        if settled:
            self._run.enter()
        return settled


class Waiting:
    """What the steps of one run wait for.

    now: in words and data, by step. early: messages of children that ended before anybody waited for them, in order.
    slots: by ticket; granted: tickets of which that was told before, or after, anybody waited.
    """

    def __init__(self, run: "LiveRun") -> None:
        self._run = run
        self._times: dict[str, Pause[None]] = {}
        self.now: dict[str, WaitingFor] = {}
        self.children: dict[str, Pause[Message]] = {}
        self.early: dict[str, list[Message]] = {}
        self.slots: dict[int, Pause[None]] = {}
        self.granted: set[int] = set()

    async def until(self, key: str, due: int, kind: str, text: str) -> None:
        """Waits until the store's clock shows `due`."""
        run = self._run
        pause = self._times[key] = Pause[None](run)
        wake = run.engine.alarm.at(due, partial(_wake, pause))
        self.now[key] = WaitingFor(kind, text, due, key)
        try:
            await pause.over()
        finally:
            wake.cancel()
            self.now.pop(key, None)
            self._times.pop(key, None)

    async def for_child(self, child: str, text: str, step: str) -> Message:
        """Waits for the message that a child run has ended."""
        early = self.early.get(child)
        if early:
            return early.pop(0)
        pause = self.children[child] = Pause[Message](self._run)
        self.now[step] = WaitingFor("child", text, None, step)
        try:
            return await pause.over()
        except asyncio.CancelledError:
            if pause.done() and not pause.cancelled():  # it came in the same turn: whoever waits next has it
                self.early.setdefault(child, []).insert(0, pause.result())
            raise
        finally:
            self.children.pop(child, None)
            self.now.pop(step, None)

    async def for_slot(self, step: str, ticket: int, text: str) -> None:
        """Waits for the message that a ticket has all its slots."""
        if ticket in self.granted:
            return
        pause = self.slots[ticket] = Pause[None](self._run)
        self.now[step] = WaitingFor("limit", text, None, step)
        try:
            await pause.over()
        finally:
            self.slots.pop(ticket, None)
            self.now.pop(step, None)

    def grant(self, ticket: int) -> None:
        """A ticket has all its slots."""
        self.granted.add(ticket)
        pause = self.slots.get(ticket)
        if pause is not None:
            _wake(pause)

    def stop_deliveries(self) -> None:
        """Deliveries that wait for their next try look up at once, and see that the run stops."""
        for key, pause in self._times.items():
            if self.now[key].kind == "delivery":
                _wake(pause)


def _wake(pause: Pause[None]) -> None:
    if not pause.done():
        pause.set_result(None)
