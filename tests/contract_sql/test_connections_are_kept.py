"""A flood of attempts shares a few connections to the application's database, and the next flood has the same ones."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from dotdo import AsyncContext, Context, action, service
from dotdo.engine.applying import POOL_SIZE
from tests.contract_sql.databases import PostgresDatabase
from tests.workshop import PATIENCE, Workshop

SESSION = text("select pg_backend_pid()")
ATTEMPTS = 60


def define(bare_workshop: Workshop, shape: str) -> Any:
    @action("session-sync", catalogue=bare_workshop.catalogue)
    def session_sync(ctx: Context, number: int) -> int:
        return ctx.sql.execute(SESSION).scalar_one()

    @action("session-async", catalogue=bare_workshop.catalogue)
    async def session_async(ctx: AsyncContext, number: int) -> int:
        return (await ctx.sql.execute(SESSION)).scalar_one()

    of = {"sync": session_sync, "async": session_async}[shape]

    @service("flood", catalogue=bare_workshop.catalogue)
    async def flood(attempts: int) -> list[int]:
        return await asyncio.gather(*(of(number=number) for number in range(attempts)))

    return flood


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_floods_of_attempts_open_no_more_connections_than_the_pool_has(
    bare_workshop: Workshop, postgres_url: str, shape: str
):
    """Each connection that is opened is a process of the server's, so counting those counts connections."""
    flood = define(bare_workshop, shape)
    client = bare_workshop.open(sql=PostgresDatabase(postgres_url).url)
    floods = [client.start(flood, attempts=ATTEMPTS).result(timeout=PATIENCE) for _ in range(2)]
    assert [len(sessions) for sessions in floods] == [ATTEMPTS, ATTEMPTS]
    assert len(set(floods[0]) | set(floods[1])) <= POOL_SIZE
