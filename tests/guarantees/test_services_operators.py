"""Operators retry and undo: each opens a new generation, and does again only what must be; what ended stays."""

from pathlib import Path

import pytest

from dotdo import ActionFailed, AsyncContext, Fail, RunBlocked, action, service, uuid
from dotdo.errors import InvalidOperation
from tests import doors
from tests.guarantees.lab import World, book, catalogue, flaky, in_loop, laboratory, note, refuse

pytestmark = pytest.mark.usefixtures("both_doors")

switch = {"refuse": True, "bug": True}


@service("orders", catalogue=catalogue)
async def orders() -> list[str]:
    kept = await note(text="kept")
    undone = await book(item="seat")
    failed = await flaky(name="printer")
    return [kept, undone, failed, await note(text="sent")]


@in_loop
async def test_retry_does_again_only_what_failed_or_was_undone(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("printer", 3)
        handle = await lab.client.start(orders)
        async with lab.time_passing():
            with pytest.raises(ActionFailed, match="flaky failed after 3 attempts"):
                await handle.result()
        before = await handle.journal()
        assert lab.world.said == ["kept", "book seat", *["try printer"] * 3, "unbook seat"]
        lab.world.said.clear()

        await lab.client.runs.retry(handle.id, actor="ada")
        assert await handle.result() == ["kept", "ticket for seat", "printer", "sent"]

        assert lab.world.said == ["book seat", "try printer", "sent"]
        after = await handle.journal()
        assert after[: len(before)] == before
        (reopened,) = await lab.data(handle.id, "reopened")
        assert (reopened.operation, reopened.actor) == ("retry", doors.actor("ada"))
        run = await handle.get()
        assert (run.status, run.generation, run.undo) == ("completed", 1, "none")
        assert {entry.generation for entry in after[len(before) + 1 :]} == {1}


@in_loop
async def test_each_generation_counts_its_attempts_and_ends_by_itself(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("printer", 7)
        handle = await lab.client.start(orders)
        async with lab.time_passing():
            for _ in range(2):
                with pytest.raises(ActionFailed, match="after 3 attempts"):
                    await handle.result()
                await lab.client.runs.retry(handle.id)
            assert (await handle.result())[2] == "printer"
        ended = await lab.data(handle.id, "ended")
        assert [end.status for end in ended] == ["failed", "failed", "completed"]
        assert lab.world.said.count("unbook seat") == 2
        assert lab.world.said.count("book seat") == 3
        assert lab.world.said.count("kept") == 1


@action("sign-up", catalogue=catalogue)
async def sign_up(ctx: AsyncContext, name: str) -> str:
    ctx.resource(World).say(f"sign up {name}")
    return f"{name}-{ctx.resource(World).said.count(f'sign up {name}')}"


@sign_up.undo
async def sign_off(ctx: AsyncContext, user: str) -> None:
    ctx.resource(World).say(f"sign off {user}")


@service("signs-up", catalogue=catalogue)
async def signs_up() -> list[str]:
    user = await sign_up(name="ada")
    welcomed = await note(text=f"welcome {user}")
    if switch["refuse"]:
        await refuse()
    return [user, welcomed]


@in_loop
async def test_retry_goes_on_when_what_is_done_again_gives_another_result(tmp_path: Path):
    switch["refuse"] = True
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(signs_up)
        with pytest.raises(ActionFailed):
            await handle.result()
        switch["refuse"] = False
        await lab.client.runs.retry(handle.id)
        # The user is a new one, so the steps that depend on it are new ones, too.
        assert await handle.result() == ["ada-2", "welcome ada-2"]
        assert lab.world.said == ["sign up ada", "welcome ada-1", "sign off ada-1", "sign up ada", "welcome ada-2"]


@in_loop
async def test_retry_of_a_cancelled_run_goes_on_from_where_it_was(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("printer", 1)
        handle = await lab.client.start(orders)
        await lab.until_journal_has(handle.id, "attempt_failed")
        await handle.cancel()
        await lab.until_status(handle.id, "cancelled")
        await lab.client.runs.retry(handle.id)
        assert (await handle.result())[3] == "sent"
        assert lab.world.said.count("kept") == 1


@in_loop
async def test_runs_that_cannot_be_retried_or_undone_say_why(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        done = await lab.client.start(note, text="done")
        await done.result()
        with pytest.raises(InvalidOperation, match="is completed; only a failed, cancelled or blocked"):
            await lab.client.runs.retry(done.id)
        lab.world.fail("printer", 9)
        running = await lab.client.start(orders)
        await lab.until_journal_has(running.id, "attempt_failed")
        for operation in (lab.client.runs.retry, lab.client.runs.undo):
            with pytest.raises(InvalidOperation, match=running.id):
                await operation(running.id)
        async with lab.time_passing():
            with pytest.raises(ActionFailed):
                await running.result()
        with pytest.raises(InvalidOperation, match="undone already"):
            await lab.client.runs.undo(running.id)
        await lab.client.runs.retry(running.id)
        with pytest.raises(InvalidOperation):
            await lab.client.runs.retry(running.id)


@service("reserves", undo=False, catalogue=catalogue)
async def reserves() -> str:
    for item in ("table", "band", "cake"):
        await book(item=item)
    if switch["refuse"]:
        await refuse()
    return "reserved"


RESERVED = ["book table", "book band", "book cake"]
RELEASED = ["unbook cake", "unbook band", "unbook table"]


@in_loop
async def test_completed_run_is_undone_later_and_keeps_its_result(tmp_path: Path):
    switch["refuse"] = False
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(reserves)
        assert await handle.result() == "reserved"
        before = await handle.journal()
    async with laboratory(tmp_path) as lab:
        lab.clock.advance("30 days")
        await lab.client.runs.undo(handle.id, actor="ada")
        run = await lab.client.runs.wait(handle.id)
        assert (run.status, run.undo, run.generation, run.result) == ("completed", "all", 1, "reserved")
        assert lab.world.said == RELEASED
        assert (await lab.client.runs.journal(handle.id))[: len(before)] == before
        with pytest.raises(InvalidOperation, match="undone already"):
            await lab.client.runs.undo(handle.id)


@in_loop
async def test_failed_run_that_was_not_undone_can_be_undone_by_hand(tmp_path: Path):
    switch["refuse"] = True
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(reserves)
        with pytest.raises(ActionFailed) as failure:
            await handle.result()
        assert (failure.value.undo, lab.world.said) == ("none", RESERVED)
        await lab.client.runs.undo(handle.id)
        with pytest.raises(ActionFailed) as failure:
            await handle.result()
        assert (failure.value.undo, lab.world.said) == ("all", RESERVED + RELEASED)


@pytest.mark.parametrize("restarts", [False, True])
@in_loop
async def test_undo_that_failed_for_good_is_blocked_and_its_retry_undoes_only_the_rest(tmp_path: Path, restarts: bool):
    switch["refuse"] = False
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(reserves)
        await handle.result()
        lab.world.fail("unbook band", 3)
        await lab.client.runs.undo(handle.id)
        async with lab.time_passing():
            blocked = await lab.until_status(handle.id, "blocked")
        assert blocked.error is not None
        assert "unbook band is down" in blocked.error.message
        assert lab.world.said == [*RESERVED, "unbook cake", "unbook table"]
        world = lab.world
        world.said.clear()
        if not restarts:
            world.open("unbook band")
            await lab.client.runs.retry(handle.id)
            run = await lab.client.runs.wait(handle.id)
            assert (run.status, run.undo, run.result, world.said) == ("completed", "all", "reserved", ["unbook band"])
            return
        world.failures["unbook band"] = 1  # fails once more, and waits for its next attempt when the process ends
        await lab.client.runs.retry(handle.id)
        await lab.until_journal_has(handle.id, "attempt_failed", 4)
    async with laboratory(tmp_path, world=world, clock=lab.clock) as lab:
        world.open("unbook band")
        async with lab.time_passing():
            run = await lab.client.runs.wait(handle.id)
        assert (run.status, run.undo, run.result, world.said) == ("completed", "all", "reserved", ["unbook band"])


@service("reserves-and-fails", catalogue=catalogue)
async def reserves_and_fails() -> None:
    for item in ("table", "band", "cake"):
        await book(item=item)
    await refuse(reason="sold out")


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
@in_loop
async def test_retry_of_a_run_blocked_in_its_undo_undoes_on_and_never_goes_forward(tmp_path: Path, outcome: str):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("unbook band", 3)
        if outcome == "failed":
            handle = await lab.client.start(reserves_and_fails)
        else:
            lab.world.fail("printer", 1)
            handle = await lab.client.start(reserves_and_prints)
            await lab.until_journal_has(handle.id, "attempt_failed")
            await handle.cancel()
            await lab.until_journal_has(handle.id, "cancel_requested")
        async with lab.time_passing():
            await lab.until_status(handle.id, "blocked")
        lab.world.said.clear()
        lab.world.open("unbook band")
        await lab.client.runs.retry(handle.id)
        run = await lab.until_status(handle.id, "failed", "cancelled", "completed")
        assert lab.world.said == ["unbook band"]
        assert (run.status, run.undo, run.generation) == (outcome, "all", 1)


@service("reserves-and-prints", catalogue=catalogue)
async def reserves_and_prints() -> None:
    for item in ("table", "band", "cake"):
        await book(item=item)
    await flaky(name="printer")


@service("has-a-bug", catalogue=catalogue)
async def has_a_bug() -> list[str]:
    kept = await book(item="plane")
    if switch["bug"]:
        raise LookupError("no such airport")
    return [kept, await note(text=str(uuid()))]


@in_loop
async def test_retry_after_the_mend_of_a_bug_goes_on_from_where_it_was(tmp_path: Path):
    switch["bug"] = True
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(has_a_bug)
        with pytest.raises(RunBlocked, match="LookupError: no such airport"):
            await handle.result()
        assert lab.world.said == ["book plane"]
        await lab.client.runs.retry(handle.id)
        with pytest.raises(RunBlocked):
            await handle.result()
        switch["bug"] = False
        await lab.client.runs.retry(handle.id)
        assert (await handle.result())[0] == "ticket for plane"
        assert len(lab.world.said) == 2
        assert (await handle.get()).generation == 2


@in_loop
async def test_action_that_is_being_undone_is_not_ended_by_a_hint(tmp_path: Path):
    """A hint that something was left for the run may come late, or for nothing."""
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(book, "table")
        await handle.result()
        lab.world.failures["unbook table"] = 0  # it stops at its gate
        await lab.client.runs.undo(handle.id)
        await lab.world.reached("unbook table")
        lab.engine.live[handle.id].take([])
        lab.world.open("unbook table")
        run = await lab.client.runs.wait(handle.id)
        assert (run.status, run.undo) == ("completed", "all")
        assert lab.world.said == ["book table", "unbook table"]


@in_loop
async def test_action_on_its_own_is_retried_and_undone(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("printer", 3)
        handle = await lab.client.start(flaky, name="printer")
        async with lab.time_passing():
            with pytest.raises(ActionFailed):
                await handle.result()
        await lab.client.runs.retry(handle.id)
        assert await handle.result() == "printer"
        booked = await lab.client.start(book, item="tent")
        await booked.result()
        await lab.client.runs.undo(booked.id)
        run = await lab.client.runs.wait(booked.id)
        assert (run.status, run.undo, lab.world.said[-1]) == ("completed", "all", "unbook tent")


@service("catches-and-raises", catalogue=catalogue)
async def catches_and_raises() -> str:
    try:
        return await flaky(name="printer")
    except ActionFailed as error:
        raise Fail("no ticket") from error


@in_loop
async def test_retry_does_again_the_step_behind_a_failure_that_the_service_put_in_its_own_words(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.fail("printer", 3)
        handle = await lab.client.start(catches_and_raises)
        async with lab.time_passing():
            with pytest.raises(ActionFailed, match="no ticket"):
                await handle.result()
        await lab.client.runs.retry(handle.id)
        assert await handle.result() == "printer"
