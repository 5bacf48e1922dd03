"""The run loop: replays in one order, keeps to itself, ends when told, and does no I/O. One test per lesson."""

import asyncio
import contextlib
import gc
import logging
import math
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any

import anyio
import pytest

from dotdo.engine.run_loop import RunLoop
from dotdo.engine.run_tasks import RunFuture, RunTask
from dotdo.errors import RunEvicted, ServiceDidIO, ServiceSpins


def new_loop(salt: int = 5, **options: Any) -> RunLoop:
    return RunLoop(salt=salt, now=1_000, **options)


def begin(main: Coroutine[Any, Any, Any], loop: RunLoop | None = None) -> tuple[RunLoop, RunTask]:
    loop = loop or new_loop()
    task = loop.create_task(main, context=Context())
    loop.drain()
    return loop, task


def finish(main: Coroutine[Any, Any, Any], loop: RunLoop | None = None) -> Any:
    """Run to the end, firing timers in order of their time; then evict, and return the result."""
    loop, task = begin(main, loop)
    while not task.done() and (timer := loop.next_timer()):
        loop.advance(timer.due)
        loop.fire(timer)
        loop.drain()
    assert task.done(), "waits for what can never happen"
    try:
        return task.result()
    finally:
        assert loop.evict() == []


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


# -- the same order on every replay -----------------------------------------------------------------------------------


def test_hashes_depend_on_the_run_and_the_count_only():
    # Written down, because a run may go on in a later version of Python or of dotdo.
    assert [hash(new_loop().create_future()), hash(new_loop(6).create_future())] == [
        1086195730931344576,
        64489063851049341,
    ]
    program = (
        "from dotdo.engine.run_loop import RunLoop\n"
        "async def nothing(): pass\n"
        "loop = RunLoop(salt=5, now=0)\n"
        "hashes = [hash(loop.create_task(nothing())) for _ in range(3)]\n"
        "print(hashes + [hash(loop.create_future()) for _ in range(3)])\n"
        "loop.evict()"
    )
    loop = new_loop()
    hashes = [hash(loop.create_task(forever())) for _ in range(3)] + [hash(loop.create_future()) for _ in range(3)]
    loop.evict()
    for seed in "12":
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
        printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        assert printed.stdout.decode().strip() == str(hashes)


def test_run_is_drained_inside_a_task_of_another_loop_which_is_the_current_one_again_afterwards():
    async def service() -> str:
        inner = asyncio.current_task()
        await asyncio.sleep(3)
        assert asyncio.current_task() is inner is not None
        return "done"

    async def replays() -> None:
        outer = asyncio.current_task()
        assert finish(service()) == "done"
        assert asyncio.current_task() is outer
        async with asyncio.timeout(60):  # asks for the current task
            await asyncio.sleep(0)

    asyncio.run(replays())


def test_task_that_asyncio_refuses_to_run_is_an_error_and_does_not_wait_for_ever():
    class Refused(asyncio.Task[Any]):
        def step(self) -> None:
            raise RuntimeError("Cannot enter into task")

    loop, task = begin(forever())
    refused = Refused(forever(), loop=loop)
    loop.drain()
    loop.call_soon(refused.step)
    with pytest.raises(RuntimeError, match="Cannot enter"):
        loop.drain()
    refused.cancel()
    loop.drain()
    assert not task.done()
    assert loop.evict() == []


def test_hashes_of_different_runs_are_far_apart():
    for salts in (range(5_000), range(0, 5_000 << 40, 1 << 40)):
        hashes = [hash(new_loop(salt).create_future()) for salt in salts]
        assert len(set(hashes)) == len(hashes)
        assert len({each % 8192 for each in hashes}) > 8192 * 0.3  # as many as chance would give: 46 % of the places
        assert len({each >> 47 for each in hashes}) > 8192 * 0.3


def test_hashes_of_consecutive_tasks_do_not_collide_in_a_small_table():
    loop = new_loop()
    tasks = [loop.create_task(forever()) for _ in range(64)]
    assert len({hash(task) % 64 for task in tasks}) == 64
    loop.evict()


def test_tasks_and_futures_are_equal_to_themselves_only():
    one, other = new_loop(), new_loop()
    futures = [one.create_future(), other.create_future()]
    assert hash(futures[0]) == hash(futures[1])
    assert futures[0] != futures[1]
    assert isinstance(futures[0], RunFuture)


