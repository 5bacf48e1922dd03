"""`AsyncDo`: opened at first use, once, on the loop of its caller; closed in order; its options and its errors;
embedded and over HTTP alike."""

import asyncio
import gc
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    Catalogue,
    DefinitionError,
    Do,
    InvalidInput,
    KeyConflict,
    Retry,
    StillRunning,
    UnknownName,
    action,
    service,
    wait_for_event,
)
from dotdo.engine.engine import Engine
from dotdo.errors import ClientClosed, InputError, InvalidOperation, InvalidValue, StoreUnusable
from tests.doors import DOORS, Door, open_async
from tests.patience import PATIENCE

house = Catalogue()


@action("add", catalogue=house)
async def add(a: int, b: int = 2) -> int:
    return a + b


@action("add", version=2, catalogue=house)
async def add_text(first: str, second: str = "!") -> str:
    return first + second


@service("await-go", catalogue=house)
async def await_go() -> str:
    return await wait_for_event("go")


class Gate:
    """Where handlers of a test wait until it opens."""

    def __init__(self) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()


@action("pass-gate", retry=Retry(attempts=1), catalogue=house)
async def pass_gate(ctx: AsyncContext) -> str:
    gate = ctx.resource(Gate)
    gate.reached.set()
    await gate.open.wait()
    return "passed"


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[[Path], None]:
    """A test that is a coroutine function, given a path for its store."""

    def run(tmp_path: Path) -> None:
        async def within() -> None:
            async with asyncio.timeout(PATIENCE):
                await test(tmp_path / "dotdo.db")

        asyncio.run(within())

    run.__name__, run.__doc__ = getattr(test, "__name__", ""), test.__doc__
    return run


Opened = Callable[..., AbstractAsyncContextManager[AsyncDo]]


def through_both(test: Callable[..., Awaitable[None]]) -> Callable[[Path, Door], None]:
    """A test that is a coroutine function, given what opens a client; run embedded, and over HTTP."""

    @pytest.mark.parametrize("door", DOORS)
    def run(tmp_path: Path, door: Door) -> None:
        def opened(**options: Any) -> AbstractAsyncContextManager[AsyncDo]:
            return open_async(door, tmp_path / "dotdo.db", **{"catalogue": house, "grace": 5.0, **options})

        async def within() -> None:
            async with asyncio.timeout(PATIENCE):
                await test(opened)

        asyncio.run(within())

    run.__name__, run.__doc__ = getattr(test, "__name__", ""), test.__doc__
    return run


def client_on(path: Path, **options: Any) -> AsyncDo:
    given: dict[str, Any] = {"catalogue": house, "grace": 5.0, **options}
    return AsyncDo(f"sqlite:///{path}", **given)


# -- opening ----------------------------------------------------------------------------------------------------------


@in_loop
async def test_nothing_is_opened_before_the_first_call(path: Path):
    client = client_on(path)
    assert not os.listdir(path.parent)
    assert await client.run(add, 1) == 3
    assert path.name in os.listdir(path.parent)
    await client.close()


@in_loop
async def test_context_manager_opens_at_once_and_closes(path: Path):
    async with client_on(path) as client:
        assert path.name in os.listdir(path.parent)
        assert await client.run(add, 1) == 3
    with pytest.raises(ClientClosed):
        await client.run(add, 1)


@in_loop
async def test_calls_at_once_open_one_engine(path: Path):
    client = client_on(path)
    assert await asyncio.gather(*(client.run(add, n) for n in range(10))) == [n + 2 for n in range(10)]
    assert len({id(await client.platform()) for _ in range(3)}) == 1
    await client.close()


