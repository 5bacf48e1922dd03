"""A step as the service holds it: a future and a coroutine that begins once, however it is awaited, or is dropped."""

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dotdo import Step
from tests.loops import in_loop


class Run:
    """Stands for a run: notes which steps begin, are cancelled or dropped, and fulfils them in the next turn."""

    def __init__(self, failure: Exception | None = None, *, fulfils: bool = True) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.dropped: list[str] = []
        self.made = 0
        self.has_begun = asyncio.Event()
        self._failure, self._fulfils = failure, fulfils

    def step(self, identity: str) -> Step[Any]:
        self.made += 1
        return Step(identity, self, asyncio.get_running_loop(), self.made)

    def begin(self, step: Step[Any]) -> None:
        self.begun.append(step.identity)
        self.has_begun.set()
        if self._fulfils:
            asyncio.get_running_loop().call_soon(self._fulfil, step)

    def _fulfil(self, step: Step[Any]) -> None:
        if not step.done():
            if self._failure is None:
                step.set_result(step.identity.upper())
            else:
                step.set_exception(self._failure)
            step.settled()

    def cancel(self, step: Step[Any]) -> None:
        self.cancelled.append(step.identity)

    def drop(self, step: Step[Any]) -> None:
        self.dropped.append(step.identity)


async def in_task_group(step: Step[Any]) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(step)
    return task.result()


WAYS: list[Callable[[Step[Any]], Awaitable[Any]]] = [
    lambda step: step,
    asyncio.create_task,
    asyncio.ensure_future,
    asyncio.shield,
    in_task_group,
    lambda step: asyncio.wait_for(step, 10),
]


@pytest.mark.parametrize("await_it", WAYS)
@in_loop
async def test_step_can_be_awaited_in_every_way_of_asyncio(await_it: Callable[[Step[Any]], Awaitable[Any]]):
    run = Run()
    step = run.step("a:1")
    assert run.begun == [], "it begins when it is awaited, not when it is called"
    assert await await_it(step) == "A:1"
    assert (run.begun, run.cancelled, run.dropped) == (["a:1"], [], [])


@in_loop
async def test_steps_run_together():
    run = Run()
    assert await asyncio.gather(run.step("a"), run.step("b"), return_exceptions=True) == ["A", "B"]
    assert run.begun == ["a", "b"]


@in_loop
async def test_gathering_steps_makes_no_task_of_each():
    run = Run()
    before = len(asyncio.all_tasks())
    gathered = asyncio.gather(run.step("a"), run.step("b"))
    assert len(asyncio.all_tasks()) == before
    assert await gathered == ["A", "B"]


@in_loop
async def test_step_is_a_coroutine_for_whoever_asks():
    step = Run().step("a:1")
    assert asyncio.iscoroutine(step)
    assert asyncio.isfuture(step)
    assert inspect.isawaitable(step)
    assert (step.identity, repr(step), hash(step)) == ("a:1", "<Step a:1>", 1)


@pytest.mark.parametrize("await_it", WAYS[:4])
@in_loop
async def test_failure_is_raised_where_the_step_is_awaited(await_it: Callable[[Step[Any]], Awaitable[Any]]):
    step = Run(ValueError("no")).step("a:1")
    with pytest.raises(ValueError, match="no"):
        await await_it(step)


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
@in_loop
async def test_step_that_is_awaited_again_gives_the_same_output_and_begins_once(
    first: Callable[[Step[Any]], Awaitable[Any]], second: Callable[[Step[Any]], Awaitable[Any]]
):
    run = Run()
    step = run.step("a:1")
    assert (await first(step), await second(step)) == ("A:1", "A:1")
    assert run.begun == ["a:1"]


@in_loop
async def test_task_that_is_cancelled_before_its_first_turn_never_begins_its_step():
    run = Run()
    step = run.step("a:1")
    task = asyncio.create_task(step)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(asyncio.CancelledError):
        await step
    assert (run.begun, run.cancelled, run.dropped) == ([], [], ["a:1"])


@pytest.mark.parametrize("await_it", [asyncio.create_task, lambda step: asyncio.create_task(in_task_group(step))])
@in_loop
async def test_cancelling_the_waiter_cancels_what_it_waits_for(await_it: Callable[[Any], asyncio.Task[Any]]):
    run = Run(fulfils=False)
    task = await_it(run.step("a:1"))
    await run.has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (run.cancelled, run.dropped) == (["a:1"], [])


@in_loop
async def test_gathered_steps_are_cancelled_with_what_gathers_them():
    run = Run()
    gathered = asyncio.gather(run.step("a"), run.step("b"))
    gathered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathered
    assert (run.cancelled, run.dropped) == (["a", "b"], [])


@in_loop
async def test_cancelling_a_fulfilled_step_tells_nobody():
    run = Run()
    step = run.step("a:1")
    await step
    assert not step.cancel()
    assert (run.cancelled, run.dropped) == ([], [])


@in_loop
async def test_closing_an_unbegun_step_drops_it_once():
    run = Run()
    step = run.step("a:1")
    step.close()
    step.close()
    assert (run.begun, run.dropped) == ([], ["a:1"])


@in_loop
async def test_closing_a_begun_step_does_not_drop_it():
    run = Run()
    step = run.step("a:1")
    task = asyncio.create_task(step)
    await asyncio.sleep(0)
    step.close()
    assert await task == "A:1"
    assert (run.begun, run.cancelled, run.dropped) == (["a:1"], [], [])


@in_loop
async def test_throwing_into_an_unbegun_step_raises_what_was_thrown():
    for throw in (lambda step: step.throw(KeyError("k")), lambda step: step.throw(KeyError, KeyError("k"), None)):
        run = Run()
        step = run.step("a:1")
        with pytest.raises(KeyError, match="k"):
            throw(step)
        assert (run.begun, run.dropped) == ([], ["a:1"])


@in_loop
async def test_failure_that_was_not_read_before_the_run_left_memory_is_not_told(caplog: pytest.LogCaptureFixture):
    run = Run(ValueError("no"))
    for leaves, told in ((False, 1), (True, 0)):
        step = run.step("a:1")
        done = asyncio.Event()
        step.add_done_callback(lambda _, done=done: done.set())
        await done.wait()
        if leaves:
            step.leave_memory()
        caplog.clear()
        del step
        assert len(caplog.records) == told


@pytest.mark.parametrize("await_it", WAYS)
@in_loop
async def test_awaited_steps_leave_no_cycles_behind(await_it: Callable[[Step[Any]], Awaitable[Any]]):
    """Runs by the thousand must be freed by counting, not by the collector."""
    gc.collect()
    gc.disable()
    try:
        # Other tests of this process may have left some.
        before = [thing for thing in gc.get_objects() if type(thing) in (Step, Run)]
        known = {id(thing) for thing in before}
        await await_it(Run().step("a:1"))
        await asyncio.sleep(0)
        assert not [thing for thing in gc.get_objects() if type(thing) in (Step, Run) and id(thing) not in known]
    finally:
        gc.enable()