def test_tasks_come_out_of_a_set_in_the_same_order():
    async def main() -> list[str]:
        async def child() -> None:
            await asyncio.sleep(0)

        tasks = {asyncio.create_task(child()) for _ in range(40)}
        done, _ = await asyncio.wait(tasks)
        return [task.get_name() for task in done]

    orders: list[list[str]] = []
    shift: list[Any] = []  # other addresses each time
    for _ in range(5):
        orders.append(finish(main()))
        shift.append([object() for _ in range(1_000)])
    assert all(order == orders[0] for order in orders)
    assert sorted(orders[0]) != orders[0]


def test_as_completed_starts_coroutines_in_the_given_order():
    async def main(kind: Callable[[Any], Any], extra: int) -> list[int]:
        started: list[int] = []

        async def child(number: int) -> None:
            started.append(number)

        shift = [child(-1) for _ in range(extra)]
        children = [child(number) for number in range(30)]
        for soonest in asyncio.as_completed(kind([*children, children[0]])):
            await soonest
        for coroutine in shift:
            coroutine.close()
        return started

    for kind in (list, tuple, dict.fromkeys, lambda given: dict(enumerate(dict.fromkeys(given))).values()):
        for extra in range(0, 50, 10):
            assert finish(main(kind, extra)) == list(range(30))


@pytest.mark.parametrize("kind", [set, iter])
def test_as_completed_refuses_coroutines_without_an_order(kind: Callable[[Any], Any]):
    async def main() -> None:
        children = [forever(), forever()]
        try:
            for soonest in asyncio.as_completed(kind(children)):
                await soonest
        finally:
            for child in children:
                child.close()

    with pytest.raises(TypeError, match="Give it a list"):
        finish(main())


def test_as_completed_takes_tasks_in_any_collection():
    async def main(kind: Callable[[Any], Any]) -> int:
        tasks = [asyncio.create_task(asyncio.sleep(0.01 * number, number)) for number in (3, 1, 2)]
        return [await soonest for soonest in asyncio.as_completed(kind(tasks))]  # type: ignore[return-value]

    for kind in (list, set, iter):
        assert finish(main(kind)) == [1, 2, 3]


def test_gathers_come_out_of_a_set_in_the_same_order():
    async def main() -> list[int]:
        gathers = [asyncio.gather(asyncio.sleep(0.01), asyncio.sleep(0.01)) for _ in range(20)]
        done, _ = await asyncio.wait(gathers)
        return [gathers.index(gather) for gather in done]

    shift: list[Any] = []
    orders: list[list[int]] = []
    for _ in range(5):
        orders.append(finish(main()))
        shift.append([object() for _ in range(1_000)])
    assert all(order == orders[0] for order in orders)


def test_gathers_outside_of_runs_are_left_as_they_are():
    async def main() -> bool:
        gather = asyncio.gather(asyncio.sleep(0))
        await gather
        return hash(gather) == object.__hash__(gather) and gather in {gather}

    assert asyncio.run(main())


def test_default_task_names_count_per_run():
    async def main() -> list[str]:
        return [asyncio.create_task(asyncio.sleep(0), name=name).get_name() for name in (None, "mine", None)]

    assert finish(main()) == finish(main()) == ["Task-2", "mine", "Task-4"]


def test_results_are_handed_over_one_at_a_time_after_the_service_is_idle():
    seen: list[str] = []
    futures: list[asyncio.Future[str]] = []

    async def branch() -> None:
        futures.append(asyncio.get_running_loop().create_future())
        seen.append(await futures[-1])
        await asyncio.sleep(0)
        seen.append("idle")

    async def main() -> None:
        await asyncio.gather(branch(), branch())

    loop, task = begin(main())
    for future, result in zip(futures, "ab", strict=True):
        future.set_result(result)
        assert len(seen) % 2 == 0  # setting a result runs nothing
        loop.drain()
    assert seen == ["a", "idle", "b", "idle"]
    assert task.done()


def test_coroutine_objects_of_our_own_are_taken_like_coroutines():
    class Step(Coroutine[Any, Any, int]):
        """What a service call returns: its identity is fixed before it is awaited."""

        def __init__(self) -> None:
            self.iterator: Generator[Any, Any, Any] | None = None

        def __await__(self) -> Generator[Any, Any, int]:
            yield from asyncio.sleep(0.01).__await__()
            return 3

        def send(self, value: Any, /) -> Any:
            self.iterator = self.iterator or self.__await__()
            return self.iterator.send(value)

        def throw(self, *error: Any) -> Any:
            self.iterator = self.iterator or self.__await__()
            return self.iterator.throw(*error)

        def close(self) -> None:
            raise AssertionError("eviction throws")

    async def main() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(Step()), asyncio.create_task(Step())]
        gathered = await asyncio.gather(Step(), Step())
        completed = [await soonest for soonest in asyncio.as_completed([Step(), Step()])]
        return [*(task.result() for task in tasks), *gathered, *completed, await asyncio.wait_for(Step(), 1)]

    assert finish(main()) == [3] * 7
    loop, _ = begin(Step())
    assert loop.evict() == []


