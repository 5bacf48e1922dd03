"""Handlers and services that spin, block, exit or raise the worst hurt no other run (I13).

Each test has a run beside the hostile one, which was there before it and completes after it. Nothing hangs, and each
hostile run ends, or is blocked, with a clear text.
"""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    Catalogue,
    Do,
    EffectCall,
    Fail,
    Retry,
    RunBlocked,
    action,
    effect,
    service,
)
from dotdo.engine.engine import Engine
from dotdo.engine.service_code import ServiceCode
from dotdo.errors import NodeDraining
from dotdo.records import ErrorRecord
from tests.guarantees.lab import Lab, catalogue, hold, in_loop, laboratory, note
from tests.patience import PATIENCE

LIMIT = 0.2  # s: what keeps the loop so long is interrupted (real time, because spinning is real work)


@asynccontextmanager
async def beside_others(folder: Path, **options: Any) -> AsyncIterator[Lab]:
    """A lab with a run in flight that was there before, and completes after, whatever the test does."""
    async with laboratory(folder, **options) as lab:
        beside = await lab.client.start(hold, gate="beside")
        await lab.world.reached("beside")
        yield lab
        lab.world.open("beside")
        assert await beside.result(timeout=60) == "beside"
        assert await lab.client.run(note, text="after") == "after"


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOTDO_SPIN_LIMIT", str(LIMIT))


# -- services that keep the loop ---------------------------------------------------------------------------------------


def spin() -> None:
    while True:
        pass


@service("spins-in-python", catalogue=catalogue)
async def spins_in_python(how: str) -> None:
    await note(text="before")
    match how:
        case "plainly":
            spin()
        case "catching":
            while True:
                try:
                    spin()
                except Exception:
                    await note(text="never")
        case "in a task":
            async with asyncio.TaskGroup() as group:
                group.create_task(spins_later())
        case "in a callback":
            asyncio.get_running_loop().call_soon(spin)
            await asyncio.sleep(0)
        case "when it is told to end":
            try:
                spin()
            finally:
                spin()
        case _:
            try:
                await asyncio.sleep(1000)
            finally:
                spin()


async def spins_later() -> None:
    await asyncio.sleep(0)
    spin()


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("how", ["plainly", "catching", "in a task", "in a callback", "when it is told to end"])
@in_loop
async def test_service_that_spins_is_interrupted_and_blocked(tmp_path: Path, how: str):
    async with beside_others(tmp_path) as lab:
        handle = await lab.client.start(spins_in_python, how=how)
        with pytest.raises(RunBlocked, match=r"was interrupted at .*, line \d+, in ") as outcome:
            await handle.result(timeout=60)
        assert "never" not in lab.world.said
        assert outcome.value.run_id == handle.id
        run = await lab.client.runs.get(handle.id)
        assert run.error is not None
        assert run.error.type == "ServiceSpins"


@pytest.mark.usefixtures("limit")
@in_loop
async def test_service_that_spins_when_it_is_cancelled_is_interrupted_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with beside_others(tmp_path) as lab:
        handle = await lab.client.start(spins_in_python, how="when it is cancelled")
        await lab.until_asleep(handle.id)
        await handle.cancel()
        run = await lab.until_status(handle.id, "cancelled", "blocked")
        assert run.status == "cancelled"


@pytest.mark.usefixtures("limit")
@in_loop
async def test_who_keeps_the_loop_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    @action("sleeps-in-async", retry=1, catalogue=catalogue)
    async def sleeps_in_async() -> str:
        time.sleep(LIMIT * 3)  # noqa: ASYNC251 - that is the mistake
        return "slow"

    async with beside_others(tmp_path) as lab:
        assert await lab.client.run(sleeps_in_async) == "slow"
    told = [record.getMessage() for record in caplog.records if "keeps the engine's event loop" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("The handler of the action sleeps-in-async (attempt 1 of sleeps-in-async in run_")
    assert "in sleeps_in_async: time.sleep(LIMIT * 3)" in told[0]
    assert "Make it a `def` handler" in told[0]


@pytest.mark.usefixtures("limit")
@in_loop
async def test_async_handler_that_spins_is_interrupted_in_the_end(tmp_path: Path):
    @action("spins-in-async", retry=3, catalogue=catalogue)
    async def spins_in_async() -> None:
        spin()

    async with beside_others(tmp_path) as lab:
        with pytest.raises(ActionFailed, match="kept the engine's event loop to itself") as failure:
            await lab.client.run(spins_in_async)
        assert (failure.value.error_type, failure.value.attempts) == ("Interrupted", 1)


# -- handlers and services that raise the worst ------------------------------------------------------------------------


class Unprintable(Exception):
    """Cannot be told: any way to print it raises."""

    def __str__(self) -> str:
        raise SystemExit("no")

    __repr__ = __str__


class Huge(Exception):
    """Prints as 50 million characters."""

    def __str__(self) -> str:
        return "x" * 50_000_000

    __repr__ = __str__


class NotText(Exception):
    """Its `__str__` returns no text."""

    def __str__(self) -> str:
        return 7  # type: ignore[return-value]

    __repr__ = __str__


class Odd(str):
    """Text whose every method fails."""

    def __str__(self) -> str:
        return self

    def __getitem__(self, index: Any) -> Any:
        raise OSError("[]")

    def __eq__(self, other: object) -> bool:
        raise OSError("==")

    def __hash__(self) -> int:
        raise OSError("hash")


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1) + 1


