"""What is left of a killed engine's attempt may just be committing or rolling back when it is rolled back for it."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text

from dotdo.engine.aio_sqlite import Connection
from dotdo.engine.applying import Databases
from dotdo.journal import Completion
from tests.contract_sql.databases import SQLiteFile
from tests.patience import PATIENCE

KEY = ("run_1", "note#1", 0, 1)


@pytest.mark.parametrize("first", ["commit", "rollback"])
def test_transaction_that_is_ended_twice_at_once_ends_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str):
    database, driver = SQLiteFile(tmp_path / "app.db"), getattr(Connection, first)

    async def main() -> None:
        reached = asyncio.Event()

        async def ends(connection: Connection) -> None:
            reached.set()
            await driver(connection)

        monkeypatch.setattr(Connection, first, ends)
        databases = Databases(database.url)
        databases.prepare()
        work = databases.begin(None, True, lambda: None)
        await work.connection().execute(text("insert into notes (text) values ('once')"))
        given = Completion("note", 1, msgspec.Raw(b"{}"), msgspec.Raw(b"null"), 1)
        ending = asyncio.ensure_future(work.commit_async(KEY, given) if first == "commit" else work.rollback_async())
        await reached.wait()  # its driver is at it, and has not answered
        await work.rollback_async()
        await ending
        assert work.opened is None
        await databases.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert database.notes() == (["once"] if first == "commit" else [])