# -- clock and timers --------------------------------------------------------------------------------------------------


def test_time_is_that_of_the_entries_and_never_goes_back():
    loop = new_loop()
    assert loop.time() == 0.0
    loop.advance(1_123)
    assert loop.time() == 0.123
    loop.advance(1_100)
    assert (loop.now, loop.time()) == (1_123, 0.123)


def test_timer_keys_count_equal_delays_of_a_run():
    loop = new_loop()
    loop.call_later(0.1, print)
    loop.advance(2_007)
    loop.call_at(loop.time() + 0.1, print)
    loop.call_later(-1, print)
    loop.call_soon(print)
    keys = ["timer:100#1", "timer:100#2", "timer:0#1"]
    assert [loop.timer(key).due for key in keys] == [1_100, 2_107, 2_007]  # type: ignore[union-attr]
    assert loop.timer("timer:100#3") is None


def test_timers_are_due_by_time_then_by_creation():
    loop = new_loop()
    fired: list[str] = []
    for delay, name in ((0.2, "late"), (0.1, "first"), (0.1, "second"), (0.1, "cancelled")):
        handle = loop.call_later(delay, fired.append, name)
    handle.cancel()
    assert loop.timer("timer:100#3") is None
    while timer := loop.next_timer():
        loop.fire(timer)
        assert loop.timer(timer.key) is None
        loop.drain()
    assert fired == ["first", "second", "late"]


def test_timers_fire_only_when_the_engine_says_so_and_in_any_order():
    loop = new_loop()
    fired: list[int] = []
    loop.call_later(1, fired.append, 1)
    loop.call_later(2, fired.append, 2)
    loop.advance(1_000_000)
    loop.drain()
    assert fired == []
    for key in ("timer:2000#1", "timer:1000#1"):
        loop.fire(loop.timer(key))  # type: ignore[arg-type]
        loop.drain()
    assert fired == [2, 1]


def test_a_fire_that_comes_late_is_dropped():
    loop = new_loop()
    fired: list[int] = []
    handle = loop.call_later(1, fired.append, 1)
    timer = loop.next_timer()
    assert timer is not None
    handle.cancel()
    loop.fire(timer)
    loop.drain()
    loop.call_later(1, fired.append, 2)
    again = loop.next_timer()
    assert again is not None
    loop.fire(again)
    loop.fire(again)
    handle.cancel()
    loop.drain()
    assert fired == [2]


def test_cancelled_timers_do_not_pile_up():
    loop = new_loop()
    kept = loop.call_later(9_999, print)
    for _ in range(10_000):
        loop.call_later(3_600, print).cancel()
    assert loop._timers is not None
    assert len(loop._timers._heap) < 100
    assert loop.next_timer() is loop.timer("timer:9999000#1")
    assert not kept.cancelled()


def test_an_endless_sleep_is_a_timer_in_the_far_future():
    loop, task = begin(asyncio.sleep(math.inf))
    timer = loop.next_timer()
    assert timer is not None
    assert 2**44 < timer.due < 2**53  # an exact number in every JSON reader
    assert not task.done()
    loop.evict()


