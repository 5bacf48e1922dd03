"""A waiting run holds no memory, comes back in time, and always says in words and data what it waits for."""

import asyncio
import gc
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from dotdo import AsyncContext, EffectCall, Retry, action, effect, now, service, sleep, wait_for_event
from dotdo.engine.running import LiveRun
from dotdo.records import WaitingFor
from tests.guarantees.lab import PATIENCE, Lab, World, book, catalogue, flaky, hold, in_loop, laboratory, note

pytestmark = pytest.mark.usefixtures("each_store")


@effect("waiting.post", dedup="key", retry=Retry(attempts=3, delay=10, jitter=False), catalogue=catalogue)
async def post(call: EffectCall, to: str) -> None:
    if call.resource(World).failures.get(to):
        raise ConnectionError(f"{to} does not answer")
    call.resource(World).say(f"posted to {to}")


@action("post-to", catalogue=catalogue)
async def post_to(ctx: AsyncContext, to: str) -> None:
    ctx.stage(post, to=to)


@service("waits", catalogue=catalogue)
async def waits(how: str) -> str:
    match how:
        case "timer":
            await sleep(3600)
        case "event":
            await wait_for_event("go")
        case "event or timer":
            async with asyncio.timeout(3600):
                await wait_for_event("go")
        case "retry":
            await flaky(name="line")
        case "delivery":
            await post_to(to="Ada")
        case "child":
            await waits(how="timer")
        case _:
            await asyncio.gather(sleep(7200), sleep(3600), wait_for_event("go"), flaky(name="line"))
    return how


async def asleep(lab: Lab, id: str) -> WaitingFor:
    """What a run waits for that has left memory."""
    run = await lab.until_asleep(id)
    assert run.waiting_for is not None
    return run.waiting_for


async def wake(lab: Lab, id: str, how: str) -> None:
    """Brings about what it waits for."""
    lab.world.failures.clear()
    if how.startswith("event"):
        await lab.client.handle(id).send_event("go")
    elif how == "everything":
        await lab.client.handle(id).send_event("go")
        lab.clock.advance("2 hours")
    else:
        lab.clock.advance("1 hour")


@pytest.mark.parametrize(
    "how, kind, words, due_in",
    [
        ("timer", "timer", "a timer of 1 h", 3600),
        ("event", "event", "the event 'go'", None),
        ("event or timer", "event", "the event 'go' (and 1 more: a timer of 1 h)", 3600),
        ("retry", "retry", "attempt 2 of 3 of flaky:", 10),
        ("delivery", "delivery", "waiting.post to be delivered, try 2, after: Ada does not answer", 10),
        ("everything", "retry", "and 2 more", 10),
    ],
)
@pytest.mark.parametrize("restarts", [False, True])
@in_loop
async def test_waiting_run_says_for_what_holds_no_memory_and_comes_back(
    tmp_path: Path, how: str, kind: str, words: str, due_in: float | None, restarts: bool
):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("line", 1)
        lab.world.fail("Ada", 1)
        handle = await lab.client.start(waits, how=how)
        await lab.until_journal_has(handle.id, "accepted")
        lab.clock.advance(0)
        waiting = await asleep(lab, handle.id)
        assert waiting.kind == kind
        assert words in waiting.text
        if due_in is not None:
            assert waiting.until == lab.clock.now() + due_in * 1000
        else:
            assert waiting.until is None
        assert lab.engine.live == {}
        if not restarts:
            await wake(lab, handle.id, how)
            assert await handle.result() == how
    if restarts:
        async with laboratory(tmp_path, world=lab.world, clock=lab.clock) as lab:
            await wake(lab, handle.id, how)
            assert await lab.client.handle(handle.id).result() == how


@in_loop
async def test_parent_waits_for_its_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.parking.LINGER_FOR_CHILD", 0.05)
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(waits, how="child")
        await lab.until(lambda: lab.engine.live == {})
        waiting = await asleep(lab, handle.id)
        (child,) = await lab.client.runs.list(parent=handle.id)
        assert (waiting.kind, waiting.until) == ("child", None)
        assert child.id in waiting.text
        lab.clock.advance("1 hour")
        assert await handle.result() == "child"


