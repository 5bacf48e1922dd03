"""`await step.undo()` takes one step back where the service says so: once, replayed alike, and skipped later."""

import asyncio
from pathlib import Path

import pytest

from dotdo import ActionFailed, RunBlocked, service, wait_for_event
from dotdo.errors import InvalidOperation
from dotdo.testing import TestDo
from dotdo.testing.killing import Point
from tests.guarantees.lab import World, book, catalogue, in_loop, laboratory, note, refuse
from tests.guarantees.test_services_children import packs

pytestmark = pytest.mark.usefixtures("both_doors")


@service("changes-its-mind", catalogue=catalogue)
async def changes_its_mind(then: str) -> str:
    first, second = book(item="flight"), book(item="train")
    await first
    await second
    await first.undo()
    await first.undo()  # nothing more happens
    match then:
        case "refuse":
            await refuse()
        case "wait":
            await wait_for_event("on")
    return await note(text="by train")


@in_loop
async def test_step_is_undone_where_the_service_says_so_and_only_once(tmp_path: Path):
    async with laboratory(tmp_path) as lab:  # replays the run as it completes
        handle = await lab.client.start(changes_its_mind, then="")
        assert await handle.result() == "by train"
        assert lab.world.said == ["book flight", "book train", "unbook flight", "by train"]
        await lab.client.runs.undo(handle.id)
        run = await lab.client.runs.wait(handle.id)
        assert run.undo == "all"
        assert lab.world.said[4:] == ["unbook train"]


@in_loop
async def test_undone_step_is_skipped_when_the_run_fails_and_kept_when_it_is_retried(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(changes_its_mind, then="refuse")
        with pytest.raises(ActionFailed) as failure:
            await handle.result()
        assert failure.value.undo == "all"
        assert lab.world.said == ["book flight", "book train", "unbook flight", "unbook train"]
        (plan,) = await lab.data(handle.id, "undo_planned")
        assert len(plan.steps) == 1
        lab.world.said.clear()
        await lab.client.runs.retry(handle.id)
        with pytest.raises(ActionFailed):
            await handle.result()
        assert lab.world.said == [
            "book train",
            "unbook train",
        ]  # the flight was booked and unbooked as the service said


@in_loop
async def test_undo_is_replayed_from_the_journal_after_a_restart(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(changes_its_mind, then="wait")
        await lab.until_asleep(handle.id)
        world = lab.world
    async with laboratory(tmp_path, world=world) as lab:
        await lab.client.runs.send_event(handle.id, "on")
        assert await lab.client.handle(handle.id).result() == "by train"
        assert world.said == ["book flight", "book train", "unbook flight", "by train"]


@service("sends-a-parcel-back", catalogue=catalogue)
async def sends_a_parcel_back() -> str:
    parcel, box = packs(item="vase"), book(item="box")
    await asyncio.gather(parcel, box)
    await asyncio.gather(parcel.undo(), box.undo())
    return await note(text="unpacked")


@in_loop
async def test_child_run_is_undone_and_undos_run_in_parallel(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(sends_a_parcel_back)
        assert await handle.result() == "unpacked"
        (child,) = await lab.client.runs.list(parent=handle.id)
        assert (child.status, child.undo) == ("completed", "all")
        assert sorted(lab.world.said[2:]) == ["unbook box", "unbook vase", "unpacked"]


@pytest.mark.parametrize("outcome", ["happened", "try_again", "did_not_happen"])
@in_loop
async def test_undo_that_fails_for_good_waits_for_a_person(tmp_path: Path, outcome: str):
    async with laboratory(tmp_path) as lab, lab.time_passing():
        lab.world.fail("unbook flight", 3)
        lab.world.open("unbook flight")
        handle = await lab.client.start(changes_its_mind, then="")
        with pytest.raises(RunBlocked, match=r"book:\w+ could not be undone: ConnectionError: unbook flight is down"):
            await handle.result()
        (question,) = (await handle.get()).questions
        assert (question.about, question.effect, question.input) == ("undo", "book", "ticket for flight")
        await lab.client.runs.resolve(handle.id, outcome, actor="kim")  # type: ignore[arg-type]
        if outcome == "did_not_happen":
            with pytest.raises(ActionFailed, match="undo of book failed"):
                await handle.result()
            run = await handle.get()
            assert (run.status, run.undo) == ("failed", "partial")
            assert lab.world.said == ["book flight", "book train", "unbook train"]
        else:
            assert await handle.result() == "by train"
            undone = ["unbook flight"] if outcome == "try_again" else []
            assert lab.world.said == ["book flight", "book train", *undone, "by train"]


@service("undoes-too-early", catalogue=catalogue)
async def undoes_too_early(what: str) -> None:
    step = note(text="said") if what == "no undo" else book(item="boat") if what == "open" else refuse()
    if what == "open":
        beside = asyncio.ensure_future(step)
        assert not beside.done()
    elif what == "failed":
        await asyncio.gather(step, return_exceptions=True)
    else:
        await step
    await step.undo()


@in_loop
async def test_what_cannot_be_undone_says_why(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        for what, message in {"no undo": "note declares no undo", "open": "it has not completed"}.items():
            with pytest.raises(RunBlocked, match=message):
                await lab.client.run(undoes_too_early, what=what)
        await lab.client.run(undoes_too_early, what="failed")  # it has left nothing
        (blocked, *_) = await lab.client.runs.list(status="blocked")
        with pytest.raises(InvalidOperation, match="asks no question"):
            await lab.client.runs.resolve(blocked.id, "happened")


def test_undo_by_hand_of_an_earlier_generation_is_not_settled_again():
    """A retry replays it as done; whoever takes the run over has no attempt of it to look for."""
    late = 0
    for number in range(6, 16):
        with TestDo(catalogue=catalogue, resources=[World()], seed="same") as do:
            do.points.deadly = Point("commit", number, "after")
            run = do.start(changes_its_mind, then="refuse")
            do.settle()
            do.runs.retry(run.id)
            do.settle()
            entries = run.journal()
            flight = next(entry.step for entry in entries if entry.step.startswith("book"))
            again = [entry for entry in entries if entry.generation == 1]
            late += any(entry.kind == "claimed" for entry in again)
            assert "lost" not in [entry.kind for entry in again if entry.step == f"undo:{flight}"], number
            assert [step.state for step in do.steps(run) if step.state == "open"] == []
    assert late