def test_a_cancelled_step_drops_its_late_result():
    futures: list[asyncio.Future[int]] = []

    async def main() -> str:
        futures.append(asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(5):
                await futures[0]
        except TimeoutError:
            await asyncio.sleep(1)
            return "timed out"
        return "done"

    loop, task = begin(main())
    timer = loop.timer("timer:5000#1")
    assert timer is not None
    loop.fire(timer)
    loop.drain()
    assert futures[0].cancelled()
    with pytest.raises(asyncio.InvalidStateError):
        futures[0].set_result(1)
    timer = loop.timer("timer:1000#1")
    assert timer is not None
    loop.fire(timer)
    loop.drain()
    assert task.result() == "timed out"


# -- draining ----------------------------------------------------------------------------------------------------------


def outer_loops() -> list[Any]:
    loops: list[Any] = [asyncio.new_event_loop]
    with contextlib.suppress(ImportError):
        import uvloop

        loops.append(uvloop.new_event_loop)
    return loops


@pytest.mark.parametrize("new_outer", outer_loops())
def test_a_drain_in_a_callback_of_an_outer_loop_leaves_it_as_it_was(new_outer: Any):
    seen: list[Any] = []
    hooks_inside: list[Any] = []

    async def service() -> None:
        loop = asyncio.get_running_loop()
        seen.extend([loop, asyncio.current_task(), loop.is_running()])
        hooks_inside.extend(sys.get_asyncgen_hooks())
        await asyncio.sleep(0)

    async def main() -> None:
        outer = asyncio.get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        done = outer.create_future()
        loop = new_loop()
        task = loop.create_task(service(), context=Context())

        def callback() -> None:
            loop.drain()
            seen.extend([asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()])
            done.set_result(None)

        outer.call_soon(callback)
        await done
        assert task.done()
        assert seen == [loop, task, True, outer, None, hooks]
        assert not loop.is_running()
        assert hooks_inside != list(hooks)
        await asyncio.sleep(0)
        loop.evict()
        assert (asyncio.get_running_loop(), sys.get_asyncgen_hooks()) == (outer, hooks)

    with contextlib.closing(new_outer()) as outer:
        outer.run_until_complete(main())


def test_a_drain_budget_ends_a_service_that_spins():
    async def main() -> None:
        while True:  # noqa: ASYNC110  # the mistake in question
            await asyncio.sleep(0)

    loop = new_loop(budget=1_000)
    before = sys.get_asyncgen_hooks()
    with pytest.raises(ServiceSpins, match="ran 1000 callbacks without waiting"):
        begin(main(), loop)
    assert sys.get_asyncgen_hooks() == before
    assert asyncio._get_running_loop() is None
    assert gc.isenabled()
    assert loop.evict() == []


def test_a_drain_budget_counts_each_drain_anew_and_is_exact():
    calls: list[int] = []
    loop = new_loop(budget=10)
    for _ in range(3):
        for number in range(10):
            loop.call_soon(calls.append, number)
        loop.call_soon(calls.append, -1).cancel()
        loop.drain()
    assert len(calls) == 30
    for number in range(11):
        loop.call_soon(calls.append, number)
    with pytest.raises(ServiceSpins):
        loop.drain()
    assert len(calls) == 40


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_of_user_code_is_the_failure_of_its_task(error: BaseException, caplog: pytest.LogCaptureFixture):
    async def exits() -> None:
        await asyncio.sleep(0)
        raise error

    async def main() -> BaseException | None:
        task = asyncio.create_task(exits())
        await asyncio.wait([task])
        with pytest.raises(type(error)):
            async with asyncio.TaskGroup() as group:
                group.create_task(exits())
        return task.exception()

    assert finish(main()) is error
    loop, task = begin(exits())
    assert task.exception() is error
    loop.evict()
    assert caplog.records == []


def test_an_exit_in_a_plain_callback_is_logged(caplog: pytest.LogCaptureFixture):
    calls: list[int] = []
    loop = new_loop()
    loop.call_soon(sys.exit, 3)
    loop.call_soon(calls.append, 1)
    loop.drain()
    assert calls == [1]
    assert [(record.name, record.levelno) for record in caplog.records] == [("dotdo.service", logging.ERROR)]
    assert "SystemExit: 3" in caplog.text


def test_an_error_in_a_plain_callback_is_logged_without_values(caplog: pytest.LogCaptureFixture):
    def divide(_argument: str) -> float:
        return 1 / 0

    loop = new_loop()
    future = loop.create_future()
    future.set_result("secret result")
    loop.call_soon(divide, "secret argument")
    loop.drain()
    loop.call_exception_handler({"message": "odd", "future": future})
    assert "ZeroDivisionError" in caplog.text
    assert "odd" in caplog.text
    assert "secret" not in caplog.text


def test_the_exception_handler_never_raises(monkeypatch: pytest.MonkeyPatch):
    def broken(*_args: Any, **_options: Any) -> None:
        raise OSError("disk full")

    loop = new_loop()
    monkeypatch.setattr(logging.getLogger("dotdo.service"), "error", broken)
    loop.call_exception_handler({})
    loop.call_exception_handler({"message": "odd", "exception": ValueError(), "task": object()})


def test_a_run_is_never_drained_inside_another():
    inner = new_loop()
    inner.call_soon(print)

    async def main() -> None:
        for forbidden in (inner.drain, inner.evict, asyncio.get_running_loop().drain):  # type: ignore[attr-defined]
            asyncio.get_running_loop().call_soon(print)
            with pytest.raises(RuntimeError, match="inside a service"):
                forbidden()

    finish(main())


def test_tasks_left_when_the_service_returns_can_be_cancelled_and_settled():
    ended: list[str] = []

    async def child(name: str) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async def main() -> None:
        for name in "abc":
            asyncio.create_task(child(name), name=name)  # noqa: RUF006  # left alone on purpose
        await asyncio.sleep(0)

    loop, task = begin(main())
    assert task.done()
    assert [left.get_name() for left in loop.unfinished()] == ["a", "b", "c"]
    for left in loop.unfinished():
        left.cancel()
    loop.drain()
    assert ended == ["a", "b", "c"]
    assert loop.unfinished() == []


def test_finished_tasks_are_not_kept():
    async def main() -> int:
        for _ in range(2_000):
            await asyncio.create_task(asyncio.sleep(0))
        return len(asyncio.get_running_loop()._tasks)  # type: ignore[attr-defined]

    assert finish(main()) < 100


# -- the garbage collector ---------------------------------------------------------------------------------------------


class Tangle:
    """A reference to itself and to something else: only the garbage collector can free it."""

    def __init__(self, content: Any) -> None:
        self.itself, self.content = self, content


def test_a_task_that_nobody_knows_is_not_collected():
    ended: list[str] = []

    async def child() -> None:
        future = asyncio.get_running_loop().create_future()
        try:
            await future
        finally:
            ended.append("child")

    async def main() -> None:
        asyncio.create_task(child())  # noqa: RUF006  # left alone on purpose
        await forever()

    loop, _ = begin(main())
    gc.collect()
    assert ended == []
    loop.evict()
    assert ended == ["child"]


def test_nothing_is_collected_while_a_service_runs():
    collected: list[str] = []

    class Noisy:
        def __del__(self) -> None:
            collected.append("while draining" if isinstance(asyncio._get_running_loop(), RunLoop) else "outside")

    async def main() -> int:
        for _ in range(1_000):
            Tangle(None)
        return len(collected)

    loop = new_loop()
    task = loop.create_task(main())
    threshold = gc.get_threshold()
    gc.set_threshold(100, 1, 1)
    try:
        gc.collect()
        Tangle(Noisy())
        loop.drain()
    finally:
        gc.set_threshold(*threshold)
    assert task.result() == 0
    assert gc.isenabled()
    gc.collect()
    assert collected == ["outside"]


def test_a_collector_that_was_switched_off_stays_off():
    gc.disable()
    try:
        finish(asyncio.sleep(0))
        assert not gc.isenabled()
    finally:
        gc.enable()


def begin_with_tangled_generator(ended: list[Any]) -> RunLoop:
    """A run whose unfinished async generator only the garbage collector can find."""

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            ended.append((threading.get_ident(), asyncio._get_running_loop()))

    async def main() -> None:
        generator = numbers()
        await anext(generator)
        Tangle(generator)

    loop, task = begin(main())
    assert task.done()
    assert task.exception() is None
    return loop


@pytest.mark.parametrize("place", ["outside", "another run", "another thread"])
def test_a_collected_generator_cleans_up_in_its_own_eviction_only(place: str):
    ended: list[Any] = []
    loop = begin_with_tangled_generator(ended)

    async def other() -> None:
        gc.collect()

    if place == "outside":
        gc.collect()
    elif place == "another run":
        finish(other())
    else:
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    assert ended == []
    assert len(loop._collected) == 1  # it was found, and kept
    loop.evict()
    assert ended == [(threading.get_ident(), loop)]


def test_a_generator_collected_after_its_run_was_evicted_does_nothing():
    ended: list[Any] = []
    loop = begin_with_tangled_generator(ended)
    loop.evict()
    assert len(ended) == 1
    gc.collect()
    assert len(ended) == 1


def test_unread_exceptions_are_told_once_when_the_run_is_over(caplog: pytest.LogCaptureFixture):
    async def fails() -> None:
        raise ValueError("unread")

    async def main(last: Coroutine[Any, Any, Any]) -> None:
        asyncio.create_task(fails())  # noqa: RUF006  # left alone on purpose
        await last

    finish(main(asyncio.sleep(0)))
    assert caplog.text.count("ValueError: unread") == 1
    loop, _ = begin(main(_many_tasks()))
    gc.collect()
    assert caplog.text.count("ValueError: unread") == 1  # not before its end, and by nobody else
    loop.evict()
    assert caplog.text.count("ValueError: unread") == 2
    loop, _ = begin(main(forever()))  # evicted on its way: its replay may read the exception yet
    loop.evict()
    del loop
    gc.collect()
    assert caplog.text.count("ValueError: unread") == 2


async def _many_tasks() -> None:
    for _ in range(1_000):
        await asyncio.create_task(asyncio.sleep(0))


# -- async generators left before their end ----------------------------------------------------------------------------


def test_a_left_generator_cleans_up_at_once():
    seen: list[str] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            asyncio.current_task().cancelling()  # type: ignore[union-attr]
            seen.append("cleaned up")

    async def main() -> None:
        async for _ in numbers():
            break
        seen.append("after")

    finish(main())
    assert seen == ["cleaned up", "after"]


@pytest.mark.parametrize(
    "start",
    [
        lambda loop: loop.create_future(),
        lambda loop: loop.call_later(1, print),
        lambda loop: asyncio.timeout(1).__aenter__().send(None),
        lambda loop: loop.create_task(started.coroutine),
    ],
)
def test_a_left_generator_starts_nothing_in_its_clean_up(start: Any, caplog: pytest.LogCaptureFixture):
    refused: list[str] = []
    started.coroutine = forever()

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            loop = asyncio.get_running_loop()
            assert loop.finalising  # type: ignore[attr-defined]
            try:
                start(loop)
            except RuntimeError as error:
                refused.append(str(error))
                raise

    async def main() -> None:
        async for _ in numbers():
            break
        assert not asyncio.get_running_loop().finalising  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)

    finish(main())
    started.coroutine.close()
    assert len(refused) == 1
    assert "aclosing" in refused[0]
    assert "its clean-up failed" in caplog.text


