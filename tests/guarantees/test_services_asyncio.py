"""Services use plain asyncio: what it has to compose, limit, time out and cancel work works on durable steps."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dotdo import ActionFailed, AsyncContext, Context, action, service
from tests.guarantees.lab import PATIENCE, World, book, catalogue, flaky, hold, in_loop, laboratory, note, refuse


@service("gathers", catalogue=catalogue)
async def gathers(gates: list[str]) -> list[str]:
    return list(await asyncio.gather(*(hold(gate=gate) for gate in gates)))


@in_loop
async def test_gather_runs_steps_side_by_side_and_keeps_their_order(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(gathers, gates=["a", "b", "c"])
        for gate in "abc":
            await lab.world.reached(gate)
        for gate in "cab":
            lab.world.open(gate)
        assert await handle.result() == ["a", "b", "c"]


@service("gathers-errors", catalogue=catalogue)
async def gathers_errors() -> list[str]:
    found = await asyncio.gather(note(text="a"), refuse(reason="b"), flaky(name="c"), return_exceptions=True)
    return [one.error_message if isinstance(one, ActionFailed) else str(one) for one in found]


@in_loop
async def test_gather_returns_failures_as_values_if_asked(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        assert await lab.client.run(gathers_errors) == ["a", "b", "c"]


@service("groups", catalogue=catalogue)
async def groups() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(hold(gate="sibling"))
        await hold(gate="first")
        group.create_task(refuse(reason="no room"))


@in_loop
async def test_task_group_cancels_the_attempt_of_a_failed_steps_sibling(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(groups)
        await lab.world.reached("sibling")
        await lab.world.reached("first")
        lab.world.open("first")
        with pytest.raises(ActionFailed, match="refuse failed: no room"):
            await handle.result()
        assert lab.world.said[-1] == "cancelled at sibling"
        assert [entry.step.partition(":")[0] for entry in await lab.entries(handle.id, "step_cancelled")] == ["hold"]


@service("handles-groups", catalogue=catalogue)
async def handles_groups() -> list[str]:
    caught: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse(reason="one"))
            group.create_task(refuse(reason="two"))
            group.create_task(note(text="three"))
    except* ActionFailed as errors:
        caught += [str(error) for error in errors.exceptions]
    return [*caught, await note(text="afterwards")]


@in_loop
async def test_except_star_sees_the_failed_steps_of_a_group(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        result = await lab.client.run(handles_groups)
        assert result[0] == "refuse failed: one"
        assert result[-1] == "afterwards"


@service("waits-for-first", catalogue=catalogue)
async def waits_for_first() -> list[list[str]]:
    tasks = {asyncio.create_task(hold(gate=gate), name=gate) for gate in "abcd"}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.wait(pending)
    return [[task.get_name() for task in done], sorted(task.get_name() for task in pending if task.cancelled())]


@in_loop
async def test_wait_for_the_first_and_cancel_the_rest(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(waits_for_first)
        for gate in "abcd":
            await lab.world.reached(gate)
        lab.world.open("c")
        assert await handle.result() == [["c"], ["a", "b", "d"]]
        assert sorted(text for text in lab.world.said if "cancelled" in text) == [
            "cancelled at a",
            "cancelled at b",
            "cancelled at d",
        ]
        assert len(await lab.entries(handle.id, "step_cancelled")) == 3


@service("takes-as-completed", catalogue=catalogue)
async def takes_as_completed() -> list[str]:
    return [await soonest for soonest in asyncio.as_completed([hold(gate="a"), hold(gate="b"), hold(gate="c")])]


@in_loop
async def test_as_completed_gives_results_in_the_order_in_which_they_came(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(takes_as_completed)
        for count, gate in enumerate("cab", 1):
            await lab.world.reached(gate)
            lab.world.open(gate)
            await lab.until_journal_has(handle.id, "completed", count)
        assert await handle.result() == ["c", "a", "b"]


@service("times-out", catalogue=catalogue)
async def times_out(seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds):
            return await hold(gate="slow")
    except TimeoutError:
        return await note(text="too slow")


@in_loop
async def test_timeout_cancels_the_running_attempt_and_the_service_goes_on(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(times_out, seconds=60)
        await lab.world.reached("slow")
        lab.clock.advance(59)
        assert lab.world.said == ["at slow"]
        lab.clock.advance(1)
        assert await handle.result() == "too slow"
        assert lab.world.said == ["at slow", "cancelled at slow", "too slow"]
        kinds = [entry.kind for entry in await handle.journal() if entry.step.startswith("hold:")]
        assert kinds == ["step_cancelled"]


@in_loop
async def test_step_within_its_timeout_leaves_no_trace_of_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        lab.world.open("slow")
        handle = await lab.client.start(times_out, seconds=60)
        assert await handle.result() == "slow"
        assert await lab.entries(handle.id, "fired", "step_cancelled") == []


thread_may_end = threading.Event()
thread_has_begun = threading.Event()


@action("hold-thread", retry=1, catalogue=catalogue)
def hold_thread(ctx: Context) -> str:
    world = ctx.resource(World)
    thread_has_begun.set()
    thread_may_end.wait()
    world.say("the thread ends")
    return "late"


@service("times-out-a-thread", catalogue=catalogue)
async def times_out_a_thread() -> str:
    try:
        return await asyncio.wait_for(hold_thread(), 60)
    except TimeoutError:
        return await hold(gate="afterwards")


@in_loop
async def test_late_result_of_a_cancelled_step_is_dropped(tmp_path: Path):
    thread_may_end.clear()
    thread_has_begun.clear()
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(times_out_a_thread)
        await asyncio.to_thread(thread_has_begun.wait)
        lab.clock.advance(60)
        await lab.world.reached("afterwards")
        thread_may_end.set()
        lab.world.open("afterwards")
        assert await handle.result() == "afterwards"
        kinds = [entry.kind for entry in await handle.journal() if entry.step.startswith("hold-thread")]
        assert kinds == ["step_cancelled"]


# A statement that takes some tenths of a second, with the write lock held.
SLOW = "with recursive n (x) as (select 1 union all select x + 1 from n where x < 2000000) select count(*) from n"


@action("writes-slowly", retry=1, catalogue=catalogue)
async def writes_slowly(ctx: AsyncContext) -> None:
    await ctx.sql.exec_driver_sql("create table rows (writer text)")
    ctx.resource(World).say("writes slowly")
    await ctx.sql.exec_driver_sql(SLOW)


@action("writes", retry=1, catalogue=catalogue)
async def writes(ctx: AsyncContext) -> int:
    await ctx.sql.exec_driver_sql("create table rows (writer text)")  # is not there: it was rolled back
    return 1


@service("cancels-sql", catalogue=catalogue)
async def cancels_sql() -> int:
    try:
        await asyncio.wait_for(writes_slowly(), 60)
    except TimeoutError:
        return await writes()
    return 0


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("collector_off")
@in_loop
async def test_step_cancelled_in_a_statement_is_rolled_back_and_leaves_no_lock(tmp_path: Path):
    """Not even if the collector does not come by: the traceback of the cancellation knows the cursor."""
    async with laboratory(tmp_path, sql=f"sqlite:///{tmp_path / 'app.db'}") as lab:
        handle = await lab.client.start(cancels_sql)
        await lab.world.heard("writes slowly")
        lab.clock.advance(60)
        assert await handle.result(timeout=PATIENCE) == 1


@service("shields", catalogue=catalogue)
async def shields() -> list[str]:
    inner = asyncio.ensure_future(hold(gate="shielded"))
    try:
        await asyncio.wait_for(asyncio.shield(inner), 60)
    except TimeoutError:
        return [await note(text="still going"), await inner]
    return []


@in_loop
async def test_shielded_step_survives_the_timeout(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(shields)
        await lab.world.reached("shielded")
        lab.clock.advance(60)
        await lab.until_journal_has(handle.id, "completed")
        lab.world.open("shielded")
        assert await handle.result() == ["still going", "shielded"]
        assert lab.world.said == ["at shielded", "still going", "past shielded"]


@service("works-on-a-queue", catalogue=catalogue)
async def works_on_a_queue(items: list[str]) -> dict[str, list[str]]:
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=2)
    done: dict[str, list[str]] = {}

    async def work(name: str) -> None:
        while True:
            item = await queue.get()
            done.setdefault(name, []).append(await note(text=item))
            queue.task_done()

    workers = [asyncio.create_task(work(name)) for name in ("one", "two")]
    for item in items:
        await queue.put(item)
    await queue.join()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return done


@in_loop
async def test_workers_on_a_queue_do_each_item_once(tmp_path: Path):
    items = [f"item {number}" for number in range(20)]
    async with laboratory(tmp_path) as lab:
        done = await lab.client.run(works_on_a_queue, items=items)
        assert sorted(done["one"] + done["two"]) == sorted(items)
        assert sorted(lab.world.said) == sorted(items)


@service("limits", catalogue=catalogue)
async def limits() -> int:
    semaphore, running, most = asyncio.Semaphore(2), 0, 0

    async def limited(number: int) -> None:
        nonlocal running, most
        async with semaphore:
            running += 1
            most = max(most, running)
            await note(text=f"{number}")
            running -= 1

    await asyncio.gather(*map(limited, range(10)))
    return most


@in_loop
async def test_semaphore_limits_the_steps_at_a_time(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        assert await lab.client.run(limits) == 2
        assert len(lab.world.said) == 10


@service("meets", catalogue=catalogue)
async def meets() -> list[str]:
    started, lock, condition, barrier = asyncio.Event(), asyncio.Lock(), asyncio.Condition(), asyncio.Barrier(2)
    told: list[str] = []

    async def waits(name: str) -> None:
        await started.wait()
        async with lock:
            told.append(await note(text=name))
        await barrier.wait()
        async with condition:
            condition.notify_all()

    async with asyncio.TaskGroup() as group:
        group.create_task(waits("a"))
        group.create_task(waits("b"))
        await note(text="start")
        started.set()
        async with condition:
            await condition.wait()
    return told


@in_loop
async def test_event_lock_condition_and_barrier_between_tasks(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        assert await lab.client.run(meets) == ["a", "b"]
        assert lab.world.said == ["start", "a", "b"]


@service("leaves-work-behind", catalogue=catalogue)
async def leaves_work_behind() -> str:
    tasks = [asyncio.create_task(hold(gate="left behind")), asyncio.create_task(book(item="left behind"))]
    await hold(gate="main")
    return f"{len(tasks)} tasks"


@in_loop
async def test_tasks_left_when_a_service_returns_are_cancelled_before_it_ends(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(leaves_work_behind)
        await lab.world.reached("left behind")
        await lab.world.reached("main")
        lab.world.open("main")
        assert await handle.result() == "2 tasks"
        assert lab.world.said[-1] == "cancelled at left behind"
        assert (await handle.journal())[-1].kind == "ended"
        assert len(await lab.entries(handle.id, "step_cancelled")) == 1


@service("sleeps-beside-steps", catalogue=catalogue)
async def sleeps_beside_steps() -> list[float]:
    loop, at = asyncio.get_running_loop(), list[float]()

    async def nap(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await note(text=f"woke after {seconds:g}")
        at.append(round(loop.time(), 3))

    await asyncio.gather(nap(30), nap(10), nap(20))
    return at


@in_loop
async def test_sleeps_end_in_order_of_their_due_times(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(sleeps_beside_steps)
        for count in (1, 2, 3):
            await lab.advance_to_next()
            await lab.until_journal_has(handle.id, "completed", count)
        assert await handle.result() == [10, 20, 30]
        assert lab.world.said == ["woke after 10", "woke after 20", "woke after 30"]
