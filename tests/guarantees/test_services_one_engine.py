"""One engine per file: a second one is refused, the lock dies with its process, and what that left is rescued."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dotdo import AsyncDo, Do, service
from dotdo.errors import StoreUnusable
from tests.guarantees.lab import book, catalogue, hold, in_loop, laboratory, note
from tests.guarantees.ledger import ROOT

HOLDER = """
import sys
from dotdo import Do
with Do(sys.argv[1]) as client:
    print("open", flush=True)
    sys.stdin.readline()
"""


def hold_open(store: Path) -> "subprocess.Popen[str]":
    """A process with an engine on the store."""
    command = [sys.executable, "-c", HOLDER, str(store)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_second_engine_is_refused_and_told_who_holds_the_file(tmp_path: Path):
    store = tmp_path / "dotdo.db"
    holder = hold_open(store)
    with pytest.raises(StoreUnusable, match=f"Another engine already runs on the store .*process {holder.pid}"):
        Do(str(store)).__enter__()
    holder.communicate("end\n")
    with Do(str(store), catalogue=catalogue) as client:
        assert client.runs.list() == []


@in_loop
async def test_second_engine_in_the_same_process_is_refused_too(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        second = AsyncDo(f"sqlite:///{lab.path}", catalogue=catalogue)
        with pytest.raises(StoreUnusable, match=rf"process {os.getpid()} .*One engine per SQLite file"):
            await second.platform()
        assert await lab.client.run(note, text="unharmed") == "unharmed"
        await second.close()


def test_lock_dies_with_the_process_that_held_it(tmp_path: Path):
    store = tmp_path / "dotdo.db"
    holder = hold_open(store)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    with Do(str(store), catalogue=catalogue) as client:
        assert client.runs.list() == []


@service("is-left-behind", catalogue=catalogue)
async def is_left_behind() -> str:
    await book(item="once")
    return await hold(gate="left")


@in_loop
async def test_runs_of_a_node_that_is_gone_are_rescued_whenever_they_turn_up(tmp_path: Path):
    """Rescue is a sweep for ever, not a thing of the start: a run may come to light late."""
    async with laboratory(tmp_path, grace=0.05) as lab:
        handle = await lab.client.start(is_left_behind)
        await lab.world.reached("left")
    async with laboratory(tmp_path, world=lab.world) as lab:
        await lab.until_journal_has(handle.id, "claimed")
        await lab.world.reached("left")
        lab.engine.live.pop(handle.id).release()  # as if its node had died without a word
        await lab.sql("update runs set owner = 'node_of_the_dead' where id = :run", run=handle.id)
        lab.engine.claimer.hint()
        lab.world.open("left")
        assert await lab.client.handle(handle.id).result() == "left"
        assert [claimed.crashed for claimed in await lab.data(handle.id, "claimed")][-1] is True
        assert lab.world.said.count("book once") == 1
