"""A backup made beside a live engine is whole; what it cannot know of unfinished runs is asked, not repeated."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

import dotdo
from dotdo import AsyncDo, Catalogue, RunBlocked, maintaining, service
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader
from dotdo.errors import StoreUnusable
from dotdo.records import RunFilter
from tests.guarantees.lab import Lab, World, hold, in_loop, laboratory, note

pytestmark = pytest.mark.of_files("`dotdo db backup` and `restore` are for files")

catalogue = Catalogue()
for given in (hold, note):
    catalogue.add("action", given.name, 1, given, given.handler)


@service("two-steps", catalogue=catalogue)
async def two_steps(name: str) -> str:
    """Does one thing, waits for a word, and does another."""
    await note(f"first {name}")
    await dotdo.wait_for_event("go")
    return await note(f"second {name}")


async def backed_up(lab: Lab, file: Path) -> tuple[str, str]:
    """One run that has ended and one that waits, in a backup that was made beside the engine."""
    done = await lab.client.start(note, "done")
    await done.result()
    waiting = await lab.client.start(two_steps, "a")
    await lab.until_asleep(waiting.id)
    copy = await asyncio.to_thread(maintaining.back_up, str(lab.path), str(file))
    assert copy.runs == 2
    return done.id, waiting.id


@in_loop
async def test_backup_beside_a_live_engine_is_whole_and_verifies(tmp_path: Path):
    file = tmp_path / "copies" / "store.backup"
    file.parent.mkdir()
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        writing = asyncio.ensure_future(asyncio.gather(*(lab.client.run(note, f"{n}") for n in range(300))))
        copy = await asyncio.to_thread(maintaining.back_up, str(lab.path), str(file))
        await writing
        with pytest.raises(StoreUnusable, match="exists already"):
            maintaining.back_up(str(lab.path), str(file))
    assert sorted(path.name for path in file.parent.iterdir()) == ["store.backup"]
    reader = open_reader(str(file))
    audit = Audit(reader, audit_key(str(tmp_path / "dotdo.db")))
    assert list(audit.verify()) == []
    assert audit.runs == copy.runs
    reader.close()


@in_loop
async def test_unfinished_runs_of_a_backup_are_asked_and_go_on_when_told(tmp_path: Path):
    world, file = World(), tmp_path / "backup"
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        done, waiting = await backed_up(lab, file)
        with pytest.raises(StoreUnusable, match="An engine runs on the store"):
            maintaining.restore(str(lab.path), str(file))
        await lab.client.runs.send_event(waiting, "go")  # after the backup, which knows nothing of it
        await lab.client.runs.wait(waiting)
        later = await lab.client.start(note, "later")
        await later.result()
    restored = maintaining.restore(str(lab.path), str(file))
    assert (restored.runs, restored.blocked) == (2, 1)
    assert restored.before is not None
    assert len(open_reader(restored.before).list_runs(RunFilter())) == 3
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        assert await lab.client.handle(done).result() == "done"
        with pytest.raises(dotdo.UnknownName):
            await lab.client.runs.get(later.id)
        with pytest.raises(RunBlocked, match="restored from a backup that knows nothing after"):
            await lab.client.handle(waiting).result()
        assert world.said.count("second a") == 1  # not repeated unasked
        await lab.client.runs.retry(waiting)
        await lab.client.runs.send_event(waiting, "go")
        assert await lab.client.handle(waiting).result() == "second a"
        assert world.said.count("first a") == 1
    audit = Audit(open_reader(str(lab.path)), audit_key(str(lab.path)))
    assert list(audit.verify()) == []


@in_loop
async def test_nothing_has_run_since_so_they_go_on(tmp_path: Path):
    file = tmp_path / "backup"
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        _, waiting = await backed_up(lab, file)
    os.remove(lab.path)
    assert maintaining.restore(str(lab.path), str(file), go_on=True).before is None
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        await lab.client.runs.send_event(waiting, "go")
        assert await lab.client.handle(waiting).result() == "second a"


@in_loop
async def test_wrong_files_and_keys_are_refused_and_change_nothing(tmp_path: Path):
    file = tmp_path / "backup"
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        await backed_up(lab, file)
    before = lab.path.read_bytes()
    (tmp_path / "text").write_text("not a database, but long enough to be looked at " * 20)
    with pytest.raises(StoreUnusable, match="not a readable SQLite database"):
        maintaining.restore(str(lab.path), str(tmp_path / "text"))
    damaged = bytearray(file.read_bytes())
    damaged[8192:12288] = os.urandom(4096)
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(dotdo.StoreError):
        maintaining.restore(str(lab.path), str(tmp_path / "damaged"))
    key = tmp_path / "dotdo.db.audit-key"
    right = key.read_text()
    key.write_text("ab" * 32)
    with pytest.raises(StoreUnusable, match="is not the one that the backup was written under"):
        maintaining.restore(str(lab.path), str(file))
    key.write_text(right)
    with pytest.raises(StoreUnusable, match="There is no store"):
        maintaining.restore(str(lab.path), str(tmp_path / "nowhere"))
    assert lab.path.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if "restor" in name]


def test_backup_of_a_store_whose_log_was_left_by_a_crash(tmp_path: Path):
    async def leave() -> None:
        client = AsyncDo(str(tmp_path / "dotdo.db"), catalogue=catalogue, resources=[World()])
        await client.run(note, "x")
        for end in ("", "-wal", "-shm", ".audit-key"):  # as a crash leaves them
            shutil.copy(tmp_path / f"dotdo.db{end}", tmp_path / f"crashed.db{end}")
        await client.close()

    asyncio.run(leave())
    assert maintaining.back_up(str(tmp_path / "crashed.db"), str(tmp_path / "backup")).runs == 1
