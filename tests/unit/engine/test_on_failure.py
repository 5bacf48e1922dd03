"""`on_failure` actions learn of a run that failed for good: once per generation, after the undoing."""

import pytest

from dotdo import ActionFailed, Context, Fail, Failure, Retry, RunBlocked, RunCancelled, action, service
from tests.workshop import PATIENCE, Workshop, kinds

pytestmark = pytest.mark.usefixtures("both_doors")


def define(workshop: Workshop, told: list[Failure], order: list[str]) -> None:
    @action("tell", retry=Retry(attempts=2, delay=10, jitter=False), catalogue=workshop.catalogue)
    def tell(ctx: Context, failure: Failure) -> None:
        told.append(failure)
        order.append("told")
        ctx.stage(workshop.send, text=failure.error.message)

    @action("create", catalogue=workshop.catalogue)
    def create() -> str:
        order.append("created")
        return "thing"

    @create.undo
    def remove(ctx: Context, thing: str) -> None:
        order.append(f"removed {thing}")

    @action("refuse", retry=Retry(attempts=2, delay=10, jitter=False), catalogue=workshop.catalogue)
    def refuse() -> None:
        raise ConnectionError("down")

    @action("refuse-alone", retry=1, on_failure=[tell], catalogue=workshop.catalogue)
    def refuse_alone() -> None:
        raise Fail("no")

    @service("fails", on_failure=[tell], catalogue=workshop.catalogue)
    async def fails() -> None:
        await create()
        await refuse()


def test_service_tells_after_undoing_with_the_failure(workshop: Workshop):
    told: list[Failure] = []
    order: list[str] = []
    define(workshop, told, order)

    handle = workshop.open().service("fails").start()
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)

    assert order == ["created", "removed thing", "told"]
    (failure,) = told
    assert (failure.run, failure.name, failure.attempts) == (handle.id, "fails", 2)
    assert failure.step is not None
    assert failure.step.startswith("refuse:")
    assert (failure.error.action, failure.error.type, failure.error.message) == ("refuse", "ConnectionError", "down")
    assert workshop.receiver.texts() == ["down"]  # what it stages is sent, though the run has failed
    assert kinds(handle, "on_failure:tell") == ["committed", "delivered", "effects_completed"]
    assert handle.journal()[-1].kind == "ended"


def test_action_that_is_run_alone_tells_too(workshop: Workshop):
    told: list[Failure] = []
    define(workshop, told, [])
    with pytest.raises(ActionFailed):
        workshop.open().action("refuse-alone").invoke()
    (failure,) = told
    assert (failure.name, failure.step, failure.error.message) == ("refuse-alone", "refuse-alone", "no")


def test_each_generation_tells_once(workshop: Workshop):
    told: list[Failure] = []
    define(workshop, told, [])
    client = workshop.open()
    handle = client.action("refuse-alone").start()
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)
    client.runs.retry(handle.id)
    with pytest.raises(ActionFailed):
        client.runs.wait(handle.id, timeout=PATIENCE)
    assert [failure.run for failure in told] == [handle.id, handle.id]
    assert workshop.receiver.texts() == ["no", "no"]
    assert len(set(workshop.receiver.keys("send"))) == 2


def test_its_own_failure_changes_nothing_else(workshop: Workshop):
    calls: list[int] = []

    @action("tell-badly", retry=Retry(attempts=2, delay=10, jitter=False), catalogue=workshop.catalogue)
    def tell_badly(ctx: Context, failure: Failure) -> None:
        calls.append(ctx.attempt)
        raise ConnectionError("the pager is down")

    @action("tell-well", catalogue=workshop.catalogue)
    def tell_well(ctx: Context, failure: Failure) -> None:
        ctx.stage(workshop.send, text="told")

    @action("refuse", retry=1, on_failure=[tell_badly, tell_well], catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    client = workshop.open()
    handle = client.start(refuse)
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed, match="refuse failed: no"):
        handle.result(timeout=PATIENCE)

    assert calls == [1, 2]
    assert workshop.receiver.texts() == ["told"]
    assert kinds(handle, "on_failure:tell-badly") == ["attempt_failed", "attempt_failed", "failed"]
    run = client.runs.get(handle.id)
    assert (run.status, run.error and run.error.message) == ("failed", "no")


