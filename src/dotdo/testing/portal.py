"""The loop's thread of a test's client: time skips while a call waits, and a killed engine is followed by another."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from dotdo.engine.engine import Engine
from dotdo.errors import ClientClosed
from dotdo.portal import Portal
from dotdo.testing.killing import EngineKilled, KillableStore, Points, Remains, bury

T = TypeVar("T")

# Which call of the test is under way on the loop, counted from 1: what it accepts is named after that.
call_number: ContextVar[int] = ContextVar("dotdo_test_call", default=0)


class Tested(Protocol):
    """What a portal needs of the client that it calls."""

    engine: Engine | None
    store: KillableStore | None

    async def skip(self, call: "asyncio.Future[Any]") -> None: ...

    async def close(self) -> None: ...

    def forget_engine(self) -> None: ...

    def remove_store(self) -> None: ...


class TestPortal(Portal):
    """Runs a client's coroutines on a loop of their own, also across the kill of its engine."""

    __test__ = False

    def __init__(self, client: Tested, points: Points) -> None:
        super().__init__(client.close)
        self._client, self._points = client, points
        self._calls = 0
        self._under_way: set[Future[Any]] = set()
        self._remains: list[Remains] = []
        points.killed = self._killed

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Awaits what `make` returns; again, if the engine is killed meanwhile and the call has not had its effect."""
        self._refuse_own_thread()
        context = contextvars.copy_context()
        self._calls += 1
        context.run(call_number.set, self._calls)

        async def work() -> T:
            call = asyncio.get_running_loop().create_task(make(), context=context)
            skipping = asyncio.ensure_future(self._client.skip(call))
            await asyncio.wait([call, skipping], return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                call.cancel()
                await asyncio.wait([call])
                skipping.result()
            skipping.cancel()
            return call.result()

        while True:
            with self._lock:
                loop = self._running()
                answer: Future[T] = Future()
                self._under_way.add(answer)
                loop.call_soon_threadsafe(_begin, loop, work, answer)
            try:
                return answer.result()
            except EngineKilled:
                if self._client.store is not None and self._client.store.posted:
                    self._client.store.posted = False
                    return None  # type: ignore[return-value]  # what leaves messages returns nothing
            finally:
                self._under_way.discard(answer)

    def close(self) -> None:
        """Closes the client, ends what kills have left, and removes the store."""
        super().close()
        for remains in self._remains:
            remains.end()
        self._remains.clear()
        self._client.remove_store()

    def _killed(self) -> None:
        assert self._loop is not None, "an engine runs on it"
        self._loop.call_soon_threadsafe(_stop_at_once)

    def _thrown_over(self, _loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
        if not self._points.dead:
            super()._thrown_over(_loop, error)
            return
        with self._lock:  # no call is begun meanwhile
            answer: BaseException = EngineKilled()
            try:
                engine = self._client.engine
                assert engine is not None, "only an engine is killed"
                self._remains.append(bury(engine, _loop))
            except Exception as failure:
                answer = failure
            self._client.forget_engine()
            self._points.revive()
            for call in list(self._under_way):  # who is told leaves it, on a thread of its own
                if not call.done():
                    call.set_exception(answer)


def _begin(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]], answer: Future[T]) -> None:
    def done(task: "asyncio.Task[T]") -> None:
        if answer.done():
            return
        if task.cancelled():
            answer.set_exception(ClientClosed("The client was closed meanwhile."))
        elif (error := task.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())

    loop.create_task(work()).add_done_callback(done)


def _stop_at_once() -> None:
    # Out of the loop without a look at what else is ready: nothing of a dead process runs.
    raise SystemExit("killed")
