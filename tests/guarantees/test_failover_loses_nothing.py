"""A server with a synchronous standby dies under load and the standby takes its place: nothing acknowledged is lost.

Two real servers and two nodes in processes of their own, whose URL names both servers. Witnesses are the ledger, for
effects, and a table of the application in the same database, for SQL. No node ends, and nobody does anything to them.
"""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dotdo import AsyncContext, AsyncDo, Catalogue, EffectCall, Retry, StoreError, action, effect, service
from tests.guarantees.ledger import ROOT, Ledger, act
from tests.postgres import Server, restartable_server, standby_of

PATIENCE = 90.0
KEY = "00112233445566778899aabbccddeeff"
STANDBY = "second"
SOON = Retry(attempts=40, delay=0.05, max_delay=1, jitter=True)
CALLERS, BEFORE, AFTER = 6, 30, 30


class Billing:
    """The ledger, as nodes reach it."""

    def __init__(self, address: tuple[str, int], world: str) -> None:
        self._address, self._world = address, world

    def charge(self, who: str, key: str) -> str:
        """Once for each key."""
        return act(self._address, self._world, "billing", f"charge {who}", key)


def definitions() -> Catalogue:
    """A payment: an effect whose answer is needed, and SQL in the store's database."""
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


@contextmanager
def servers() -> Iterator[tuple[Server, Server, str]]:
    """A primary, its synchronous standby, and the URL that names both."""
    settings = {"synchronous_standby_names": STANDBY, "synchronous_commit": "on"}
    with restartable_server(**settings) as primary, standby_of(primary, STANDBY) as standby:
        ports = [one.url.rpartition(":")[2].partition("/")[0] for one in (primary, standby)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        with psycopg.connect(primary.url, autocommit=True) as connection:
            [state] = connection.execute("select sync_state from pg_stat_replication").fetchall()
            assert state == ("sync",)
            connection.execute("create table payments (who text)")
            connection.execute("create table notes (who text)")
        yield primary, standby, f"postgresql://postgres@{hosts}/postgres"


@contextmanager
def node(url: str, ledger: Ledger, world: str) -> Iterator["subprocess.Popen[str]"]:
    """A node in a process of its own, once it is ready."""
    command = [
        sys.executable,
        "-m",
        "tests.guarantees.test_failover_loses_nothing",
        url,
        *map(str, ledger.address),
        world,
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


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
        with psycopg.connect(standby.url) as connection:
            runs = dict(connection.execute("select id, status from dotdo.runs where parent is null").fetchall())
            payments = Counter(who for (who,) in connection.execute("select who from payments"))
            notes = Counter(who for (who,) in connection.execute("select who from notes"))
        assert {runs[id] for id in acknowledged} == {"completed"}
        charged = Counter(one.what.removeprefix("charge ") for one in ledger.arrivals(world) if one.happened)
        whos = {f"{number}" for number in range(len(acknowledged))}
        assert charged.keys() >= whos
        for found in (charged, payments, notes):
            assert set(found.values()) == {1}, found.most_common(3)
        by_effect: dict[str, set[str]] = {}
        for one in ledger.arrivals(world):
            by_effect.setdefault(one.what, set()).add(one.key)
        assert {len(keys) for keys in by_effect.values()} == {1}, "no effect under two keys"


async def pay_through(url: str, primary: Server, standby: Server) -> list[str]:
    """Starts payments all the time, with the failover in the middle, and waits for all; the ids that were answered."""
    numbers, stop = iter(range(1_000_000)), asyncio.Event()
    found: dict[int, str] = {}
    faults = 0
    async with AsyncDo(url, catalogue=definitions(), engine=False) as client:

        async def caller() -> None:
            nonlocal faults
            while not stop.is_set():
                number = next(numbers)
                while True:
                    try:
                        handle = await client.service("payment", key=f"{number}").start(who=f"{number}")
                        break
                    except StoreError:  # asked again with the same key, as the documentation says
                        faults += 1
                        await asyncio.sleep(0.05)
                found[number] = handle.id

        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        async with asyncio.timeout(PATIENCE):
            await until(lambda: len(found) >= BEFORE, callers)
            before = len(found)
            await asyncio.to_thread(primary.stop, immediately=True)
            assert (await asyncio.to_thread(query, standby.url, "select pg_is_in_recovery()")) == [(True,)]
            await asyncio.to_thread(query, standby.url, "select pg_promote()")
            await until(lambda: len(found) >= before + AFTER, callers)
            stop.set()
            await asyncio.gather(*callers)
            assert faults, "somebody was told that the store could not be reached"
            await asyncio.gather(*(finished(client, id) for id in found.values()))
    return [*found.values()]


async def finished(client: AsyncDo, id: str) -> None:
    """Waits for a run, across the troubles of the store."""
    while True:
        try:
            await client.runs.wait(id)
            return
        except StoreError:
            await asyncio.sleep(0.05)


async def until(condition: Any, tasks: list["asyncio.Task[None]"]) -> None:
    """Returns when that holds; raises what a task raised."""
    while not condition():
        done, _ = await asyncio.wait(tasks, timeout=0.02)
        for task in done:
            task.result()


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Asks one server."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


async def main(url: str, host: str, port: str, world: str) -> None:
    """A node, until its input ends."""
    resources = [Billing((host, int(port)), world)]
    async with AsyncDo(url, catalogue=definitions(), resources=resources):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
