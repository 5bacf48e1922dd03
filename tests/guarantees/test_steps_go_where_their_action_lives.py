"""A step whose action lives on another node goes there: with its SQL, effects, settlement and undo, once, and whatever
dies on the way. What no live node has is waited for.

Nodes here are clients in this process, or real ones that are killed.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dotdo import ActionFailed, AsyncDo, Catalogue, InvalidInput, RunBlocked, RunCancelled, UnknownName
from dotdo.records import Run
from dotdo.server.listening import serve
from dotdo.worker.worker import Worker
from tests.guarantees import node
from tests.guarantees.elsewhere import definitions
from tests.guarantees.invariants import check_store
from tests.guarantees.lab import in_loop
from tests.guarantees.node_process import node_process
from tests.guarantees.test_many_nodes import engine_of, nodes, sql, until
from tests.patience import PATIENCE
from tests.stores import LASTING, PATIENT, url_of


@pytest.fixture
def path(on_postgres: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the store goes by; afterwards the invariants of all its runs are checked."""
    monkeypatch.setenv(node.TOLD, str(tmp_path / "told"))
    monkeypatch.setenv("DOTDO_LEASE", LASTING)
    path = tmp_path / "dotdo.db"
    sql(path, "create table charges (item text primary key, cents bigint not null)")
    yield path
    check_store(path)


def charges(path: Path) -> list[str]:
    return sorted(item for (item,) in sql(path, "select item from charges"))


async def knows(client: AsyncDo, name: str) -> None:
    """Returns once a node knows of another one that defines something."""
    engine = await engine_of(client)
    assert engine.elsewhere is not None
    found = engine.elsewhere
    await until(lambda: found.find(name) is not None)


async def forgets(client: AsyncDo, name: str) -> None:
    """Returns once a node knows of no other one that defines something."""
    engine = await engine_of(client)
    assert engine.elsewhere is not None
    found = engine.elsewhere
    await until(lambda: found.find(name) is None)


async def children(client: AsyncDo, run: str) -> list[Run]:
    return await client.runs.list(parent=run, limit=100)


async def says(client: AsyncDo, run: str, text: str) -> None:
    """Returns once the run's row (it has left memory) says that it waits for that."""

    async def holds() -> bool:
        found = await client.runs.get(run)
        return found.waiting_for is not None and text in found.waiting_for.text

    await until(holds)


# -- a step's whole life, elsewhere ------------------------------------------------------------------------------------


@in_loop
async def test_steps_are_done_where_their_action_is_with_its_sql_and_effects(path: Path):
    with node_process("elsewhere", url_of(path), "billing") as billing:
        async with nodes(url_of(path), definitions("sales")) as (sales,):
            result = await sales.service("order").invoke(item="book", cents=1250)
            assert result == [{"item": "book", "cents": 1250, "by": billing.pid}, "book is on its way"]
            assert sorted(node.told()) == ["charges book", "mails book", "reserves book"]
            items = [f"item-{number}" for number in range(20)]
            receipts = await sales.service("orders").invoke(items=items)
            assert receipts == [{"item": item, "cents": 1, "by": billing.pid} for item in items]
            assert charges(path) == sorted(["book", *items])
            assert Counter(node.told())["mails item-7"] == 1
            [run] = await sales.runs.list(name="order")
            [child] = await children(sales, run.id)
            assert (child.kind, child.name, child.version, child.status) == ("action", "charge", 1, "completed")


@in_loop
async def test_failure_there_undoes_what_was_done_here(path: Path):
    async with nodes(url_of(path), definitions("sales"), definitions("billing")) as (sales, _):
        with pytest.raises(ActionFailed, match="nobody pays that"):
            await sales.service("order").invoke(item="book", cents=-1)
        assert node.told() == ["reserves book", "charges book", "releases book"]
        assert charges(path) == []
        [run] = await sales.runs.list(name="order")
        assert (run.undo, run.not_undone) == ("all", [])


