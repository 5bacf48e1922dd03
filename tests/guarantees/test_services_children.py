"""A child service is a run of its own: it completes, fails, is cancelled and undone with its parent."""

import asyncio
from pathlib import Path

import pytest

from dotdo import ActionFailed, AsyncContext, RunBlocked, action, service
from dotdo.engine.children import take_child_message
from dotdo.engine.running import LiveRun
from dotdo.errors import InvalidOperation
from dotdo.journal import Stopping
from dotdo.records import ErrorRecord
from dotdo.store.protocol import Message
from tests.guarantees.lab import Lab, World, book, catalogue, flaky, hold, in_loop, laboratory, note, refuse
from tests.patience import PATIENCE

pytestmark = pytest.mark.usefixtures("both_doors")


@service("packs", catalogue=catalogue)
async def packs(item: str) -> str:
    return f"packed {await book(item=item)}"


@service("packs-at-a-gate", catalogue=catalogue)
async def packs_at_a_gate(item: str) -> str:
    ticket = await book(item=item)
    await hold(gate=item)
    return f"packed {ticket}"


@service("fails-to-pack", catalogue=catalogue)
async def fails_to_pack(item: str) -> str:
    await book(item=item)
    await refuse(reason=f"{item} is too big")
    return item


async def child_of(lab: Lab, parent: str) -> str:
    """The id of the only child."""
    (started,) = await lab.data(parent, "child_started")
    return started.run


@service("ships", catalogue=catalogue)
async def ships(items: list[str]) -> list[str]:
    return list(await asyncio.gather(*(packs(item=item) for item in items)))


