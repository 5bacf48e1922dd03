"""Hostile code hurts its own run only: whatever it raises or returns, the run ends or is blocked, and says why."""

import asyncio
import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dotdo import Action, ActionFailed, Catalogue, Do, InvalidInput, RunBlocked, RunCancelled, Service, wait_for_event
from dotdo.engine.running import LiveRun
from tests.patience import PATIENCE


class NoText(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")


class WrongText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


def cycle() -> Exception:
    one, other = ValueError("round"), ValueError("and round")
    one.__cause__, other.__cause__ = other, one
    return one


RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "surrogate": (lambda: OSError("no file \udcff"), "no file ?"),
    "nul": (lambda: ValueError("a\0b"), "ab"),
    "huge": (lambda: ValueError("x" * 5_000_000), "xxx"),
    "no text": (NoText, "its text could not be made: LookupError"),
    "wrong text": (WrongText, "its text could not be made: TypeError"),
    "cycle": (cycle, "round"),
    "group": (lambda: ExceptionGroup("several", [ValueError("1"), KeyError("2")]), "several (2 sub-exceptions)"),
    "exit": (lambda: SystemExit(3), "3"),
    "interrupt": (KeyboardInterrupt, "KeyboardInterrupt"),
    "generator exit": (GeneratorExit, "GeneratorExit"),
    "stop iteration": (lambda: StopIteration(1), "raised StopIteration"),
    "stop async iteration": (lambda: StopAsyncIteration(1), "1"),
    "base": (lambda: BaseException("base"), "base"),
    "recursion": (RecursionError, "RecursionError"),
    "memory": (MemoryError, "MemoryError"),
    "its own failure": (lambda: ActionFailed("a\udcff", "T\udcff", "m\udcff"), "m?"),
}


@dataclasses.dataclass
class Moody:
    """A class of the user's that can be made once, and not again."""

    times: int = 0

    def __post_init__(self) -> None:
        made.append(self)
        if len(made) > 1:
            raise LookupError("not again")


made: list[Moody] = []


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


RETURNED: dict[str, tuple[Callable[[], Any], str]] = {
    "nan": (lambda: {"a": [float("nan")]}, "$.a[0] is nan"),
    "surrogate": (lambda: "\udcff", "lone surrogate"),
    "surrogate key": (lambda: {"\udcff": 1}, "lone surrogate"),
    "nul": (lambda: "\0", "NUL"),
    "cycle": (cyclic, "cyclic"),
    "object": (object, "builtins.object is not JSON"),
    "huge": (lambda: "x" * (64 * 1024 * 1024), "at most 64 MiB"),
    "moody": (Moody, "does not fit its return hint Moody: not again (LookupError)"),
}


def run_sync(kind: str, name: str) -> Any:
    if kind == "raise":
        raise RAISED[name][0]()
    return RETURNED[name][0]()


def run_moody(kind: str, name: str) -> Moody:
    return run_sync(kind, name)


async def run_async(kind: str, name: str) -> Any:
    return run_sync(kind, name)


async def run_moody_async(kind: str, name: str) -> Moody:
    return run_sync(kind, name)


def fine() -> str:
    return "fine"


@pytest.fixture
def client() -> Iterator[Do]:
    catalogue = Catalogue()
    made.clear()
    Action("sync", run_sync, retry=1, catalogue=catalogue)
    Action("async", run_async, retry=1, catalogue=catalogue)
    Action("sync-moody", run_moody, retry=1, catalogue=catalogue)
    Action("async-moody", run_moody_async, retry=1, catalogue=catalogue)
    Service("service", run_async, catalogue=catalogue)
    Service("service-moody", run_moody_async, catalogue=catalogue)
    Action("fine", fine, catalogue=catalogue)
    with Do("sqlite://", catalogue=catalogue) as client:
        yield client


def fails(client: Do, called: str, /, **params: Any) -> BaseException:
    names = client.service if called.startswith("service") else client.action
    with pytest.raises((ActionFailed, RunBlocked)) as caught:
        names(called, wait=PATIENCE).invoke(**params)
    assert client.action("fine", wait=PATIENCE).invoke() == "fine", "others go on"
    return caught.value


@pytest.mark.parametrize("name", sorted(RAISED))
@pytest.mark.parametrize("handler", ["sync", "async"])
def test_whatever_a_handler_raises_fails_its_action(client: Do, handler: str, name: str):
    error = fails(client, handler, kind="raise", name=name)
    assert isinstance(error, ActionFailed)
    assert RAISED[name][1] in str(error)
    assert len(error.error_message) < 5_000


