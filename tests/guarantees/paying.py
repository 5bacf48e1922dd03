"""A payment and the nodes that make it: an effect whose answer is needed, and SQL in the store's own database.

Witnesses are the ledger, for effects, and tables of the application, for SQL. Faults of servers and nets are made
under a flood of payments. `python -m tests.guarantees.paying URL HOST PORT WORLD` is a node, until its input ends.
"""

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import psycopg

from dotdo import AsyncContext, AsyncDo, Catalogue, EffectCall, Retry, StoreError, action, effect, service
from tests.guarantees.ledger import Ledger, act
from tests.guarantees.node_process import be_node, node_process

T = TypeVar("T")

SOON = Retry(attempts=40, delay=0.05, max_delay=1, jitter=True)
TABLES = "create table payments (who text)", "create table notes (who text)"


class Billing:
    """The ledger, as nodes reach it."""

    def __init__(self, address: tuple[str, int], world: str) -> None:
        self._address, self._world = address, world

    def charge(self, who: str, key: str) -> str:
        """Once for each key."""
        return act(self._address, self._world, "billing", f"charge {who}", key)


def definitions() -> Catalogue:
    """What nodes and callers have."""
    catalogue = Catalogue()

    @effect("failover.charge", dedup="key", retry=SOON, catalogue=catalogue)
    async def charge(call: EffectCall, who: str) -> str:
        return await asyncio.to_thread(call.resource(Billing).charge, who, call.key)

    @action("pay", retry=SOON, catalogue=catalogue)
    async def pay(ctx: AsyncContext, who: str) -> str:
        receipt = await ctx.request(charge, who=who)
        await ctx.sql.exec_driver_sql("insert into payments values (%s)", (who,))
        return receipt

    @action("note", retry=SOON, catalogue=catalogue)
    async def note(ctx: AsyncContext, who: str) -> None:
        await ctx.sql.exec_driver_sql("insert into notes values (%s)", (who,))

    @service("payment", catalogue=catalogue)
    async def payment(who: str) -> str:
        receipt = await pay(who=who)
        await note(who=who)
        return receipt

    return catalogue


def node(url: str, ledger: Ledger, world: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    """A node in a process of its own, once it is ready."""
    return node_process("paying", url, *map(str, ledger.address), world)


class Payers:
    """Callers who start a payment with a key, wait for its end, and start the next; they ask again while the store
    cannot be reached. answered: the ids that they were told, by number; faults: how often it could not be."""

    def __init__(self, client: AsyncDo, callers: int) -> None:
        self._client, self._numbers, self._stop = client, iter(range(1_000_000)), asyncio.Event()
        self.answered: dict[int, str] = {}
        self.ends: list[float] = []  # when payments were known to be done, in s
        self.faults = 0
        self._tasks = [asyncio.create_task(self._call()) for _ in range(callers)]

    async def _call(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            payment = self._client.service("payment", key=f"{number}")
            handle = await self._insist(partial(payment.start, who=f"{number}"))
            self.answered[number] = handle.id
            await self._insist(partial(self._client.runs.wait, handle.id))
            self.ends.append(time.monotonic())

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except StoreError:  # asked again with the same key, as the documentation says
                self.faults += 1
                await asyncio.sleep(0.05)

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Returns when that holds; raises what a caller raised."""
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            done, _ = await asyncio.wait(self._tasks, timeout=0.02)
            for task in done:
                task.result()

    async def stop(self) -> list[str]:
        """Starts no more, and waits for all to be done; the ids of what was answered."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        return [*self.answered.values()]


def check(server: str, ledger: Ledger, world: str, acknowledged: list[str]) -> None:
    """All that was answered is completed; each effect and each row of SQL is there once; no effect has two keys."""
    runs = dict(query(server, "select id, status from dotdo.runs where parent is null"))
    assert {runs[id] for id in acknowledged} == {"completed"}
    payments = Counter(who for (who,) in query(server, "select who from payments"))
    notes = Counter(who for (who,) in query(server, "select who from notes"))
    arrivals = ledger.arrivals(world)
    charged = Counter(one.what.removeprefix("charge ") for one in arrivals if one.happened)
    assert charged.keys() >= {f"{number}" for number in range(len(acknowledged))}
    for found in (charged, payments, notes):
        assert set(found.values()) == {1}, found.most_common(3)
    by_effect: dict[str, set[str]] = {}
    for one in arrivals:
        by_effect.setdefault(one.what, set()).add(one.key)
    assert {len(keys) for keys in by_effect.values()} == {1}, "no effect under two keys"


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Asks one server."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def client(url: str, host: str, port: str, world: str) -> AsyncDo:
    """What the node's program opens."""
    return AsyncDo(url, catalogue=definitions(), resources=[Billing((host, int(port)), world)])


if __name__ == "__main__":
    be_node(client)
