"""A store of the previous schema, with runs in every state: it migrates, verifies, and its runs go on."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import apsw
import pytest

from dotdo import AsyncDo, maintaining
from dotdo.audit import Audit
from dotdo.embedding import open_reader
from dotdo.engine.engine import Engine
from dotdo.errors import StoreUnusable
from dotdo.records import RunFilter
from dotdo.store.migrate import migrations
from dotdo.store.sqlite import APPLICATION_ID
from dotdo.testing import ManualClock
from tests.guarantees.commits import Commits
from tests.store import previous

ROWS = Path(__file__).with_name("store_0001.sql")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The store, as the process that wrote it left it."""
    monkeypatch.setenv("DOTDO_AUDIT_KEY", previous.AUDIT_KEY)
    path = str(tmp_path / "dotdo.db")
    number, script = migrations("sqlite")[0]
    assert number == 1
    database = apsw.Connection(path)
    database.execute("pragma journal_mode = wal")
    database.execute(script)
    database.execute(ROWS.read_text(encoding="utf-8"))
    database.execute(f"pragma user_version = 1; pragma application_id = {APPLICATION_ID}")
    database.close()
    return path


def test_it_migrates_and_verifies(store: str):
    with pytest.raises(StoreUnusable, match="has an older schema"):
        open_reader(store)
    before = maintaining.check(store)
    assert before.schema == 1
    assert "dotdo db migrate" in before.problems[0]
    assert maintaining.migrate(store) == (1, before.newest)
    after = maintaining.check(store)
    assert (after.schema, after.problems) == (after.newest, [])
    assert after.runs == {"blocked": 1, "completed": 1, "failed": 1, "pending": 1, "waiting": 5}
    reader = open_reader(store)
    audit = Audit(reader, bytes.fromhex(previous.AUDIT_KEY))
    assert list(audit.verify()) == []
    assert audit.runs == 9
    assert [run.name for run in reader.list_runs(RunFilter(labels={"team": "rail"}))] == ["trip", "take-seat"]
    reader.close()


def test_its_runs_go_on(store: str):
    clock = ManualClock(datetime(2026, 11, 2, tzinfo=UTC))

    async def go_on() -> None:
        async with AsyncDo(store, catalogue=previous.catalogue, clock=clock) as client:
            ids = {run.name: run.id for run in await client.runs.list() if run.parent is None and run.key}
            ids["take-seat"] = next(run.id for run in await client.runs.list() if run.key == "late:1")

            async def second_child_is_there() -> bool:
                return len(await client.runs.list(parent=ids["group-trip"])) == 2

            [child] = await client.runs.list(parent=ids["group-trip"])
            results = {name: client.runs.wait(id) for name, id in ids.items() if name not in ("hopeless", "broken")}
            await client.runs.send_event(ids["trip"], "paid", "cash")
            await client.runs.send_event(child.id, "paid", "card")
            clock.advance("40 days")
            await Commits(cast("Engine", await client.platform())).until(second_child_is_there)
            [second] = [run for run in await client.runs.list(parent=ids["group-trip"]) if run.id != child.id]
            await client.runs.send_event(second.id, "paid", "card")
            found = {name: (await result).result for name, result in results.items()}
            assert found == {
                "trip": "seat in row 1, paid cash",
                "reminder": "reminded",
                "group-trip": ["seat in row 4, paid card", "seat in row 5, paid card"],
                "call-later": "called 555",
                "take-seat": "seat in row 7",
            }
            assert (await client.run(previous.take_seat.with_(key="seat:3"), 3)) == "seat in row 3"  # the same run
            await client.runs.retry(ids["broken"])
            assert (await client.runs.wait(ids["broken"])).result == "seat in row 2"
            failed = await client.runs.get(ids["hopeless"])
            assert (failed.status, failed.undo) == ("failed", "all")

    asyncio.run(go_on())
    reader = open_reader(store)
    assert list(Audit(reader, bytes.fromhex(previous.AUDIT_KEY)).verify()) == []
    reader.close()


def test_there_must_be_a_store_to_migrate(tmp_path: Path):
    with pytest.raises(StoreUnusable, match="There is no store"):
        maintaining.migrate(str(tmp_path / "dotdo.db"))
    assert not os.listdir(tmp_path)
