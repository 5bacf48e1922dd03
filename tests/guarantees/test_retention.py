"""Retention deletes whole trees that have ended, in small steps, and the audit knows which: nothing else is missing."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

import dotdo
from dotdo import Catalogue, Retention, maintaining, service
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader
from dotdo.engine import pruning
from dotdo.errors import DefinitionError, InvalidOperation, StoreUnavailable, UnknownName
from tests.guarantees.lab import Lab, hold, in_loop, laboratory, note
from tests.stores import url_of

catalogue = Catalogue()
for given in (hold, note):
    catalogue.add("action", given.name, 1, given, given.handler)
DAY = 86_400


@service("child", catalogue=catalogue)
async def child(gate: str) -> str:
    """Waits for an event, if it is told to."""
    if gate:
        await dotdo.wait_for_event(gate)
    return await note("child")


@service("parent", catalogue=catalogue)
async def parent(gate: str = "") -> str:
    """Has a child."""
    return await child(gate)


@service("endless", catalogue=catalogue)
async def endless(number: int) -> None:
    """Continues as new at each event."""
    await dotdo.wait_for_event("next")
    dotdo.continue_as_new(number=number + 1)


def findings(path: Path) -> list[str]:
    """What the audit says."""
    reader = open_reader(url_of(path))
    try:
        return [f"{one.run} {one.entry}: {one.text}" for one in Audit(reader, audit_key(str(path))).verify()]
    finally:
        reader.close()


async def ids(lab: Lab) -> set[str]:
    """All runs."""
    return {run.id for run in await lab.client.runs.list(limit=1000)}


@in_loop
async def test_only_whole_trees_that_ended_long_ago_go(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        done = await lab.client.start(parent)
        await done.result()
        waiting = await lab.client.start(parent, "never")
        await lab.until_asleep(waiting.id)
        failed = await lab.client.start(hold, "x")
        await failed.cancel()
        with pytest.raises(dotdo.RunCancelled):
            await failed.result()
        lab.clock.advance(10 * DAY)
        recent = await lab.client.start(note.with_(labels={"a": "b"}), "recent")
        await recent.result()
        before = await ids(lab)
        assert await lab.client.runs.prune(older_than=11 * DAY) == 0
        assert await lab.client.runs.prune(older_than=DAY, name="hold", status="failed") == 0
        assert await lab.client.runs.prune(older_than=DAY, name="parent", actor="ada") == 2
        left = await ids(lab)
        assert {id.partition(".")[0] for id in before - left} == {done.id}
        assert await lab.client.runs.prune(older_than=DAY) == 1
        with pytest.raises(UnknownName):
            await done.get()
        assert await lab.sql("select count(*) from journal where run not in (select id from runs)") == [(0,)]
        assert await lab.client.runs.prune(older_than=0) == 1
        assert await lab.sql("select count(*) from labels") == [(0,)]
        registry = lab.engine.store.read_registry()
        assert [(entry.kind, entry.actor) for entry in registry] == [
            ("deleted", "ada"),
            ("deleted", None),
            ("deleted", None),
        ]
        assert [run for run, _, _ in msgspec.json.decode(registry[0].data)] == sorted(before - left)
    assert findings(lab.path) == []


@in_loop
async def test_first_run_of_a_chain_leads_on_until_the_chain_ends(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(endless.with_(key="k"), 0)
        for _ in range(3):
            last = (await handle.get()).id
            await handle.send_event("next")
            await lab.until_status(last, "completed")
        lab.clock.advance(DAY)
        assert await lab.client.runs.prune(older_than=1) == 2
        assert len(await ids(lab)) == 2
        assert not (await handle.get()).ended
        await handle.cancel()
        with pytest.raises(dotdo.RunCancelled):
            await handle.result()
        lab.clock.advance(DAY)
        assert await lab.client.runs.prune(older_than=1) == 2
    assert findings(lab.path) == []


@in_loop
async def test_it_is_done_in_small_steps_beside_other_work_and_taken_up_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pruning, "TREES", 10)
    monkeypatch.setattr(pruning, "ENTRIES", 7)
    monkeypatch.setattr(pruning, "WINDOW", 15)
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        await asyncio.gather(*(lab.client.run(note, f"{n}") for n in range(60)))
        lab.clock.advance(DAY)
        store, steps = lab.engine.store, []
        clear = store.delete_leftovers

        def clear_until_the_third(limit: int) -> bool:
            steps.append(limit)
            if len(steps) == 3:
                raise StoreUnavailable("a fault")
            return clear(limit)

        store.delete_leftovers = clear_until_the_third  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            await lab.client.runs.prune(older_than=1)
        assert store.leftover_runs()
        assert findings(lab.path) == []  # what is half deleted is known
        pruned, other = await asyncio.gather(lab.client.runs.prune(older_than=1), lab.client.run(note, "beside"))
        assert (pruned, other) == (50, "beside")
        assert len(steps) > 20
        assert not store.leftover_runs()
    assert findings(lab.path) == []


@in_loop
async def test_client_keeps_to_its_policies(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        await lab.client.run(note, "old")
        lab.clock.advance(2 * DAY)
        kept = await lab.client.start(hold, "gate")
    policies = [Retention(older_than=DAY, name="note"), Retention(older_than=30 * DAY)]
    async with laboratory(tmp_path, catalogue=catalogue, clock=lab.clock, retention=policies) as again:

        async def only_one_is_left() -> bool:
            return await ids(again) == {kept.id}

        await again.until(only_one_is_left)
        again.world.open("gate")
        await again.client.handle(kept.id).result()
    with pytest.raises(DefinitionError, match="only runs that have ended"):
        Retention(older_than=1, status="running")


@pytest.mark.of_files("rows are changed in the file")
@in_loop
async def test_registry_that_was_changed_is_found(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        for number in range(2):
            await lab.client.run(note, f"{number}")
            lab.clock.advance(DAY)
            assert await lab.client.runs.prune(older_than=1) == 1
        await lab.client.run(note, "kept")
    with closing(sqlite3.connect(lab.path)) as database:
        database.execute("update registry set actor = 'somebody else' where number = 1")
        database.commit()
    assert "registry of deleted runs was changed at or before its entry 1" in findings(lab.path)[0]
    with closing(sqlite3.connect(lab.path)) as database:
        database.execute("delete from registry where number = 1")
        database.commit()
    assert "registry of deleted runs was changed at or before its entry 2" in findings(lab.path)[0]


def test_command_needs_a_store_without_an_engine(tmp_path: Path):
    path = str(tmp_path / "dotdo.db")
    with dotdo.Do(path, catalogue=catalogue):
        with pytest.raises(dotdo.StoreError, match="Another engine already runs"):
            maintaining.prune(path, Retention(older_than=0), "ada")
        beside = dotdo.Do(path, catalogue=catalogue, engine=False)
        with beside, pytest.raises(InvalidOperation, match="only that one deletes runs"):
            beside.runs.prune(older_than=0)
    assert maintaining.prune(path, Retention(older_than=0), "ada") == 0