@in_loop
async def test_children_are_runs_of_their_own_and_give_their_results(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(ships, items=["lamp", "chair", "lamp"])
        assert await handle.result() == [
            "packed ticket for lamp",
            "packed ticket for chair",
            "packed ticket for lamp",
        ]
        children = await lab.client.runs.list(parent=handle.id)
        assert len({child.id for child in children}) == 3  # the same input twice is two runs
        for child in children:
            assert (child.name, child.status, child.parent, child.root) == ("packs", "completed", handle.id, handle.id)
            assert child.id.startswith(f"{handle.id}.")
        assert sorted(lab.world.said) == ["book chair", "book lamp", "book lamp"]


@service("copes", catalogue=catalogue)
async def copes() -> str:
    try:
        return await fails_to_pack(item="piano")
    except ActionFailed as error:
        return await note(text=f"{error.action}: {error.error_message}")


@in_loop
async def test_failed_child_has_undone_itself_and_is_an_action_failed_in_its_parent(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(copes)
        assert await handle.result() == "fails-to-pack: piano is too big"
        child = await lab.client.runs.get(await child_of(lab, handle.id))
        assert (child.status, child.undo) == ("failed", "all")
        assert lab.world.said == ["book piano", "unbook piano", "fails-to-pack: piano is too big"]


@service("undoes-a-tree", catalogue=catalogue)
async def undoes_a_tree() -> None:
    await book(item="first")
    await packs_a_grandchild(item="inner")
    await book(item="last")
    await refuse()


@service("packs-a-grandchild", catalogue=catalogue)
async def packs_a_grandchild(item: str) -> None:
    await book(item="before")
    await packs(item=item)
    await book(item="after")


@in_loop
async def test_completed_child_is_undone_through_its_run_newest_first(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(undoes_a_tree)
        with pytest.raises(ActionFailed, match="refuse failed: no"):
            await handle.result()
        items = ["first", "before", "inner", "after", "last"]
        assert lab.world.said == [f"book {item}" for item in items] + [f"unbook {item}" for item in reversed(items)]
        child = await lab.client.runs.get(await child_of(lab, handle.id))
        grandchild = await lab.client.runs.get(await child_of(lab, child.id))
        parent = await handle.get()
        assert (parent.status, parent.undo, parent.generation) == ("failed", "all", 0)
        for run in (child, grandchild):
            assert (run.status, run.undo, run.generation) == ("completed", "all", 1)


@service("ships-one", catalogue=catalogue)
async def ships_one() -> str:
    await book(item="van")
    return await packs_at_a_gate(item="vase")


@in_loop
async def test_cancel_takes_the_child_with_it_and_waits_until_it_is_undone(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(ships_one)
        await lab.world.reached("vase")
        await handle.cancel(actor="ada")
        run = await lab.until_status(handle.id, "cancelled")
        child = await lab.client.runs.get(await child_of(lab, handle.id))
        assert (run.undo, child.status, child.undo) == ("all", "cancelled", "all")
        assert lab.world.said == ["book van", "book vase", "at vase", "cancelled at vase", "unbook vase", "unbook van"]
        assert child.ended_at is not None
        assert run.ended_at is not None
        assert child.ended_at <= run.ended_at


@in_loop
async def test_cancel_of_a_parent_that_sleeps_until_its_child_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.parking.LINGER_FOR_CHILD", 0.05)
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(ships_one)
        await lab.world.reached("vase")
        waiting = await lab.until_asleep(handle.id)
        assert waiting.waiting_for is not None
        assert waiting.waiting_for.kind == "child"
        await handle.cancel()
        run = await lab.until_status(handle.id, "cancelled")
        assert run.undo == "all"
        assert lab.world.said[-2:] == ["unbook vase", "unbook van"]


@in_loop
async def test_child_ends_in_the_turn_in_which_its_parent_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its word is not lost with the step that is given up: the parent stood still for ever."""
    told: list[str] = []

    def stop_and_take(run: LiveRun, message: Message) -> None:
        if not told:
            run.stop(Stopping("cancelled", ErrorRecord("Cancelled", "The run was cancelled.")))
        told.append(message.name)
        take_child_message(run, message)

    monkeypatch.setattr("dotdo.engine.messages.take_child_message", stop_and_take)
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(ships, items=["vase"])
        run = await lab.until_status(handle.id, "cancelled")
        assert run.undo == "all"
        assert told[0] == await child_of(lab, handle.id)
        assert lab.world.said == ["book vase", "unbook vase"]


@in_loop
async def test_child_wakes_its_sleeping_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.parking.LINGER_FOR_CHILD", 0.05)
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(ships_one)
        await lab.world.reached("vase")
        await lab.until_asleep(handle.id)
        lab.world.open("vase")
        assert await handle.result() == "packed ticket for vase"
        assert lab.world.said == ["book van", "book vase", "at vase", "past vase"]


@action("linger", retry=1, catalogue=catalogue)
async def linger(ctx: AsyncContext, gate: str) -> None:
    """Takes its time to end when it is cancelled: until its gate is opened."""
    world = ctx.resource(World)
    world.say(f"{gate} is far")
    try:
        await world.pass_gate("never")
    finally:
        await world.pass_gate(gate)


@service("lingers", catalogue=catalogue)
async def lingers() -> None:
    await linger("the child's end")


@service("stops-while-they-linger", catalogue=catalogue)
async def stops_while_they_linger() -> None:
    await asyncio.gather(lingers(), linger("the step's end"), _refuses_later())


async def _refuses_later() -> None:
    await hold("all are there")
    await refuse()


@in_loop
async def test_parent_that_stops_leaves_memory_until_its_child_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also when a step of its own ends after it has begun to wait for the child."""
    monkeypatch.setattr("dotdo.engine.parking.LINGER_FOR_CHILD", 0.05)
    ends = ("the child's end", "the step's end")
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(stops_while_they_linger)
        for end in ends:
            await lab.world.heard(f"{end} is far")
        lab.world.open("all are there")
        for end in ends:
            await lab.world.reached(end)
        lab.world.open("the step's end")
        waiting = (await lab.until_asleep(handle.id)).waiting_for
        assert waiting is not None
        assert waiting.kind == "child"
        lab.world.open("the child's end")
        await lab.until_status(handle.id, "failed")


@service("hurries", catalogue=catalogue)
async def hurries() -> str:
    try:
        async with asyncio.timeout(60):
            return await packs_at_a_gate(item="clock")
    except TimeoutError:
        return await note(text="went without it")


@in_loop
async def test_timeout_around_a_child_cancels_and_undoes_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(hurries)
        await lab.world.reached("clock")
        lab.clock.advance(60)
        assert await handle.result() == "went without it"
        child = await lab.client.runs.get(await child_of(lab, handle.id))
        assert (child.status, child.undo) == ("cancelled", "all")
        assert sorted(lab.world.said[2:]) == ["cancelled at clock", "unbook clock", "went without it"]


@in_loop
async def test_child_that_an_operator_cancels_fails_its_step(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(ships_one)
        await lab.world.reached("vase")
        await lab.client.runs.cancel(await child_of(lab, handle.id))
        with pytest.raises(ActionFailed, match="cancelled") as failure:
            await handle.result()
        assert failure.value.undo == "all"
        assert lab.world.said[-2:] == ["unbook vase", "unbook van"]


@service("breaks-beside-a-child", catalogue=catalogue)
async def breaks_beside_a_child() -> str:
    child = asyncio.create_task(packs_at_a_gate(item="mirror"))
    await hold(gate="then break")
    if breaks["now"]:
        raise ValueError("a bug")
    return await child


breaks = {"now": True}


@in_loop
async def test_bug_of_a_parent_leaves_its_child_alone(tmp_path: Path):
    breaks["now"] = True
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(breaks_beside_a_child)
        await lab.world.reached("mirror")
        await lab.world.reached("then break")
        child = await child_of(lab, handle.id)
        lab.world.open("then break")
        with pytest.raises(RunBlocked, match="a bug"):
            await handle.result()
        assert (await lab.client.runs.get(child)).status == "running"
        lab.world.open("mirror")
        await lab.until_status(child, "completed")
        claims = await claims_of(lab, handle.id)
        await lab.sweep()
        assert (await handle.get()).status == "blocked"  # its child's end is no person
        assert await claims_of(lab, handle.id) == claims

        breaks["now"] = False
        await lab.client.runs.retry(handle.id)
        assert await handle.result() == "packed ticket for mirror"
        assert sorted(lab.world.said) == sorted(
            ["at then break", "book mirror", "at mirror", "past then break", "past mirror"]
        )


async def claims_of(lab: Lab, id: str) -> int:
    """How often a run was claimed."""
    return (await lab.sql("select claim from runs where id = :run", run=id))[0][0]


@service("waits-after-a-child", catalogue=catalogue)
async def waits_after_a_child() -> None:
    await packs(item="table")
    await asyncio.sleep(3600)
    await refuse()


@in_loop
async def test_child_undone_by_hand_neither_wakes_its_parent_for_ever_nor_is_undone_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dotdo.engine.parking.LINGER_FOR_CHILD", 0.05)
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(waits_after_a_child)
        await lab.until_asleep(handle.id)
        child = await child_of(lab, handle.id)
        await lab.client.runs.undo(child)

        async def is_undone() -> bool:
            return (await lab.client.runs.get(child)).undo == "all"

        await lab.until(is_undone)
        await lab.until_asleep(handle.id)  # what its child told it has come, and changed nothing
        claims = await claims_of(lab, handle.id)
        await lab.sweep()
        await lab.until_asleep(handle.id)
        assert await claims_of(lab, handle.id) == claims

        lab.clock.advance(3600)
        with pytest.raises(ActionFailed):
            await handle.result()
        assert lab.world.said == ["book table", "unbook table"]


@service("undoes-a-child-last", catalogue=catalogue)
async def undoes_a_child_last() -> None:
    await packs(item="table")
    await book(item="chair")
    await refuse()


@in_loop
async def test_child_undone_by_hand_while_its_parent_undoes_something_else_does_not_wake_that_for_ever(tmp_path: Path):
    """The parent will ask for the child's undo, but not before the undo of its chair was tried again."""
    async with laboratory(tmp_path) as lab:
        lab.world.fail("unbook chair", 1)
        lab.world.open("unbook chair")
        handle = await lab.client.start(undoes_a_child_last)
        await lab.until_asleep(handle.id)
        child = await child_of(lab, handle.id)
        await lab.client.runs.undo(child)
        await lab.until_journal_has(child, "ended", 2)
        await lab.until(lambda: handle.id in lab.engine.live)  # what its child told it has come
        run = lab.engine.live[handle.id]
        async with asyncio.timeout(PATIENCE):
            while True:
                if run.waiting.early and not run.busy:
                    break
                await asyncio.sleep(0.005)
        run._park()  # as it does when it has lingered
        assert not run.over
        assert await claims_of(lab, handle.id) == 2, "begun, and woken once for what its child told it"

        lab.clock.advance(3600)
        with pytest.raises(ActionFailed):
            await handle.result()
        assert lab.world.said == ["book table", "book chair", "unbook table", "unbook chair"]


@service("child-with-a-bug", catalogue=catalogue)
async def child_with_a_bug() -> str:
    if breaks["now"]:
        raise KeyError("shelf")
    return await note(text="mended")


@service("parent-of-a-bug", catalogue=catalogue)
async def parent_of_a_bug() -> str:
    return await child_with_a_bug()


@in_loop
async def test_parent_waits_for_a_blocked_child_until_that_is_mended(tmp_path: Path):
    breaks["now"] = True
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(parent_of_a_bug)
        await lab.until_journal_has(handle.id, "child_started")
        child = await child_of(lab, handle.id)
        await lab.until_status(child, "blocked")
        assert not (await handle.get()).ended
        breaks["now"] = False
        await lab.client.runs.retry(child)
        assert await handle.result() == "mended"


@in_loop
async def test_child_and_parent_go_on_after_a_restart(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(ships_one)
        await lab.world.reached("vase")
        lab.world.open("vase")
        world = lab.world
        # closed with the child's handler in flight: it is given the time to end
    async with laboratory(tmp_path, world=world) as lab:
        assert await lab.client.handle(handle.id).result() == "packed ticket for vase"
        assert world.said.count("book van") == world.said.count("book vase") == world.said.count("at vase") == 1


@service("retries-a-child", catalogue=catalogue)
async def retries_a_child() -> str:
    await note(text="kept")
    return await packs_when_told(item="sofa")


@service("packs-when-told", catalogue=catalogue)
async def packs_when_told(item: str) -> str:
    await flaky(name="permit")
    return await packs(item=item)


@in_loop
async def test_retry_of_a_parent_starts_a_new_child_and_keeps_the_failed_one(tmp_path: Path):
    async with laboratory(tmp_path) as lab, lab.time_passing():
        lab.world.fail("permit", 3)
        handle = await lab.client.start(retries_a_child)
        with pytest.raises(ActionFailed):
            await handle.result()
        child = await child_of(lab, handle.id)
        with pytest.raises(InvalidOperation, match=f"{child} is failed, and a step of .* Retry {handle.id}, which"):
            await lab.client.runs.retry(child)  # else both would pack, and nobody would undo what the first did
        await lab.client.runs.retry(handle.id)
        assert await handle.result() == "packed ticket for sofa"
        first, second = [started.run for started in await lab.data(handle.id, "child_started")]
        assert first != second
        assert (await lab.client.runs.get(first)).status == "failed"
        assert (await lab.client.runs.get(second)).status == "completed"
        assert lab.world.said == ["kept", *["try permit"] * 4, "book sofa"]
