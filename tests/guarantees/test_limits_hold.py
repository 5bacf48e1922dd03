"""Limits of actions hold in whatever a run goes through: waits, parks, restarts, retries, cancels, undoes."""

import asyncio
from pathlib import Path

import pytest

from dotdo import AsyncContext, AsyncHandle, Concurrency, Fail, Retry, action, service
from dotdo.records import Run
from tests.guarantees.lab import Lab, World, catalogue, in_loop, laboratory

pytestmark = pytest.mark.usefixtures("each_store")


@pytest.fixture(autouse=True)
def quick_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave memory as soon as they wait."""
    monkeypatch.setattr("dotdo.engine.parking.LINGER", 0.01)


QUICK = Retry(attempts=2, delay=10, jitter=False)


@action("pass", concurrency=1, retry=QUICK, catalogue=catalogue)
async def pass_one(ctx: AsyncContext, gate: str) -> str:
    """One at a time: says when it comes to its gate, and fails after it if it was told to."""
    world = ctx.resource(World)
    world.say(f"at {gate}")
    await world.pass_gate(gate)
    if world.failures.pop(gate, 0):
        raise ConnectionError(f"{gate} is down")
    world.say(f"past {gate}")
    return gate


@pass_one.undo
async def unpass(ctx: AsyncContext, gate: str) -> None:
    """Takes it back, whoever holds the limit."""
    ctx.resource(World).say(f"back from {gate}")


@service("passes", catalogue=catalogue)
async def passes(gates: list[str], child: bool = False, fails: bool = False) -> int:
    """Passes all at the same time, or one after the other in children of its own."""
    if child:
        for gate in gates:
            await passes(gates=[gate])
    else:
        await asyncio.gather(*(pass_one(gate=gate) for gate in gates))
    if fails:
        raise Fail("after all")
    return len(gates)


@action("serve", concurrency=[Concurrency(1, key="customer.id"), Concurrency(2)], retry=1, catalogue=catalogue)
async def serve(ctx: AsyncContext, customer: dict[str, str], gate: str) -> str:
    """One at a time for each customer, and two in all."""
    ctx.resource(World).say(f"at {gate}")
    await ctx.resource(World).pass_gate(gate)
    return gate


@action("call", rate="2/minute", retry=1, catalogue=catalogue)
async def call_out(ctx: AsyncContext, name: str) -> str:
    """Two a minute."""
    ctx.resource(World).say(name)
    return name


async def waits(lab: Lab, id: str) -> Run:
    """Returns the run once it waits for a limit, out of memory."""

    async def does() -> bool:
        waiting_for = (await lab.client.runs.get(id)).waiting_for
        return waiting_for is not None and waiting_for.kind == "limit" and id not in lab.engine.live

    await lab.until(does)
    return await lab.client.runs.get(id)


async def one_passes_and_two_wait(lab: Lab) -> list[AsyncHandle[str]]:
    """The first stands at its gate "a"; "b" and "c" wait for it, out of memory."""
    handles = [await lab.client.start(pass_one, gate="a")]
    await lab.world.heard("at a")
    for gate in "bc":
        handles.append(await lab.client.start(pass_one, gate=gate))
        await waits(lab, handles[-1].id)
    return handles


@in_loop
async def test_who_waits_says_so_holds_no_memory_and_comes_in_order_of_asking(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handles = []
        for gate in "abc":
            handles.append(await lab.client.start(pass_one, gate=gate))
            run = await (waits(lab, handles[-1].id) if gate != "a" else lab.world.heard("at a"))
        assert isinstance(run, Run)
        assert run.waiting_for is not None
        assert "one of the 1 attempts of pass" in run.waiting_for.text
        assert set(lab.engine.live) == {handles[0].id}
        for gate in "abc":
            assert lab.world.said[-1] == f"at {gate}"
            lab.world.open(gate)
            await lab.world.heard(f"past {gate}")
            await lab.world.heard(f"at {chr(ord(gate) + 1)}") if gate != "c" else None
        assert [await handle.result() for handle in handles] == ["a", "b", "c"]


@in_loop
async def test_steps_of_services_and_runs_of_the_action_share_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        direct = await lab.client.start(pass_one, gate="direct")
        await lab.world.heard("at direct")
        handle = await lab.client.start(passes, gates=["one", "two"])
        await waits(lab, handle.id)
        for gate in ("direct", "one", "two"):
            assert lab.world.said[-1] == f"at {gate}"
            lab.world.open(gate)
            await lab.world.heard(f"past {gate}")
            if gate != "two":
                await lab.world.heard("at one" if gate == "direct" else "at two")
        assert (await direct.result(), await handle.result()) == ("direct", 2)


@in_loop
async def test_engine_that_stopped_leaves_places_and_slots_as_they_were(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handles = await one_passes_and_two_wait(lab)
        lab.engine._grace = 0.0  # type: ignore[attr-defined]  # nobody will open the gate
    assert lab.world.said == ["at a"]
    for gate in "abc":
        lab.world.open(gate)
    async with laboratory(tmp_path, world=lab.world, clock=lab.clock) as lab:
        assert [await lab.client.handle(handle.id).result() for handle in handles] == ["a", "b", "c"]
    told = lab.world.said[1:]
    assert told == ["at a", "past a", "at b", "past b", "at c", "past c"]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
@in_loop
async def test_who_is_stopped_while_it_waits_leaves_the_line(tmp_path: Path, how: str):
    async with laboratory(tmp_path) as lab:
        first = await lab.client.start(pass_one, gate="a")
        await lab.world.heard("at a")
        stopped = await lab.client.start(pass_one.with_(deadline=60), gate="never")
        await waits(lab, stopped.id)
        last = await lab.client.start(pass_one, gate="c")
        await waits(lab, last.id)
        if how == "cancel":
            await stopped.cancel()
        else:
            lab.clock.advance(60)
        await lab.until_status(stopped.id, "cancelled" if how == "cancel" else "failed")
        for gate in "ac":
            lab.world.open(gate)
        assert (await first.result(), await last.result()) == ("a", "c")
        assert "at never" not in lab.world.said


@in_loop
async def test_failed_attempt_gives_its_slot_back_until_its_retry(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("a", 1)
        first = await lab.client.start(pass_one, gate="a")
        await lab.world.heard("at a")
        second = await lab.client.start(pass_one, gate="b")
        await waits(lab, second.id)
        lab.world.open("a")
        await lab.world.heard("at b")
        lab.clock.advance(10)
        assert (await waits(lab, first.id)).status == "waiting"
        lab.world.open("b")
        assert (await first.result(), await second.result()) == ("a", "b")
        assert lab.world.said == ["at a", "at b", "past b", "at a", "past a"]


@in_loop
async def test_undo_waits_for_nobody(tmp_path: Path):
    """What takes back must not stand behind a flood of what goes forward."""
    async with laboratory(tmp_path) as lab:
        lab.world.open("a")
        await lab.client.start(passes, gates=["a"], fails=True)
        await lab.world.heard("back from a")
        failed = await lab.client.start(passes, gates=["b"], fails=True)
        await lab.world.heard("at b")
        blocker = await lab.client.start(pass_one, gate="c")
        await waits(lab, blocker.id)
        lab.world.open("b")
        await lab.world.heard("at c")
        await lab.world.heard("back from b")
        assert (await lab.until_status(failed.id, "failed")).undo == "all"
        lab.world.open("c")
        assert await blocker.result() == "c"


@in_loop
async def test_parent_holds_nothing_that_its_child_waits_for(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        for gate in "abc":
            lab.world.open(gate)
        handles = [await lab.client.start(passes, gates=[gate], child=True) for gate in "abc"]
        assert [await handle.result() for handle in handles] == [1, 1, 1]


@in_loop
async def test_turn_that_came_too_late_is_no_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with laboratory(tmp_path) as lab:
        handles = await one_passes_and_two_wait(lab)
        with monkeypatch.context() as busy:
            busy.setattr(lab.engine.store, "claim_due", lambda *given: [])  # nobody has room for what is due
            lab.world.open("a")
            assert await handles[0].result() == "a"
            while not await lab.sql("select 1 from inbox where run = :run", run=handles[1].id):
                await lab.engine.committer.call(lambda: None)
            lab.clock.advance(11)
            await lab.engine.limiter.sweep(lab.clock.now())
            assert await lab.sql("select 1 from inbox where run = :run", run=handles[2].id), "it is the next one's turn"
        await lab.sweep()
        await lab.world.heard("at c")
        await waits(lab, handles[1].id)
        assert lab.world.said == ["at a", "past a", "at c"]
        for gate in "cb":
            lab.world.open(gate)
        assert [await handle.result() for handle in handles] == ["a", "b", "c"]
        assert lab.world.said[3:] == ["past c", "at b", "past b"]


@in_loop
async def test_customer_with_many_orders_keeps_no_other_waiting(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handles = [await lab.client.start(serve, customer={"id": "big"}, gate=f"big {n}") for n in range(3)]
        await lab.world.heard("at big 0")
        for handle in handles[1:]:
            run = await waits(lab, handle.id)
            assert run.waiting_for is not None
            assert 'with customer.id="big"' in run.waiting_for.text
        handles.append(await lab.client.start(serve, customer={"id": "small"}, gate="small"))
        await lab.world.heard("at small")
        assert lab.world.said == ["at big 0", "at small"]
        for gate in ("big 0", "big 1", "big 2", "small"):
            lab.world.open(gate)
        assert [await handle.result() for handle in handles] == ["big 0", "big 1", "big 2", "small"]


@in_loop
async def test_nothing_is_left_of_limits_that_nobody_needs(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        for gate in "abcd":
            lab.world.open(gate)
        handle = await lab.client.start(passes, gates=list("abcd"))
        assert await handle.result() == 4
        while lab.engine.background:
            await asyncio.gather(*lab.engine.background)
        assert await lab.sql("select count(*) from tickets") == [(0,)]
        assert await lab.sql("select count(*) from slots") == [(0,)]
        assert await lab.sql("select count(*) from inbox") == [(0,)]


@pytest.mark.parametrize("restarts", [False, True])
@in_loop
async def test_rate_counts_starts_also_across_a_restart(tmp_path: Path, restarts: bool):
    async with laboratory(tmp_path) as lab:
        handles = [await lab.client.start(call_out, name=name) for name in "ab"]
        assert [await handle.result() for handle in handles] == ["a", "b"]
        for name in "cd":
            handles.append(await lab.client.start(call_out, name=name))
            run = await waits(lab, handles[-1].id)
            assert run.waiting_for is not None
            assert run.waiting_for.text == "its turn: call may start 2/minute"
        lab.clock.advance(59)
        if not restarts:
            await lab.sweep()
            assert lab.world.said == ["a", "b"]
            lab.clock.advance(1)
            assert {await handle.result() for handle in handles[2:]} == {"c", "d"}
    if restarts:
        lab.clock.advance(1)
        async with laboratory(tmp_path, world=lab.world, clock=lab.clock) as lab:
            assert {await lab.client.handle(handle.id).result() for handle in handles[2:]} == {"c", "d"}
