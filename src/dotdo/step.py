"""A step as a service holds it: a future whose identity is fixed when the action is called.

Awaiting it, or giving it to `gather` or `wait_for`, starts it; so does a task that was made of it, because it is a
coroutine as well (`asyncio.create_task`, TaskGroup). A future, because a task around each step would cost more than the
step. Who fulfils it is the engine's business.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import TracebackType
from typing import Any, Protocol, TypeVar

from dotdo.context import runner_for

R = TypeVar("R")


class StepOwner(Protocol):
    """Who made a step, and fulfils it. Each is told at most once, and none after the step is done."""

    def begin(self, step: "Step[Any]", /) -> None:
        """Somebody waits for the step: it may be fulfilled from here on, also at once."""
        ...

    def cancel(self, step: "Step[Any]", /) -> None:
        """The step was cancelled by the service after it had begun (a timeout, a TaskGroup)."""
        ...

    def drop(self, step: "Step[Any]", /) -> None:
        """The step was cancelled or closed before it had begun, and never will."""
        ...


class Step(asyncio.Future[R], Coroutine[Any, Any, R]):
    """One call of an action or child service inside a service. Awaiting it gives its output.

    identity: the step's id within its run, from the action's name, its input, and its count among equals.
    """

    __slots__ = ("_iterator", "_owner", "begun", "identity", "run_hash")
    run_hash: int

    def __init__(self, identity: str, owner: StepOwner, loop: asyncio.AbstractEventLoop, run_hash: int) -> None:
        super().__init__(loop=loop)
        self.identity, self.run_hash = identity, run_hash
        self.begun = False
        self._owner: StepOwner | None = owner
        self._iterator: Generator[Any, Any, R] | None = None

    def undo(self) -> "Step[None]":
        """Takes the step back by hand, once it has completed: `await step.undo()`.

        It runs the undo of the step's action (or undoes the run of the child service) now, as a step of its own; later
        undoing skips it. A step that failed has left nothing, so nothing happens; nor does it the second time. An undo
        that fails for good blocks the run; if a person then leaves it as it is, ActionFailed is raised.

        Raises InvalidOperation for a step that has not ended or declares no undo, CalledOutside outside a service.
        """
        return runner_for(f"{self!r}.undo()", "It works inside the service that called the action.").undo(self)

    def __hash__(self) -> int:
        return self.run_hash  # not by address: the order of a set of steps is the same on every replay

    # -- a future -----------------------------------------------------------------------------------------------------

    def add_done_callback(self, fn: Callable[..., object], /, *, context: Context | None = None) -> None:
        """Part of the future protocol: whoever waits calls this, so the step begins here."""
        if not self.begun and self._owner is not None:
            self.begun = True
            self._owner.begin(self)
        super().add_done_callback(fn, context=context)

    def cancel(self, msg: Any = None) -> bool:
        """Cancels the step: an attempt in flight ends."""
        owner, self._owner = self._owner, None
        if not super().cancel(msg):
            return False
        if owner is not None:
            (owner.cancel if self.begun else owner.drop)(self)
        return True

    def settled(self) -> None:
        """Called by the owner, who knows this: no cycle is left behind."""
        self._owner = None

    def leave_memory(self) -> None:
        """Called by the owner when the run leaves memory: a failure that nobody has read yet may be read next time."""
        self._owner = None
        if self.done():
            self._log_traceback = False

    # -- a coroutine, for what makes tasks ----------------------------------------------------------------------------

    def send(self, value: Any, /) -> Any:
        """Part of the coroutine protocol."""
        iterator = self._iterator
        if iterator is None:
            self._iterator = iterator = self.__await__()
        try:
            return iterator.send(value)
        except BaseException:
            self._iterator = None  # it has ended: to send to it once more is a SystemError in CPython
            raise

    def throw(
        self,
        typ: Any,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> Any:
        """Part of the coroutine protocol."""
        self._iterator = None
        self.close()
        raise typ if isinstance(typ, BaseException) else val or typ()  # type: ignore[misc]

    def close(self) -> None:
        """Part of the coroutine protocol. Drops a step that has not begun."""
        if not self.begun:
            self.cancel()

    def __repr__(self) -> str:
        return f"<Step {self.identity}>"
