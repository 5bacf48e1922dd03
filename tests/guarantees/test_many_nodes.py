"""Many nodes on one PostgreSQL: they share the work, and what one leaves behind the others take up, each run once.

Nodes here are clients in this process, or real ones that are killed or frozen. Faults are made at a real server.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dotdo import (
    AsyncContext,
    AsyncDo,
    Catalogue,
    KeyConflict,
    Retry,
    RunCancelled,
    action,
    service,
    wait_for_event,
)
from dotdo.engine import running
from dotdo.engine.accepting import AcceptedRun
from dotdo.engine.engine import Engine
from dotdo.engine.running import LiveRun
from dotdo.errors import NodeExpelled, StoreError, StoreUnavailable
from dotdo.store.connecting import CommitUnknown
from dotdo.store.protocol import Claim, Write
from dotdo.store.sharing import SharedStore
from tests.contract_sql.lossy import lossy_wire
from tests.guarantees import node
from tests.guarantees.invariants import check_store
from tests.guarantees.lab import in_loop
from tests.guarantees.node_process import node_process
from tests.patience import PATIENCE
from tests.postgres import restartable_server
from tests.stores import LASTING, PATIENT, url_of


@pytest.fixture
def path(on_postgres: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the store goes by; afterwards the invariants of all its runs are checked."""
    monkeypatch.setenv(node.TOLD, str(tmp_path / "told"))
    path = tmp_path / "dotdo.db"
    yield path
    check_store(path)


@pytest.fixture
def lasting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes keep their leases, whatever else this machine does."""
    monkeypatch.setenv("DOTDO_LEASE", LASTING)


@asynccontextmanager
async def nodes(url: str, *catalogues: Catalogue, **options: Any) -> AsyncIterator[list[AsyncDo]]:
    """Clients, each with a node of its own."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [AsyncDo(url, catalogue=each, grace=1.0, **options) for each in catalogues]
        for client in clients:
            await stack.enter_async_context(client)
            await client.platform()
        yield clients


async def engine_of(client: AsyncDo) -> Engine:
    """The node of a client."""
    platform = await client.platform()
    assert isinstance(platform, Engine)
    return platform


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Returns when that holds; other processes bring it about, so it is looked at again and again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)


