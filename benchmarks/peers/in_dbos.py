"""DBOS Transact, embedded, on SQLite in write-ahead mode with synchronous=FULL: as durable as dotdo's store.

Client and workflows are in one process. Its default rollback journal is slower; the file is switched to write-ahead
mode before it is opened. `pysqlite3` stands in for Python's module where its SQLite is too old for DBOS (before 3.42).
"""

import asyncio
import sqlite3
import sys
from typing import Any

from benchmarks import handlers
from benchmarks.driving import flood, latency, one_at_a_time
from benchmarks.processes import scratch, syncs

if sqlite3.sqlite_version_info < (3, 42):
    import pysqlite3  # pyright: ignore[reportMissingImports]

    sqlite3 = sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2

from dbos import DBOS  # pyright: ignore[reportMissingImports]  # in its own environment only


async def measured(runs: int, counts_calls: bool) -> dict[str, Any]:
    """Latencies, then floods at two levels, of which the better one counts."""
    with scratch() as folder:
        connection = sqlite3.connect(folder / "dbos.db")
        connection.execute("pragma journal_mode = wal")
        connection.close()
        DBOS(config={"name": "benchmarks", "system_database_url": f"sqlite:///{folder}/dbos.db", "log_level": "ERROR"})
        onboard, act = _workflows()
        DBOS.launch()
        try:
            await one_at_a_time(onboard, 30)
            before = syncs() if counts_calls else 0
            alone = await one_at_a_time(onboard, 300)
            flushes = ((syncs() - before) / 300) if counts_calls else None
            single = await one_at_a_time(act, 300)
            floods = [(await flood(onboard, runs, limit, 1))[0] for limit in (50, 500)]
        finally:
            DBOS.destroy()
        best = max(floods, key=lambda one: one["runs_per_second"])
        return {**best, "onboarding": latency(alone), "action": latency(single), "flushes": flushes}


def _workflows() -> tuple[Any, Any]:
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