@in_loop
async def test_run_that_is_just_leaving_memory_says_for_what_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with laboratory(tmp_path) as lab:
        leaving, may_write, park = asyncio.Event(), threading.Event(), lab.engine.parked

        def parked(run: LiveRun) -> None:
            lab.engine.committer.call(lambda: may_write.wait(PATIENCE))  # its row is written after that
            park(run)
            leaving.set()

        monkeypatch.setattr(lab.engine, "parked", parked)
        handle = await lab.client.start(waits, how="event")
        await leaving.wait()
        asked = asyncio.ensure_future(handle.get())
        for _ in range(3):  # the row has been read by then
            await lab.engine.read(lambda: None)
        assert not asked.done()
        may_write.set()
        waiting = (await asked).waiting_for
        assert waiting is not None
        assert waiting.kind == "event"


@in_loop
async def test_delayed_run_waits_for_its_start(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(note.with_(delay=3600), text="later")
        run = await handle.get()
        assert run.waiting_for is not None
        assert (run.status, run.waiting_for.kind, run.waiting_for.until) == (
            "pending",
            "start",
            lab.clock.now() + 3_600_000,
        )
        assert lab.engine.live == {}
        lab.clock.advance(3599)
        await lab.sweep()
        assert (lab.engine.live, lab.world.said) == ({}, [])
        lab.clock.advance(1)
        assert await handle.result() == "later"


@service("undoes-slowly", on_bug="fail", catalogue=catalogue)
async def undoes_slowly() -> None:
    await book(item="boat")
    raise RuntimeError("the trip is off")


@in_loop
async def test_undo_that_waits_for_its_retry_has_left_memory_too(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("unbook boat", 1)
        handle = await lab.client.start(undoes_slowly)
        waiting = await asleep(lab, handle.id)
        assert waiting.kind == "retry"
        assert "attempt 2 of 3 of undo:book:" in waiting.text
        lab.world.open("unbook boat")
        async with lab.time_passing():
            run = await lab.until_status(handle.id, "failed")
        assert (run.undo, lab.world.said) == ("all", ["book boat", "unbook boat"])


@in_loop
async def test_running_run_says_which_attempt_it_waits_for(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(hold, gate="here")
        await lab.world.reached("here")
        run = await handle.get()
        assert run.status == "running"
        assert run.waiting_for is not None
        assert run.waiting_for.kind == "attempt"
        assert "attempt 1 of hold" in run.waiting_for.text
        lab.world.open("here")
        await handle.result()


@in_loop
async def test_timer_fires_at_its_time_and_not_before(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(waits, how="timer")
        await lab.until_asleep(handle.id)
        start = lab.clock.now()
        lab.clock.advance(3599.999)
        await lab.sweep()
        assert lab.engine.live == {}
        lab.clock.advance(0.001)
        await handle.result()
        (fired,) = await lab.entries(handle.id, "fired")
        assert fired.at == start + 3_600_000


@service("looks-at-the-time", catalogue=catalogue)
async def looks_at_the_time() -> list[float]:
    times = [now().timestamp()]
    for _ in range(3):
        await sleep(60)
        times.append(now().timestamp())
    return times


@in_loop
async def test_recorded_time_moves_with_the_timers(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(looks_at_the_time)
        for _ in range(3):
            await lab.until_asleep(handle.id)
            await lab.advance_to_next()
            await lab.until(lambda: handle.id in lab.engine.live or lab.engine.live == {})
        times = await handle.result()
        assert [round(after - before, 3) for before, after in pairwise(times)] == [60, 60, 60]


async def runs_in_memory(lab: Lab) -> int:
    """How many there are once all threads of the engine have come to rest."""
    await lab.sweep()
    await lab.client.runs.list()
    gc.collect()
    return sum(type(thing) is LiveRun and thing.engine is lab.engine for thing in gc.get_objects())


@in_loop
async def test_a_thousand_waiting_runs_leave_nothing_in_memory(tmp_path: Path):
    async with laboratory(tmp_path, check_replay=False) as lab:
        handles = await asyncio.gather(*(lab.client.start(waits, how="event") for _ in range(1_000)))
        await lab.until(lambda: lab.engine.live == {})
        assert await runs_in_memory(lab) == 0
        await asyncio.gather(*(handle.send_event("go") for handle in handles))
        assert await asyncio.gather(*(handle.result() for handle in handles)) == ["event"] * 1_000
        assert await runs_in_memory(lab) == 0
