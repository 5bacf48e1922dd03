"""What is left of a killed engine's attempt may just begin or end its transaction when that is rolled back for it."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from dotdo.engine.aio_sqlite import Connection, Cursor
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


def test_transaction_that_was_just_beginning_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its task stands still in the first visit to the driver's thread that begins it."""
    database, execute = SQLiteFile(tmp_path / "app.db"), Cursor.execute

    async def main() -> None:
        begun = asyncio.Event()

        async def stands_still(cursor: Cursor, sql: str, *given: Any) -> Any:
            await execute(cursor, sql, *given)
            begun.set()
            await asyncio.get_running_loop().create_future()

        databases = Databases(database.url)
        databases.prepare()
        work = databases.begin(None, True, lambda: None)
        with monkeypatch.context() as patch:
            patch.setattr(Cursor, "execute", stands_still)
            using = asyncio.ensure_future(work.connection().execute(text("insert into notes (text) values ('lost')")))
            await begun.wait()
        await work.bury_async()
        await asyncio.to_thread(database.execute, "insert into notes (text) values ('of another one')")
        using.cancel()
        await asyncio.wait([using])
        await databases.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert database.notes() == ["of another one"]