class started:
    coroutine: Any = None


def test_a_left_generator_that_waits_is_dropped_and_logged(caplog: pytest.LogCaptureFixture):
    seen: list[str] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            seen.append("never")

    async def main() -> None:
        async for _ in numbers():
            break

    finish(main())
    assert seen == []
    assert "numbers was left before its end, and its clean-up waits" in caplog.text


def test_a_left_generator_that_waits_starts_nothing_on_its_way_out(caplog: pytest.LogCaptureFixture):
    refused: list[str] = []

    async def clean_up() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            try:
                asyncio.get_running_loop().create_future()
            except RuntimeError as error:
                refused.append(str(error))

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await clean_up()

    async def main() -> None:
        async for _ in numbers():
            break

    finish(main())
    assert len(refused) == 1
    assert "its clean-up waits" in caplog.text


def test_finished_generators_are_not_remembered():
    async def numbers() -> AsyncGenerator[int, None]:
        yield 1

    async def main() -> int:
        for _ in range(1_000):
            async for _ in numbers():
                pass
        return len(asyncio.get_running_loop()._generators)  # type: ignore[attr-defined]

    assert finish(main()) < 100


def test_a_generator_closed_by_its_service_may_wait_in_its_clean_up():
    seen: list[float] = []

    async def numbers() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await asyncio.sleep(2)
            seen.append(asyncio.get_running_loop().time())

    async def main() -> None:
        async with contextlib.aclosing(numbers()) as values:
            async for _ in values:
                break

    finish(main())
    assert seen == [2.0]


