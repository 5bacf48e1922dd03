"""Everything behind a real PgBouncer in transaction mode: `python -m tests.guarantees.behind_pgbouncer`.

Two nodes make payments through it (an effect, and SQL in the store's database), one of them is killed and its runs are
rescued; a run is started within a transaction of the caller's; and a hint is heard over DOTDO_LISTEN, with all looking
switched off. It needs Debian's package, so it is part of `make nightly`, not of `make test`.
"""

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import ExitStack

import psycopg

from dotdo import AsyncDo
from dotdo.engine import claiming, peering
from dotdo.engine.engine import Engine
from dotdo.store.sharing import SharedStore
from tests.guarantees import node
from tests.guarantees.ledger import Ledger
from tests.guarantees.paying import TABLES, Billing, Payers, check, definitions, query
from tests.guarantees.paying import node as paying_node
from tests.patience import PATIENCE
from tests.pgbouncer import pgbouncer
from tests.postgres import postgres_server

CALLERS, PAYMENTS = 12, 400
NEVER = 3_600.0


def main() -> int:
    """The program."""
    with ExitStack() as stack:
        world = stack.enter_context(tempfile.TemporaryDirectory())
        direct = stack.enter_context(postgres_server())
        pooled = stack.enter_context(pgbouncer(direct))
        ledger = stack.enter_context(Ledger())
        os.environ.update(DOTDO_AUDIT_KEY="00112233445566778899aabbccddeeff", DOTDO_LEASE="3", DOTDO_LISTEN=direct)
        for table in TABLES:
            query(direct, table)
        asyncio.run(rescued(pooled, direct, ledger, world))
        asyncio.run(within(pooled, direct, ledger, world))
        asyncio.run(hinted(pooled, direct))
    print("PgBouncer in transaction mode: all is well")
    return 0


async def rescued(pooled: str, direct: str, ledger: Ledger, world: str) -> None:
    """Payments by two nodes, of which one is killed under way."""
    with ExitStack() as stack:
        victim = stack.enter_context(paying_node(pooled, ledger, world))
        survivor = stack.enter_context(paying_node(pooled, ledger, world))
        async with AsyncDo(pooled, catalogue=definitions(), engine=False) as client, asyncio.timeout(3 * PATIENCE):
            payers = Payers(client, CALLERS)
            await payers.until(lambda: len(payers.answered) >= PAYMENTS)
            owned = f"select 1 from dotdo.nodes join dotdo.runs on owner = nodes.id where pid = {victim.pid}"
            while True:  # until it is killed with runs under way
                os.kill(victim.pid, signal.SIGSTOP)
                if await asyncio.to_thread(query, direct, f"{owned} and ended_at is null"):
                    break
                os.kill(victim.pid, signal.SIGCONT)
                await asyncio.sleep(0.01)
            victim.kill()
            await payers.until(lambda: len(payers.answered) >= 2 * PAYMENTS)
            acknowledged = await payers.stop()
        check(direct, ledger, world, acknowledged)
        assert survivor.poll() is None
        claims = "select count(*) from dotdo.journal where kind = 'claimed'"
        [(rescues,)] = query(direct, f"{claims} and data like '%crashed\":true%'")
        assert rescues, "the killed node had runs, and they were rescued"
        [(sessions,)] = query(direct, "select count(*) from pg_stat_activity where backend_type = 'client backend'")
    print(
        f"{len(acknowledged)} payments through the pooler, {rescues} runs rescued, {sessions} connections at the server"
    )


async def within(pooled: str, direct: str, ledger: Ledger, world: str) -> None:
    """A run exists if and only if the caller's transaction commits."""
    resources = [Billing(ledger.address, world)]
    async with AsyncDo(pooled, catalogue=definitions(), resources=resources) as client:
        platform = await client.platform()
        assert isinstance(platform, Engine)
        assert isinstance(platform.store, SharedStore)
        assert platform.store._db._writer.pooled, "it knows what it speaks to"
        connection = await psycopg.AsyncConnection.connect(pooled, prepare_threshold=None)
        async with connection:
            await client.service("payment", key="never", within=connection).start(who="never")
            await connection.rollback()
            handle = await client.service("payment", key="within", within=connection).start(who="within")
            await connection.commit()
            assert await handle.result(timeout=PATIENCE)
        assert query(direct, "select who from notes where who in ('never', 'within')") == [("within",)]
    print("a run started within a transaction through the pooler: there after a commit, not after a rollback")


async def hinted(pooled: str, direct: str) -> None:
    """Nobody looks for anything, so only a hint can have the node claim what another process files."""
    peering.LOOK = peering.LOOK_OFTEN = claiming.POLL_SECONDS = NEVER
    listening = "select 1 from pg_stat_activity where query = 'listen dotdo'"
    async with asyncio.timeout(PATIENCE), AsyncDo(pooled, catalogue=node.definitions()) as client:
        await client.platform()
        while not await asyncio.to_thread(query, direct, listening):  # noqa: ASYNC110 - at the server
            await asyncio.sleep(0.05)
        async with AsyncDo(pooled, catalogue=node.definitions(), engine=False) as filing:
            for number in range(5):
                assert await filing.service("sum").invoke(numbers=[number, 1]) == number + 1
    print("hints over DOTDO_LISTEN are heard")


if __name__ == "__main__":
    sys.exit(main())
