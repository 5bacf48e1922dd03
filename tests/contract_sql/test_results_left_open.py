"""A result that a handler keeps and never reads to its end keeps nobody else out of a SQLite file."""

from typing import Any

import pytest
from sqlalchemy import text

from dotdo import AsyncContext, Context, Fail, action
from dotdo.errors import ActionFailed
from tests.contract_sql.databases import Database
from tests.workshop import Workshop

MANY = 300  # rows; more than an async driver fetches ahead
ALL = text("select text from notes order by id")
ADD = text("insert into notes (text) values (:text)")
BOTH = text("insert into notes (text) values (:text), (:text || ' again') returning text")


@pytest.mark.parametrize("shape", ["sync", "async"])
@pytest.mark.parametrize("end", ["reads", "writes", "returning", "raises"])
def test_the_next_attempts_begin_in_spite_of_it(workshop: Workshop, database: Database, shape: str, end: str):
    if end == "returning" and database.url.startswith("postgres"):
        end = "reads"  # nothing else can be streamed there
    kept: list[Any] = []

    @action("keep-sync", retry=1, catalogue=workshop.catalogue)
    def keep_sync(ctx: Context) -> str:
        if end == "writes":
            ctx.sql.execute(ADD, {"text": "kept"})
        if end == "returning":
            kept.append(ctx.sql.execute(BOTH, {"text": "kept"}))
        else:
            kept.append(ctx.sql.execution_options(stream_results=True).execute(ALL))
        if end == "raises":
            raise Fail("on purpose")
        return kept[0].fetchone().text

    @action("keep-async", retry=1, catalogue=workshop.catalogue)
    async def keep_async(ctx: AsyncContext) -> str:
        if end == "writes":
            await ctx.sql.execute(ADD, {"text": "kept"})
        if end == "returning":
            kept.append(await ctx.sql.stream(BOTH, {"text": "kept"}))
        else:
            kept.append(await ctx.sql.stream(ALL))
        if end == "raises":
            raise Fail("on purpose")
        return (await kept[0].fetchone()).text

    @action("add-sync", retry=1, catalogue=workshop.catalogue)
    def add_sync(ctx: Context, number: int) -> None:
        ctx.sql.execute(ADD, {"text": f"after {number}"})

    @action("add-async", retry=1, catalogue=workshop.catalogue)
    async def add_async(ctx: AsyncContext, number: int) -> None:
        await ctx.sql.execute(ADD, {"text": f"after {number}"})

    values = ", ".join(f"('note {number}')" for number in range(MANY))
    database.execute(f"insert into notes (text) values {values}")
    client = workshop.open()
    keep, add = (keep_sync, add_sync) if shape == "sync" else (keep_async, add_async)
    if end == "raises":
        with pytest.raises(ActionFailed, match="on purpose"):
            client.run(keep)
    else:
        assert client.run(keep) == ("kept" if end == "returning" else "note 0")
    for number in range(3):  # each on the connection that was kept, or on the other one
        database.execute(f"insert into notes (text) values ('elsewhere {number}')")
        client.run(add, number=number)
    assert database.notes()[-1] == "after 2"
