"""Events reach a run in order, early ones are kept, a sender's key makes one of two, and ended runs refuse them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dotdo import ActionFailed, UnknownName, service, wait_for_event
from dotdo.errors import InvalidOperation, InvalidValue
from tests.guarantees.lab import PATIENCE, catalogue, hold, in_loop, laboratory, note, refuse

pytestmark = pytest.mark.usefixtures("both_doors")


@service("approves", catalogue=catalogue)
async def approves(timeout: float | None = None) -> str:
    try:
        answer = await wait_for_event("approved", timeout=timeout)
    except TimeoutError:
        return await note(text="nobody answered")
    return await note(text=f"approved by {answer['by']}")


@in_loop
async def test_event_wakes_a_run_that_has_left_memory(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(approves)
        asleep = await lab.until_asleep(handle.id)
        assert lab.engine.live == {}
        assert asleep.waiting_for is not None
        assert (asleep.waiting_for.kind, asleep.waiting_for.until) == ("event", None)
        assert "'approved'" in asleep.waiting_for.text
        await handle.send_event("approved", {"by": "Ada"})
        assert await handle.result() == "approved by Ada"


@in_loop
async def test_event_reaches_a_run_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.parking.LINGER", PATIENCE)
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(approves)
        assert handle.id in lab.engine.live
        await handle.send_event("approved", {"by": "Ben"})
        assert await handle.result() == "approved by Ben"


@in_loop
async def test_event_to_a_sleeping_run_is_taken_after_a_restart(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(approves)
        await lab.until_asleep(handle.id)
        lab.engine.claimer.hint = lambda: None  # the engine dies before it looks  # type: ignore[method-assign]
        await handle.send_event("approved", {"by": "Cleo"})
    async with laboratory(tmp_path) as lab:
        assert await lab.client.handle(handle.id).result() == "approved by Cleo"


@in_loop
async def test_timeout_of_an_event(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(approves, timeout=3600)
        await lab.until_asleep(handle.id)
        lab.clock.advance("59 minutes")
        assert (await handle.get()).status == "waiting"
        lab.clock.advance("1 minute")
        assert await handle.result() == "nobody answered"
        with pytest.raises(InvalidOperation, match="has ended"):
            await handle.send_event("approved", {"by": "late"})


@service("collects", catalogue=catalogue)
async def collects(count: int) -> list[Any]:
    await hold(gate="begin")
    return [await wait_for_event("number") for _ in range(count)]


@in_loop
async def test_early_events_are_kept_first_in_first_out(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(collects, count=5)
        await lab.world.reached("begin")
        for number in range(3):
            await handle.send_event("number", number)
        await handle.send_event("other", "not asked for")
        await lab.until_journal_has(handle.id, "event", 4)
        lab.world.open("begin")
        await lab.until_asleep(handle.id)
        await handle.send_event("number", {"a": [3, None, True, "ü"]})
        await handle.send_event("number", None)
        assert await handle.result() == [0, 1, 2, {"a": [3, None, True, "ü"]}, None]


@service("serves-by-name", catalogue=catalogue)
async def serves_by_name() -> dict[str, Any]:
    async with asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(wait_for_event(name)) for name in ("red", "green", "blue")}
        group.create_task(hold(gate="beside"))
    return {name: task.result() for name, task in tasks.items()}


@in_loop
async def test_events_of_different_names_do_not_mix_and_steps_run_beside_them(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(serves_by_name)
        await lab.world.reached("beside")
        for number, name in enumerate(("blue", "red", "green")):
            await handle.send_event(name, number)
        lab.world.open("beside")
        assert await handle.result() == {"red": 1, "green": 2, "blue": 0}


@in_loop
async def test_senders_key_makes_one_event_of_two_however_late_the_second_comes(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(collects, count=3)
        await lab.world.reached("begin")
        await asyncio.gather(*(handle.send_event("number", 1, key="payment:1") for _ in range(3)))
        await lab.until_journal_has(handle.id, "event")
        await handle.send_event("number", 1, key="payment:1")  # its first one is in the journal already
        lab.world.open("begin")
        await lab.until_asleep(handle.id)
    async with laboratory(tmp_path) as lab:
        handle = lab.client.handle(handle.id)
        await handle.send_event("number", 1, key="payment:1")
        await handle.send_event("number", 2, key="payment:2")
        await handle.send_event("number", 1)  # without a key it is another one
        assert await handle.result() == [1, 2, 1]
        *known, another = [event.sender for event in await lab.data(handle.id, "event")]
        assert known == ["event:payment:1", "event:payment:2"]
        # A client over HTTP gives each event a key, so that it can be repeated when its answer is lost.
        assert another is None or another.startswith("event:auto:")


@service("waits-again", catalogue=catalogue)
async def waits_again() -> list[str]:
    seen: list[str] = []
    try:
        await wait_for_event("go", timeout=10)
    except TimeoutError:
        seen.append("nothing in time")
    seen.append(await wait_for_event("go"))
    return seen


@in_loop
async def test_event_after_a_timeout_goes_to_the_next_who_waits(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(waits_again)
        await lab.until_asleep(handle.id)
        lab.clock.advance(10)
        await lab.until_journal_has(handle.id, "fired")
        await handle.send_event("go", "at last")
        assert await handle.result() == ["nothing in time", "at last"]


@service("ends-badly", catalogue=catalogue)
async def ends_badly() -> None:
    await hold(gate="before the end")
    await refuse()


@in_loop
async def test_ended_runs_refuse_events(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.open("before the end")
        failed = await lab.client.start(ends_badly)
        with pytest.raises(ActionFailed):
            await failed.result()
        cancelled = await lab.client.start(approves)
        await cancelled.cancel()
        await lab.until_status(cancelled.id, "cancelled")
        completed = await lab.client.start(note, text="done")
        await completed.result()
        for handle, status in ((failed, "failed"), (cancelled, "cancelled"), (completed, "completed")):
            before = await handle.journal()
            with pytest.raises(InvalidOperation, match=status):
                await handle.send_event("approved", {"by": "late"})
            assert await handle.journal() == before


@in_loop
async def test_event_that_cannot_be_is_refused_by_its_sender(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(approves)
        for value in (float("nan"), object(), {1j: 1}):
            with pytest.raises(InvalidValue, match="approved"):
                await handle.send_event("approved", value)
        with pytest.raises(UnknownName, match="run_nowhere"):
            await lab.client.runs.send_event("run_nowhere", "approved", 1)
        await handle.send_event("approved", {"by": "Dan"})
        assert await handle.result() == "approved by Dan"


@in_loop
async def test_event_does_not_start_a_delayed_run_before_its_time(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(approves.with_(delay=3600))
        await handle.send_event("approved", {"by": "Eva"})
        await lab.engine.claimer._sweep()
        await lab.until(lambda: lab.engine.live == {})
        waiting = await handle.get()
        assert (waiting.status, lab.world.said) == ("pending", [])
        assert waiting.waiting_for is not None
        assert (waiting.waiting_for.kind, waiting.waiting_for.until) == ("start", lab.clock.now() + 3_600_000)
        lab.clock.advance(3600)
        assert await handle.result() == "approved by Eva"


@service("late-subscriber", catalogue=catalogue)
async def late_subscriber() -> list[Any]:
    first = asyncio.ensure_future(wait_for_event("tick"))
    await hold(gate="then cancel")
    first.cancel()
    return [await wait_for_event("tick"), first.cancelled()]


@in_loop
async def test_waiter_that_was_cancelled_takes_no_event(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(late_subscriber)
        await lab.world.reached("then cancel")
        lab.world.open("then cancel")
        await lab.until_asleep(handle.id)
        await handle.send_event("tick", 1)
        assert await handle.result() == [1, True]
