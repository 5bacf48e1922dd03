"""The bridge from sync to async code: every call ends, and so does every program that forgets to close."""

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from dotdo.embedding import open_reader
from dotdo.errors import CalledOutside, ClientClosed
from dotdo.portal import Portal
from dotdo.records import RunFilter
from tests.patience import PATIENCE

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Opened:
    """A portal, and what its closing has done."""

    def __init__(self, close: Callable[[], Any] | None = None) -> None:
        self.closings = 0
        self._then = close
        self.portal = Portal(self._close)

    async def _close(self) -> None:
        self.closings += 1
        if self._then is not None:
            await self._then()


async def answer(value: Any = 42) -> Any:
    await asyncio.sleep(0)
    return value


async def where() -> int:
    return threading.get_ident()


@pytest.fixture
def opened():
    found = Opened()
    yield found
    found.portal.close()


# -- calls ------------------------------------------------------------------------------------------------------------


def test_call_returns_the_result_and_raises_the_same_error(opened: Opened):
    assert opened.portal.call(answer) == 42
    error = KeyError("mine")

    async def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        opened.portal.call(fail)
    assert caught.value is error


def test_all_calls_share_one_loop_whoever_makes_them(opened: Opened):
    with ThreadPoolExecutor(8) as pool:
        threads = set(pool.map(lambda _: opened.portal.call(where), range(64)))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_first_calls_at_once_open_one_loop():
    for _ in range(20):
        opened, barrier = Opened(), threading.Barrier(8)

        def first(opened: Opened = opened, barrier: threading.Barrier = barrier) -> int:
            barrier.wait(timeout=PATIENCE)
            return opened.portal.call(where)

        with ThreadPoolExecutor(8) as pool:
            threads = {future.result() for future in [pool.submit(first) for _ in range(8)]}
        opened.portal.close()
        assert len(threads) == 1


def test_calls_see_the_callers_context_and_leave_it_alone(opened: Opened):
    async def read_then_set() -> str:
        seen = variable.get()
        variable.set("inside")
        return seen

    token = variable.set("outside")
    try:
        assert opened.portal.call(read_then_set) == "outside"
        assert variable.get() == "outside"
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(opened.portal.call, read_then_set).result(PATIENCE) == "unset"
    finally:
        variable.reset(token)


def test_a_cancelled_call_is_told_as_such_while_the_portal_is_open(opened: Opened):
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(BaseException) as caught:
        opened.portal.call(cancelled)
    assert type(caught.value).__name__ == "CancelledError"


def test_on_its_own_loop_it_refuses_instead_of_waiting_for_itself(opened: Opened):
    async def within(call: Callable[[], Any]) -> None:
        call()

    for call in (lambda: opened.portal.call(answer), opened.portal.close):
        with pytest.raises(CalledOutside, match="Use a service to compose actions, or AsyncDo in async code"):
            opened.portal.call(lambda call=call: within(call))
    assert opened.portal.call(answer) == 42
    assert opened.closings == 0


# -- closing ----------------------------------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_call():
    before = threading.active_count()
    opened = Opened()
    assert threading.active_count() == before
    opened.portal.close()
    assert (threading.active_count(), opened.closings) == (before, 0)


def test_close_ends_the_thread_and_may_be_repeated():
    before = threading.active_count()
    opened = Opened()
    opened.portal.call(answer)
    assert threading.active_count() == before + 1
    for _ in range(3):
        opened.portal.close()
    assert (threading.active_count(), opened.closings) == (before, 1)
    with pytest.raises(ClientClosed, match="The client is closed; open a new one"):
        opened.portal.call(answer)


def test_a_closing_that_fails_still_ends_the_thread():
    async def fail() -> None:
        raise OSError("disk")

    before = threading.active_count()
    opened = Opened(fail)
    opened.portal.call(answer)
    with pytest.raises(OSError, match="disk"):
        opened.portal.close()
    assert threading.active_count() == before


def test_whoever_waits_is_told_when_it_closes():
    opened, waiting = Opened(), threading.Event()

    async def forever() -> None:
        waiting.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(opened.portal.call, forever)
        assert waiting.wait(PATIENCE)
        opened.portal.close()
        with pytest.raises(ClientClosed, match="closed meanwhile"):
            call.result(PATIENCE)


def test_calls_that_race_with_the_closing_all_end():
    for _ in range(10):
        opened, racing = Opened(), threading.Barrier(9)

        def call_on(opened: Opened = opened, racing: threading.Barrier = racing) -> int:
            racing.wait(timeout=PATIENCE)
            for count in range(1_000_000):
                try:
                    opened.portal.call(answer)
                except ClientClosed:
                    return count
            raise AssertionError("it never closed")

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(call_on) for _ in range(8)]
            racing.wait(timeout=PATIENCE)
            opened.portal.call(answer)
            opened.portal.close()
            assert sum(call.result(PATIENCE) for call in calls) >= 0


def test_a_signal_in_the_middle_of_a_call_may_close_it():
    opened = Opened()

    async def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.Event().wait()

    before = signal.signal(signal.SIGUSR1, lambda number, frame: opened.portal.close())
    try:
        with pytest.raises(ClientClosed):
            opened.portal.call(interrupted)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert opened.closings == 1


# -- programs ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import atexit, gc, os, sys, threading
from dotdo import Catalogue, Do, action

catalogue = Catalogue()
begun = threading.Event()

@action("quick", catalogue=catalogue)
async def quick(text: str) -> str:
    return text

@action("slow", catalogue=catalogue)
def slow() -> str:
    begun.set()
    sys.stdin.readline()
    print("handler ended", flush=True)
    return "slow"

