"""A server with a synchronous standby dies under load and the standby takes its place: nothing acknowledged is lost.

Two real servers and two nodes in processes of their own, whose URL names both servers. Witnesses are the ledger, for
effects, and a table of the application in the same database, for SQL. No node ends, and nobody does anything to them.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dotdo import AsyncDo
from tests.guarantees.ledger import Ledger
from tests.guarantees.paying import TABLES, Payers, check, definitions, node, query
from tests.postgres import Server, restartable_server, standby_of

PATIENCE = 90.0
KEY = "00112233445566778899aabbccddeeff"
STANDBY = "second"
CALLERS, BEFORE, AFTER = 6, 30, 30


@contextmanager
def servers() -> Iterator[tuple[Server, Server, str]]:
    """A primary, its synchronous standby, and the URL that names both."""
    settings = {"synchronous_standby_names": STANDBY, "synchronous_commit": "on"}
    with restartable_server(**settings) as primary, standby_of(primary, STANDBY) as standby:
        ports = [one.url.rpartition(":")[2].partition("/")[0] for one in (primary, standby)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        assert query(primary.url, "select sync_state from pg_stat_replication") == [("sync",)]
        for table in TABLES:
            query(primary.url, table)
        yield primary, standby, f"postgresql://postgres@{hosts}/postgres"


def test_standby_takes_over_and_nothing_acknowledged_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_AUDIT_KEY", KEY)
    monkeypatch.setenv("DOTDO_LEASE", "4")
    world = str(tmp_path)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger())
        primary, standby, url = stack.enter_context(servers())
        nodes = [stack.enter_context(node(url, ledger, world)) for _ in range(2)]

        acknowledged = asyncio.run(pay_through(url, primary, standby))
        assert [process.poll() for process in nodes] == [None, None]
        check(standby.url, ledger, world, acknowledged)


async def pay_through(url: str, primary: Server, standby: Server) -> list[str]:
    """Starts payments all the time, with the failover in the middle, and waits for all; the ids that were answered."""
    async with AsyncDo(url, catalogue=definitions(), engine=False) as client, asyncio.timeout(PATIENCE):
        payers = Payers(client, CALLERS)
        await payers.until(lambda: len(payers.answered) >= BEFORE)
        before = len(payers.answered)
        await asyncio.to_thread(primary.stop, immediately=True)
        assert (await asyncio.to_thread(query, standby.url, "select pg_is_in_recovery()")) == [(True,)]
        await asyncio.to_thread(query, standby.url, "select pg_promote()")
        await payers.until(lambda: len(payers.answered) >= before + AFTER)
        acknowledged = await payers.stop()
        assert payers.faults, "somebody was told that the store could not be reached"
        return acknowledged