# -- eviction ----------------------------------------------------------------------------------------------------------


def test_eviction_ends_every_task_in_order_of_creation_inside_its_own_context():
    ended: list[Any] = []
    variable: ContextVar[str] = ContextVar("variable")

    async def child(name: str) -> None:
        token = variable.set(name)
        try:
            await forever()
        except BaseException as error:
            ended.append((name, variable.get(), type(error), asyncio._get_running_loop()))
            raise
        finally:
            variable.reset(token)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(child(name))

    loop, task = begin(main())
    assert loop.evict() == []
    assert ended == [(name, name, RunEvicted, loop) for name in "abc"]
    assert not task.done()
    assert asyncio._get_running_loop() is None
    assert loop.evict() == []


def test_an_evicted_loop_refuses_everything():
    loop, _ = begin(forever())
    future, timer = loop.create_future(), loop.call_later(1, print)
    run_timer = loop.next_timer()
    assert loop.evict() == []
    coroutine = forever()
    calls: list[Callable[[], object]] = [
        *(loop.time, loop.drain, loop.next_timer, loop.create_future, loop.run_forever, loop.close),
        *(lambda: loop.call_soon(print), lambda: loop.call_later(1, print), lambda: loop.call_at(1, print)),
        *(lambda: loop.call_soon_threadsafe(print), lambda: loop.create_task(coroutine), lambda: loop.advance(5_000)),
        *(lambda: loop.timer("timer:1#1"), lambda: loop.fire(run_timer), lambda: loop.run_in_executor(None, print)),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(RunEvicted):
            call()
    coroutine.close()
    timer.cancel()
    future.cancel()
    assert loop.is_closed()
    assert not loop.get_debug()
    assert loop.unfinished() == []


def test_an_evicted_loop_holds_nothing_of_the_run():
    class Value:
        pass

    loop, value = new_loop(), Value()
    reference = weakref.ref(value)
    loop.call_soon(print, value)
    loop.call_later(1, print, value)
    task = loop.create_task(asyncio.sleep(1, value))
    loop.evict()
    del task, value
    gc.collect()
    assert reference() is None


def test_evicted_clean_up_code_can_start_nothing():
    seen: list[str] = []

    async def main() -> None:
        try:
            await forever()
        finally:
            for start in (asyncio.get_running_loop().create_future, lambda: asyncio.current_task().cancel):  # type: ignore[union-attr]
                try:
                    start()
                except (RunEvicted, AttributeError) as error:
                    seen.append(type(error).__name__)
            coroutine = forever()
            try:
                asyncio.create_task(coroutine)  # noqa: RUF006  # refused
            finally:
                coroutine.close()
                await asyncio.sleep(1)

    loop, _ = begin(main())
    assert loop.evict() == []
    assert seen == ["RunEvicted", "AttributeError"]


def test_eviction_is_silent(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder):
    async def child() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError("in clean-up")

    async def main() -> None:
        tasks = [asyncio.create_task(child()) for _ in range(3)]
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, asyncio.shield(asyncio.sleep(99)))

    loop, task = begin(main())
    loop.create_task(forever())  # not begun
    loop.call_soon(print, "never")
    assert loop.evict() == []
    del loop, task
    gc.collect()
    assert caplog.records == []
    assert list(recwarn) == []


