"""A thread goes on after its attempt is over, and is just about to execute a statement: that writes nothing."""

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from dotdo import ActionFailed, AttemptOver, Context, Fail, Retry, action
from tests.contract_sql.databases import SQLiteFile
from tests.workshop import PATIENCE, Workshop

INSERT = "insert into notes (text) values ('late')"
SELECT = "select text from notes"


def test_statement_that_comes_just_after_the_rollback_is_not_committed_by_itself(
    bare_workshop: Workshop, tmp_path: Path
):
    """The look whether the attempt is over comes before the statement, and it ends in between."""
    database = SQLiteFile(tmp_path / "app.db")
    engine = create_engine(database.url)
    stands, released, over, raised = threading.Event(), threading.Event(), threading.Event(), list[str]()
    many = Retry(attempts=100, delay=0, jitter=False)  # on a slow machine time may be over before it has come so far

    @action("note", timeout=0.2, retry=many, catalogue=bare_workshop.catalogue)
    def note(ctx: Context) -> None:
        if stands.is_set():
            raise Fail("one of them stands there")
        try:
            ctx.sql.execute(text(INSERT))
        except Exception as error:
            if released.is_set():
                raised.append(str(error))
                over.set()
            raise

    client = bare_workshop.open(sql=engine)

    @event.listens_for(engine, "before_cursor_execute")
    def stand(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement == INSERT:
            stands.set()
            assert released.wait(PATIENCE)

    with pytest.raises(ActionFailed, match="one of them stands there"):
        client.run(note)
    released.set()
    assert over.wait(PATIENCE)
    assert database.notes() == []
    assert "readonly" in raised[0]


def test_statement_whose_attempt_ends_meanwhile_brings_nothing(bare_workshop: Workshop, tmp_path: Path):
    database = SQLiteFile(tmp_path / "app.db")
    engine = create_engine(database.url)
    stands, released, over, ends = threading.Event(), threading.Event(), threading.Event(), list[Any]()
    many = Retry(attempts=100, delay=0, jitter=False)

    @action("look", timeout=0.2, retry=many, catalogue=bare_workshop.catalogue)
    def look(ctx: Context) -> None:
        if stands.is_set():
            raise Fail("one of them stands there")
        try:
            ends.append(ctx.sql.execute(text(SELECT)).all())
        except AttemptOver as error:
            ends.append(type(error))
            raise
        finally:
            if released.is_set():
                over.set()

    client = bare_workshop.open(sql=engine)

    @event.listens_for(engine, "before_cursor_execute")
    def stand(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement == SELECT:
            stands.set()
            assert released.wait(PATIENCE)

    with pytest.raises(ActionFailed, match="one of them stands there"):
        client.run(look)
    released.set()
    assert over.wait(PATIENCE)
    assert ends[-1] is AttemptOver