def open_client() -> Do:
    return Do(sys.argv[1], catalogue=catalogue)

def in_thread(work) -> None:
    threading.Thread(target=lambda: print(work(), flush=True)).start()

def start_slow(client: Do) -> None:
    client.start(slow)
    assert begun.wait(20)
    atexit.register(print, "exiting", flush=True)  # later than the client's own, so it comes first
"""


def run_program(tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + code)
    command = [sys.executable, "-W", "error", program, str(tmp_path / "dotdo.db")]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # only then is a handler that waits told to go on
        out, errors = process.communicate("go on\n", timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, first + out, errors)


@pytest.mark.parametrize(
    "code, printed, status",
    [
        ("client = open_client(); print(client.run(quick, 'hi'))", "hi\n", 0),
        ("client = open_client()", "", 0),
        ("print(open_client().run(quick, 'dropped')); gc.collect()", "dropped\n", 0),
        ("client = open_client(); start_slow(client)", "exiting\nhandler ended\n", 0),
        ("start_slow(open_client()); gc.collect()", "exiting\nhandler ended\n", 0),
        ("client = open_client(); start_slow(client); sys.exit(3)", "exiting\nhandler ended\n", 3),
        ("client = open_client(); client.runs.list(); in_thread(lambda: client.run(quick, 'x'))", "x\n", 0),
        ("first, second = open_client(), Do('sqlite://'); first.run(quick, 'x'); second.runs.list()", "", 0),
    ],
)
def test_a_program_that_never_closes_its_client_drains_and_exits(tmp_path: Path, code: str, printed: str, status: int):
    done = run_program(tmp_path, code)
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", status)
    if (tmp_path / "dotdo.db").exists():
        store = open_reader(str(tmp_path / "dotdo.db"))
        assert {run.status for run in store.list_runs(RunFilter())} == {"completed"}
        store.close()


def test_a_program_that_fails_exits_with_its_own_error(tmp_path: Path):
    done = run_program(tmp_path, "client = open_client(); start_slow(client); raise ValueError('mine')")
    assert (done.stdout, done.returncode) == ("exiting\nhandler ended\n", 1)
    assert done.stderr.splitlines()[-1] == "ValueError: mine"


FORK = """
if hasattr(os, "fork"):
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tried here
def in_child(work):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stdout.flush()
            sys.exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
def told():
    try:
        client.run(quick, 'x')
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_forked_process_is_told_instead_of_waiting_for_its_parents_engine(tmp_path: Path):
    code = "client = open_client(); client.run(quick, 'x'); in_child(told); print(client.run(quick, 'parent'))"
    done = run_program(tmp_path, FORK + code)
    assert (done.stderr, done.returncode) == ("", 0)
    told, parent = done.stdout.splitlines()
    assert told.startswith("ClientClosed The client was opened before this process was forked")
    assert parent == "parent"


def test_a_forked_process_may_close_or_end_without_harm(tmp_path: Path):
    code = "client = open_client(); client.run(quick, 'x'); in_child(client.close); print(client.run(quick, 'p'))"
    done = run_program(tmp_path, FORK + code)
    assert (done.stdout, done.stderr, done.returncode) == ("p\n", "", 0)


ASYNC_FORK = """
import asyncio
from dotdo import AsyncDo
def run_in_child(work):
    asyncio._set_running_loop(None)  # that of the parent, which forked in the middle of it
    asyncio.new_event_loop().run_until_complete(work)
async def use(client):
    try:
        await client.run(quick, 'x')
    except Exception as error:
        print(type(error).__name__, error.message, end=" | ")
async def in_the_child():
    await use(opened)
    await use(AsyncDo('sqlite:///other.db', catalogue=catalogue))
    await opened.close()
    sys.stdout.flush()
    os._exit(0)  # the parent's loop must not be unwound here
async def all_of_it():
    await opened.run(quick, 'x')
    in_child(lambda: run_in_child(in_the_child()))
    await opened.close()
opened = AsyncDo('sqlite:///other.db', catalogue=catalogue)
asyncio.run(all_of_it())
"""


def test_an_async_client_is_told_of_the_fork_too_and_so_is_a_new_one(tmp_path: Path):
    done = run_program(tmp_path, FORK + f"os.chdir({str(tmp_path)!r})" + ASYNC_FORK)
    assert done.returncode == 0, done.stderr
    opened, anew, _ = done.stdout.split(" | ")
    assert opened.startswith("ClientClosed The client was opened before this process was forked")
    assert anew.startswith("StoreUnusable This process was forked from one that had the store ")


def test_a_client_that_was_not_opened_yet_works_in_a_forked_process(tmp_path: Path):
    code = "client = open_client(); in_child(lambda: print(client.run(quick, 'child'))); print(client.run(quick, 'p'))"
    done = run_program(tmp_path, FORK + code)
    assert (done.stdout, done.stderr, done.returncode) == ("child\np\n", "", 0)


def test_forked_processes_make_different_run_ids(tmp_path: Path):
    """Ids come from the operating system: a generator that was seeded before the fork would repeat itself."""
    code = """
from dotdo.engine.accepting import run_id
run_id("x", None)
for _ in range(4):
    in_child(lambda: print(*(run_id("x", None) for _ in range(50))))
"""
    done = run_program(tmp_path, FORK + code)
    assert (done.stderr, done.returncode) == ("", 0)
    ids = done.stdout.split()
    assert (len(ids), len(set(ids))) == (200, 200)
    assert all(found.startswith("run_") and len(found) == 36 for found in ids)
