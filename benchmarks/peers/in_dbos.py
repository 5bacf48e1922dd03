"""DBOS Transact, embedded: client and workflows in one process, on SQLite or on PostgreSQL.

SQLite is switched to write-ahead mode before it is opened, with synchronous=FULL: as durable as dotdo's store, and
faster than the rollback journal that is DBOS's default. `pysqlite3` stands in for Python's module where its SQLite is
too old for DBOS (before 3.42). The row in SQL is a transaction of its data source, which commits the step's record
with it.
"""

import asyncio
import itertools
import sqlite3
import sys
from pathlib import Path
from typing import Any

if sqlite3.sqlite_version_info < (3, 42):
    import pysqlite3  # pyright: ignore[reportMissingImports]

    sqlite3 = sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2

from dbos import DBOS, AsyncSQLAlchemyDatasource  # pyright: ignore[reportMissingImports]  # in its own environment only

from benchmarks import handlers
from benchmarks.peers.measuring import Plan, real, trivial
from benchmarks.peers.outside import Outside, insert_user

_numbers = itertools.count(1)


async def measured(plan: dict[str, Any], folder: str, url: str | None, application: str) -> dict[str, Any]:
    """url: of the system database; None: a file in `folder`. application: URL of the application's database."""
    the_plan = Plan(**plan)
    if url is None:
        connection = sqlite3.connect(Path(folder, "dbos.db"))
        connection.execute("pragma journal_mode = wal")
        connection.close()
    system = url or f"sqlite:///{Path(folder, 'dbos.db')}"
    DBOS(config={"name": "benchmarks", "system_database_url": system, "log_level": "ERROR"})
    scheme = "sqlite+aiosqlite" if url is None else "postgresql+psycopg"
    alone = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 600} if url is None else {}
    database = await AsyncSQLAlchemyDatasource.create(f"{scheme}:{application.partition(':')[2]}", engine_kwargs=alone)
    onboard, act, onboard_for_real = *_trivial(), _real(database, url is not None)
    DBOS.launch()
    try:
        found = {"onboarding": await trivial(onboard, act, the_plan)}
        return {**found, "real": await real(onboard_for_real, the_plan), "memory": the_plan.memory()}
    finally:
        DBOS.destroy()


def _trivial() -> tuple[Any, Any]:
    create_user, set_up_billing, send_welcome, notify_sales = (
        DBOS.step()(handler)
        for handler in (
            handlers.create_user,
            handlers.set_up_billing,
            handlers.send_welcome,
            handlers.notify_sales,
        )
    )

    @DBOS.workflow()
    async def onboarding(email: str) -> dict[str, Any]:
        user = await create_user(email)
        id = user["user_id"]
        billing, mail, sales = await asyncio.gather(set_up_billing(id), send_welcome(id), notify_sales(id))
        return {"user": user, "billing": billing, "email": mail, "sales": sales}

    @DBOS.workflow()
    async def single(email: str) -> dict[str, Any]:
        return await create_user(email)

    async def onboard(_: int) -> None:
        result = await (await DBOS.start_workflow_async(onboarding, handlers.EMAIL)).get_result()
        assert result["sales"]["sent"]

    async def act(_: int) -> None:
        await (await DBOS.start_workflow_async(single, handlers.EMAIL)).get_result()

    return onboard, act


def _real(database: Any, shared: bool) -> Any:
    outside = Outside()

    # The weakest level that each of the two databases has.
    @database.transaction(isolation_level="READ COMMITTED" if shared else "SERIALIZABLE")
    async def create_user(number: int) -> str:
        session = database.sql_session()
        id = f"user_{DBOS.workflow_id}"
        await session.execute(insert_user(session.bind.dialect.name, id, number))
        return id

    @DBOS.step()
    async def create_customer(number: int) -> str:
        return await outside.create_customer(f"{DBOS.workflow_id}-billing", number)

    @DBOS.step()
    async def send_welcome(number: int) -> str:
        return await outside.send_welcome(f"{DBOS.workflow_id}-welcome", number)

    @DBOS.step()
    async def notify_sales(number: int) -> str:
        return await outside.notify_sales(number)

    @DBOS.workflow()
    async def onboarding_for_real(number: int) -> dict[str, str]:
        user_id = await create_user(number)
        customer_id = await create_customer(number)
        await send_welcome(number)
        await notify_sales(number)
        return {"user_id": user_id, "customer_id": customer_id}

    async def onboard(_: int) -> None:
        handle = await DBOS.start_workflow_async(onboarding_for_real, next(_numbers))
        assert (await handle.get_result())["customer_id"]

    return onboard
