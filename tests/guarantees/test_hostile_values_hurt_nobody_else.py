"""Values that are large, too large, too deep, cyclic or hostile hurt no other run (I13).

Large ones are carried like any other and stored apart; those beyond the limits are refused with a text that says so,
the same at every door.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from dotdo import (
    AsyncContext,
    AsyncDo,
    Catalogue,
    EffectCall,
    Retry,
    action,
    call,
    continue_as_new,
    effect,
    service,
    wait_for_event,
)
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader
from dotdo.engine.engine import Engine
from dotdo.errors import StoreUnavailable
from dotdo.journal import LARGE
from tests.guarantees.invariants import check_store
from tests.guarantees.lab import in_loop

catalogue = Catalogue()


def text_of(name: str, size: int = 400_000) -> str:
    """A large text of its own for each name; not in ASCII, so that its parts end within characters. size: bytes."""
    return (name + "€") * (size // (len(name) + 3))


sent: list[str] = []


@effect("send-large", dedup="key", catalogue=catalogue)
def send_large(call: EffectCall, text: str) -> str:
    sent.append(text)
    return text + "!"


@effect("ask-large", dedup="key", catalogue=catalogue)
async def ask_large(call: EffectCall, text: str) -> str:
    return text + "?"


@action("carry", retry=Retry(attempts=2, delay=0.001), undo=lambda text: None, catalogue=catalogue)
async def carry(ctx: AsyncContext, text: str) -> str:
    """Large input, request, answer, staged effect and result; the first attempt fails."""
    answer = await ctx.request(ask_large, text)
    ctx.stage(send_large, text + " staged")
    if ctx.attempt == 1:
        raise ConnectionError("once")
    return answer


@action("double", catalogue=catalogue)
def double(text: str) -> str:
    return text + text


@service("child", catalogue=catalogue)
async def child(text: str) -> str:
    return await double(text)


@service("parent", catalogue=catalogue)
async def parent(text: str) -> list[Any]:
    event = await wait_for_event("large")
    carried = await carry(text)
    doubled = await child(text)
    by_name = await call("double", text=event["text"])
    return [event, carried, doubled, by_name]


@action("small", catalogue=catalogue)
async def small(number: int) -> int:
    return number


def result_of(text: str) -> list[Any]:
    event = {"text": text_of("event")}
    return [event, text + "?", text + text, event["text"] * 2]


async def platform(client: AsyncDo) -> Engine:
    engine = await client.platform()
    assert isinstance(engine, Engine)
    return engine


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'dotdo.db'}"


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = apsw.Connection(str(folder / "dotdo.db"))
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()


# -- large values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check_replay", [False, True], ids=["as ever", "replayed"])
@in_loop
async def test_large_values_go_everywhere_and_come_back(tmp_path: Path, check_replay: bool):
    text, event = text_of("input"), {"text": text_of("event")}
    sent.clear()
    async with AsyncDo(store_of(tmp_path), catalogue=catalogue, check_replay=check_replay) as client:
        handle = await client.start(parent.with_(key="one"), text)
        await handle.send_event("large", event, key="first")
        assert await handle.result() == result_of(text)
        assert sent == [text + " staged"]
        again = await client.start(parent.with_(key="one"), text)
        assert again.id == handle.id
        entries = await handle.journal()
        assert (await client.runs.get(handle.id)).result == result_of(text)
        assert (await client.runs.list(name="parent"))[0].result is None, "a list leaves large results out"

    async with AsyncDo(store_of(tmp_path), catalogue=catalogue) as client:
        assert await client.handle(handle.id).journal() == entries
        assert (await client.runs.get(handle.id)).result == result_of(text)
    large = [entry for entry in entries if len(entry.data.encode()) > LARGE * 1.1]
    assert {entry.kind for entry in large} >= {
        "accepted", "requested", "answered", "attempt_failed", "committed", "delivered", "event", "child_started",
        "completed", "ended",
    }  # fmt: skip
    stored = rows(tmp_path, "select seq, data from journal where data like '@%' and run not like '%.%'")
    assert sorted(seq for seq, _ in stored) == sorted(entry.seq for entry in large)
    assert rows(tmp_path, "select max(length(data)) from journal")[0][0] < LARGE * 1.1
    assert rows(tmp_path, "select max(length(data)) from blobs")[0][0] <= 1024 * 1024
    check_store(tmp_path / "dotdo.db")
    store = open_reader(store_of(tmp_path))
    try:
        assert list(Audit(store, audit_key(str(tmp_path / "dotdo.db"))).verify()) == []
    finally:
        store.close()


@service("counts", catalogue=catalogue)
async def counts(texts: list[str]) -> list[str]:
    """Hears two events in each of its runs, and hands what it has not heard to the next one."""
    texts = texts + [await wait_for_event("text") for _ in range(2)]
    if len(texts) < 6:
        continue_as_new(texts=texts)
    return texts


@in_loop
async def test_large_messages_are_handed_on_to_the_run_that_continues(tmp_path: Path):
    texts = [text_of(f"event {number}") if number % 2 else f"small {number}" for number in range(6)]
    async with AsyncDo(store_of(tmp_path), catalogue=catalogue) as client:
        handle = await client.start(counts.with_(delay=0.2), [])
        for text in texts:
            await handle.send_event("text", text)
        assert await handle.result() == texts
    check_store(tmp_path / "dotdo.db")


@in_loop
async def test_edited_blob_is_found_by_the_audit(tmp_path: Path):
    async with AsyncDo(store_of(tmp_path), catalogue=catalogue) as client:
        handle = await client.start(double, text_of("one"))
        await handle.result()
    connection = apsw.Connection(str(tmp_path / "dotdo.db"))
    connection.execute(
        "update blobs set data = cast(replace(cast(data as text), 'one', 'two') as blob) where rowid % 2 = 0"
    )
    assert connection.changes() > 0
    connection.close()
    store = open_reader(store_of(tmp_path))
    try:
        found = list(Audit(store, audit_key(str(tmp_path / "dotdo.db"))).verify())
        assert found
        assert all("its data was changed" in finding.text for finding in found)
    finally:
        store.close()


@in_loop
async def test_others_commit_between_the_parts_of_a_large_value(tmp_path: Path):
    async with AsyncDo(store_of(tmp_path), catalogue=catalogue) as client:
        engine = await platform(client)
        loop, entered, parts = asyncio.get_running_loop(), asyncio.Event(), list[int]()
        beside: list[tuple[int, int]] = []  # parts before and after a whole run of somebody else
        write_blob = engine.store.write_blob

        def watched(run: str, digest: str, part: int, data: bytes) -> None:
            write_blob(run, digest, part, data)
            parts.append(part)
            loop.call_soon_threadsafe(entered.set)

        engine.store.write_blob = watched  # type: ignore[method-assign]
        large = asyncio.create_task(client.run(double, text_of("large", 6_000_000)))
        while not large.done():
            await asyncio.wait([large, asyncio.create_task(entered.wait())], return_when=asyncio.FIRST_COMPLETED)
            entered.clear()
            before = len(parts)
            assert await client.run(small, len(parts)) == before
            beside.append((before, len(parts)))
        assert await large == text_of("large", 6_000_000) * 2
    assert len(parts) > 30
    # Somebody else's whole run, with its commits, took as long as a few parts, and never waited for all of them.
    assert len(beside) > 5
    assert max(after - before for before, after in beside) < 10


@in_loop
async def test_large_value_that_cannot_be_written_delays_its_own_run_only(tmp_path: Path):
    async with AsyncDo(store_of(tmp_path), catalogue=catalogue) as client:
        engine = await platform(client)
        write_blob, failures = engine.store.write_blob, [2, 5]

        def fails(run: str, digest: str, part: int, data: bytes) -> None:
            if failures and part == failures[0]:
                failures.pop(0)
                raise StoreUnavailable("The disk is full.")
            write_blob(run, digest, part, data)

        engine.store.write_blob = fails  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            await client.start(double, text_of("refused", 6_000_000))
        handle = await client.start(small, 1)
        assert await handle.result() == 1
        large = await client.start(double, text_of("written", 2_000_000))  # its result fails once, and is made again
        assert await large.result() == text_of("written", 2_000_000) * 2
        assert failures == []
        kinds = [entry.kind for entry in await large.journal()]
        assert kinds[-2:] == ["completed", "ended"]
        assert "claimed" in kinds
    left = rows(tmp_path, "select count(*) from blobs where run not in (select id from runs)")
    check_store(tmp_path / "dotdo.db")
    assert left[0][0] > 0, "what was refused left parts behind, and nothing else"


KILLED = """
import asyncio, os, signal, sys
from dotdo import AsyncDo
from tests.guarantees import test_hostile_values_hurt_nobody_else as shop

