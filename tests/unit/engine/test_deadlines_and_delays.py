"""A run may start later, and must end in time: both on the store's clock, and both kept across restarts."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    Context,
    DefinitionError,
    Retry,
    RetryLater,
    StillRunning,
    action,
    service,
    sleep,
    wait_for_event,
)
from tests.stores import rows_of
from tests.workshop import PATIENCE, Workshop, data, kinds

pytestmark = pytest.mark.usefixtures("both_doors")

STEADY = Retry(attempts=10, delay=30, factor=1, jitter=False)


def test_delayed_run_starts_at_its_time(workshop: Workshop):
    started: list[int] = []

    @action("later", catalogue=workshop.catalogue)
    def later() -> str:
        started.append(workshop.clock.now())
        return "done"

    client = workshop.open()
    asked = workshop.clock.now()
    handle = client.start(later.with_(delay=3600))
    run = client.runs.get(handle.id)
    assert run.waiting_for is not None
    assert (run.status, run.waiting_for.kind, run.waiting_for.until) == ("pending", "start", asked + 3_600_000)
    workshop.clock.advance(3599)
    assert workshop.clock.time_to_next() == timedelta(seconds=1)
    assert started == []
    workshop.clock.advance(1)
    assert handle.result(timeout=PATIENCE) == "done"
    assert started == [asked + 3_600_000]


def test_delay_is_kept_across_a_restart(workshop: Workshop):
    @action("later", catalogue=workshop.catalogue)
    def later() -> str:
        return "done"

    before = workshop.open()
    handle = before.start(later.with_(delay=3600))
    before.close()
    workshop.clock.advance(1800)
    after = workshop.open()
    assert workshop.clock.advance_to_next() == timedelta(seconds=1800)
    assert after.runs.wait(handle.id, timeout=PATIENCE).result == "done"


def test_delayed_run_can_be_cancelled_before_it_starts(workshop: Workshop):
    @action("later", catalogue=workshop.catalogue)
    def later() -> str:
        raise NotImplementedError

    client = workshop.open()
    handle = client.start(later.with_(delay=3600))
    handle.cancel()
    workshop.until(lambda: client.runs.get(handle.id).status == "cancelled")
    assert kinds(handle, "later") in ([], ["step_cancelled"])


def test_deadline_ends_a_run_that_waits_for_a_retry(workshop: Workshop):
    attempts: list[int] = []

    @action("flaky", retry=STEADY, catalogue=workshop.catalogue)
    def flaky(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ConnectionError("down")

    handle = workshop.open().start(flaky.with_(deadline=70))
    waits = [workshop.clock.advance_to_next(within="31 s").total_seconds() for _ in range(2)]
    workshop.until(lambda: kinds(handle).count("attempt_failed") == 3)
    workshop.clock.advance_to_next(within="10 s")
    with pytest.raises(ActionFailed, match="did not end within its deadline of 70") as failure:
        handle.result(timeout=PATIENCE)

    assert failure.value.error_type == "DeadlineExceeded"
    assert (waits, attempts) == ([30.0, 30.0], [1, 2, 3])


def test_deadline_cancels_the_handler_and_undoes_what_was_done(workshop: Workshop):
    started, ended, undone = threading.Event(), threading.Event(), list[str]()

    @action("make", catalogue=workshop.catalogue)
    def make() -> str:
        return "thing"

    @make.undo
    def unmake(ctx: Context, made: str) -> None:
        undone.append(made)

    @action("slow", catalogue=workshop.catalogue)
    async def slow() -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    @service("is-late", catalogue=workshop.catalogue)
    async def is_late() -> None:
        await make()
        await slow()

    handle = workshop.open().start(is_late.with_(deadline=60))
    assert started.wait(PATIENCE)
    workshop.clock.advance(60)
    with pytest.raises(ActionFailed, match="deadline") as failure:
        handle.result(timeout=PATIENCE)
    assert ended.wait(PATIENCE)
    assert (failure.value.action, failure.value.undo) == ("is-late", "all")
    assert undone == ["thing"]


@pytest.mark.parametrize("waits_for", ["event", "timer"])
def test_deadline_finds_a_run_that_has_left_memory(workshop: Workshop, waits_for: str):
    @service("waits", catalogue=workshop.catalogue)
    async def waits(what: str) -> None:
        await (sleep(1e6) if what == "timer" else wait_for_event("go"))

    client = workshop.open()
    handle = client.start(waits.with_(deadline=3600), what=waits_for)
    workshop.until_waiting(client, handle)
    client.close()

    after = workshop.open()
    workshop.clock.advance(3600)
    with pytest.raises(ActionFailed, match="deadline"):
        after.runs.wait(handle.id, timeout=PATIENCE)


def test_deadline_that_has_passed_wakes_nobody(workshop: Workshop):
    """What is undone after it waits as long as it says, and is not claimed again and again meanwhile."""

    @action("make", catalogue=workshop.catalogue)
    def make() -> str:
        return "thing"

    @make.undo
    def unmake(ctx: Context, made: str) -> None:
        if ctx.attempt == 1:
            raise RetryLater("not yet", after=3600)

    @service("is-late", catalogue=workshop.catalogue)
    async def is_late() -> None:
        await make()
        await wait_for_event("go")

    client = workshop.open()
    handle = client.start(is_late.with_(deadline=60))
    workshop.until_waiting(client, handle)
    workshop.clock.advance(60)
    workshop.until(lambda: "attempt_failed" in kinds(handle))
    workshop.until_waiting(client, handle)
    assert rows_of(workshop.store, "select due_at from runs") == [{"due_at": workshop.clock.now() + 3_600_000}]
    workshop.clock.advance(3600)
    with pytest.raises(ActionFailed, match="deadline") as failure:
        handle.result(timeout=PATIENCE)
    assert failure.value.undo == "all"
    assert kinds(handle).count("claimed") == 2  # for its deadline, and for the second try of the undo


def test_deadline_counts_from_the_start_of_a_delayed_run(workshop: Workshop):
    @service("naps", catalogue=workshop.catalogue)
    async def naps(seconds: float) -> str:
        await sleep(seconds)
        return "in time"

    client = workshop.open()
    in_time = client.start(naps.with_(delay=100, deadline=60), seconds=50)
    too_late = client.start(naps.with_(delay=100, deadline=60), seconds=70)
    workshop.clock.advance(100)
    workshop.until(lambda: len(kinds(in_time)) > 1)
    workshop.until(lambda: len(kinds(too_late)) > 1)
    workshop.clock.advance_to_next(within="51 s")
    assert in_time.result(timeout=PATIENCE) == "in time"
    workshop.clock.advance_to_next(within="11 s")
    with pytest.raises(ActionFailed, match="deadline"):
        too_late.result(timeout=PATIENCE)


def test_run_that_ends_in_time_hears_nothing_of_its_deadline(workshop: Workshop):
    @action("quick", catalogue=workshop.catalogue)
    def quick() -> str:
        return "done"

    handle = workshop.open().start(quick.with_(deadline=60))
    assert handle.result(timeout=PATIENCE) == "done"
    workshop.clock.advance(61)
    assert handle.get().status == "completed"
    assert data(handle, "stopping") == []


def test_wait_of_a_caller_ends_nothing(workshop: Workshop):
    release = threading.Event()

    @action("slow", catalogue=workshop.catalogue)
    def slow() -> str:
        release.wait(PATIENCE)
        return "done"

    client = workshop.open()
    handle = client.start(slow.with_(key="once"))
    with pytest.raises(StillRunning) as waiting:
        handle.result(timeout=0.01)
    with pytest.raises(StillRunning):
        client.action("slow", key="once", wait=0.01).invoke()
    assert waiting.value.run_id == handle.id
    assert isinstance(waiting.value, TimeoutError)
    release.set()
    assert handle.result(timeout=PATIENCE) == "done"


@pytest.mark.parametrize("options", [{"deadline": -1}, {"delay": -1}, {"delay": float("nan")}, {"deadline": 1e11}])
def test_nonsense_is_refused(workshop: Workshop, options: dict[str, Any]):
    @action("quick", catalogue=workshop.catalogue)
    def quick() -> str:
        raise NotImplementedError

    client = workshop.open()
    with pytest.raises(DefinitionError, match=next(iter(options))):
        client.action("quick", **options).start()
    assert client.runs.list() == []