def test_run_that_completes_tells_nobody(workshop: Workshop):
    @action("tell", catalogue=workshop.catalogue)
    def tell(failure: Failure) -> None:
        raise NotImplementedError

    @action("fine", on_failure=[tell], catalogue=workshop.catalogue)
    def fine() -> str:
        return "fine"

    handle = workshop.open().start(fine)
    handle.result(timeout=PATIENCE)
    assert kinds(handle, "on_failure") == []


def test_failure_that_a_service_catches_tells_nobody(workshop: Workshop):
    @action("tell", catalogue=workshop.catalogue)
    def tell(failure: Failure) -> None:
        raise NotImplementedError

    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("copes", on_failure=[tell], catalogue=workshop.catalogue)
    async def copes() -> str:
        try:
            await refuse()
        except ActionFailed as error:
            return error.error_message
        return "?"

    assert workshop.open().run(copes) == "no"


def test_deadline_tells(workshop: Workshop):
    told: list[Failure] = []
    define(workshop, told, [])
    handle = workshop.open().service("fails", deadline=5).start()
    workshop.clock.advance_to_next(within="5 s")
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)
    assert [failure.error.type for failure in told] == ["DeadlineExceeded"]


def test_blocked_run_tells_that_it_waits_for_a_person_once_per_generation(workshop: Workshop):
    told: list[Failure] = []
    problems = ["first bug", "second bug"]

    @action("tell", catalogue=workshop.catalogue)
    def tell(ctx: Context, failure: Failure) -> None:
        told.append(failure)
        ctx.stage(workshop.send, text=failure.error.message)

    @service("buggy", on_failure=[tell], catalogue=workshop.catalogue)
    async def buggy() -> str:
        if problems:
            raise ValueError(problems.pop(0))
        return "mended"

    client = workshop.open(check_replay=False)
    handle = client.start(buggy)
    for expected in ("first bug", "second bug"):
        with pytest.raises(RunBlocked, match=expected):
            client.runs.wait(handle.id, timeout=PATIENCE)
        client.runs.retry(handle.id)
    assert client.runs.wait(handle.id, timeout=PATIENCE).result == "mended"

    assert [(failure.name, failure.error.type) for failure in told] == [("buggy", "ValueError")] * 2
    assert [one.partition("ValueError: ")[2][:10] for one in workshop.receiver.texts()] == ["first bug ", "second bug"]


def test_action_that_cannot_be_undone_tells_when_it_blocks(workshop: Workshop):
    told: list[Failure] = []

    @action("tell", catalogue=workshop.catalogue)
    def tell(failure: Failure) -> None:
        told.append(failure)

    @action("create", catalogue=workshop.catalogue)
    def create() -> str:
        return "thing"

    @create.undo
    def remove(ctx: Context, thing: str) -> None:
        raise Fail("it is gone")

    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("fails", on_failure=[tell], catalogue=workshop.catalogue)
    async def fails() -> None:
        await create()
        await refuse()

    with pytest.raises(RunBlocked, match=r"The step create:\w+ could not be undone: Fail: it is gone"):
        workshop.open().run(fails)
    (failure,) = told
    assert "it is gone" in failure.error.message


def test_cancelled_run_tells_as_it_was_asked(workshop: Workshop):
    """Who cancels knows it: nobody is told of a failure."""
    told: list[Failure] = []
    define(workshop, told, [])
    handle = workshop.open().service("fails").start()
    workshop.clock.time_to_next()
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=PATIENCE)
    assert told == []
