"""Stopping in order: what is under way may end, nothing new begins, and the next engine goes on where this one was."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dotdo import AsyncContext, AsyncDo, Context, DefinitionError, Do, EffectCall, action, effect, service
from dotdo.embedding import open_reader
from dotdo.errors import ClientClosed
from tests.guarantees.lab import Lab, World, book, catalogue, hold, in_loop, laboratory, note
from tests.guarantees.ledger import ROOT
from tests.stores import rows_of, url_of


@service("goes-in-steps", catalogue=catalogue)
async def goes_in_steps() -> list[str]:
    return [await hold(gate="one"), await note(text="two"), await hold(gate="three")]


async def close_while(lab: Lab, gate: str) -> None:
    """Closes while a handler stands at the gate, which opens once the engine drains."""
    draining, close = asyncio.Event(), lab.engine.claimer.close

    async def close_aloud() -> None:
        draining.set()
        await close()

    lab.engine.claimer.close = close_aloud  # type: ignore[method-assign]  # the first thing that a drain does
    closing = asyncio.ensure_future(lab.client.close())
    await draining.wait()
    assert lab.engine.draining
    lab.world.open(gate)
    await closing


@in_loop
async def test_attempt_under_way_ends_and_nothing_new_begins(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(goes_in_steps)
        await lab.world.reached("one")
        waiting = asyncio.ensure_future(handle.result())
        await close_while(lab, "one")
        assert lab.world.said == ["at one", "past one"]
        with pytest.raises(ClientClosed, match="goes on later"):
            await waiting
        with pytest.raises(ClientClosed):
            await lab.client.start(note, text="too late")
    reader = open_reader(url_of(lab.path))
    given_back = reader.get_run(handle.id)
    reader.close()
    assert given_back is not None
    assert given_back.waiting_for is not None
    assert given_back.waiting_for.kind == "turn"
    async with laboratory(tmp_path, world=lab.world) as lab:
        lab.world.open("three")
        assert await lab.client.handle(handle.id).result() == ["one", "two", "three"]
        assert lab.world.said == ["at one", "past one", "two", "at three", "past three"]
        (claimed,) = await lab.data(handle.id, "claimed")
        assert not claimed.crashed


@effect("draining.post", on_unknown="ask", catalogue=catalogue)
async def post(call: EffectCall, text: str) -> None:
    world = call.resource(World)
    world.say(f"posting {text}")
    await world.pass_gate("post office")
    world.say(f"posted {text}")


@action("send", catalogue=catalogue)
async def send(ctx: AsyncContext, text: str) -> None:
    ctx.stage(post, text=text)


@in_loop
async def test_delivery_under_way_ends_so_that_nobody_need_be_asked(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(send, text="card")
        await lab.world.reached("post office")
        await close_while(lab, "post office")
        assert lab.world.said == ["posting card", "posted card"]
    async with laboratory(tmp_path, world=lab.world) as lab:
        await lab.client.runs.wait(handle.id)
        assert lab.world.said == ["posting card", "posted card"]


@in_loop
async def test_undo_under_way_ends_and_the_next_engine_undoes_the_rest(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.failures["unbook b"] = 0  # it stops at its gate
        handle = await lab.client.start(books_then_holds)
        await lab.world.reached("before the end")
        await handle.cancel()
        await lab.world.reached("unbook b")
        await close_while(lab, "unbook b")
        assert lab.world.said[-1] == "unbook b"
    async with laboratory(tmp_path, world=lab.world) as lab:
        await lab.until_status(handle.id, "cancelled")
        assert lab.world.said[-3:] == ["cancelled at before the end", "unbook b", "unbook a"]


@service("books-then-holds", catalogue=catalogue)
async def books_then_holds() -> None:
    await book(item="a")
    await book(item="b")
    await hold(gate="before the end")


@in_loop
async def test_attempt_that_outlasts_the_grace_is_cut_off_and_made_again(tmp_path: Path):
    async with laboratory(tmp_path, grace=0.05) as lab:
        handle = await lab.client.start(goes_in_steps)
        await lab.world.reached("one")
        await lab.client.close()
        assert lab.world.said == ["at one", "cancelled at one"]
    async with laboratory(tmp_path, world=lab.world) as lab:
        lab.world.open("one")
        lab.world.open("three")
        assert await lab.client.handle(handle.id).result() == ["one", "two", "three"]


# -- a thread that commits while its engine goes away ------------------------------------------------------------------

may_commit, has_begun = threading.Event(), threading.Event()


@pytest.fixture
def thread() -> Iterator[None]:
    may_commit.clear()
    has_begun.clear()
    yield
    may_commit.set()


@action("insert", retry=1, catalogue=catalogue)
def insert(ctx: Context) -> int:
    ctx.sql.exec_driver_sql("create table if not exists rows (number integer)")
    ctx.sql.exec_driver_sql("insert into rows values (1)")
    has_begun.set()
    may_commit.wait()
    return int(ctx.sql.exec_driver_sql("select count(*) from rows").scalar_one())


@pytest.mark.usefixtures("thread")
@in_loop
async def test_sql_is_applied_once_although_its_engine_did_not_wait_for_the_thread(tmp_path: Path):
    database = f"sqlite:///{tmp_path / 'app.db'}"
    async with laboratory(tmp_path, sql=database, grace=0.05) as lab:
        handle = await lab.client.start(insert)
        await asyncio.to_thread(has_begun.wait)
        closing = asyncio.ensure_future(lab.client.close())
        await asyncio.wait([closing], timeout=0.2)
        may_commit.set()
        await closing
    async with laboratory(tmp_path, sql=database) as lab:
        assert await lab.client.handle(handle.id).result() == 1


# -- SIGTERM -----------------------------------------------------------------------------------------------------------


class Program:
    """A program with a client that drains on SIGTERM, in a process of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        command = [sys.executable, "-m", "tests.guarantees.terminated", str(folder), kind]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> Any:
        """The next thing that it says."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_sigterm_lets_the_attempt_end_gives_the_run_back_and_ends_the_process(tmp_path: Path, kind: str):
    first = Program(tmp_path, kind)
    begun = first.hear() | first.hear()  # in either order
    assert begun.keys() == {"started", "handler"}
    first.process.send_signal(signal.SIGTERM)
    assert first.hear() == {"draining": True}
    assert first.process.stdin is not None
    first.process.stdin.write("go on\n")
    first.process.stdin.flush()
    assert first.hear() == {"passed": "one"}
    rest, _ = first.process.communicate(timeout=60)
    assert rest == ""
    assert first.process.returncode == -signal.SIGTERM

    second = Program(tmp_path, kind)
    assert (second.hear() | second.hear()) == {"started": begun["started"], "handler": "two"}
    second.process.communicate("go on\n", timeout=60)
    assert second.process.returncode == 0
    assert [row["status"] for row in rows_of(tmp_path / "dotdo.db", "select status from runs")] == ["completed"]


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_second_sigterm_does_not_wait(tmp_path: Path, kind: str):
    program = Program(tmp_path, kind)
    assert (program.hear() | program.hear()).keys() == {"started", "handler"}
    program.process.send_signal(signal.SIGTERM)
    assert program.hear() == {"draining": True}
    program.process.send_signal(signal.SIGTERM)
    rest, _ = program.process.communicate(timeout=60)
    assert (rest, program.process.returncode) == ("", -signal.SIGTERM)


@in_loop
async def test_draining_on_sigterm_is_refused_where_signals_are_not_heard(tmp_path: Path):
    def open_both() -> None:
        with pytest.raises(DefinitionError, match="main thread only"):
            Do(str(tmp_path / "sync.db"), drain_on_sigterm=True)
        with pytest.raises(DefinitionError, match="main thread only"):
            asyncio.run(AsyncDo(str(tmp_path / "async.db"), drain_on_sigterm=True).platform())

    await asyncio.to_thread(open_both)


@in_loop
async def test_closing_gives_sigterm_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    async with laboratory(tmp_path, drain_on_sigterm=True):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with Do(str(tmp_path / "sync.db"), drain_on_sigterm=True):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