def nested_groups() -> BaseException:
    error: Any = ValueError("the innermost")
    for _ in range(5000):
        error = ExceptionGroup("outer", [error])
    return error


def cyclic_causes() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def worst(what: str) -> None:
    match what:
        case "exit":
            sys.exit("done")
        case "interrupt":
            raise KeyboardInterrupt
        case "generator exit":
            raise GeneratorExit
        case "stop iteration":
            raise StopIteration("here")
        case "cancelled":
            raise asyncio.CancelledError("by itself")
        case "recursion":
            recurse()
        case "memory":
            bytearray(1 << 60)
        case "unprintable":
            raise Unprintable
        case "huge":
            raise Huge
        case "not text":
            raise NotText
        case "odd":
            raise Fail(Odd("odd"))
        case "groups":
            raise nested_groups()
        case "causes":
            raise cyclic_causes()
        case _:
            raise type("x" * 100_000, (Exception,), {})("a type with a long name")


WORST = {
    "exit": ("SystemExit", "done"),
    "interrupt": ("KeyboardInterrupt", ""),
    "generator exit": ("GeneratorExit", ""),
    "stop iteration": ("RuntimeError", "StopIteration"),
    "cancelled": ("CancelledError", "by itself"),
    "recursion": ("RecursionError", "maximum recursion depth exceeded"),
    "memory": ("MemoryError", ""),
    "unprintable": ("Unprintable", "its text could not be made: SystemExit"),
    "huge": ("Huge", "xxxx... (cut)"),
    "not text": ("NotText", "its text could not be made: TypeError"),
    "odd": ("Fail", "odd"),
    "groups": ("ExceptionGroup", "outer"),
    "causes": ("ValueError", "one"),
    "long name": ("xxxx... (cut)", "a type with a long name"),
}


@action("worst-sync", retry=1, catalogue=catalogue)
def worst_sync(what: str) -> None:
    worst(what)


@action("worst-async", retry=1, catalogue=catalogue)
async def worst_async(what: str) -> None:
    worst(what)


@service("worst-service", catalogue=catalogue)
async def worst_service(what: str) -> None:
    await note(text=what)
    worst(what)


def told(error: ErrorRecord | None) -> str:
    assert error is not None
    assert len(error.type) + len(error.message) + len(error.traceback) < 25_000, "what is stored has an end"
    return f"{error.type}: {error.message}"


@in_loop
async def test_handlers_that_raise_the_worst_fail_by_themselves(tmp_path: Path):
    async with beside_others(tmp_path) as lab:
        for definition in (worst_sync, worst_async):
            handles = {what: await lab.client.start(definition, what=what) for what in WORST}
            for what, handle in handles.items():
                with pytest.raises(ActionFailed):
                    await handle.result(timeout=60)
                kind, message = WORST[what]
                if what == "generator exit" and definition is worst_sync:
                    kind, message = "RuntimeError", "the handler raised GeneratorExit"
                if what == "groups":  # with one error in them they are told as that one
                    kind, message = "ValueError", "the innermost"
                text = told((await handle.get()).error)
                assert f"{kind}: " in text
                assert message in text


BAD = {"exit", "interrupt", "cancelled", "generator exit"}


async def bad_effect(what: str) -> str:
    worst(what)
    return "never"


def bad_effect_on_a_thread(what: str) -> str:
    return worst(what) or "never"


def bad_undo(call: EffectCall, answer: str, input: dict[str, Any]) -> None:
    worst(input["what"])


async def good(what: str) -> str:
    return "done"


POLICY: dict[str, Any] = {"retry": Retry(attempts=2, delay=0, jitter=False), "on_unknown": "resend"}
bad = effect("bad", catalogue=catalogue, **POLICY)(bad_effect)
bad_thread = effect("bad-thread", catalogue=catalogue, **POLICY)(bad_effect_on_a_thread)
badly_undone = effect("badly-undone", undo=bad_undo, catalogue=catalogue, **POLICY)(good)


