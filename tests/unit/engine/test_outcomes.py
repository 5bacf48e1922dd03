"""Every end of a run has its state, its error for callers, and its place in the journal; what has ended stays so."""

import pickle
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    Context,
    DotdoError,
    Fail,
    Handle,
    InputError,
    RunBlocked,
    RunCancelled,
    StillRunning,
    UnknownName,
    action,
    service,
    wait_for_event,
)
from dotdo.errors import InvalidOperation, OutcomeError
from tests import doors
from tests.workshop import PATIENCE, Workshop, data, kinds

pytestmark = pytest.mark.usefixtures("both_doors")


@pytest.fixture
def ended(workshop: Workshop) -> dict[str, Handle[Any]]:
    """A run in each state that a run stays in."""

    @action("succeed", catalogue=workshop.catalogue)
    def succeed() -> dict[str, int]:
        return {"answer": 42}

    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("waits", catalogue=workshop.catalogue)
    async def waits() -> None:
        await wait_for_event("never")

    @service("buggy", catalogue=workshop.catalogue)
    async def buggy() -> None:
        raise ValueError("a bug")

    client = workshop.open()
    runs: dict[str, Handle[Any]] = {
        "completed": client.start(succeed),
        "failed": client.start(refuse),
        "cancelled": client.start(waits),
        "blocked": client.start(buggy),
    }
    runs["cancelled"].cancel(actor="kim")
    for status, handle in runs.items():
        workshop.until(lambda handle=handle, status=status: handle.get().status == status)
    return runs


def test_each_state_has_its_answer(ended: dict[str, Handle[Any]]):
    assert ended["completed"].result(timeout=PATIENCE) == {"answer": 42}
    errors: dict[str, tuple[type[OutcomeError], str, str]] = {
        "failed": (ActionFailed, "action_failed", "refuse failed: no"),
        "cancelled": (RunCancelled, "cancelled", f"cancelled by {doors.actor('kim')}"),
        "blocked": (RunBlocked, "blocked", "a bug"),
    }
    for status, (kind, code, message) in errors.items():
        with pytest.raises(kind, match=message) as failure:
            ended[status].result(timeout=PATIENCE)
        assert (failure.value.code, failure.value.run_id) == (code, ended[status].id)
        assert isinstance(failure.value, DotdoError)


def test_each_state_is_in_the_run_and_at_the_end_of_its_journal(ended: dict[str, Handle[Any]]):
    for status, handle in ended.items():
        run = handle.get()
        assert (run.status, run.ended) == (status, status != "blocked")
        assert (run.result is not None) == (status == "completed")
        assert (run.error is not None) == (status != "completed")
        assert (run.waiting_for is not None) == (status == "blocked")
        assert (run.ended_at is not None) == (status != "blocked")
        assert kinds(handle)[-1] == ("blocked" if status == "blocked" else "ended")
        if status != "blocked":
            (end,) = data(handle, "ended")
            assert end.status == status


def test_what_has_ended_is_the_same_for_every_reader_and_after_a_restart(
    workshop: Workshop, ended: dict[str, Handle[Any]]
):
    before = {status: (handle.get(), handle.journal()) for status, handle in ended.items()}
    workshop.close_clients()
    client = workshop.open()
    after = {status: (client.runs.get(one.id), client.runs.journal(one.id)) for status, one in ended.items()}
    assert after == before


def test_what_an_ended_run_takes_no_more(ended: dict[str, Handle[Any]]):
    for status in ("completed", "failed", "cancelled"):
        with pytest.raises(InvalidOperation, match="has ended"):
            ended[status].cancel()
        with pytest.raises(InvalidOperation, match="has ended"):
            ended[status].send_event("never")


def test_only_what_did_not_complete_can_be_retried(workshop: Workshop, ended: dict[str, Handle[Any]]):
    client = workshop.open_clients[-1]
    with pytest.raises(InvalidOperation, match="only a failed, cancelled or blocked run"):
        client.runs.retry(ended["completed"].id)


def test_unknown_runs_are_named(workshop: Workshop):
    client = workshop.open()
    calls: list[Any] = [client.runs.get, client.runs.wait, client.runs.journal, client.runs.cancel, client.runs.retry]
    for call in calls:
        with pytest.raises(UnknownName, match="no run 'run_nowhere'") as failure:
            call("run_nowhere")
        assert isinstance(failure.value, InputError)