@pytest.mark.parametrize("name", sorted(RAISED.keys() - {"its own failure"}))
def test_whatever_a_service_raises_blocks_its_run_as_a_bug(client: Do, name: str):
    error = fails(client, "service", kind="raise", name=name)
    assert isinstance(error, RunBlocked)
    assert RAISED[name][1] in str(error)
    assert len(str(error)) < 5_000


def test_a_failure_that_a_service_makes_itself_fails_its_run(client: Do):
    error = fails(client, "service", kind="raise", name="its own failure")
    assert isinstance(error, ActionFailed)
    assert (error.action, error.error_message) == ("a?", "m?")


@pytest.mark.parametrize("name", sorted(RETURNED))
@pytest.mark.parametrize("handler", ["sync", "async", "service"])
def test_whatever_cannot_be_carried_is_told_and_not_tried_again(client: Do, handler: str, name: str):
    error = fails(client, f"{handler}-moody" if name == "moody" else handler, kind="return", name=name)
    assert RETURNED[name][1] in str(error)
    assert isinstance(error, RunBlocked if handler == "service" else ActionFailed)
    assert getattr(error, "attempts", 1) == 1


def test_a_service_that_cancels_itself_is_cancelled():
    async def cancels() -> None:
        raise asyncio.CancelledError

    catalogue = Catalogue()
    Service("cancels", cancels, catalogue=catalogue)
    with Do("sqlite://", catalogue=catalogue) as client, pytest.raises(RunCancelled, match="cancelled itself"):
        client.service("cancels", wait=PATIENCE).invoke()


# -- inputs and results that fit no longer ----------------------------------------------------------------------------


@dataclasses.dataclass
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise LookupError("must be positive")


def take(value: Positive) -> int:
    return value.number


async def pass_on(number: int) -> int:
    return await take_it({"number": number})  # type: ignore[arg-type]


own = Catalogue()
take_it = Action("take", take, catalogue=own)
Service("pass-on", pass_on, catalogue=own)


def test_what_a_class_of_the_users_refuses_is_an_invalid_input():
    with Do("sqlite://", catalogue=own) as client:
        assert client.action("take").invoke(value={"number": 1}) == 1
        with pytest.raises(InvalidInput) as caught:
            client.action("take").invoke(value={"number": -1})
        (problem,) = caught.value.problems
        assert (problem.path, problem.message) == ("$.value", "must be positive (LookupError)")
        assert client.service("pass-on", wait=PATIENCE).invoke(number=2) == 2
        with pytest.raises(RunBlocked, match="must be positive"):
            client.service("pass-on", wait=PATIENCE).invoke(number=-2)


@dataclasses.dataclass
class Old:
    number: int


@dataclasses.dataclass
class New:
    number: int
    needed: int


def shop(kind: type) -> Catalogue:
    catalogue = Catalogue()

    def get():
        return kind(*range(len(dataclasses.fields(kind))))

    async def flow() -> str:
        found = await getter()
        return f"{await wait_for_event('go')} {found.number}"

    get.__annotations__["return"] = kind
    getter: Action[..., Any] = Action("get", get, catalogue=catalogue)
    Service("flow", flow, catalogue=catalogue)
    return catalogue


def test_a_recorded_result_that_fits_the_new_code_no_longer_blocks_and_names_the_action(tmp_path: Path):
    """The mend is to bring the old type back (or a new version of the action), then to retry the run."""
    path = str(tmp_path / "dotdo.db")
    with Do(path, catalogue=shop(Old)) as client:
        handle = client.service("flow").start()
        handle.send_event("never")
        assert client.action("get").invoke() == {"number": 0}
    with Do(path, catalogue=shop(New)) as client:
        again = client.handle(handle.id)
        again.send_event("go", "on")
        with pytest.raises(
            RunBlocked, match=r"The result of action get@1 does not fit its return hint New: .*`needed`"
        ):
            again.result(timeout=PATIENCE)
    with Do(path, catalogue=shop(Old)) as client:
        client.runs.retry(handle.id)
        assert client.handle(handle.id).result(timeout=PATIENCE) == "on 0"


# -- memory -----------------------------------------------------------------------------------------------------------


def runs_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is LiveRun for thing in gc.get_objects())


@pytest.mark.parametrize("handler", ["sync", "async", "service"])
def test_a_run_that_has_ended_leaves_nothing_in_memory(client: Do, handler: str):
    """Nor does the thread that ran its handler, and waits for another, keep what it raised or returned."""
    before = runs_in_memory()
    fails(client, handler, kind="raise", name="recursion")
    fails(client, handler, kind="return", name="object")
    for _ in range(50):  # whoever waits is told a moment before the last reference is gone
        if runs_in_memory() <= before:  # those of tests before this one may go meanwhile
            return
    raise AssertionError(f"{runs_in_memory() - before} runs are still in memory")
