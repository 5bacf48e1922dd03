"""Threads of sync handlers that go on after their attempt has ended: a thread cannot be killed.

Their context is dead; their SQL is cancelled and rolled back, and its connection leaves the pool, before the retry
starts. They are counted. Each has its place made good, so that other handlers have as many threads as ever; when there
are too many of them, the node starts nothing more and says why.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from dotdo.engine.failing import message_of
from dotdo.errors import NodeDraining
from dotdo.records import WaitingFor

if TYPE_CHECKING:
    from dotdo.engine.attempting import Attempt
    from dotdo.engine.engine import Engine
    from dotdo.engine.handling import HandlerOwner

MAX_OUTLIVING = 64


class Outliving:
    """The threads of one engine that outlive their attempts. draining: why the node starts nothing more, if so.

    excused: the node has just given up all its runs, so that a full house of threads goes on through no fault of the
    handlers. They come back when what they wait for does, and nobody need restart anything for that.
    """

    def __init__(self, engine: "Engine", limit: int = MAX_OUTLIVING) -> None:
        self._engine, self.limit = engine, limit
        self.count = 0
        self.excused = False
        self.draining: NodeDraining | None = None

    def add(self, future: "asyncio.Future[Any]", what: str = "a handler") -> None:
        """A thread goes on. future: done when it ends. what: whose it is, in words."""
        self.count += 1
        self._engine.threads.lend()
        self._engine.log.warning("the thread of %s goes on after its attempt has ended (%s such now)", what, self.count)
        future.add_done_callback(self._ended)
        if self.count >= self.limit and self.draining is None and not self.excused:
            self._drain(what)

    def _ended(self, future: "asyncio.Future[Any]") -> None:
        self.count -= 1
        self._engine.threads.take_back()
        if not future.cancelled() and (error := future.exception()) is not None:
            self._engine.log.debug("a handler ended after its attempt: %s", message_of(error))

    def _drain(self, what: str) -> None:
        engine = self._engine
        self.draining = NodeDraining(
            f"This node starts nothing more: {self.count} threads of handlers go on after their attempts have ended, "
            f"the last one of {what}. Threads cannot be killed, so restart the process; its runs go on then. Give the "
            'calls that hang timeouts of their own, or define the action with pool="process".'
        )
        engine.log.critical("%s", self.draining.message)
        engine.draining = True
        engine.claimer.stop()
        engine.answers.fail_all(self.draining)

    @property
    def waiting_for(self) -> WaitingFor | None:
        """What runs on this node wait for while it drains."""
        return None if self.draining is None else WaitingFor("restart", self.draining.message)


async def outlive(run: "HandlerOwner", future: "asyncio.Future[Any]", attempt: "Attempt") -> None:
    """A handler's thread goes on after its attempt: ends what it had begun in the database, then counts it."""
    engine = run.engine
    if not future.done():
        engine.outliving.add(future, f"attempt {attempt.number} of {attempt.step} in {attempt.run_id}")
    if attempt.work is None:
        return
    try:
        abandoned = await engine.threads.run(attempt.work.abandon)
    except Exception as error:  # of the driver's; the transaction may still be open
        engine.log.warning("a statement of %s could not be cancelled: %s", attempt.step, message_of(error))
        abandoned = False
    if not abandoned:
        await asyncio.wait([future])  # only the thread itself can roll back