def test_failure_survives_pickling(ended: dict[str, Handle[Any]]):
    """Callers hand it to other processes."""
    with pytest.raises(ActionFailed) as failure:
        ended["failed"].result(timeout=PATIENCE)
    copy = pickle.loads(pickle.dumps(failure.value))  # noqa: S301 - made here
    assert vars(copy) == vars(failure.value)
    assert str(copy) == str(failure.value)


def test_failed_run_answers_its_key_again(workshop: Workshop):
    calls: list[str] = []

    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse(name: str) -> None:
        calls.append(name)
        raise Fail("no")

    client = workshop.open()
    failures: list[ActionFailed] = []
    for _ in range(2):
        with pytest.raises(ActionFailed) as failure:
            client.run(refuse.with_(key="once"), name="ada")
        failures.append(failure.value)
    assert calls == ["ada"]
    assert failures[0].run_id == failures[1].run_id


def test_service_sees_the_failure_of_its_step(workshop: Workshop):
    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse(ctx: Context) -> None:
        raise LookupError(f"in {ctx.step.partition(':')[0]}")

    @service("copes", catalogue=workshop.catalogue)
    async def copes() -> list[Any]:
        try:
            await refuse()
        except ActionFailed as error:
            return [error.action, error.error_type, error.error_message, error.attempts, error.step]
        return []

    name, kind, message, attempts, step = workshop.open().run(copes)
    assert (name, kind, message, attempts) == ("refuse", "LookupError", "in refuse", 1)
    assert step.startswith("refuse:")


def test_caller_that_stops_waiting_can_ask_again(workshop: Workshop):
    @service("waits", catalogue=workshop.catalogue)
    async def waits() -> str:
        return await wait_for_event("go")

    handle = workshop.open().start(waits)
    with pytest.raises(StillRunning, match="It goes on"):
        handle.result(timeout=0.01)
    handle.send_event("go", "gone")
    assert handle.result(timeout=PATIENCE) == "gone"


def test_context_says_whose_attempt_it_is(workshop: Workshop):
    seen: list[tuple[Any, ...]] = []

    def look(ctx: Context | AsyncContext) -> None:
        seen.append((ctx.run_id, ctx.step, ctx.attempt, ctx.idempotency_key, ctx.actor, ctx.trail))
        if ctx.attempt == 1:
            raise ConnectionError("later")

    @action("look-sync", retry=2, catalogue=workshop.catalogue)
    def look_sync(ctx: Context) -> None:
        look(ctx)

    @action("look-async", retry=2, catalogue=workshop.catalogue)
    async def look_async(ctx: AsyncContext) -> None:
        look(ctx)

    client, kim = workshop.open(actor="kim"), doors.actor_through(doors.chosen, "kim")
    definitions: list[Any] = [look_sync, look_async]
    for definition in definitions:
        seen.clear()
        with client.trail("signup:1"):
            handle = client.start(definition)
        workshop.clock.advance_to_next()
        handle.result(timeout=PATIENCE)
        (first, second) = seen
        assert first == (handle.id, definition.name, 1, second[3], kim, "signup:1")
        assert second[:3] == (handle.id, definition.name, 2)
        (accepted,) = data(handle, "accepted")
        assert (accepted.options.actor, accepted.options.trail) == (kim, "signup:1")


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_actions_do_not_call_actions(workshop: Workshop, shape: str):
    @action("inner", catalogue=workshop.catalogue)
    def inner() -> None:
        raise NotImplementedError

    @action("outer-sync", retry=1, catalogue=workshop.catalogue)
    def outer_sync(ctx: Context) -> None:
        inner()

    @action("outer-async", retry=1, catalogue=workshop.catalogue)
    async def outer_async(ctx: AsyncContext) -> None:
        await inner()

    definitions: dict[str, Any] = {"sync": outer_sync, "async": outer_async}
    with pytest.raises(ActionFailed, match="Actions do not call actions") as failure:
        workshop.open().run(definitions[shape])
    assert failure.value.error_type == "CalledOutside"
