"""Sync functions of users wait for a thread when all are taken: that wait is nobody's fault, and who is given up in it
does not begin any more."""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dotdo import AsyncContext, AsyncDo, Catalogue, EffectCall, Retry, RunCancelled, action, effect
from dotdo.engine import threads as module
from dotdo.engine.engine import Engine
from dotdo.engine.threads import OnThread, Threads, TimeIsUp
from tests.guarantees.lab import in_loop
from tests.patience import PATIENCE

MOMENT = 0.01  # a timeout that passes while a function waits for its thread
ONCE = Retry(attempts=1)


telling, sent = Catalogue(), list[str]()


@effect("send", dedup="none", on_unknown="ask", timeout=MOMENT, retry=ONCE, catalogue=telling)
def send(call: EffectCall, text: str) -> None:
    """Happens once."""
    sent.append(text)


@action("tell", catalogue=telling)
async def tell(ctx: AsyncContext, text: str) -> None:
    """Has it sent."""
    ctx.stage(send, text=text)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has begun, a function has all the time of this machine."""
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=time.sleep))


class Taken:
    """The only thread, taken by something that ends when it is let go."""

    def __init__(self, threads: Threads) -> None:
        self._free, begun = threading.Event(), threading.Event()
        threads._limit = 1
        self.ended = threads.run(lambda: begun.set() or self._free.wait(PATIENCE))
        assert begun.wait(PATIENCE)

    async def let_go_later(self) -> None:
        """The same loop's timers come in order: those that were set for a moment have passed by then."""
        await asyncio.sleep(5 * MOMENT)
        self._free.set()
        assert await self.ended


@asynccontextmanager
async def opened(folder: Path, catalogue: Catalogue) -> AsyncIterator[tuple[AsyncDo, Engine]]:
    """A client and its engine."""
    async with AsyncDo(f"sqlite:///{folder / 'dotdo.db'}", catalogue=catalogue) as client:
        engine = await client.platform()
        assert isinstance(engine, Engine)
        yield client, engine


async def waiting(condition: Callable[[], Any]) -> None:
    """Returns when something waits for a thread."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is nothing that tells
            await asyncio.sleep(0)


@pytest.mark.usefixtures("patient")
@in_loop
async def test_time_of_a_handler_begins_when_it_has_a_thread(tmp_path: Path):
    own = Catalogue()

    @action("quick", timeout=MOMENT, retry=ONCE, catalogue=own)
    def quick() -> str:
        return "in time"

    async with opened(tmp_path, own) as (client, engine):
        taken = Taken(engine.threads)
        handles = [await client.start(quick) for _ in range(3)]
        await waiting(lambda: engine.threads._queue.qsize() == 3)
        await taken.let_go_later()
        assert [await handle.result(timeout=PATIENCE) for handle in handles] == ["in time"] * 3
        assert engine.outliving.count == 0
        kinds = {entry.kind for handle in handles for entry in await handle.journal()}
        assert "attempt_failed" not in kinds


@pytest.mark.usefixtures("patient")
@in_loop
async def test_time_of_an_effect_begins_when_it_has_a_thread(tmp_path: Path):
    sent.clear()
    async with opened(tmp_path, telling) as (client, engine):
        taken = Taken(engine.threads)
        handle = await client.start(tell, text="hello")
        await waiting(engine.threads._queue.qsize)
        await taken.let_go_later()
        await handle.result(timeout=PATIENCE)
        assert sent == ["hello"]


@in_loop
async def test_handler_that_is_cancelled_before_it_has_a_thread_never_begins(tmp_path: Path):
    own, begun = Catalogue(), list[str]()

    @action("marks", catalogue=own)
    def marks(what: str) -> str:
        begun.append(what)
        return what

    async with opened(tmp_path, own) as (client, engine):
        taken = Taken(engine.threads)
        cancelled = await client.start(marks, what="cancelled")
        await waiting(engine.threads._queue.qsize)
        await cancelled.cancel()
        with pytest.raises(RunCancelled):
            await cancelled.result(timeout=PATIENCE)
        assert engine.outliving.count == 0, "it has no thread that could go on"
        later = await client.start(marks, what="later")
        await taken.let_go_later()
        assert await later.result(timeout=PATIENCE) == "later"
        assert begun == ["later"]


@in_loop
async def test_function_that_has_begun_is_not_called_off_and_its_time_ends():
    threads, free, begun = Threads(asyncio.get_running_loop(), 1), threading.Event(), threading.Event()

    def works() -> None:
        begun.set()
        assert free.wait(PATIENCE)
        raise RuntimeError("nobody listens")

    job = OnThread(threads, works)
    with pytest.raises(TimeIsUp):
        await job.result(MOMENT)
    assert begun.is_set()
    assert not job.call_off()
    free.set()
    await asyncio.wait([job.future])
    assert isinstance(job.future.exception(), RuntimeError)


@in_loop
async def test_own_timeout_error_of_a_function_is_its_own():
    def raises() -> None:
        raise TimeoutError("mine")

    job = OnThread(Threads(asyncio.get_running_loop(), 1), raises)
    with pytest.raises(TimeoutError, match="mine"):
        await job.result(PATIENCE)


class Preempted(queue.SimpleQueue[Any]):
    """Whoever takes something is stopped right then, as the operating system may do, until he may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.go_on = threading.Event(), threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """What was put, late."""
        item = super().get(block, timeout)
        self.taken.set()
        assert self.go_on.wait(PATIENCE)
        return item


@in_loop
async def test_thread_that_is_about_to_begin_something_is_not_free_for_what_comes_then():
    threads, own, come = Threads(asyncio.get_running_loop()), Preempted(), threading.Event()
    threads._queue = own
    own.go_on.set()
    await threads.run(int)  # there is a thread now, and it is free
    own.go_on.clear()
    own.taken.clear()
    first = threads.run(partial(come.wait, PATIENCE))
    assert own.taken.wait(PATIENCE)
    second = threads.run(come.set)
    own.go_on.set()
    async with asyncio.timeout(PATIENCE / 2):
        assert await first, "the second one had to wait until it had ended"
        await second


@in_loop
async def test_who_waits_when_a_thread_is_lent_has_the_one_that_takes_its_place():
    threads, free = Threads(asyncio.get_running_loop(), 1), threading.Event()
    hangs = threads.run(partial(free.wait, PATIENCE))
    waits = [threads.run(int), threads.run(int)]
    threads.lend()
    assert await asyncio.wait_for(asyncio.gather(*waits), PATIENCE / 2) == [0, 0]
    assert not hangs.done()
    free.set()
    assert await hangs