@in_loop
async def test_failure_here_undoes_what_was_done_there(path: Path):
    async with nodes(url_of(path), definitions("sales"), definitions("billing")) as (sales, _):
        with pytest.raises(ActionFailed, match="cannot be shipped"):
            await sales.service("order").invoke(item="lost", cents=1)
        assert node.told() == ["reserves lost", "charges lost", "mails lost", "refunds lost", "releases lost"]
        assert charges(path) == []
        [run] = await sales.runs.list(name="order")
        [child] = await children(sales, run.id)
        assert (run.undo, child.undo) == ("all", "all")
        assert len(run.not_undone) == 1
        assert "mail" in run.not_undone[0]


# -- nodes die, or are not there ---------------------------------------------------------------------------------------


@in_loop
async def test_node_that_is_killed_within_the_action_does_it_once_when_it_is_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOTDO_LEASE", PATIENT)
    async with nodes(url_of(path), definitions("sales")) as (sales,):
        lingering = node.keep("book")
        with node_process("elsewhere", url_of(path), "billing") as victim:
            handle = await sales.service("order").start(item="book", cents=1)
            await until(lambda: "charges book" in node.told())
            victim.kill()
        lingering.unlink()
        with node_process("elsewhere", url_of(path), "billing") as again:
            receipt, _ = await handle.result(timeout=PATIENCE)
            assert receipt == {"item": "book", "cents": 1, "by": again.pid}
        assert charges(path) == ["book"]
        assert Counter(node.told()) == Counter(["reserves book", "charges book", "charges book", "mails book"])
        [child] = await children(sales, handle.id)
        claims = sql(path, f"select data from dotdo.journal where kind = 'claimed' and run = '{child.id}'")
        assert len([data for (data,) in claims if '"crashed":true' in data]) == 1


@in_loop
async def test_what_nobody_defines_is_waited_for(path: Path):
    async with nodes(url_of(path), definitions("sales")) as (sales,):
        handle = await sales.service("order").start(item="book", cents=1)
        await says(sales, handle.id, "a node that defines the action charge: none that is alive does")
        engine = await engine_of(sales)
        await until(lambda: handle.id not in engine.live)  # it has left memory, and is not looked at any more
        assert sql(path, f"select owner, due_at from dotdo.runs where id = '{handle.id}'") == [(None, None)]
        async with nodes(url_of(path), definitions("billing")):
            receipt, _ = await handle.result(timeout=PATIENCE)
            assert receipt["item"] == "book"
        claims = sql(path, f"select 1 from dotdo.journal where kind = 'claimed' and run = '{handle.id}'")
        assert len(claims) <= 3  # when the node came, for each that saw it; and when the child had ended


@in_loop
async def test_cancelled_run_does_not_wait_for_a_node_that_never_began_its_step(path: Path):
    async with nodes(url_of(path), definitions("sales")) as (sales,):
        async with nodes(url_of(path), definitions("billing")) as (billing,):
            await knows(sales, "charge")
            engine = await engine_of(billing)
            engine.claimer.stop()  # it is alive, and takes nothing any more
            handle = await sales.service("order").start(item="book", cents=1)
            await says(sales, handle.id, "on a node that has it")
        await forgets(sales, "charge")
        await sales.runs.cancel(handle.id)
        with pytest.raises(RunCancelled):
            await handle.result(timeout=PATIENCE)
        assert node.told() == ["reserves book", "releases book"]
        [child] = await children(sales, handle.id)
        assert child.status == "cancelled"


@in_loop
async def test_undo_of_a_step_waits_for_the_node_that_has_its_action(path: Path):
    async with nodes(url_of(path), definitions("sales")) as (sales,):
        async with nodes(url_of(path), definitions("billing")):
            handle = await sales.service("order").start(item="book", cents=1)
            await handle.result(timeout=PATIENCE)
        await forgets(sales, "charge")
        await sales.runs.undo(handle.id)
        [child] = await children(sales, handle.id)
        await says(sales, child.id, "a node that defines the action charge@1: none that is alive does")
        async with nodes(url_of(path), definitions("billing")):
            await until(lambda: "releases book" in node.told())
            assert charges(path) == []
            run = await sales.runs.wait(handle.id, timeout=PATIENCE)
            assert (run.status, run.undo) == ("completed", "all")


# -- workers -----------------------------------------------------------------------------------------------------------


