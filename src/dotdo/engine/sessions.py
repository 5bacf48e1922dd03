"""What is known of one connected worker, and of one task that a worker is to do."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from dotdo.worker_protocol import BESIDES, Batch, Completed, Register, RequestCall, State, Task, TaskState

What = tuple[str, str, int]  # action, effect or settle; name; version


class Handed:
    """A task for a worker, from the moment when somebody wants it. make: the task as it is sent, given id and token.

    what: who can do it. outcome: what a worker says; recorded: what it is told then. on_handed: a worker has it now.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        what: What,
        make: Callable[[str, str], Task],
        *,
        timeout: float | None = None,
        size: int = 0,
        on_handed: Callable[["Session"], None] = lambda session: None,
    ) -> None:
        self.what, self.make, self.timeout, self.size, self.on_handed = what, make, timeout, size, on_handed
        self.id, self.token = "", ""
        self.session: Session | None = None
        self.batch = 0  # of its session; 0: it was not sent yet
        self.outcome: asyncio.Future[Completed | Any] = loop.create_future()
        self.recorded: asyncio.Future[TaskState] = loop.create_future()
        self.request: Callable[[RequestCall], Any] | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def is_action(self) -> bool:
        """Whether it counts as one of the worker's `concurrency`."""
        return self.what[0] == "action"

    def record(self, state: State, detail: str = "") -> None:
        """Says what became of the outcome."""
        if not self.recorded.done():
            self.recorded.set_result(TaskState(self.id, state, detail))


class Session:
    """One worker, since it has registered. outbox: tasks that are its own and were not sent yet."""

    def __init__(self, id: str, actor: str | None, given: Register, offers: list[What], now: float) -> None:
        self.id, self.actor, self.name = id, actor, given.name or id
        self.concurrency, self.databases, self.offers = given.concurrency, tuple(given.databases), offers
        self.tasks: dict[str, Handed] = {}
        self.outbox: deque[Handed] = deque()
        self.untold: list[str] = []  # tasks that nobody wants any more
        self.actions = 0  # how many of its tasks are actions
        self.number, self.received = 0, 0  # batches
        self.last: Batch | None = None
        self.poll: asyncio.Future[None] | None = None
        self.draining = self.over = False
        self.lease_until = now
        self.timer: asyncio.TimerHandle | None = None

    def room(self, is_action: bool) -> int:
        """For how many more tasks of a kind it has room."""
        if is_action:
            return 0 if self.draining else self.concurrency - self.actions
        # One that drains has only what its handlers ask for left to do.
        return BESIDES - (len(self.tasks) - self.actions) if self.actions or not self.draining else 0

    def wake(self) -> None:
        """Has its claim answered."""
        if self.poll is not None and not self.poll.done():
            self.poll.set_result(None)


class NobodyOffers(Exception):
    """The last worker that could do a task has left, and nobody had begun it."""
