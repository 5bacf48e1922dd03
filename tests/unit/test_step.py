"""A step as the service holds it: a coroutine that begins once, however it is awaited, and may be dropped unbegun."""

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dotdo import Step


class Run:
    """Stands for a run: notes which steps begin and which are dropped, and fulfils them when told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.dropped: list[str] = []
        self.futures: dict[str, asyncio.Future[Any]] = {}

    def step(self, identity: str) -> Step[Any]:
        return Step(identity, self._begin, lambda step: self.dropped.append(step.identity))

    def _begin(self, step: Step[Any]) -> asyncio.Future[Any]:
        self.begun.append(step.identity)
        future = self.futures[step.identity] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_result(step.identity.upper()))
        return future


async def in_task_group(step: Step[Any]) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(step)
    return task.result()


WAYS: list[Callable[[Step[Any]], Awaitable[Any]]] = [
    lambda step: step,
    asyncio.create_task,
    asyncio.ensure_future,
    in_task_group,
    lambda step: asyncio.wait_for(step, 10),
]


@pytest.mark.parametrize("await_it", WAYS)
def test_step_can_be_awaited_in_every_way_of_asyncio(await_it: Callable[[Step[Any]], Awaitable[Any]]):
    run = Run()

    async def main() -> Any:
        step = run.step("a:1")
        assert run.begun == [], "it begins when it is awaited, not when it is called"
        return await await_it(step)

    assert asyncio.run(main()) == "A:1"
    assert (run.begun, run.dropped) == (["a:1"], [])


def test_steps_run_together():
    run = Run()

    async def main() -> list[Any]:
        return list(await asyncio.gather(run.step("a"), run.step("b"), return_exceptions=True))

    assert asyncio.run(main()) == ["A", "B"]


def test_step_is_a_coroutine_for_whoever_asks():
    step = Run().step("a:1")
    assert asyncio.iscoroutine(step)
    assert inspect.isawaitable(step)
    assert (step.identity, repr(step)) == ("a:1", "<Step a:1>")
    step.close()


def test_failure_is_raised_where_the_step_is_awaited():
    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("no"))
        await Step("a:1", lambda step: future)

    with pytest.raises(ValueError, match="no"):
        asyncio.run(main())


@pytest.mark.parametrize("first", WAYS[:3])
@pytest.mark.parametrize("second", WAYS[:3])
def test_step_is_awaited_once(
    first: Callable[[Step[Any]], Awaitable[Any]], second: Callable[[Step[Any]], Awaitable[Any]]
):
    run = Run()

    async def main() -> None:
        step = run.step("a:1")
        await first(step)
        await second(step)

    with pytest.raises(RuntimeError, match="The step a:1 was already awaited; call the action again for another one"):
        asyncio.run(main())
    assert run.begun == ["a:1"]


def test_task_that_is_cancelled_before_its_first_turn_never_begins_its_step():
    run = Run()

    async def main() -> None:
        step = run.step("a:1")
        task = asyncio.create_task(step)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RuntimeError, match="already awaited"):
            await step

    asyncio.run(main())
    assert (run.begun, run.dropped) == ([], ["a:1"])


def test_cancelling_the_waiter_cancels_what_it_waits_for():
    run = Run()

    async def main() -> None:
        task = asyncio.create_task(run.step("a:1"))
        await asyncio.sleep(0)
        assert run.begun == ["a:1"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run.futures["a:1"].cancelled()

    asyncio.run(main())
    assert run.dropped == []


def test_closing_an_unbegun_step_drops_it_once():
    run = Run()
    step = run.step("a:1")
    step.close()
    step.close()
    assert (run.begun, run.dropped) == ([], ["a:1"])


def test_closing_a_begun_step_does_not_drop_it():
    run = Run()

    async def main() -> None:
        step = run.step("a:1")
        step.send(None)
        step.close()

    asyncio.run(main())
    assert (run.begun, run.dropped) == (["a:1"], [])


def test_throwing_into_an_unbegun_step_raises_what_was_thrown():
    for throw in (lambda step: step.throw(KeyError("k")), lambda step: step.throw(KeyError, KeyError("k"), None)):
        run = Run()
        step = run.step("a:1")
        with pytest.raises(KeyError, match="k"):
            throw(step)
        assert (run.begun, run.dropped) == ([], ["a:1"])


def test_awaited_steps_leave_no_cycles_behind():
    """Runs by the thousand must be freed by counting, not by the collector."""
    gc.collect()
    gc.disable()
    try:
        asyncio.run(in_task_group(Run().step("a:1")))
        assert not [thing for thing in gc.get_objects() if isinstance(thing, Step | Run)]
    finally:
        gc.enable()
