"""How an attempt ends: within its timeout or not, cancelled, or done; afterwards its context does nothing any more."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AttemptOver,
    Context,
    Fail,
    Retry,
    RetryLater,
    RunBlocked,
    RunCancelled,
    action,
    service,
)
from dotdo.engine.claiming import Claimer
from tests.workshop import PATIENCE, Workshop, data, kinds

MOMENT = 0.05  # a timeout that is meant to pass; real time, because handlers are real work
MANY = Retry(attempts=100, delay=0, jitter=False)  # on a slow machine it passes before the handler has come far


def test_async_handler_is_cancelled_at_its_timeout_and_tried_again(workshop: Workshop):
    ends: list[str] = []

    @action("slow", retry=MANY, timeout=MOMENT, catalogue=workshop.catalogue)
    async def slow(ctx: AsyncContext) -> str:
        if not ends:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise
        return "in time"

    handle = workshop.open().start(slow)
    assert handle.result(timeout=PATIENCE) == "in time"

    assert ends == ["cancelled"]
    assert {(one.error.type, one.error.message) for one in data(handle, "attempt_failed")} == {
        ("AttemptTimedOut", f"The attempt did not end within {MOMENT} s.")
    }


def test_sync_handler_past_its_timeout_has_a_dead_context(workshop: Workshop):
    over, ends = threading.Event(), dict[str, BaseException]()

    @action("slow", retry=MANY, timeout=MOMENT, catalogue=workshop.catalogue)
    def slow(ctx: Context) -> str:
        if ctx.attempt > 1:
            return "in time"
        over.wait(PATIENCE)
        calls: dict[str, Callable[[], Any]] = {
            "heartbeat": ctx.heartbeat,
            "stage": lambda: ctx.stage(workshop.send, text="late"),
            "request": lambda: ctx.request(workshop.order, text="late"),
        }
        for name, call in calls.items():
            try:
                call()
            except BaseException as error:
                ends[name] = error
        finished.set()
        return "too late"

    finished = threading.Event()
    handle = workshop.open().start(slow)
    assert handle.result(timeout=PATIENCE) == "in time"
    over.set()
    assert finished.wait(PATIENCE)

    assert {name: type(error) for name, error in ends.items()} == dict.fromkeys(
        ("heartbeat", "stage", "request"), AttemptOver
    )
    assert workshop.receiver.heard == []
    *failed, completed = kinds(handle, "slow")
    assert (set(failed), completed) == ({"attempt_failed"}, "completed")


def test_sync_handler_that_waits_for_an_answer_is_released_at_its_timeout(workshop: Workshop):
    ends: list[BaseException] = []

    @action("slow", retry=MANY, timeout=MOMENT, catalogue=workshop.catalogue)
    def slow(ctx: Context) -> None:
        try:
            ctx.request(workshop.hang, text="bread")
        except BaseException as error:
            ends.append(error)
            finished.set()
            raise

    finished = threading.Event()
    handle = workshop.open().start(slow)
    with pytest.raises(RunBlocked, match="Nobody knows whether hang happened"):
        handle.result(timeout=PATIENCE)
    assert data(handle, "attempt_failed")[0].error.type == "AttemptTimedOut"
    assert finished.wait(PATIENCE)
    assert isinstance(ends[0], AttemptOver)


def test_timeout_of_one_call(workshop: Workshop):
    @action("slow", retry=1, catalogue=workshop.catalogue)
    async def slow() -> None:
        await asyncio.get_running_loop().create_future()

    @service("hurries", catalogue=workshop.catalogue)
    async def hurries() -> None:
        await slow.with_(timeout=MOMENT)()

    client = workshop.open()
    for definition in (slow.with_(timeout=MOMENT), hurries):
        with pytest.raises(ActionFailed) as failure:
            client.run(definition)
        assert failure.value.error_type == "AttemptTimedOut"


def test_own_timeout_error_of_a_handler_is_no_timeout_of_its_attempt(workshop: Workshop):
    @action("impatient", retry=1, timeout=PATIENCE, catalogue=workshop.catalogue)
    async def impatient() -> None:
        raise TimeoutError("the provider took too long")

    @action("impatient-thread", retry=1, timeout=PATIENCE, catalogue=workshop.catalogue)
    def impatient_thread() -> None:
        raise TimeoutError("the provider took too long")

    client = workshop.open()
    for definition in (impatient, impatient_thread):
        with pytest.raises(ActionFailed, match="the provider took too long") as failure:
            client.run(definition)
        assert failure.value.error_type == "TimeoutError"


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_task_that_a_handler_leaves_behind_can_do_nothing(workshop: Workshop, ends: str):
    go, left = threading.Event(), list[asyncio.Task[Any]]()
    errors: list[BaseException] = []

    @action("careless", retry=1, catalogue=workshop.catalogue)
    async def careless(ctx: AsyncContext) -> None:
        async def later() -> None:
            await asyncio.to_thread(go.wait, PATIENCE)
            for late in (lambda: ctx.stage(workshop.send, text="late"), lambda: ctx.session, ctx.heartbeat):
                try:
                    late()
                except BaseException as error:
                    errors.append(error)
            try:
                await ctx.request(workshop.order, text="late")
            except BaseException as error:
                errors.append(error)
            finished.set()

        left.append(asyncio.get_running_loop().create_task(later()))
        if ends == "raises":
            raise ConnectionError("no")

    finished = threading.Event()
    handle = workshop.open(sql=f"sqlite:///{workshop.folder / 'app.db'}").start(careless)
    workshop.until(lambda: kinds(handle)[-1] == "ended")
    go.set()
    assert finished.wait(PATIENCE)

    assert [type(error) for error in errors] == [AttemptOver] * 4
    assert workshop.receiver.heard == []


def test_cancelled_run_cancels_its_handler(workshop: Workshop):
    started, ended = threading.Event(), threading.Event()

    @action("slow", catalogue=workshop.catalogue)
    async def slow(ctx: AsyncContext) -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    handle = workshop.open().start(slow)
    assert started.wait(PATIENCE)
    handle.cancel(actor="kim")
    with pytest.raises(RunCancelled, match="cancelled by kim"):
        handle.result(timeout=PATIENCE)
    assert ended.wait(PATIENCE)
    assert kinds(handle, "slow") == ["step_cancelled"]


def test_handler_that_turns_its_cancellation_into_an_error_is_cancelled_all_the_same(workshop: Workshop):
    started = threading.Event()

    @action("stubborn", retry=Retry(attempts=3, delay=1000), catalogue=workshop.catalogue)
    async def stubborn() -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ConnectionError("the connection was lost") from None

    handle = workshop.open().start(stubborn)
    assert started.wait(PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=PATIENCE)
    assert "attempt_failed" not in kinds(handle)


async def in_a_group(after: float = 0) -> None:
    async def refuses() -> None:
        raise ValueError("refused")

    async with asyncio.TaskGroup() as group:
        group.create_task(refuses())
        await asyncio.sleep(after)


async def in_a_group_that_is_left_first() -> None:
    async def refuses() -> None:
        await asyncio.sleep(0)
        raise ValueError("refused")

    async with asyncio.TaskGroup() as group:
        group.create_task(refuses())


async def by_cancelling_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


@pytest.mark.parametrize(
    "fails, attempts", [(in_a_group, 2), (in_a_group_that_is_left_first, 2), (by_cancelling_itself, 1)]
)
@pytest.mark.parametrize("in_a_service", [False, True])
def test_handler_that_its_own_code_cancels_fails_its_attempt(
    workshop: Workshop, fails: Callable[[], Coroutine[Any, Any, None]], attempts: int, in_a_service: bool
):
    @action("fails", retry=Retry(attempts=2, delay=0), catalogue=workshop.catalogue)
    async def handler() -> None:
        await fails()

    @service("calls", catalogue=workshop.catalogue)
    async def calls() -> None:
        await handler()

    handle = workshop.open().start(calls if in_a_service else handler)
    with pytest.raises(ActionFailed, match="fails failed") as caught:
        handle.result(timeout=PATIENCE)
    assert caught.value.attempts == attempts
    assert kinds(handle).count("attempt_failed") == attempts
    assert "step_cancelled" not in kinds(handle)


GROUPS: dict[str, tuple[BaseException, int, str]] = {
    "one permanent": (ExceptionGroup("g", [Fail("no such user")]), 1, "no such user"),
    "deep in it": (ExceptionGroup("g", [ExceptionGroup("h", [Fail("no such user")])]), 1, "no such user"),
    "permanent beside another": (ExceptionGroup("g", [ValueError("odd"), Fail("no such user")]), 1, "no such user"),
    "one that is not": (ExceptionGroup("g", [ValueError("odd")]), 3, "ValueError: odd"),
    "says when": (ExceptionGroup("g", [ValueError("odd"), RetryLater("closed", after=0)]), 3, "closed"),
    "several": (
        ExceptionGroup("g", [ValueError("odd"), OSError("full")]),
        3,
        r"g \(2 sub-exceptions\); ValueError: odd; OSError: full",
    ),
}


@pytest.mark.parametrize("group, attempts, text", GROUPS.values(), ids=GROUPS)
def test_group_of_errors_counts_as_what_is_in_it(workshop: Workshop, group: BaseException, attempts: int, text: str):
    @action("fails", retry=Retry(attempts=3, delay=0), catalogue=workshop.catalogue)
    async def fails() -> None:
        raise group

    handle = workshop.open().start(fails)
    with pytest.raises(ActionFailed, match=text) as caught:
        handle.result(timeout=PATIENCE)
    assert caught.value.attempts == attempts


def test_handler_whose_group_has_failed_before_is_cancelled_with_its_run(workshop: Workshop):
    """It went on from that, and is in its next wait."""
    started = threading.Event()

    @action("goes-on", catalogue=workshop.catalogue)
    async def goes_on() -> None:
        with contextlib.suppress(ExceptionGroup):
            await in_a_group_that_is_left_first()
        started.set()
        await asyncio.get_running_loop().create_future()

    handle = workshop.open().start(goes_on)
    assert started.wait(PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=PATIENCE)
    assert kinds(handle, "goes-on") == ["step_cancelled"]


def test_attempt_that_fails_while_the_engine_looks_for_due_runs_is_tried_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
):
    """Whatever ends the engine's sleep between two looks, it is not the end of the loop, with which attempts end."""
    looked, sweep = asyncio.Event(), Claimer._sweep
    claimers: list[Claimer] = []

    async def look(self: Claimer) -> None:
        claimers.append(self)
        looked.set()
        await sweep(self)

    @action("watchful", retry=Retry(attempts=2, delay=0), catalogue=workshop.catalogue)
    async def watchful(ctx: AsyncContext) -> int:
        if ctx.attempt == 1:
            looked.clear()
            while not (claimers[0].is_cancelled or looked.is_set()):  # noqa: ASYNC110 - looks in each turn of the loop
                await asyncio.sleep(0)
            raise ConnectionError("just then")
        return ctx.attempt

    @service("watches", catalogue=workshop.catalogue)
    async def watches() -> int:
        return await watchful()

    monkeypatch.setattr(Claimer, "_sweep", look)
    assert workshop.open().start(watches).result(timeout=PATIENCE) == 2


def test_sync_handler_of_a_cancelled_run_learns_of_it_and_commits_nothing(workshop: Workshop):
    started, cancelled, ends = threading.Event(), threading.Event(), list[type]()

    @action("slow", catalogue=workshop.catalogue)
    def slow(ctx: Context) -> str:
        ctx.stage(workshop.send, text="never")
        started.set()
        cancelled.wait(PATIENCE)
        try:
            ctx.heartbeat()
        except BaseException as error:
            ends.append(type(error))
        finished.set()
        return "too late"

    finished = threading.Event()
    handle = workshop.open().start(slow)
    assert started.wait(PATIENCE)
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=PATIENCE)
    cancelled.set()
    assert finished.wait(PATIENCE)
    assert ends == [AttemptOver]
    assert workshop.receiver.heard == []
    assert kinds(handle, "slow") == ["step_cancelled"]
