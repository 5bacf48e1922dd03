"""What only a person can decide blocks its run, in words, alone, and cold: nothing is undone or started again."""

import asyncio
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from dotdo import AsyncContext, AsyncDo, Catalogue, Failure, Retry, RunBlocked, action, service, wait_for_event
from dotdo.records import Run
from tests.guarantees.lab import Lab, World, book, catalogue, flaky, hold, in_loop, laboratory, note

switch = {"on": True}


async def blocked(lab: Lab, id: str, reason: str) -> Run:
    """The run, once it is blocked for that reason; checks that it is out of memory and says so to callers."""
    with pytest.raises(RunBlocked, match=reason) as outcome:
        await lab.client.handle(id).result()
    assert outcome.value.run_id == id
    run = await lab.until_status(id, "blocked")
    assert id not in lab.engine.live
    assert run.waiting_for is not None
    assert run.waiting_for.kind == "person"
    assert (run.undo, run.ended_at) == ("none", None)
    assert (await lab.entries(id, "undo_planned", "undone", "ended")) == []
    return run


@service("adds-wrongly", catalogue=catalogue)
async def adds_wrongly() -> int:
    await book(item="abacus")
    return 1 + None  # type: ignore[operator]  # the bug


@in_loop
async def test_bug_blocks_with_its_traceback_and_undoes_nothing(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(adds_wrongly)
        innocent = await lab.client.start(flaky, name="beside it")
        run = await blocked(lab, handle.id, "TypeError: unsupported operand")
        assert run.error is not None
        assert "return 1 + None" in run.error.traceback
        assert "test_services_blocked.py" in run.error.traceback
        assert await innocent.result() == "beside it"
        assert sorted(lab.world.said) == ["book abacus", "try beside it"]


@in_loop
async def test_blocked_run_stays_blocked_over_a_restart_and_whatever_comes(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(adds_wrongly)
        await blocked(lab, handle.id, "TypeError")
        entries = await handle.journal()
        await handle.send_event("hello", 1)
        await lab.sweep()
        assert await handle.journal() == entries
    async with laboratory(tmp_path) as lab:
        await lab.sweep()
        assert (await lab.client.runs.get(handle.id)).status == "blocked"
        assert lab.engine.live == {}
        assert await lab.client.runs.journal(handle.id) == entries


@service("hears-after-a-bug", catalogue=catalogue)
async def hears_after_a_bug() -> str:
    await note(text="before")
    if switch["on"]:
        raise IndexError
    return await wait_for_event("hello")


@in_loop
async def test_event_to_a_blocked_run_is_there_when_it_is_retried(tmp_path: Path):
    switch["on"] = True
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(hears_after_a_bug)
        await blocked(lab, handle.id, "IndexError")
        await handle.send_event("hello", "kept")
        switch["on"] = False
        await lab.client.runs.retry(handle.id)
        assert await handle.result() == "kept"


@service("fails-on-a-bug", on_bug="fail", catalogue=catalogue)
async def fails_on_a_bug() -> None:
    await book(item="net")
    raise RuntimeError("that is a failure here")


@in_loop
async def test_service_may_ask_that_bugs_fail_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(fails_on_a_bug)
        run = await lab.until_status(handle.id, "failed", "blocked")
        assert (run.status, run.undo) == ("failed", "all")
        assert lab.world.said == ["book net", "unbook net"]


# -- replays that do not fit -------------------------------------------------------------------------------------------


def version_of(text: str, *, waits: bool = True, calls: bool = True) -> Catalogue:
    """A catalogue whose service `deployed` notes that text, waits a minute, waits for an event, and ends."""
    made = Catalogue()

    @action("note", catalogue=made)
    async def note_here(text: str) -> str:
        return text

    @service("deployed", catalogue=made)
    async def deployed() -> str:
        noted = await note_here(text=text) if calls else text
        if waits:
            await asyncio.sleep(60)
        await wait_for_event("end")
        return noted

    return made


@pytest.mark.parametrize(
    "changed, words",
    [
        (version_of("new"), [r"asked for the step note:", '"text":"new"', '"text":"old"']),
        (version_of("old", calls=False), ["ended without asking for the recorded step note:", '"text":"old"']),
        (version_of("old", waits=False), ["ended without the wait timer:60000#1"]),
    ],
    ids=["other input", "no step", "no timer"],
)
@in_loop
async def test_code_that_does_not_fit_its_journal_blocks_and_goes_on_when_it_is_brought_back(
    tmp_path: Path, changed: Catalogue, words: list[str]
):
    original = version_of("old")
    async with laboratory(tmp_path, catalogue=original) as lab:
        handle = await lab.client.service("deployed").start()
        await lab.until_asleep(handle.id)
        lab.clock.advance(60)
        await lab.until_journal_has(handle.id, "fired")
    async with laboratory(tmp_path, catalogue=changed, clock=lab.clock) as lab:
        await lab.client.handle(handle.id).send_event("end")
        run = await blocked(lab, handle.id, "deployed@1")
        assert run.error is not None
        for word in words:
            assert word in run.error.message
        assert len(await lab.entries(handle.id, "completed")) == 1
    async with laboratory(tmp_path, catalogue=original, clock=lab.clock) as lab:
        await lab.client.runs.retry(handle.id)
        if "asked for" in words[0]:  # it was blocked before the event could come
            await lab.client.handle(handle.id).send_event("end")
        assert (await lab.client.runs.wait(handle.id)).result == "old"


@service("reads-the-clock", catalogue=catalogue)
async def reads_the_clock() -> float:
    return time.perf_counter()


@service("draws-numbers", catalogue=catalogue)
async def draws_numbers() -> str:
    return await note(text=f"number {random.random()}")


counted: list[int] = []


@service("keeps-state-outside", catalogue=catalogue)
async def keeps_state_outside() -> str:
    counted.append(1)
    return await note(text=f"call {len(counted)}")


@pytest.mark.parametrize("definition", [reads_the_clock, draws_numbers, keeps_state_outside], ids=lambda one: one.name)
@in_loop
async def test_service_that_is_not_the_same_on_replay_is_found_when_it_first_ends(tmp_path: Path, definition: Any):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(definition)
        run = await blocked(lab, handle.id, "Replayed at once")
        assert run.error is not None
        assert "dotdo.now()" in run.error.message


@in_loop
async def test_step_that_is_another_one_on_replay_is_told_with_its_input(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        counted.clear()
        handle = await lab.client.start(keeps_state_outside)
        told = r'note:\w+ with input {"text":"call 2"} instead of note:\w+ with input {"text":"call 1"}\.'
        run = await blocked(lab, handle.id, "Replayed at once")
        assert run.error is not None
        assert re.search(told, run.error.message), run.error.message


# -- services that cannot go on ----------------------------------------------------------------------------------------


@service("forgets-to-await", catalogue=catalogue)
async def forgets_to_await() -> str:
    note(text="never")
    return await note(text="awaited")


@in_loop
async def test_step_that_is_never_awaited_blocks(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(forgets_to_await)
        await blocked(lab, handle.id, r"The step note:\w+ was called but never awaited, so it never ran")
        assert lab.world.said == ["awaited"]


@service("waits-for-nobody", catalogue=catalogue)
async def waits_for_nobody(on: str) -> None:
    await note(text="first")
    match on:
        case "event":
            await asyncio.Event().wait()
        case "queue":
            await asyncio.Queue[str]().get()
        case "future":
            await asyncio.get_running_loop().create_future()
        case _:
            await asyncio.gather(asyncio.Lock().acquire(), asyncio.Barrier(2).wait())


@pytest.mark.parametrize("on", ["event", "queue", "future", "barrier"])
@in_loop
async def test_wait_for_something_nothing_can_bring_about_blocks(tmp_path: Path, on: str):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(waits_for_nobody, on=on)
        await blocked(lab, handle.id, "waits for something that nothing can bring about")


@service("spins", catalogue=catalogue)
async def spins() -> None:
    await note(text="before spinning")
    while True:  # noqa: ASYNC110 - that is the bug
        await asyncio.sleep(0)


@in_loop
async def test_service_that_spins_blocks_and_the_others_go_on(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        beside = await lab.client.start(hold, gate="beside")
        handle = await lab.client.start(spins)
        await blocked(lab, handle.id, "1000000 callbacks without waiting")
        lab.world.open("beside")
        assert await beside.result() == "beside"


@service("does-io", catalogue=catalogue)
async def does_io(how: str) -> Any:
    match how:
        case "connect":
            return await asyncio.open_connection("127.0.0.1", 9)
        case "thread":
            return await asyncio.to_thread(time.time)
        case "process":
            return await asyncio.create_subprocess_exec("true")
        case "resolve":
            return await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        case _:
            return await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)


@pytest.mark.parametrize("how", ["connect", "thread", "process", "resolve", "serve"])
@in_loop
async def test_io_in_a_service_is_told_where_it_belongs(tmp_path: Path, how: str):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(does_io, how=how)
        run = await blocked(lab, handle.id, "was called in a service.*cannot do I/O")
        assert run.error is not None
        assert "Put this into an action, and call the action from the service" in run.error.message


@service("returns-a-socket", catalogue=catalogue)
async def returns_what_json_cannot_carry() -> Any:
    return {await note(text="worked"), object()}


@in_loop
async def test_result_that_json_cannot_carry_blocks(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(returns_what_json_cannot_carry)
        await blocked(lab, handle.id, "set|JSON")
        assert lab.world.said == ["worked"]


@service("exits", catalogue=catalogue)
async def exits() -> None:
    await note(text="about to exit")
    raise SystemExit(3)


@in_loop
async def test_service_that_exits_does_not_take_the_process_with_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(exits)
        beside = await lab.client.start(hold, gate="beside")
        await blocked(lab, handle.id, "SystemExit: 3")
        lab.world.open("beside")
        assert await beside.result() == "beside"


@in_loop
async def test_run_whose_definition_is_missing_waits_and_says_for_what(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=version_of("old")) as lab:
        handle = await lab.client.service("deployed").start()
        await lab.until_asleep(handle.id)
        clock = lab.clock
    clock.advance(60)
    async with laboratory(tmp_path, catalogue=Catalogue(), clock=clock) as lab:

        async def says_so() -> bool:
            run = await lab.client.runs.get(handle.id)
            return run.waiting_for is not None and run.waiting_for.kind == "action"

        await lab.until(says_so)
        run = await lab.client.runs.get(handle.id)
        assert run.waiting_for is not None
        assert re.search(
            "the service deployed@1, which the process .* does not define|defines the service deployed@1",
            run.waiting_for.text,
        )
        assert lab.engine.live == {}
    async with laboratory(tmp_path, catalogue=version_of("old"), clock=clock) as lab:
        await lab.client.handle(handle.id).send_event("go")
        clock.advance(60)
        await lab.client.handle(handle.id).send_event("end")
        assert (await lab.client.runs.wait(handle.id)).result == "old"


@in_loop
async def test_bug_before_the_first_step_and_of_many_runs_at_once(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handles = [await lab.client.start(adds_wrongly) for _ in range(50)]
        for handle in handles:
            await blocked(lab, handle.id, "TypeError")
        assert isinstance(lab.client, AsyncDo)
        assert len(await lab.client.runs.list(status="blocked", limit=100)) == 50
        assert lab.engine.live == {}


@action("page-the-admin", retry=Retry(attempts=3, delay=10, factor=1, jitter=False), catalogue=catalogue)
async def page_the_admin(ctx: AsyncContext, failure: Failure) -> None:
    world = ctx.resource(World)
    if world.failures.get("pager", 0):
        world.failures["pager"] -= 1
        raise ConnectionError("the pager is down")
    world.say("paged")


@service("pages-of-its-bug", on_failure=[page_the_admin], catalogue=catalogue)
async def pages_of_its_bug() -> None:
    await book(item="compass")
    raise ZeroDivisionError


async def parked_until(lab: Lab, id: str) -> int | None:
    """When a run that has left memory comes back, in seconds from now."""
    found: list[Any] = []

    async def is_parked() -> bool:
        found[:] = await lab.sql("select owner, due_at from runs where id = :id and status = 'waiting'", id=id)
        return bool(found) and found[0][0] is None and id not in lab.engine.live

    await lab.until(is_parked)
    return found[0][1] and (found[0][1] - lab.clock.now()) / 1000


@in_loop
async def test_cancel_of_a_run_that_tells_of_its_bug_waits_without_being_looked_at(tmp_path: Path):
    """What tells of it is tried for days if need be; until then the cancellation is kept, and makes nothing spin."""
    async with laboratory(tmp_path) as lab:
        lab.world.fail("pager", 2)
        handle = await lab.client.start(pages_of_its_bug)
        assert await parked_until(lab, handle.id) == 10
        await handle.cancel()
        await lab.until_journal_has(handle.id, "claimed")
        assert await parked_until(lab, handle.id) == 10
        async with lab.time_passing():
            run = await lab.until_status(handle.id, "cancelled")
        assert run.undo == "all"
        assert lab.world.said == ["book compass", "paged", "unbook compass"]
        # Once each for the cancellation, the two tries of the pager, and the end.
        assert len(await lab.entries(handle.id, "claimed")) <= 4


@in_loop
async def test_deadline_of_a_run_that_tells_of_its_bug_does_not_make_it_spin(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("pager", 2)
        handle = await lab.client.start(pages_of_its_bug.with_(deadline=5))
        assert await parked_until(lab, handle.id) == 10
        async with lab.time_passing():
            await blocked(lab, handle.id, "ZeroDivisionError")
        assert lab.world.said == ["book compass", "paged"]