def sql(path: Path | str, statement: str) -> list[tuple[Any, ...]]:
    """Looks at the server, or does something there."""
    with psycopg.connect(url_of(path) if isinstance(path, Path) else path, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


# -- together ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_key_is_one_run_when_nodes_use_it_at_the_same_moment(path: Path):
    async with nodes(url_of(path), *[node.definitions() for _ in range(3)]) as clients:
        for number in range(20):
            given = [each.service("sum", key=f"{number}").start(numbers=[number, 2]) for each in clients]
            handles = await asyncio.gather(*given)
            assert len({handle.id for handle in handles}) == 1
            assert [await handle.result(timeout=PATIENCE) for handle in handles] == [number + 2] * 3
        with pytest.raises(KeyConflict):
            await clients[1].service("sum", key="7").start(numbers=[1])
        assert len(await clients[0].runs.list(limit=100)) == 20


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_events_cancels_and_results_cross_nodes(path: Path):
    catalogue = Catalogue()

    @service("awaits", catalogue=catalogue)
    async def awaits() -> str:
        return await wait_for_event("word")

    async with nodes(url_of(path), catalogue, catalogue) as (one, other):
        handle = await one.start(awaits)
        theirs = other.handle(handle.id)
        result = asyncio.create_task(theirs.result(timeout=PATIENCE))
        await until(lambda: one_waits(one, handle.id))
        await theirs.send_event("word", "hello")
        assert await result == await handle.result(timeout=PATIENCE) == "hello"

        handle = await one.start(awaits)
        await other.runs.cancel(handle.id)
        with pytest.raises(RunCancelled):
            await other.runs.wait(handle.id, timeout=PATIENCE)


async def one_waits(client: AsyncDo, id: str) -> bool:
    """Whether a run waits for an event."""
    waiting_for = (await client.runs.get(id)).waiting_for
    return waiting_for is not None and waiting_for.kind == "event"


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_run_goes_to_a_node_that_has_its_definition(path: Path):
    """What one node alone offers, it alone claims; and what nobody offers waits, and says so."""
    async with nodes(url_of(path), node.definitions(), node.definitions("sum", "lingers")) as (has, has_not):
        engine = await engine_of(has_not)
        await until(lambda: "service sum@1" in engine.store._elsewhere)  # type: ignore[attr-defined]
        handles = [await has.service("sum", delay=0.05).start(numbers=[n, 1]) for n in range(20)]
        assert [await one.result(timeout=PATIENCE) for one in handles] == [n + 1 for n in range(20)]
        claims = sql(path, "select data from dotdo.journal where kind = 'claimed'")
        owner = (await engine_of(has)).node
        assert len(claims) == 20
        assert all(owner in data for (data,) in claims)

        await has.close()
        late = await file_run(path, "sum", numbers=[1, 2])

        async def says_so() -> bool:
            waiting_for = (await has_not.runs.get(late)).waiting_for
            return waiting_for is not None and "sum@1" in waiting_for.text

        await until(says_so)
        async with nodes(url_of(path), node.definitions()) as (again,):
            assert (await again.runs.wait(late, timeout=PATIENCE)).result == 3


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_what_a_node_gives_back_in_order_is_taken_up_at_once_and_counts_as_no_crash(path: Path):
    async with nodes(url_of(path), node.definitions(), node.definitions()) as (one, other):
        lingering = node.keep("x")
        handle = await one.service("lingers").start(name="x")
        await until(lambda: node.told() == ["begins x"])
        await one.close()  # its attempt is cancelled when the grace is over
        lingering.unlink()
        assert (await other.runs.wait(handle.id, timeout=PATIENCE)).result == "2 x"
        assert not sql(path, "select 1 from dotdo.journal where kind = 'claimed' and data like '%crashed\":true%'")


# -- nodes die, or seem to ---------------------------------------------------------------------------------------------


@in_loop
async def test_what_a_killed_node_had_is_done_by_another(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_LEASE", PATIENT)
    with node_process("node", url_of(path)) as victim:
        lingering = node.keep("x")
        handle = await file_run(path, "lingers", name="x")
        await until(lambda: node.told() == ["begins x"])
        victim.kill()
        async with nodes(url_of(path), node.definitions()) as (rescuer,):
            await until(lambda: node.told() == ["begins x"] * 2)
            lingering.unlink()
            assert (await rescuer.runs.wait(handle, timeout=PATIENCE)).result == "2 x"
    assert node.told() == ["begins x", "begins x", "ends x"]
    assert sql(path, "select count(*) from dotdo.journal where kind = 'completed' and step like 'add%'") == [(1,)]


async def file_run(path: Path, service: str, **params: Any) -> str:
    """Files a run from a process without a node."""
    async with AsyncDo(url_of(path), catalogue=node.definitions(), engine=False) as filing:
        return (await filing.service(service).start(**params)).id


@in_loop
async def test_frozen_node_commits_nothing_when_it_wakes_and_comes_back_as_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOTDO_LEASE", PATIENT)
    with node_process("node", url_of(path)) as zombie:
        lingering = node.keep("x")
        async with AsyncDo(url_of(path), catalogue=node.definitions(), engine=False) as filing:
            handle = await filing.service("lingers").start(name="x")
            await until(lambda: node.told() == ["begins x"])
            os.kill(zombie.pid, signal.SIGSTOP)
            async with nodes(url_of(path), node.definitions()) as (rescuer,):
                await until(lambda: node.told() == ["begins x"] * 2)  # its lease is over
                [(before,)] = sql(path, "select id from dotdo.nodes where expelled_at is null order by started_at")
                os.kill(zombie.pid, signal.SIGCONT)
                lingering.unlink()  # now both come to their end
                assert (await rescuer.runs.wait(handle.id, timeout=PATIENCE)).result == "2 x"
                # The process goes on, as a new node that works like any other.
                await until(lambda: len(sql(path, "select 1 from dotdo.nodes where expelled_at is null")) == 2)
                assert (before,) in sql(path, "select id from dotdo.nodes where expelled_at is null")
            assert zombie.poll() is None
            assert await filing.service("sum").invoke(numbers=[1, 2]) == 3
    owners = Counter(data for (data,) in sql(path, "select data from dotdo.journal where kind = 'claimed'"))
    assert sum(owners.values()) >= 3, owners
    assert sql(path, "select count(*) from dotdo.journal where kind = 'completed' and step like 'linger%'") == [(1,)]


# -- the server, and the way to it -------------------------------------------------------------------------------------


@in_loop
async def test_connections_that_are_cut_again_and_again_lose_nothing(path: Path, caplog: pytest.LogCaptureFixture):
    async with nodes(url_of(path), node.definitions(), node.definitions()) as clients:
        over, done = asyncio.Event(), asyncio.Event()
        cuts = 0

        async def cut() -> None:
            nonlocal cuts
            while not over.is_set():
                cut_off = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'dotdo'"
                cuts += len(await asyncio.to_thread(sql, path, f"{cut_off} and datname = current_database()"))
                # Again as soon as something was done. Without that, a slow machine would never come to do anything.
                done.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), 1)

        async def work(client: AsyncDo, number: int) -> int:
            return await client.service("sum", key=f"{number}").invoke(numbers=[number, 1, 2])

        cutting = asyncio.create_task(cut())
        results: dict[int, int] = {}
        numbers = itertools.count()

        async def call() -> None:
            while len(results) < 200 or cuts <= 50:  # a fast machine has done 200 before so many cuts
                number = next(numbers)
                results[number] = await insist(partial(work, clients[number % 2], number))
                done.set()

        await asyncio.gather(*(call() for _ in range(20)))
        over.set()
        done.set()
        await cutting
        assert results == {number: number + 3 for number in results}
        assert cuts > 50
        found = await clients[0].runs.list(limit=2 * len(results))
        assert Counter(run.status for run in found) == {"completed": len(results)}
    assert [record.getMessage() for record in caplog.records if record.name == "psycopg"] == [], "the driver warns"


