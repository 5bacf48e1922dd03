"""`dotdo.continue_as_new`: exactly one run goes on for another, with whoever waits for it and what it was sent."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest

import dotdo
from dotdo import ActionFailed, AsyncDo, Catalogue, RunBlocked, RunCancelled, Secret, service
from dotdo.embedding import open_reader
from dotdo.errors import CalledOutside, InvalidOperation, StoreUnavailable
from dotdo.records import Run, RunFilter
from tests.guarantees.commits import PATIENCE
from tests.guarantees.crashing import Crashers, Scene, crashers
from tests.guarantees.lab import Lab, World, book, hold, in_loop, laboratory, note, refuse, unbook
from tests.guarantees.test_killed_anywhere_resumes import end_alike
from tests.stores import url_of

__all__ = ["crashers"]

catalogue = Catalogue()
for given in (book, unbook, hold, note, refuse):
    catalogue.add("action", given.name, 1, given, given.handler)


@service("rounds", catalogue=catalogue)
async def rounds(number: int, last: int, gate: str = "") -> str:
    """Books something in each round; continues as new until the last."""
    ticket = await book(f"round {number}")
    dotdo.publish(number)
    if gate and number == 0:
        await hold(gate)
    if number < last:
        dotdo.continue_as_new(number=number + 1, last=last, gate=gate)
    return ticket


@service("counter", catalogue=catalogue)
async def counter(seen: list[int], per_run: int = 2) -> list[int]:
    """Counts events without an end; takes `per_run` of them in each run."""
    for _ in range(per_run):
        number = await dotdo.wait_for_event("number")
        if number < 0:
            return seen
        seen.append(number)
    dotdo.continue_as_new(seen=seen, per_run=per_run)


@service("collecting", catalogue=catalogue)
async def collecting(number: int) -> list[str]:
    """Awaits in its second run what it was sent during the first."""
    if number == 0:
        await hold("gate")
        dotdo.continue_as_new(number=1)
    return [await dotdo.wait_for_event("later"), await dotdo.wait_for_event("later")]


@service("parent", catalogue=catalogue)
async def parent(last: int, fails: bool = False) -> str:
    """Has a child that continues as new."""
    ticket = await rounds(0, last)
    if fails:
        await refuse()
    return f"child's {ticket}"


async def chain_of(lab: Lab, id: str) -> list[Run]:
    """The runs of a chain, first to last."""
    chain = [await lab.client.runs.get(id)]
    while chain[-1].continued_as is not None:
        chain.append(await lab.client.runs.get(chain[-1].continued_as))
    return chain


@in_loop
async def test_caller_of_the_first_run_gets_the_result_of_the_last(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        options = {"trail": "t", "labels": {"a": "b"}}
        handle = await lab.client.start(rounds.with_(key="k", **options), 0, 3)
        assert await handle.result() == "ticket for round 3"
        chain = await chain_of(lab, handle.id)
        assert [run.status for run in chain] == ["completed"] * 4
        assert [run.continues for run in chain] == [None, *(run.id for run in chain[:-1])]
        assert all((run.trail, run.labels) == ("t", {"a": "b"}) for run in chain)
        assert [run.key for run in chain] == ["k", None, None, None]
        assert all(run.root == run.id for run in chain)
        # The same key, and the id of the first run, lead on to the last.
        assert (await lab.client.start(rounds.with_(key="k"), 0, 3)).id == handle.id
        assert (await handle.get()).id == chain[-1].id
        assert await lab.client.run(rounds.with_(key="k"), 0, 3) == "ticket for round 3"
        assert [value async for value in handle.progress()] == [0, 1, 2, 3]
        assert len(await lab.entries(chain[1].id, "accepted", "completed", "ended")) == 3


@in_loop
async def test_events_go_to_the_run_that_goes_on_in_order_and_once(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(counter, [], 2)
        for number in range(7):  # all are sent to the first run, whatever has become of it
            await handle.send_event("number", number, key=f"n{number}")
            await handle.send_event("number", number, key=f"n{number}")
        for number in (0, 3, 6):
            await handle.send_event("number", 100, key=f"n{number}")
        await handle.send_event("number", -1)
        assert await handle.result() == list(range(7))
        assert len(await chain_of(lab, handle.id)) == 4


@in_loop
async def test_handle_shows_the_run_that_goes_on_also_if_it_continues_meanwhile(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(counter, seen=[], per_run=1)
        await handle.send_event("number", 0)
        await lab.until_status(handle.id, "completed")
        newest, asked = lab.engine.newest, 0

        async def newest_then_continued(id: str) -> str:
            nonlocal asked
            found, asked = await newest(id), asked + 1
            if asked == 1:
                await handle.send_event("number", 1)
                await lab.until_status(found, "completed")
            return found

        lab.engine.newest = newest_then_continued
        run = await handle.get()
        del lab.engine.newest
        assert asked == 2
        assert run.continued_as is None
        await handle.send_event("number", -1)
        assert await handle.result() == [0, 1]


@in_loop
async def test_events_not_awaited_yet_are_kept_also_those_nobody_has_taken(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(collecting, 0)
        await lab.world.reached("gate")
        await handle.send_event("later", "taken", key="e1")
        await lab.until_journal_has(handle.id, "event")
        lab.engine.hint = lambda id: None  # what comes now is not taken by the run any more
        await handle.send_event("later", "left", key="e2")
        del lab.engine.hint
        lab.world.open("gate")
        assert await handle.result() == ["taken", "left"]
        last = (await chain_of(lab, handle.id))[-1]
        events = await lab.data(last.id, "event")
        assert [(bytes(event.value), event.sender) for event in events] == [
            (b'"taken"', "event:e1"),
            (b'"left"', "event:e2"),
        ]


@in_loop
async def test_parent_follows_its_child_and_undoes_all_of_its_chain(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        assert await lab.client.run(parent, 2) == "child's ticket for round 2"
        lab.world.said.clear()
        handle = await lab.client.start(parent, 2, fails=True)
        with pytest.raises(ActionFailed):
            await handle.result()
        assert lab.world.said == [f"book round {n}" for n in range(3)] + [f"unbook round {n}" for n in (2, 1, 0)]
        children = await lab.client.runs.list(parent=handle.id)
        assert [run.undo for run in children] == ["all"] * 3
        assert all(run.root == handle.id for run in children)


@in_loop
async def test_parent_goes_on_undoing_a_chain_where_its_process_died(tmp_path: Path):
    world = World()
    world.failures = {"unbook round 1": 0}  # stops at its gate
    async with laboratory(tmp_path, catalogue=catalogue, world=world, grace=0) as lab:
        handle = await lab.client.start(parent, 2, fails=True)
        await world.reached("unbook round 1")
    world.open("unbook round 1")
    async with laboratory(tmp_path, catalogue=catalogue, world=world) as lab:
        with pytest.raises(ActionFailed):
            await lab.client.handle(handle.id).result()
        assert [text for text in world.said if text.startswith("unbook")] == [f"unbook round {n}" for n in (2, 1, 0)]


@in_loop
async def test_failure_undoes_the_last_run_only_and_an_operator_may_undo_each(tmp_path: Path):
    @service("fragile", catalogue=(own := Catalogue()))
    async def fragile(number: int) -> None:
        await book(f"part {number}")
        if number == 0:
            dotdo.continue_as_new(number=1)
        await refuse()

    for each in (book, unbook, refuse):
        own.add("action", each.name, 1, each, each.handler)
    async with laboratory(tmp_path, catalogue=own) as lab:
        handle = await lab.client.start(fragile, 0)
        with pytest.raises(ActionFailed):
            await handle.result()
        assert lab.world.said == ["book part 0", "book part 1", "unbook part 1"]
        await lab.client.runs.undo(handle.id)
        assert (await lab.client.runs.wait(handle.id)).undo == "all"
        assert lab.world.said[-1] == "unbook part 0"


@in_loop
async def test_cancel_reaches_the_run_that_goes_on(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(counter, [], 1)
        await handle.send_event("number", 1)
        first = await lab.until_status(handle.id, "completed")
        assert first.continued_as is not None
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result()
        with pytest.raises(InvalidOperation, match=f"{first.continued_as} has ended"):
            await handle.send_event("number", 2)


@in_loop
async def test_deadline_is_the_whole_chains(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(counter.with_(deadline=100), [], 1)
        lab.clock.advance(60)
        await handle.send_event("number", 1)
        await lab.until_status(handle.id, "completed")
        last = await handle.get()
        lab.clock.advance(39)
        assert not (await lab.client.runs.get(last.id)).ended
        lab.clock.advance(2)
        with pytest.raises(ActionFailed, match="deadline"):
            await handle.result()


@in_loop
async def test_newest_version_goes_on_unless_an_older_one_was_meant(tmp_path: Path):
    first, both = Catalogue(), Catalogue()

    async def old(number: int) -> str:
        await dotdo.wait_for_event("go")
        dotdo.continue_as_new(number=number + 1)

    async def new(number: int) -> str:
        return f"new code, {number}"

    service("changing", catalogue=first)(old)
    service("changing", catalogue=both)(old)
    async with laboratory(tmp_path, catalogue=first) as lab:
        handle = await lab.client.service("changing").start(number=0)
        await lab.until_asleep(handle.id)
    service("changing", version=2, catalogue=both)(new)
    async with laboratory(tmp_path, catalogue=both) as lab:
        await lab.client.runs.send_event(handle.id, "go")
        assert await lab.client.handle(handle.id).result() == "new code, 1"
        pinned = await lab.client.service("changing", version=1).start(number=5)
        await pinned.send_event("go")
        await lab.until_status(pinned.id, "completed")
        assert (await pinned.get()).version == 1


@in_loop
async def test_steps_under_way_are_cancelled_first_and_it_works_out_of_a_task_group(tmp_path: Path):
    @service("grouped", catalogue=(own := Catalogue()))
    async def grouped(number: int) -> str:
        if number == 1:
            return "second"
        async with asyncio.TaskGroup() as group:
            group.create_task(hold("never"))
            await note("before")
            dotdo.continue_as_new(number=1)

    for each in (note, hold):
        own.add("action", each.name, 1, each, each.handler)
    async with laboratory(tmp_path, catalogue=own) as lab:
        assert await lab.client.run(grouped, 0) == "second"
        assert sorted(lab.world.said) == ["at never", "before", "cancelled at never"]


@in_loop
async def test_secret_inputs_are_sealed_in_each_run(tmp_path: Path):
    @service("logging-in", catalogue=(own := Catalogue()))
    async def logging_in(number: int, password: Secret[str]) -> int:
        assert password.reveal() == "open sesame"
        if number < 2:
            dotdo.continue_as_new(number=number + 1, password=password)
        return number

    async with AsyncDo(str(tmp_path / "dotdo.db"), catalogue=own, check_replay=True) as client:
        assert await client.run(logging_in, 0, password=Secret("open sesame")) == 2
        assert len(await client.runs.list()) == 3
        assert b"open sesame" not in (tmp_path / "dotdo.db-wal").read_bytes()


@in_loop
async def test_wrong_use_is_a_bug_that_says_what_to_do(tmp_path: Path):
    @service("wrong-task", catalogue=(own := Catalogue()))
    async def wrong_task() -> None:
        async def inner() -> None:
            dotdo.continue_as_new()

        await asyncio.create_task(inner())

    @service("wrong-input", catalogue=own)
    async def wrong_input(number: int) -> None:
        dotdo.continue_as_new(number="one")

    async with laboratory(tmp_path, catalogue=own) as lab:
        with pytest.raises(RunBlocked, match="in a task that the service had started"):
            await lab.client.run(wrong_task)
        with pytest.raises(RunBlocked, match="number"):
            await lab.client.run(wrong_input, 1)
    with pytest.raises(CalledOutside):
        dotdo.continue_as_new()


@in_loop
async def test_lost_answer_to_the_commit_leaves_one_successor_that_goes_on(tmp_path: Path):
    async with laboratory(tmp_path, catalogue=catalogue) as lab:
        handle = await lab.client.start(rounds, 0, 1, "gate")
        await lab.world.reached("gate")
        write, lost = lab.engine.store.write, []

        def lose_answer(writes: list) -> None:
            write(writes)
            if any(each.succession for each in writes) and not lost:
                lost.append(writes)
                raise StoreUnavailable("the answer was lost")

        lab.engine.store.write = lose_answer  # type: ignore[method-assign]
        lab.world.open("gate")
        assert await handle.result() == "ticket for round 1"
        assert lost
        assert len(await chain_of(lab, handle.id)) == 2
        assert len(await lab.client.runs.list()) == 2


@in_loop
async def test_nothing_of_the_successor_happens_before_it_is_durable(tmp_path: Path):
    """What came before its run's end is still being written when the end is appended; the commit of the end is lost."""

    @service("two-rounds", catalogue=(own := Catalogue()))
    async def two_rounds(number: int) -> None:
        await book(f"round {number}")
        if number == 0:
            dotdo.continue_as_new(number=1)

    for each in (book, unbook):
        own.add("action", each.name, 1, each, each.handler)
    async with laboratory(tmp_path, catalogue=own) as lab:
        engine, loop = lab.engine, asyncio.get_running_loop()
        write, tell_ended, newest = engine.store.write, engine.ended, engine.newest_versions
        writing, ended, seen = asyncio.Event(), threading.Event(), list[list[str]]()

        async def newest_later() -> str:
            await writing.wait()
            return await newest()

        def tell(run: Any, data: Any) -> None:
            tell_ended(run, data)
            ended.set()

        async def turns() -> list[str]:
            for _ in range(100):
                await asyncio.sleep(0)
            return list(lab.world.said)

        def slowly(writes: list[Any]) -> None:
            if any(each.succession for each in writes) and not seen:
                seen.append(asyncio.run_coroutine_threadsafe(turns(), loop).result(PATIENCE))
                raise StoreUnavailable("nothing was written")
            if any(entry.kind == "completed" for each in writes for entry in each.entries):
                loop.call_soon_threadsafe(writing.set)
                assert ended.wait(PATIENCE)
            write(writes)

        engine.newest_versions = newest_later  # type: ignore[method-assign]  # between the last step and the end
        engine.ended = tell  # type: ignore[method-assign]
        engine.store.write = slowly  # type: ignore[method-assign]
        await lab.client.run(two_rounds, 0)
        assert seen == [["book round 0"]]
        assert lab.world.said == ["book round 0", "book round 1"]
        assert len(await lab.client.runs.list()) == 2


def test_killed_at_every_point_one_run_goes_on(crashers: Crashers, tmp_path: Path):
    end_alike(crashers, tmp_path, "rounds", {"number": 0, "last": 1}, least_commits=4)
    for folder in tmp_path.iterdir():
        check_chain(folder)


def test_parent_and_its_childs_chain_killed_anywhere_are_undone_alike(crashers: Crashers, tmp_path: Path):
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", "rounds-of-a-child", {})
    expected = undisturbed.end()
    points = [point for point in undisturbed.points if point.startswith("commit:after")]

    def killed_at(point: str) -> int:
        with crashers.scene(tmp_path / point.replace(":", "-"), "rounds-of-a-child", {}) as scene:
            scene.live(point)
            assert scene.end() == expected, point
            check_chain(scene.folder)
            return scene.deaths

    assert sum(crashers.map(killed_at, random.Random(3).sample(points, 12))) >= 8


def check_chain(folder: Path) -> None:
    """There is exactly one successor."""
    reader = open_reader(url_of(folder / "dotdo.db"))
    runs = reader.list_runs(RunFilter(name="rounds", limit=10))
    reader.close()
    assert len(runs) == 2, folder
    assert sorted(run.continues is None for run in runs) == [False, True], folder
