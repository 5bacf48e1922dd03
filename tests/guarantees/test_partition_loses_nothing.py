"""The net between a node and its server goes silent: its runs go on elsewhere, once, and it comes back by itself.

The net is a relay that takes everything and lets nothing through, or no answers; in the end it delivers what it held
back (a late COMMIT, too), or its connections are gone. Another node reaches the server all the time. Witnesses are the
ledger, for effects, and tables of the application in the same database, for SQL.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from dotdo import AsyncDo
from dotdo.engine import leasing
from dotdo.errors import StoreUnavailable
from tests.guarantees import node
from tests.guarantees.invariants import check_store
from tests.guarantees.lab import in_loop
from tests.guarantees.ledger import Ledger
from tests.guarantees.paying import TABLES, Payers, check, definitions, query
from tests.guarantees.paying import node as paying_node
from tests.guarantees.test_many_nodes import engine_of, nodes, until
from tests.partition import Partition, partition
from tests.patience import PATIENCE
from tests.stores import url_of

CALLERS, MORE = 10, 10
# Whether queries still arrive while no answers do, and whether what was held back is delivered in the end.
ROUNDS = [(False, True), (True, False)]


@pytest.fixture
def path(on_postgres: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the store goes by; afterwards the invariants of all its runs are checked."""
    monkeypatch.setenv(node.TOLD, str(tmp_path / "told"))
    monkeypatch.setenv("DOTDO_LEASE", "1.5")
    path = tmp_path / "dotdo.db"
    yield path
    check_store(path)


def test_payments_under_way_on_a_node_that_is_cut_off_are_made_once(path: Path):
    url, world = url_of(path), str(path)
    for table in TABLES:
        query(url, table)
    with ExitStack() as stack:
        ledger, net = stack.enter_context(Ledger()), stack.enter_context(partition(url))
        cut_off = stack.enter_context(paying_node(net.url, ledger, world))
        other = stack.enter_context(paying_node(url, ledger, world))

        acknowledged = asyncio.run(pay_through(url, net, cut_off.pid))
        assert [cut_off.poll(), other.poll()] == [None, None]
        check(url, ledger, world, acknowledged)


async def pay_through(url: str, net: Partition, cut_off: int) -> list[str]:
    """Starts payments all the time while the net goes silent and heals; the ids of those that were answered."""

    async def ask(statement: str) -> list[tuple[str]]:
        return await asyncio.to_thread(query, url, statement)

    async def gone(name: str) -> bool:
        return not await ask(f"select id from dotdo.nodes where id = '{name}'")

    async def works(before: str) -> bool:
        mine = f"pid = {cut_off} and expelled_at is null and nodes.id <> '{before}'"
        return bool(
            await ask(f"select nodes.id from dotdo.nodes join dotdo.runs on owner = nodes.id where {mine} limit 1")
        )

    async with AsyncDo(url, catalogue=definitions(), engine=False) as client, asyncio.timeout(2 * PATIENCE):
        payers = Payers(client, CALLERS)
        for queries_arrive, delivers in ROUNDS:
            await payers.until(partial(works, ""))
            [(before,)] = await ask(f"select id from dotdo.nodes where pid = {cut_off}")
            held = net.held
            net.go_silent(queries_arrive=queries_arrive)
            await payers.until(partial(gone, before))  # expelled, and all its runs are others'
            done = len(payers.answered) + MORE
            await payers.until(lambda done=done: len(payers.answered) >= done)
            assert net.held > held
            net.heal(delivers=delivers)
            await payers.until(partial(works, before))
        return await payers.stop()


@pytest.mark.parametrize("delivers", [True, False], ids=["delivers", "breaks"])
def test_requests_to_a_node_that_is_cut_off_fail_and_it_comes_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, delivers: bool
):
    monkeypatch.setattr(leasing, "PATIENCE", 0.5)
    in_loop(ask_while_cut_off)(path, delivers)


async def ask_while_cut_off(path: Path, delivers: bool) -> None:
    """Asks for all kinds of things."""
    with partition(url_of(path)) as net:
        async with nodes(net.url, node.definitions()) as (client,), nodes(url_of(path), node.definitions()) as (other,):
            engine = await engine_of(client)
            before = engine.node
            ended = await client.service("sum").start(numbers=[1])
            assert await ended.result(timeout=PATIENCE) == 1
            lingering = node.keep("x")
            handle = await client.service("lingers").start(name="x")
            result = asyncio.create_task(handle.result(timeout=PATIENCE))
            await until(lambda: node.told() == ["begins x"])

            net.go_silent()
            asked = [
                client.service("sum").start(numbers=[1]),
                client.service("sum", key="b").invoke(numbers=[1]),
                client.service("sum").invoke(numbers=[1]),
                client.runs.get(ended.id),
                client.runs.cancel(handle.id),
                client.runs.list(),
            ]
            told = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), PATIENCE)
            assert [type(one) for one in told] == [StoreUnavailable] * len(asked), told
            assert "with the same key" in f"{told[0]}"
            assert "not said a word" in f"{told[3]}"
            with pytest.raises(StoreUnavailable, match="Nothing was accepted"):
                await client.service("sum", key="c").start(numbers=[1])
            await until(lambda: node.told() == ["begins x"] * 2)  # the other one has it
            assert not result.done()
            assert net.held
            lingering.unlink()
            assert (await other.runs.wait(handle.id, timeout=PATIENCE)).result == "2 x"

            net.heal(delivers=delivers)
            assert await result == "2 x"
            await until(lambda: engine.lease is not None and engine.lease.lasts)
            assert engine.node != before
            for key in ("b", "c"):
                assert await client.service("sum", key=key).invoke(numbers=[1]) == 1
    assert node.told() == ["begins x", "begins x", "ends x"]