async def insist(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Asks again, with the same key, while the store cannot be reached."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await ask()
            except StoreError:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("immediately", [False, True], ids=["stopped", "crashed"])
def test_server_that_goes_and_comes_back_under_load_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, immediately: bool
):
    monkeypatch.setenv("DOTDO_AUDIT_KEY", "00112233445566778899aabbccddeeff")
    monkeypatch.setenv("DOTDO_LEASE", "2")
    monkeypatch.setenv(node.TOLD, str(tmp_path / "told"))

    async def go(server: Any) -> None:
        async with nodes(server.url, node.definitions(), node.definitions()) as clients:
            engines = [await engine_of(client) for client in clients]
            done: list[int] = []
            over = asyncio.Event()

            async def work(number: int) -> None:
                while not over.is_set():
                    key = f"{number}-{len(done)}"
                    ask = clients[number % 2].service("sum", key=key)
                    assert await insist(partial(ask.invoke, numbers=[number, 1])) == number + 1
                    done.append(number)

            working = [asyncio.create_task(work(number)) for number in range(10)]
            await until(lambda: len(done) > 50)
            await asyncio.to_thread(server.stop, immediately=immediately)
            at_the_stop = len(done)
            await until(lambda: not any(engine.lease and engine.lease.lasts for engine in engines))
            await asyncio.to_thread(server.start)
            await until(lambda: len(done) > at_the_stop + 100)
            over.set()
            await asyncio.gather(*working)
            # Both work again. One whose renewal was the first to reach the server goes on as the node that it was, if
            # nobody had expelled that; the other is a new one. Of those that were given up nothing is left.
            assert {number % 2 for number in done[at_the_stop + 20 :]} == {0, 1}  # after those that were on their way
            assert all(engine.lease and engine.lease.lasts for engine in engines)
            known = sql(server.url, "select id from dotdo.nodes where expelled_at is null")
            assert sorted(known) == sorted((engine.node,) for engine in engines)
            runs = await clients[0].runs.list(limit=10_000)
            assert {run.status for run in runs} == {"completed"}
            assert len(runs) == len(done)

    with restartable_server() as server:
        asyncio.run(go(server))