def test_eviction_reports_tasks_that_refuse_to_end():
    refusals = 0
    last = False

    async def stubborn() -> None:
        nonlocal refusals
        while not last:
            try:
                await asyncio.sleep(0)
            except BaseException:
                refusals += 1

    async def patient() -> None:
        with contextlib.suppress(BaseException):
            await forever()
        with contextlib.suppress(BaseException):
            await _bare_yield()

    async def main() -> None:
        tasks = [asyncio.create_task(stubborn()), asyncio.create_task(patient())]
        await asyncio.wait(tasks)

    loop = new_loop(budget=50)
    with pytest.raises(ServiceSpins):
        begin(main(), loop)
    refusing = loop.evict()
    assert [task.get_name() for task in refusing] == ["Task-2"]
    assert refusals == 3
    gc.collect()
    assert refusals == 3  # kept referenced, the collector leaves it alone
    last = True  # lets the test's own clean-up end it
    refusing[0].get_coro().close()  # type: ignore[union-attr]


class _bare_yield:
    def __await__(self) -> Generator[None, None, None]:
        yield


def test_eviction_closes_async_generators_wherever_they_wait():
    ended: list[str] = []

    async def inner(name: str) -> None:
        try:
            await forever()
        finally:
            ended.append(f"inner {name}")

    async def numbers(name: str, waits: bool) -> AsyncGenerator[int, None]:
        try:
            yield 1
            if waits:
                await inner(name)
            yield 2
        finally:
            ended.append(name)

    async def main() -> None:
        kept = numbers("kept", False)
        await anext(kept)
        Tangle(kept)
        async for _ in numbers("looped", True):
            other = numbers("at rest", False)
            await anext(other)

    loop, _ = begin(main())
    assert loop.evict() == []
    assert sorted(ended) == ["at rest", "inner looped", "kept", "looped"]
    ended.clear()
    gc.collect()
    assert ended == []


def test_eviction_before_the_first_drain_runs_no_code():
    ran: list[int] = []

    async def main() -> None:
        ran.append(1)

    loop = new_loop()
    loop.create_task(main())
    assert loop.evict() == []
    assert ran == []


# -- what a service must not do ----------------------------------------------------------------------------------------


def test_every_method_of_a_loop_is_there_or_refuses():
    inherited = {name for name in dir(asyncio.AbstractEventLoop) if not name.startswith("__")}
    assert {name for name in inherited if name not in vars(RunLoop)} <= {"default_exception_handler"}


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: asyncio.to_thread(time.time),
        lambda loop: asyncio.open_connection("localhost", 80),
        lambda loop: asyncio.start_server(print, "localhost", 80),
        lambda loop: asyncio.create_subprocess_exec("true"),
        lambda loop: asyncio.create_subprocess_shell("true"),
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.getaddrinfo("localhost", 80),
        lambda loop: loop.sock_recv(None, 1),
        lambda loop: loop.add_reader(0, print),
        lambda loop: loop.add_signal_handler(15, print),
        lambda loop: loop.connect_read_pipe(print, None),
        lambda loop: loop.set_default_executor(None),
        lambda loop: loop.run_forever(),
        lambda loop: loop.run_until_complete(None),
        lambda loop: loop.stop(),
        lambda loop: loop.close(),
    ],
)
def test_io_in_a_service_raises_the_error_that_teaches(call: Any):
    async def main() -> None:
        await call(asyncio.get_running_loop())

    with pytest.raises(ServiceDidIO, match=r"loop\.\w+.* in a service.*replayed.*[Pp]ut this into an action"):
        finish(main())


