"""The answer to a COMMIT is lost: the database is asked how it ended, before anything else happens to the step."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from dotdo import AsyncContext, Context, Retry, action
from tests.contract_sql.databases import Database
from tests.contract_sql.lossy import Wire, lossy_wire
from tests.workshop import PATIENCE, Workshop, kinds

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)
INSERT = text("insert into notes (text) values (:text)")


@pytest.fixture
def wire(database: Database) -> Iterator[Wire]:
    """What the client reaches the database over."""
    with lossy_wire(database.url) as wire:
        yield wire


def define_both(workshop: Workshop) -> dict[str, Any]:
    retry = Retry(attempts=3, delay=0, jitter=False)

    @action("write-sync", retry=retry, catalogue=workshop.catalogue)
    def write_sync(ctx: Context) -> str:
        ctx.sql.execute(INSERT, {"text": f"attempt {ctx.attempt}"})
        ctx.stage(workshop.send, text=f"attempt {ctx.attempt}")
        return f"result {ctx.attempt}"

    @action("write-async", retry=retry, catalogue=workshop.catalogue)
    async def write_async(ctx: AsyncContext) -> str:
        await ctx.sql.execute(INSERT, {"text": f"attempt {ctx.attempt}"})
        ctx.stage(workshop.send, text=f"attempt {ctx.attempt}")
        return f"result {ctx.attempt}"

    return {"sync": write_sync, "async": write_async}


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_commit_whose_answer_was_lost_counts(workshop: Workshop, database: Database, wire: Wire, shape: str):
    write = define_both(workshop)[shape]
    with workshop.open(sql=wire.url) as client:
        wire.lose = "after"
        handle = client.start(write)
        assert handle.result(timeout=PATIENCE) == "result 1"
        assert kinds(handle, f"write-{shape}") == ["committed", "delivered", "effects_completed"]

    assert wire.cuts == 1
    assert database.notes() == ["attempt 1"]
    assert workshop.receiver.texts() == ["attempt 1"]


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_commit_that_never_arrived_is_void_and_the_attempt_made_again(
    workshop: Workshop, database: Database, wire: Wire, shape: str
):
    write = define_both(workshop)[shape]
    with workshop.open(sql=wire.url) as client:
        wire.lose = "before"
        handle = client.start(write)
        assert handle.result(timeout=PATIENCE) == "result 2"
        assert kinds(handle, f"write-{shape}")[:2] == ["attempt_failed", "committed"]

    assert wire.cuts == 1
    assert database.notes() == ["attempt 2"]
    assert workshop.receiver.texts() == ["attempt 2"]
    assert (f"write-{shape}", 0, 1, "void") in database.applied()