@in_loop
async def test_a_caller_who_gives_up_does_not_take_the_opening_from_the_others(path: Path):
    client = client_on(path)
    first, second = asyncio.create_task(client.run(add, 1)), asyncio.create_task(client.run(add, 2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 4
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await client.run(add, 3) == 5
    await client.close()


@in_loop
async def test_an_opening_that_failed_is_told_to_all_and_tried_again_at_the_next_call(path: Path):
    os.mkdir(path)
    client = client_on(path)
    told = await asyncio.gather(*(client.run(add, n) for n in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [StoreUnusable] * 3
    os.rmdir(path)
    assert await client.run(add, 1) == 3
    await client.close()


@in_loop
async def test_a_client_whose_opening_failed_can_be_closed(path: Path):
    os.mkdir(path)
    client = client_on(path)
    with pytest.raises(StoreUnusable):
        await client.platform()
    await client.close()
    with pytest.raises(ClientClosed):
        await client.platform()


@in_loop
async def test_a_second_client_on_the_file_asks_the_engine_of_the_first_until_that_is_closed(path: Path):
    first, second = client_on(path), client_on(path)
    assert await first.run(add, 1) == 3
    assert await second.run(add, 1) == 3
    assert [type(await client.platform()).__name__ for client in (first, second)] == ["Engine", "Follower"]
    await first.close()
    assert await second.run(add, 2) == 4
    assert type(await second.platform()).__name__ == "Engine"
    await second.close()


def test_another_event_loop_is_told_that_the_engine_runs_elsewhere(tmp_path: Path):
    client = client_on(tmp_path / "dotdo.db")
    assert asyncio.run(client.run(add, 1)) == 3
    for use in (lambda: client.run(add, 1), client.close):
        with pytest.raises(DefinitionError, match=r"on another event loop.* Open one for each loop .* or use Do"):
            asyncio.run(use())


# -- closing ----------------------------------------------------------------------------------------------------------


@in_loop
async def test_close_may_be_repeated_and_also_at_once(path: Path):
    client = client_on(path)
    await client.run(add, 1)
    await asyncio.gather(client.close(), client.close())
    await client.close()
    never_opened = client_on(path)
    await never_opened.close()
    with pytest.raises(ClientClosed):
        await never_opened.run(add, 1)


@in_loop
async def test_close_while_it_opens_tells_every_caller_and_leaves_nothing_open(path: Path):
    client = client_on(path)
    calls = [
        client.run(add, 1),
        client.start(add, 1),
        client.start(add.with_(key="k", delay=60), 1),
        client.action("add@1", wait=PATIENCE).invoke(a=1),
    ]
    reads = [client.handle("run_nowhere").result(), client.runs.list()]  # these may still be answered
    tasks = [asyncio.ensure_future(call) for call in [*calls, *reads]]
    await asyncio.sleep(0)
    await client.close()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error).__name__ for error in told[: len(calls)]] == ["ClientClosed"] * len(calls)
    async with client_on(path) as other:
        assert await other.runs.list() == [], "and what was refused is not there"
        assert await other.run(add, 1) == 3


@through_both
async def test_every_call_after_close_says_that_it_is_closed(opened: Opened):
    async with opened() as client:
        handle = await client.start(add, 1)
        await client.close()
        calls = [
            client.run(add, 1),
            client.start(add, 1),
            client.action("add").invoke(a=1),
            client.action.execute(name="add", params={"a": 1}),
            client.action.list(),
            client.runs.list(),
            client.runs.get(handle.id),
            client.runs.cancel(handle.id),
            client.runs.retry(handle.id),
            client.runs.undo(handle.id),
            client.runs.send_event(handle.id, "go"),
            handle.result(),
            handle.get(),
            handle.journal(),
        ]
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error).__name__ for error in told] == ["ClientClosed"] * len(calls)


@in_loop
async def test_closing_ends_the_threads_of_the_engine(path: Path):
    before = set(threading.enumerate())
    async with client_on(path) as client:
        await client.run(add, 1)
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) <= before


@in_loop
async def test_closing_waits_for_attempts_in_flight(path: Path):
    gate = Gate()
    client = client_on(path, resources=[gate])
    handle = await client.start(pass_gate)
    await gate.reached.wait()
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    assert not closing.done()
    gate.open.set()
    await closing
    async with client_on(path, resources=[gate]) as again:
        assert (await again.runs.get(handle.id)).status == "completed"
        assert [entry.kind for entry in await again.runs.journal(handle.id)] == ["accepted", "completed", "ended"]


# -- waiting ----------------------------------------------------------------------------------------------------------


@through_both
async def test_a_caller_waits_as_long_as_it_says_and_the_run_goes_on(opened: Opened):
    gate = Gate()
    async with opened(resources=[gate]) as client:
        with pytest.raises(StillRunning, match="It goes on; ask again by its id") as caught:
            await client.action("pass-gate", wait=0.01).invoke()
        assert caught.value.run_id is not None
        handle = client.handle(caught.value.run_id)
        for _ in range(3):
            with pytest.raises(StillRunning) as again:
                await handle.result(timeout=0.01)
            assert again.value.run_id == handle.id
        with pytest.raises(TimeoutError):
            await client.runs.wait(handle.id, timeout=0)
        gate.open.set()
        assert await handle.result(timeout=PATIENCE) == "passed"


@in_loop
async def test_asking_again_and_again_leaves_nothing_behind(path: Path):
    gate = Gate()
    async with client_on(path, resources=[gate]) as client:
        handle = await client.start(pass_gate)
        for _ in range(5):
            with pytest.raises(StillRunning):
                await handle.result(timeout=0)
        engine = await client.platform()
        assert isinstance(engine, Engine)
        assert not engine.answers.awaited(handle.id)
        waiting = [asyncio.create_task(handle.result()) for _ in range(3)]
        await gate.reached.wait()
        waiting[0].cancel()
        gate.open.set()
        assert await asyncio.gather(*waiting[1:]) == ["passed"] * 2, "others who wait are told all the same"


