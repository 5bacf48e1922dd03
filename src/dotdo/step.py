"""A step as a service holds it: a coroutine whose identity is fixed when the action is called.

Awaiting it, or giving it to `asyncio.create_task`, `gather` or a TaskGroup, starts it. What it waits for is a future of
the run's own loop; who fulfils that is the engine's business.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar

R = TypeVar("R")


class Step(Coroutine[Any, Any, R]):
    """One call of an action or child service inside a service. Await it once; it returns the output.

    identity: the step's id within its run, from the action's name, its input, and its count among equals.
    dropped: told when the step is cancelled or closed before it has begun.
    """

    __slots__ = ("_begin", "_dropped", "_iterator", "identity")

    def __init__(
        self,
        identity: str,
        begin: "Callable[[Step[R]], asyncio.Future[R]]",
        dropped: "Callable[[Step[R]], None] | None" = None,
    ) -> None:
        self.identity = identity
        self._begin: Callable[[Step[R]], asyncio.Future[R]] | None = begin
        self._dropped = dropped
        self._iterator: Generator[Any, Any, R] | None = None

    def __await__(self) -> Generator[Any, Any, R]:
        # They know the run, which knows this: no cycle is left behind.
        begin, self._begin, self._dropped = self._begin, None, None
        if begin is None:
            raise RuntimeError(f"The step {self.identity} was already awaited; call the action again for another one.")
        return begin(self).__await__()

    def send(self, value: Any, /) -> Any:
        """Part of the coroutine protocol."""
        iterator = self._iterator
        if iterator is None:
            # Not stored by `__await__`: a step that somebody awaits cannot be given to a task as well.
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
        iterator = self._iterator
        if iterator is None:
            # Cancelled before it began: there is nothing to take back.
            iterator = self._drop()
            next(iterator)
        return iterator.throw(typ if isinstance(typ, BaseException) else val or typ())  # type: ignore[operator]

    def close(self) -> None:
        """Part of the coroutine protocol."""
        (self._iterator or self._drop()).close()

    def _drop(self) -> Generator[Any, Any, R]:
        """It was given to a task, or closed, and so not forgotten; but it will never begin."""
        dropped, self._dropped, self._begin = self._dropped, None, None
        if dropped is not None:
            dropped(self)
        self._iterator = _nothing()
        return self._iterator

    def __repr__(self) -> str:
        return f"<Step {self.identity}>"


def _nothing() -> Generator[Any, Any, Any]:
    yield None
