"""A run can be cancelled in every phase: what is in flight ends, one plan is committed, and it is undone in order."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dotdo import AsyncContext, EffectCall, RunCancelled, action, effect, service, wait_for_event
from dotdo.errors import InvalidOperation
from tests import doors
from tests.guarantees.lab import Lab, World, book, catalogue, flaky, hold, in_loop, laboratory, note, refuse

pytestmark = pytest.mark.usefixtures("both_doors")


@effect("cancel.post", dedup="key", catalogue=catalogue)
async def post(call: EffectCall, text: str) -> None:
    world = call.resource(World)
    world.say(f"post {text}")
    if world.failures.get(f"post {text}"):
        world.failures[f"post {text}"] -= 1
        raise ConnectionError("the post is closed")


async def close_account(call: EffectCall, answer: str) -> None:
    call.resource(World).say(f"close {answer}")


@effect("cancel.open-account", dedup="key", undo=close_account, catalogue=catalogue)
async def open_account(call: EffectCall, owner: str) -> str:
    call.resource(World).say(f"open account of {owner}")
    return f"account of {owner}"


@action("stage-letter", catalogue=catalogue)
async def stage_letter(ctx: AsyncContext, text: str) -> None:
    ctx.stage(post, text=text)


@action("ask-then-hold", retry=1, catalogue=catalogue)
async def ask_then_hold(ctx: AsyncContext, owner: str) -> str:
    account = await ctx.request(open_account, owner=owner)
    await ctx.resource(World).pass_gate("after asking")
    return account


@service("travels", catalogue=catalogue)
async def travels(then: str) -> str:
    await book(item="flight")
    await note(text="packed")
    await book(item="hotel")
    match then:
        case "hold":
            await hold(gate="there")
        case "flaky":
            await flaky(name="train")
        case "sleep":
            await asyncio.sleep(86_400)
        case "event":
            await wait_for_event("home")
        case "letter":
            await stage_letter(text="greetings")
        case "ask":
            await ask_then_hold(owner="Ada")
        case _:
            await refuse()
    return "back"


ALL_UNDONE = ["unbook hotel", "unbook flight"]


async def cancelled(lab: Lab, id: str) -> list[str]:
    """Waits for the end of a cancelled run, checks its row and the order of its phases, and returns what was said."""
    with pytest.raises(RunCancelled, match=f"cancelled by {doors.actor('ada')}"):
        await lab.client.handle(id).result()
    run = await lab.client.runs.get(id)
    assert (run.status, run.undo, run.generation) == ("cancelled", "all", 0)
    kinds = [entry.kind for entry in await lab.client.runs.journal(id)]
    phases = [kind for kind in kinds if kind in ("cancel_requested", "stopping", "undo_planned", "undone", "ended")]
    assert phases == ["cancel_requested", "stopping", "undo_planned", "undone", "undone", "ended"]
    if "step_cancelled" in kinds:
        assert kinds.index("stopping") < kinds.index("step_cancelled") < kinds.index("undo_planned")
    (requested,) = await lab.data(id, "cancel_requested")
    assert requested.actor == doors.actor("ada")
    (plan,) = await lab.data(id, "undo_planned")
    assert [step.partition(":")[0] for step in plan.steps] == ["book", "book"]
    return lab.world.said


@in_loop
async def test_cancel_while_a_handler_runs(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(travels, then="hold")
        await lab.world.reached("there")
        await handle.cancel(actor="ada")
        said = await cancelled(lab, handle.id)
        assert said[-4:] == ["at there", "cancelled at there", *ALL_UNDONE]


@in_loop
async def test_cancel_while_an_attempt_waits_for_its_retry(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("train", 1)
        handle = await lab.client.start(travels, then="flaky")
        await lab.until_journal_has(handle.id, "attempt_failed")
        await handle.cancel(actor="ada")
        assert (await cancelled(lab, handle.id))[-3:] == ["try train", *ALL_UNDONE]


@pytest.mark.parametrize("then", ["sleep", "event"])
@in_loop
async def test_cancel_while_the_run_has_left_memory(tmp_path: Path, then: str):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(travels, then=then)
        await lab.until_asleep(handle.id)
        await handle.cancel(actor="ada")
        assert (await cancelled(lab, handle.id))[-2:] == ALL_UNDONE


@in_loop
async def test_cancel_while_an_effect_waits_for_its_next_try_drops_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("post greetings", 99)
        handle = await lab.client.start(travels, then="letter")
        await lab.until_journal_has(handle.id, "delivery_failed")
        await handle.cancel(actor="ada")
        said = await cancelled(lab, handle.id)
        assert said[-3:] == ["post greetings", *ALL_UNDONE]
        assert len(await lab.entries(handle.id, "effects_dropped")) == 1


@in_loop
async def test_cancel_takes_back_what_a_step_in_flight_had_asked_for(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(travels, then="ask")
        await lab.world.reached("after asking")
        await handle.cancel(actor="ada")
        said = await cancelled(lab, handle.id)
        assert said[-4:] == ["open account of Ada", "close account of Ada", *ALL_UNDONE]
        assert len(await lab.entries(handle.id, "request_undone")) == 1


@in_loop
async def test_cancel_before_a_delayed_start(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        for definition in (travels.with_(delay=3600), note.with_(delay=3600)):
            parameters: Any = {"then": "hold"} if definition.name == "travels" else {"text": "never"}
            handle = await lab.client.start(definition, **parameters)
            await handle.cancel()
            run = await lab.until_status(handle.id, "cancelled")
            assert run.undo == "none"
        lab.clock.advance(3600)
        await lab.sweep()
        assert lab.engine.live == {}
        assert lab.world.said == []


@in_loop
async def test_cancel_of_an_action_that_runs_on_its_own(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(hold, gate="alone")
        await lab.world.reached("alone")
        await handle.cancel()
        await lab.until_status(handle.id, "cancelled")
        assert lab.world.said == ["at alone", "cancelled at alone"]


@in_loop
async def test_first_commit_wins_between_failure_and_cancel(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("unbook hotel", 1)
        handle = await lab.client.start(travels, then="refuse")
        await lab.until_journal_has(handle.id, "attempt_failed", 2)  # of refuse, and of the first undo
        await handle.cancel(actor="ada")
        await handle.cancel(actor="ben")
        lab.world.open("unbook hotel")
        async with lab.time_passing():
            run = await lab.until_status(handle.id, "failed", "cancelled")
        assert (run.status, run.undo) == ("failed", "all")
        assert lab.world.said[-2:] == ALL_UNDONE
        assert await lab.entries(handle.id, "cancel_requested") == []


@in_loop
async def test_cancelling_twice_is_cancelling_once(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(travels, then="hold")
        await lab.world.reached("there")
        await asyncio.gather(handle.cancel(actor="ada"), handle.cancel(actor="ada"))
        await cancelled(lab, handle.id)
        with pytest.raises(InvalidOperation, match="cancelled"):
            await handle.cancel()


@service("has-a-bug-after-booking", catalogue=catalogue)
async def has_a_bug_after_booking() -> None:
    await book(item="boat")
    raise ZeroDivisionError


@in_loop
async def test_cancel_of_a_blocked_run_undoes_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(has_a_bug_after_booking)
        await lab.until_status(handle.id, "blocked")
        assert lab.world.said == ["book boat"]
        await handle.cancel()
        run = await lab.until_status(handle.id, "cancelled")
        assert run.undo == "all"
        assert lab.world.said == ["book boat", "unbook boat"]


@in_loop
async def test_cancel_of_a_run_whose_undo_is_blocked_leaves_it_to_a_person(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("unbook hotel", 99)
        handle = await lab.client.start(travels, then="refuse")
        async with lab.time_passing():
            await lab.until_status(handle.id, "blocked")
        assert lab.world.said[-1] == "unbook flight"  # the rest of the plan is undone all the same
        await handle.cancel()
        await lab.until(lambda: lab.engine.live == {})
        run = await lab.until_status(handle.id, "blocked")
        assert run.waiting_for is not None
        assert run.waiting_for.kind == "person"
        assert run.error is not None
        assert "unbook hotel" in run.error.message


@service("pivots", catalogue=catalogue)
async def pivots() -> None:
    await book(item="before")
    await point_of_no_return()
    await book(item="after")
    await refuse()


@action("point-of-no-return", pivot=True, catalogue=catalogue)
async def point_of_no_return(ctx: AsyncContext) -> None:
    ctx.resource(World).say("no return")


@service("halts", undo=False, catalogue=catalogue)
async def halts() -> None:
    await book(item="kept")
    await refuse()


@in_loop
async def test_undoing_ends_at_a_pivot_and_a_service_may_ask_for_none(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(pivots)
        run = await lab.until_status(handle.id, "failed")
        assert run.undo == "partial"
        assert lab.world.said == ["book before", "no return", "book after", "unbook after"]
        handle = await lab.client.start(halts)
        run = await lab.until_status(handle.id, "failed")
        assert run.undo == "none"
        assert lab.world.said[4:] == ["book kept"]


@service("undoes-parallel-steps", catalogue=catalogue)
async def undoes_parallel_steps() -> None:
    async def books_behind_a_gate(item: str) -> None:
        await hold(gate=item)
        await book(item=item)

    async with asyncio.TaskGroup() as group:
        for item in ("a", "b", "c"):
            group.create_task(books_behind_a_gate(item))
    await refuse()


@in_loop
async def test_parallel_steps_are_undone_in_the_reverse_order_of_their_commits(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(undoes_parallel_steps)
        for count, item in enumerate("bca", 1):
            lab.world.open(item)
            await lab.until_journal_has(handle.id, "completed", 2 * count)
        await lab.until_status(handle.id, "failed")
        assert lab.world.said[-3:] == ["unbook a", "unbook c", "unbook b"]


@in_loop
async def test_deadline_stops_a_run_that_sleeps(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(travels.with_(deadline=3600), then="sleep")
        await lab.until_asleep(handle.id)
        lab.clock.advance(3599)
        assert (await handle.get()).status == "waiting"
        lab.clock.advance(1)
        run = await lab.until_status(handle.id, "failed")
        assert run.error is not None
        assert (run.error.type, run.undo) == ("DeadlineExceeded", "all")
        assert lab.world.said[-2:] == ALL_UNDONE