def test_io_errors_name_the_function_that_people_call():
    with pytest.raises(ServiceDidIO, match=r"loop\.run_in_executor \(asyncio\.to_thread\) was called"):
        finish(asyncio.to_thread(print))


def test_another_loop_cannot_run_inside_a_service():
    async def main() -> None:
        coroutine = forever()
        try:
            asyncio.run(coroutine)
        finally:
            coroutine.close()

    with pytest.raises(RuntimeError, match="running event loop"):
        finish(main())


def test_other_threads_cannot_call_into_a_run():
    refused: list[BaseException] = []
    loop, _ = begin(forever())

    def other_thread() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except ServiceDidIO as error:
            refused.append(error)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert "from another thread" in str(refused[0])
    assert not loop._ready
    loop.evict()


def test_call_soon_threadsafe_from_the_run_itself_is_call_soon():
    async def main() -> list[int]:
        calls: list[int] = []
        asyncio.get_running_loop().call_soon_threadsafe(calls.append, 1)
        await asyncio.sleep(0)
        return calls

    assert finish(main()) == [1]


def test_exception_handlers_and_foreign_task_factories_are_refused():
    loop = new_loop()
    loop.set_exception_handler(None)
    loop.set_task_factory(None)
    loop.set_debug(True)
    assert (loop.get_exception_handler(), loop.get_task_factory(), loop.get_debug()) == (None, None, False)
    with pytest.raises(NotImplementedError):
        loop.set_exception_handler(print)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        loop.set_task_factory(asyncio.Task)


# -- what has to work inside -------------------------------------------------------------------------------------------


if sys.version_info >= (3, 12):  # where asyncio has eager tasks

    def test_eager_tasks_work():
        async def child(log: list[str], name: str) -> str:
            log.append(name)
            if name != "short":
                await asyncio.sleep(0.1)
            return name

        async def main() -> list[Any]:
            loop: Any = asyncio.get_running_loop()
            log: list[str] = []
            one = loop.create_task(child(log, "one"), eager_start=True)
            log.append("after one")
            loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
            assert loop.get_task_factory() is asyncio.eager_task_factory  # type: ignore[attr-defined]
            two = asyncio.create_task(child(log, "two"))
            short = asyncio.create_task(child(log, "short"))
            assert short.done()
            assert all(isinstance(task, RunTask) for task in (one, two, short))
            log.append("after two")
            return [log, await asyncio.gather(one, two, short)]

        log, results = finish(main())
        assert log == ["one", "after one", "two", "short", "after two"]
        assert results == ["one", "two", "short"]


if sys.version_info >= (3, 12):  # where asyncio has eager tasks

    def test_eager_tasks_are_evicted():
        async def main() -> None:
            loop: Any = asyncio.get_running_loop()
            loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
            await asyncio.gather(forever(), asyncio.sleep(5), asyncio.sleep(0))

        loop, _ = begin(main())
        assert loop.evict() == []


def test_context_variables_are_kept_apart():
    variable: ContextVar[int] = ContextVar("variable", default=0)

    async def child(number: int) -> int:
        variable.set(number)
        await asyncio.sleep(0.1)
        return variable.get()

    async def main() -> list[int]:
        variable.set(9)
        return [*await asyncio.gather(child(1), child(2)), variable.get()]

    variable.set(5)
    assert finish(main()) == [1, 2, 9]
    assert variable.get() == 5


def test_anyio_works():
    async def main() -> list[Any]:
        results: list[Any] = []

        async def child(delay: float) -> None:
            await anyio.sleep(delay)
            results.append(delay)

        async with anyio.create_task_group() as group:
            group.start_soon(child, 0.2)
            group.start_soon(child, 0.1)
        with anyio.move_on_after(1) as scope:
            await anyio.sleep_forever()
        return [*results, scope.cancelled_caught]

    assert finish(main()) == [0.1, 0.2, True]
    with pytest.raises(ExceptionGroup) as caught:
        finish(anyio.connect_tcp("127.0.0.1", 80))
    assert caught.group_contains(ServiceDidIO)


def test_an_idle_run_is_small():
    import tracemalloc

    begin(forever())[0].evict()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        runs = [begin(forever()) for _ in range(200)]
        used = (tracemalloc.get_traced_memory()[0] - before) / len(runs)
    finally:
        tracemalloc.stop()
    for loop, _ in runs:
        loop.evict()
    assert used < 3 * 1024
