"""A thread goes on after its attempt is over, and is just about to execute a statement: that writes nothing."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from dotdo import ActionFailed, AttemptOver, Context, Fail, Retry, action
from dotdo.engine.applying import Databases
from tests.contract_sql.databases import Database, SQLiteFile
from tests.workshop import PATIENCE, Workshop

INSERT = "insert into notes (text) values ('late')"
SELECT = "select text from notes"


def come_late(workshop: Workshop, database: SQLiteFile, statement: str) -> BaseException:
    """Executes a statement in an attempt that ends just before: after the look whether it has. What it raised."""
    engine = create_engine(database.url)
    stands, released, over, raised = threading.Event(), threading.Event(), threading.Event(), list[BaseException]()
    many = Retry(attempts=100, delay=0, jitter=False)  # on a slow machine time may be over before it has come so far

    @action("late", timeout=0.2, retry=many, catalogue=workshop.catalogue)
    def late(ctx: Context) -> None:
        if stands.is_set():
            raise Fail("one of them stands there")
        try:
            ctx.sql.execute(text(statement))
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            if released.is_set():
                over.set()

    client = workshop.open(sql=engine)

    @event.listens_for(engine, "before_cursor_execute")
    def stand(_connection: Any, _cursor: Any, executed: str, *_: Any) -> None:
        if executed == statement:
            stands.set()
            assert released.wait(PATIENCE)

    with pytest.raises(ActionFailed, match="one of them stands there"):
        client.run(late)
    raised.clear()
    released.set()
    assert over.wait(PATIENCE)
    engine.dispose()
    (error,) = raised
    return error


def test_statement_that_comes_just_after_the_rollback_is_not_committed_by_itself(
    bare_workshop: Workshop, tmp_path: Path
):
    database = SQLiteFile(tmp_path / "app.db")
    assert "readonly" in str(come_late(bare_workshop, database, INSERT))
    assert database.notes() == []


def test_statement_whose_attempt_ends_meanwhile_brings_nothing(bare_workshop: Workshop, tmp_path: Path):
    assert isinstance(come_late(bare_workshop, SQLiteFile(tmp_path / "app.db"), SELECT), AttemptOver)


class Ending:
    """An attempt that ends while a statement is executed."""

    def __init__(self, databases: Databases) -> None:
        self.is_over = False
        self.work = databases.begin("main", False, self._check)

    def _check(self) -> None:
        if self.is_over:
            raise AttemptOver("The attempt is over.")

    def end_within_a_statement(self) -> None:
        """It has ended when the statement comes back, and is told so."""

        def end(*_: Any) -> None:
            self.is_over = True

        connection = self.work.connection()
        event.listen(connection, "before_cursor_execute", end)
        with pytest.raises(AttemptOver):
            connection.exec_driver_sql(SELECT)


def test_statement_of_an_attempt_that_is_over_leaves_nothing_locked(tmp_path: Path):
    """Also while somebody keeps the error, and a result that was not read to its end."""
    database = SQLiteFile(tmp_path / "app.db")
    databases = Databases(database.url)
    databases.prepare()
    attempt = Ending(databases)
    connection = attempt.work.connection()
    connection.exec_driver_sql("insert into notes (text) values ('a'), ('b')")
    kept = connection.exec_driver_sql(SELECT)
    assert kept.fetchone() == ("a",)
    attempt.is_over = True
    with pytest.raises(AttemptOver) as raised:
        connection.exec_driver_sql(INSERT)
    attempt.work.rollback()
    with closing(sqlite3.connect(database.path, timeout=0)) as other, other:
        other.execute(INSERT)
    assert database.notes() == ["late"]
    del kept, raised
    asyncio.run(databases.close())


def test_attempt_that_ends_within_a_statement_is_abandoned_and_told_so_again(database: Database):
    """Its connection is not thrown away under the hands of who rolls it back, and its next statement says the same."""
    databases = Databases(database.url)
    databases.prepare()
    attempt = Ending(databases)
    connection = attempt.work.connection()
    connection.exec_driver_sql(INSERT)
    attempt.end_within_a_statement()
    with pytest.raises(AttemptOver):
        connection.exec_driver_sql(INSERT.replace("late", "later"))
    assert attempt.work.abandon(), "nobody need wait for the thread"
    database.execute(INSERT)
    attempt.work.rollback()
    assert database.notes() == ["late"]
    asyncio.run(databases.close())