@action("stages-the-worst", retry=1, catalogue=catalogue)
async def stages_the_worst(ctx: AsyncContext, what: list[str]) -> None:
    for each in what:
        ctx.stage(bad, what=each)
        ctx.stage(bad_thread, what=each)


@action("stages-one", retry=1, catalogue=catalogue)
async def stages_one(ctx: AsyncContext, what: str) -> None:
    ctx.stage(bad, what=what)


@action("requests-the-worst", retry=1, catalogue=catalogue)
async def requests_the_worst(ctx: AsyncContext, what: str) -> None:
    await ctx.request(bad, what=what)


@action("asks-for-what-is-badly-undone", retry=1, catalogue=catalogue)
async def asks_for_what_is_badly_undone(ctx: AsyncContext, what: str) -> None:
    await ctx.request(badly_undone, what=what)
    raise Fail("it is to be undone")


@in_loop
async def test_effects_that_raise_the_worst_fail_by_themselves(tmp_path: Path):
    """They count as tries like any other: an effect that is cancelled inside does not leave its run without anybody."""
    async with beside_others(tmp_path) as lab:
        many = [await lab.client.start(stages_the_worst, what=sorted(BAD))]
        for definition in (stages_one, requests_the_worst):
            many += [await lab.client.start(definition, what=what) for what in BAD]
        for handle in many:
            with pytest.raises(ActionFailed, match=r"raised (System|Keyboard|Cancelled|Generator)"):
                await handle.result(timeout=60)
        for what in BAD:
            handle = await lab.client.start(asks_for_what_is_badly_undone, what=what)
            with pytest.raises(RunBlocked, match=WORST[what][0]):
                await handle.result(timeout=60)


async def cancels_itself(call: EffectCall, what: str = "", input: Any = None) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def group_fails(what: str) -> None:
    """Before Python 3.13 this leaves its task as if somebody had cancelled it."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ConnectionError("not now")

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
    raise ConnectionError("not now, either")


cancelling = effect("cancelling", catalogue=catalogue, **POLICY)(cancels_itself)
undone_by_cancelling = effect("undone-by-cancelling", undo=cancels_itself, catalogue=catalogue, **POLICY)(good)
grouping = effect("grouping", catalogue=catalogue, **POLICY)(group_fails)


@action("calls-what-cancels-its-task", retry=1, catalogue=catalogue)
async def calls_what_cancels_its_task(ctx: AsyncContext, how: str) -> None:
    if how == "stage":
        ctx.stage(cancelling, what="")
    elif how == "request":
        await ctx.request(cancelling, what="")
    elif how == "group":
        ctx.stage(grouping, what="")
    else:
        await ctx.request(undone_by_cancelling, what="")
        raise Fail("it is to be undone")


@in_loop
async def test_effects_that_cancel_their_own_task_fail_by_themselves(tmp_path: Path):
    async with beside_others(tmp_path) as lab:
        for how, told_so in (
            ("stage", "It raised CancelledError"),
            ("request", "It raised CancelledError"),
            ("group", "not now, either"),
        ):
            handle = await lab.client.start(calls_what_cancels_its_task, how=how)
            with pytest.raises(ActionFailed, match=told_so):
                await handle.result(timeout=60)
        handle = await lab.client.start(calls_what_cancels_its_task, how="undo")
        with pytest.raises(RunBlocked, match="It raised CancelledError"):
            await handle.result(timeout=60)


@in_loop
async def test_services_that_raise_the_worst_end_or_block_by_themselves(tmp_path: Path):
    ends = {"odd": "failed", "cancelled": "cancelled"}
    async with beside_others(tmp_path) as lab:
        handles = {what: await lab.client.start(worst_service, what=what) for what in WORST}
        for what, handle in handles.items():
            run = await lab.until_status(handle.id, "blocked", "failed", "cancelled")
            assert run.status == ends.get(what, "blocked")
            kind, message = WORST[what]
            text = told(run.error)
            assert what == "cancelled" or (kind in text and message.removesuffix("... (cut)") in text)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_task_of_a_handler_that_exits_ends_neither_the_client_nor_others(tmp_path: Path, error: type[BaseException]):
    """asyncio lets these two through a task, out of the loop; through `Do` they end the attempt only."""
    beside, own = threading.Event(), Catalogue()

    @action("waits", catalogue=own)
    def waits() -> str:
        return "waited" if beside.wait(PATIENCE) else "forgotten"

    @action("exits-in-a-task", retry=1, catalogue=own)
    async def exits_in_a_task(ctx: AsyncContext) -> None:
        async def leave() -> None:
            raise error("now")

        await asyncio.gather(leave())

    with Do(f"sqlite:///{tmp_path / 'dotdo.db'}", catalogue=own) as client:
        handle = client.start(waits)
        with pytest.raises(ActionFailed, match="now") as failure:
            client.run(exits_in_a_task)
        assert failure.value.error_type == error.__name__
        beside.set()
        assert handle.result(timeout=60) == "waited"


@dataclass
class Fragile:
    """A value that may not be read back any more, once the service is to have it."""

    text: str
    reads: ClassVar[int] = 0
    error: ClassVar[type[BaseException]] = SystemExit

    def __post_init__(self) -> None:
        type(self).reads += 1
        if self.reads == 3:  # 1: made by the handler. 2: its result is checked. 3: it is handed to the service.
            raise self.error("it is broken")


@action("makes-fragile", catalogue=catalogue)
async def makes_fragile() -> Fragile:
    return Fragile("glass")


@service("takes-fragile", catalogue=catalogue)
async def takes_fragile() -> str:
    return (await makes_fragile()).text


@pytest.mark.parametrize("error", [SystemExit, ValueError, Unprintable])
@in_loop
async def test_value_that_breaks_in_the_engines_hands_blocks_its_run(tmp_path: Path, error: type[BaseException]):
    Fragile.reads, Fragile.error = 0, error
    async with beside_others(tmp_path) as lab:
        handle = await lab.client.start(takes_fragile)
        with pytest.raises(RunBlocked, match=r"SystemExit: (no|it is broken)|return hint Fragile: it is broken"):
            await handle.result(timeout=60)
        assert Fragile.reads == 3
        await lab.client.runs.retry(handle.id)
        assert await handle.result(timeout=60) == "glass"


@in_loop
async def test_trouble_inside_the_engine_blocks_the_run_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A bug of the engine's own, where no user's code has a part: the run says so, and others go on."""
    real = ServiceCode.hand_over

    def breaks(code: ServiceCode, items: Any) -> None:
        if code.service.name == "takes-fragile":
            raise ZeroDivisionError("a bug of the engine")
        real(code, items)

    async with beside_others(tmp_path) as lab:
        Fragile.reads = 100
        with monkeypatch.context() as patch:
            patch.setattr(ServiceCode, "hand_over", breaks)
            handle = await lab.client.start(takes_fragile)
            with pytest.raises(RunBlocked, match="ZeroDivisionError: a bug of the engine"):
                await handle.result(timeout=60)
        assert any("internal error" in record.getMessage() for record in caplog.records)
        await lab.client.runs.retry(handle.id)
        assert await handle.result(timeout=60) == "glass"