@through_both
async def test_a_timeout_of_the_callers_own_is_not_mistaken_for_ours(opened: Opened):
    gate = Gate()
    async with opened(resources=[gate]) as client:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01):
                await client.action("pass-gate", wait=60).invoke()
        assert not isinstance(caught.value, StillRunning)
        gate.open.set()


# -- options and parameters -------------------------------------------------------------------------------------------


@through_both
async def test_another_version_is_called_with_its_own_input_and_output(opened: Opened):
    async with opened() as client:
        assert await client.run(add, 1) == 3
        assert await client.run(add_text, "a") == "a!"
        other: Any = add.with_(version=2)
        assert await client.run(other, "b", second="?") == "b?"
        handle = await client.start(other, first="c")
        assert await handle.result() == "c!"
        assert await client.action("add").invoke(first="d") == "d!", "by name it is the newest"
        assert await client.action("add@1").invoke(a=1) == 3
        assert await client.action("add", version=1).invoke(a=1) == 3
        assert (await client.action.execute(name="add@1", params={"a": 1})).version == 1
        with pytest.raises(UnknownName, match="known versions: 1, 2"):
            await client.run(add.with_(version=3), 1)


@through_both
async def test_events_are_checked_before_they_are_sent(opened: Opened):
    async with opened() as client:
        handle = await client.start(await_go)
        with pytest.raises(InvalidValue, match=r"The value of the event 'go' .* \$\.a is nan"):
            await handle.send_event("go", {"a": float("nan")})
        for name, key in (("", None), ("\ud800", None), ("x\0", None), ("go", ""), ("go", "\ud800")):
            with pytest.raises(DefinitionError, match="1 to 500 characters"):
                await handle.send_event(name, 1, key=key)
        await handle.send_event("go", "now")
        assert await handle.result() == "now"
        with pytest.raises(InvalidOperation):
            await handle.send_event("go", "again")


@through_both
async def test_parameters_without_names_are_refused_where_a_name_is_all_that_is_known(opened: Opened):
    async with opened() as client:
        by_name: Any = client.action("add")
        for call in (by_name.invoke, by_name.start, by_name.preview):
            with pytest.raises(InputError, match=r"by name have names: write \w+\(name=value\), or \w+\(\*\*params"):
                await call({"a": 1})
        assert await client.runs.list() == []


@through_both
async def test_errors_have_their_class_and_attributes(opened: Opened):
    async with opened() as client:
        with pytest.raises(InvalidInput) as refused:
            await client.action("add@1").invoke(a="x", c=1)
        assert {problem.path for problem in refused.value.problems} == {"$.a", "$.c"}
        await client.run(add.with_(key="k"), 1)
        with pytest.raises(KeyConflict, match="'k' was already used for add"):
            await client.run(add.with_(key="k"), 2)
        assert len(await client.runs.list()) == 1, "what was refused left no run"


@through_both
async def test_what_is_no_definition_is_told(opened: Opened):
    async with opened() as client:
        for thing, text in (
            (add.plain, "is a bare function; give <Action add@1> itself"),
            ("add", "is a name. By name it is client.action"),
            (add.handler, "is not an action or service; decorate it"),
        ):
            with pytest.raises(DefinitionError, match=text):
                await client.run(thing, 1)  # type: ignore[call-overload]


@through_both
async def test_a_sync_client_works_beside_an_async_one(opened: Opened):
    async with opened() as client:
        with Do("sqlite://", catalogue=house) as other:
            assert other.run(add, 1) == await client.run(add, 1)


@through_both
async def test_failure_of_the_last_attempt_is_told_with_the_run(opened: Opened):
    failing = Catalogue()

    @action("fail", retry=Retry(attempts=3, delay=0), catalogue=failing)
    async def fail() -> None:
        raise LookupError("nothing there")

    async with opened(catalogue=failing) as client:
        with pytest.raises(ActionFailed) as caught:
            await client.run(fail)
        error = caught.value
        assert (error.action, error.error_type, error.error_message) == ("fail", "LookupError", "nothing there")
        assert (error.attempts, error.step, error.undo) == (3, "fail", "none")
        assert (await client.runs.get(error.run_id or "")).status == "failed"


def test_a_client_that_was_never_used_leaves_no_warning():
    AsyncDo("sqlite://", catalogue=house)
    Do("sqlite://", catalogue=house)
    gc.collect()
