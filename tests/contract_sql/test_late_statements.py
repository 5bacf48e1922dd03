"""A thread goes on after its attempt is over, and is just about to execute a statement: that writes nothing."""

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from dotdo import ActionFailed, Context, Retry, action
from tests.contract_sql.databases import SQLiteFile
from tests.workshop import PATIENCE, Workshop

INSERT = "insert into notes (text) values ('late')"


def test_statement_that_comes_just_after_the_rollback_is_not_committed_by_itself(
    bare_workshop: Workshop, tmp_path: Path
):
    """The look whether the attempt is over comes before the statement, and it ends in between."""
    database = SQLiteFile(tmp_path / "app.db")
    engine = create_engine(database.url)
    released, over, raised = threading.Event(), threading.Event(), list[str]()

    @action("note", timeout=0.2, retry=Retry(attempts=1), catalogue=bare_workshop.catalogue)
    def note(ctx: Context) -> None:
        try:
            ctx.sql.execute(text(INSERT))
        except Exception as error:
            raised.append(str(error))
            raise
        finally:
            over.set()

    client = bare_workshop.open(sql=engine)

    @event.listens_for(engine, "before_cursor_execute")
    def stand(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement == INSERT:
            assert released.wait(PATIENCE)

    with pytest.raises(ActionFailed):
        client.run(note)
    released.set()
    assert over.wait(PATIENCE)
    assert database.notes() == []
    assert "readonly" in raised[0]