# -- threads that cannot be killed -------------------------------------------------------------------------------------


@in_loop
async def test_threads_that_hang_take_no_thread_from_others_and_at_a_limit_the_node_drains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    release, own = threading.Event(), Catalogue()

    @action("hangs", retry=1, timeout=0.05, catalogue=own)
    def hangs() -> None:
        release.wait(60)

    @action("works", catalogue=own)
    def works() -> str:
        return "done"

    @action("waits", catalogue=own)
    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    client = AsyncDo(f"sqlite:///{tmp_path / 'dotdo.db'}", catalogue=own, grace=0.1)
    try:
        engine = await client.platform()
        assert isinstance(engine, Engine)
        engine.threads._limit, engine.outliving.limit = 2, 4
        for _ in range(3):
            with pytest.raises(ActionFailed, match="did not end within"):
                await client.run(hangs)
        assert engine.outliving.count == 3
        assert await client.run(works) == "done", "there are 2 threads, and 3 hang"

        waiting = await client.start(waits)
        asked = asyncio.create_task(waiting.result())
        await asyncio.sleep(0)
        with pytest.raises((NodeDraining, ActionFailed)):
            await client.run(hangs)
        with pytest.raises(NodeDraining, match=r"4 threads of handlers go on.*restart the process"):
            await asked
        with pytest.raises(NodeDraining, match="the last one of attempt 1 of hangs in run_"):
            await client.run(works)
        waiting_for = (await waiting.get()).waiting_for
        assert waiting_for is not None
        assert waiting_for.kind == "restart"
        assert any(
            record.levelname == "CRITICAL" and "starts nothing more" in record.message for record in caplog.records
        )
    finally:
        release.set()
        await client.close()
    async with AsyncDo(f"sqlite:///{tmp_path / 'dotdo.db'}", catalogue=own, grace=0.1) as client:
        assert await client.run(works) == "done"