async def main():
    async with AsyncDo(sys.argv[1], catalogue=shop.catalogue) as client:
        engine = await client.platform()
        write, parts = engine.store.write_blob, []
        def watched(run, digest, part, data):
            write(run, digest, part, data)
            parts.append(part)
            if len(parts) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        engine.store.write_blob = watched
        handle = await client.start(shop.double.with_(key="killed"), shop.text_of("killed", 2_500_000))
        assert await handle.result() == shop.text_of("killed", 2_500_000) * 2
        print("done", len(parts))

asyncio.run(main())
"""


@pytest.mark.parametrize("part", [1, 3, 5, 11])
def test_killed_between_parts_it_goes_on_where_the_journal_ends(tmp_path: Path, part: int):
    """3 parts of the input, then 9 of input and result, then 6 of the end."""

    def live(after: int) -> "subprocess.CompletedProcess[str]":
        program = [sys.executable, "-c", KILLED, store_of(tmp_path), str(after)]
        return subprocess.run(program, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "src:."})

    assert live(part).returncode == -9
    survivor = live(1000)
    assert survivor.returncode == 0, survivor.stderr
    assert survivor.stdout.startswith("done")
    check_store(tmp_path / "dotdo.db")
    orphans = "select count(*) from blobs b where not exists (select 1 from journal j where j.data_digest = b.digest)"
    assert rows(tmp_path, orphans) == [(0,)]