@in_loop
async def test_action_of_a_worker_that_is_connected_to_another_node(path: Path):
    """One node came before the worker, and has never heard of the action; one comes after it, and knows its offer."""
    async with nodes(url_of(path), definitions("sales"), Catalogue()) as (before, serving):
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        registered, enough = asyncio.Event(), asyncio.Event()
        server = asyncio.create_task(
            serve(serving, host="127.0.0.1", port=0, open_access=True, on_ready=ready.set_result, until=enough)
        )
        early = await before.service("which").start(names=["version"])
        await says(before, early.id, "a node that defines the action version")
        catalogue = definitions("v2")
        worker = Worker(await ready, None, catalogue=catalogue, on_ready=lambda *_: registered.set())
        working = asyncio.create_task(worker.run())
        await registered.wait()
        assert await early.result(timeout=PATIENCE) == [2]
        async with nodes(url_of(path), definitions("sales")) as (after,):
            await knows(after, "version")
            for client in (before, after):
                assert await client.service("which").invoke(names=["version", "version@2"]) == [2, 2]
                assert await client.action("version").invoke() == 2
            worker.drain()
            await working
            await forgets(after, "version")
            late = await after.service("which").start(names=["version"])
            await says(after, late.id, "a worker: none that is connected offers the action version@2")
            await after.runs.cancel(late.id)
            with pytest.raises(RunCancelled):
                await late.result(timeout=PATIENCE)
        enough.set()
        await server


# -- which version, and what does not fit ------------------------------------------------------------------------------


@in_loop
async def test_versions_on_several_nodes(path: Path):
    roles = ("sales",), ("v1",), ("v2",)
    async with nodes(url_of(path), *(definitions(*each) for each in roles)) as (sales, _, _):
        engine = await engine_of(sales)
        assert engine.elsewhere is not None
        found = engine.elsewhere
        await until(lambda: found.versions("version") == [1, 2])
        names = ["version", "version@1", "version", "version@2"]
        assert await sales.service("which").invoke(names=names) == [2, 1, 2, 2]
        [run] = await sales.runs.list(name="which")
        started = sql(path, f"select data from dotdo.journal where run = '{run.id}' and kind = 'child_started'")
        assert len(started) == 4
        assert all('"kind":"action"' in data for (data,) in started)

        handle = await sales.service("which").start(names=["version@3"])
        await says(sales, handle.id, "versions that are: 1, 2")
        await sales.runs.cancel(handle.id)


@in_loop
async def test_input_that_does_not_fit_is_refused_before_anything_happens(path: Path):
    async with nodes(url_of(path), definitions("sales"), definitions("billing")) as (sales, _):
        await knows(sales, "charge")
        with pytest.raises(InvalidInput, match=r"\$\.cents"):
            await sales.action("charge").start(item="book", cents="many")
        handle = await sales.service("misorder").start(item="book")  # as a call of an own action: the service is wrong
        with pytest.raises(RunBlocked, match=r"\$\.dollars: is not a parameter"):
            await handle.result(timeout=PATIENCE)
        assert await children(sales, handle.id) == []
        assert node.told() == ["reserves book"]


@in_loop
async def test_run_is_accepted_by_a_node_that_does_not_define_it(path: Path):
    async with nodes(url_of(path), definitions("sales"), definitions("billing")) as (sales, billing):
        await knows(sales, "charge")
        await knows(billing, "order")
        assert await sales.action("charge", key="k").invoke(item="book", cents=2) == {
            "item": "book",
            "cents": 2,
            "by": os.getpid(),
        }
        assert (await sales.action("charge", key="k").invoke(item="book", cents=2))["cents"] == 2
        assert (await billing.service("order").invoke(item="pen", cents=3))[1] == "pen is on its way"
        assert charges(path) == ["book", "pen"]
        assert {one.name for one in await sales.action.list()} >= {"charge", "reserve"}
        with pytest.raises(UnknownName, match="Did you mean"):
            await sales.action("reserv").start(item="book")
        # A process without a node asks the store who is there.
        async with AsyncDo(url_of(path), catalogue=Catalogue(), engine=False) as filing:
            assert (await filing.service("order").invoke(item="cup", cents=4))[1] == "cup is on its way"
            with pytest.raises(InvalidInput, match=r"\$\.cents"):
                await filing.action("charge").start(item="book", cents="many")
            with pytest.raises(UnknownName):
                await filing.action("reserv").start(item="book")