@in_loop
async def test_lease_that_lapsed_and_was_renewed_after_all_leaves_nothing_standing(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The node starts nothing meanwhile: no child, no second attempt. It goes on as the node that it was, and
    so does each of its runs."""
    again, tries = asyncio.Event(), list[int]()
    monkeypatch.setenv("DOTDO_LEASE", "2")

    @action("try-twice", retry=Retry(attempts=2, delay=0), catalogue=(own := Catalogue()))
    async def try_twice(ctx: AsyncContext) -> int:
        tries.append(ctx.attempt)
        if ctx.attempt == 1:
            await again.wait()
            raise ConnectionError("once")
        return ctx.attempt

    @service("child", catalogue=own)
    async def child() -> str:
        return "child"

    @action("wait-for-it", catalogue=own)
    async def wait_for_it() -> None:
        await again.wait()

    @service("parent", catalogue=own)
    async def parent() -> str:
        await wait_for_it()
        return await child()

    async with nodes(url_of(path), own) as (client,):
        engine = await engine_of(client)
        store = engine.store
        assert engine.lease is not None
        assert isinstance(store, SharedStore)
        before, renew, renewing, renewed = engine.node, store.renew, asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def renew_later(node: str) -> int | None:
            loop.call_soon_threadsafe(renewing.set)
            assert renewed.wait(PATIENCE)
            return renew(node)

        monkeypatch.setattr(store, "renew", renew_later)
        handles = [await client.start(each) for each in (try_twice, parent)]
        await until(lambda: tries == [1] and len(engine.live) == 2)
        await renewing.wait()
        engine.lease._until = 0.0  # as if the server had been away for that long
        paused: list[str] = []
        pause = running.pause

        async def noted(run: LiveRun) -> None:
            if not run.engine.lease or not run.engine.lease.lasts:
                paused.append(run.id)
            await pause(run)

        monkeypatch.setattr(running, "pause", noted)
        again.set()
        await until(lambda: {*paused} == {handle.id for handle in handles})
        assert tries == [1]
        renewed.set()
        assert [await handle.result(timeout=PATIENCE) for handle in handles] == [2, "child"]
        assert (engine.node, tries) == (before, [1, 2])


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_run_that_is_accepted_while_its_node_is_lost_is_not_held_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It has just been made when the store goes away. It is not written, and the key must be free again."""
    async with nodes(url_of(path), node.definitions()) as (client,):
        engine = await engine_of(client)
        store = engine.store
        assert engine.lease is not None
        assert isinstance(store, SharedStore)
        lease, refused = engine.lease, threading.Event()
        live_run, write, rejoin = engine.intake._live_run, store.write, store.rejoin

        def made_just_after(accepted: AcceptedRun) -> LiveRun:
            if not refused.is_set():
                lease.lost(StoreUnavailable("it has gone away"))
            return live_run(accepted)

        def write_or_tell(writes: list[Write]) -> None:
            try:
                write(writes)
            except StoreUnavailable:
                refused.set()
                raise

        def rejoin_after_that(*given: Any) -> None:
            if not refused.is_set():
                raise StoreUnavailable("it is away")
            rejoin(*given)

        monkeypatch.setattr(engine.intake, "_live_run", made_just_after)
        monkeypatch.setattr(store, "write", write_or_tell)
        monkeypatch.setattr(store, "rejoin", rejoin_after_that)
        call = client.service("sum", key="one")
        with pytest.raises(StoreError):
            await call.invoke(numbers=[1, 2])
        assert refused.is_set()
        assert await insist(partial(call.invoke, numbers=[1, 2])) == 3


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_nothing_is_accepted_under_the_name_of_a_node_that_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Written by the one that it comes back as, the run would be one of a node that can never die."""
    async with nodes(url_of(path), node.definitions()) as (client,):
        engine = await engine_of(client)
        known, lease, losses = engine.intake._known, engine.lease, iter([NodeExpelled("it was taken for dead")])
        assert lease is not None

        async def known_just_before(*asked: Any) -> Any:
            found = await known(*asked)
            if loss := next(losses, None):
                lease.lost(loss)
            return found

        monkeypatch.setattr(engine.intake, "_known", known_just_before)
        call = client.service("sum", key="one")
        with pytest.raises(StoreUnavailable, match="Nothing was accepted"):
            await call.invoke(numbers=[1, 2])
        assert await call.invoke(numbers=[1, 2]) == 3


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_what_was_claimed_by_a_node_that_is_gone_is_claimed_again(path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is lost while a run that it has claimed is read. Who it comes back as must not go on under that claim: the
    others free the run, and it would run at two places at once."""
    async with nodes(url_of(path), node.definitions()) as (client,):
        engine = await engine_of(client)
        load, resume, lease, claims = engine.pinned.load, engine.resume, engine.lease, list[int]()
        assert lease is not None

        async def resume_seen(found: list[Claim], by: str) -> None:
            claims.extend(claim.claim for claim in found)
            await resume(found, by)

        async def load_while_it_is_lost(pins: set[str]) -> None:
            if len(claims) == 1:
                lease.lost(NodeExpelled("it was taken for dead"))
                await lease.returned()
            await load(pins)

        monkeypatch.setattr(engine, "resume", resume_seen)
        monkeypatch.setattr(engine.pinned, "load", load_while_it_is_lost)
        async with AsyncDo(url_of(path), catalogue=node.definitions(), engine=False) as filing:
            assert await filing.service("sum").invoke(numbers=[1, 2]) == 3
        written = sql(path, "select data from dotdo.journal where kind = 'claimed' order by seq")
        assert [json.loads(data)["claim"] for (data,) in written] == claims[1:]
        assert len(claims) == 2


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_node_goes_on_beside_one_that_publishes_what_this_version_does_not_know(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without hints: who waits for a run that another node has learns of its end by looking, whatever else fails."""
    columns = "id, host, pid, started_at, lease_until, offers, definitions"
    strange = "'node_of_another_version', 'h', 1, 0, dotdo.now() + 600000, '{}', '[]'"
    sql(path, f"insert into dotdo.nodes ({columns}) values ({strange})")
    async with nodes(url_of(path), node.definitions(), Catalogue()) as (_, waiting):
        engine = await engine_of(waiting)
        assert isinstance(engine.store, SharedStore)
        engine.store.listen(None)
        own_runs, failures = engine.store.runs_with_messages, iter([RuntimeError("nobody thought of this")])

        def looked_at(name: str) -> list[str]:
            if error := next(failures, None):
                raise error
            return own_runs(name)

        monkeypatch.setattr(engine.store, "runs_with_messages", looked_at)
        await until(lambda: "nobody thought of this" in caplog.text)
        async with AsyncDo(url_of(path), catalogue=node.definitions(), engine=False) as filing:
            handle = await filing.service("sum", key="one").start(numbers=[1, 2])
        assert (await asyncio.wait_for(engine.result(handle.id), PATIENCE)).result == 3
    assert caplog.text.count("looking at the store failed") == 1


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_run_of_an_owner_whom_nobody_knows_goes_on(path: Path):
    """However that came about: it would wait for ever for a node that is not there, and can never die."""
    async with AsyncDo(url_of(path), catalogue=node.definitions(), engine=False) as filing:
        handles = [await filing.service("sum").start(numbers=[number, 1]) for number in range(3)]
        found = sql(path, "update dotdo.runs set status = 'running', owner = 'node_unheard_of' returning id")
        assert len(found) == 3
        async with nodes(url_of(path), node.definitions()):
            assert [await handle.result(timeout=PATIENCE) for handle in handles] == [1, 2, 3]


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_node_that_has_left_takes_nothing_any_more(path: Path):
    """Something in the background may still read a run again while its engine is closed."""
    async with AsyncDo(url_of(path), catalogue=node.definitions(), engine=False) as filing:
        async with nodes(url_of(path), node.definitions()) as (client,):
            engine = await engine_of(client)
            store, name, taken = engine.store, engine.node, list[Any]()
            leave, handles = store.leave, list[Any]()

            def leave_and_take(*given: Any) -> None:
                leave(*given)
                taken.append(store.claim_one(name, handles[0].id))
                taken.append(store.claim_due(name, engine.clock.now(), 10))

            await engine.claimer.close()
            handles.append(await filing.service("sum").start(numbers=[1, 2]))
            store.leave = leave_and_take  # type: ignore[method-assign]
        assert taken == [None, []]
        assert sql(path, "select owner from dotdo.runs") == [(None,)]
        async with nodes(url_of(path), node.definitions()):
            assert await handles[0].result(timeout=PATIENCE) == 3


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_node_comes_back_whatever_keeps_it_from_that(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else it would beat on, and keep its runs from all others, and never do anything again."""
    async with nodes(url_of(path), node.definitions()) as (client,):
        engine = await engine_of(client)
        store, before = engine.store, engine.node
        assert engine.lease is not None
        assert isinstance(store, SharedStore)
        rejoin, tries = store.rejoin, iter([StoreUnavailable("it is away"), RuntimeError("nobody thought of this")])

        def rejoin_in_the_end(*given: Any) -> None:
            if error := next(tries, None):
                raise error
            rejoin(*given)

        monkeypatch.setattr(store, "rejoin", rejoin_in_the_end)
        engine.lease.lost(StoreUnavailable("it has gone away"))
        await engine.lease.returned()
        assert engine.node != before
        assert next(tries, None) is None
        assert await client.service("sum", key="one").invoke(numbers=[1, 2]) == 3


@pytest.mark.usefixtures("lasting")
@in_loop
async def test_node_comes_back_when_the_answer_to_its_coming_was_lost(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Under that name a node is there by now. It must not be refused for that, again and again."""
    async with nodes(url_of(path), node.definitions()) as (client,):
        engine = await engine_of(client)
        store, joined = engine.store, list[str]()
        assert engine.lease is not None
        assert isinstance(store, SharedStore)
        join = store.join

        def join_unanswered(name: str, *given: Any) -> None:
            join(name, *given)
            joined.append(name)
            if len(joined) == 1:
                raise CommitUnknown("the answer was lost, and nobody could be asked")

        monkeypatch.setattr(store, "join", join_unanswered)
        engine.lease.lost(StoreUnavailable("it has gone away"))
        await engine.lease.returned()
        assert joined.index(engine.node) == 1
        assert await client.service("sum", key="one").invoke(numbers=[1, 2]) == 3


@pytest.mark.usefixtures("lasting")
@pytest.mark.usefixtures("lasting")
@in_loop
async def test_commit_whose_answer_was_lost_is_looked_for_and_not_made_again(path: Path):
    with lossy_wire(url_of(path)) as wire:
        async with nodes(wire.url, node.definitions()) as (client,):
            engine = await engine_of(client)
            before = engine.node
            for number in range(10):
                wire.lose = "answer"
                assert await client.service("sum", key=f"{number}").invoke(numbers=[number, 1, 2, 3]) == number + 6
            assert wire.cuts >= 8
            assert engine.node == before
            assert {run.status for run in await client.runs.list()} == {"completed"}
    assert sql(path, "select 1 from dotdo.journal where kind = 'claimed'") == []  # nothing was dropped or read again
