"""Retries: how often, after how long, for what; every attempt is journaled, and the wait is kept across restarts."""

from datetime import timedelta
from typing import Any

import pytest

from dotdo import ActionFailed, Context, Fail, InvalidInput, Retry, RetryLater, action, service
from tests.workshop import PATIENCE, Workshop, data, kinds

SECOND = timedelta(seconds=1)
STEADY = Retry(attempts=5, delay=1, factor=3, max_delay=10, jitter=False)


class Bad(Exception):
    """An error that a policy names."""


class Worse(Bad):
    """A kind of it."""


def test_backoff_grows_by_its_factor_up_to_its_cap(workshop: Workshop):
    @action("flaky", retry=STEADY, catalogue=workshop.catalogue)
    def flaky(ctx: Context) -> int:
        if ctx.attempt < 5:
            raise ConnectionError(f"attempt {ctx.attempt}")
        return ctx.attempt

    handle = workshop.open().start(flaky)
    waits = [workshop.clock.advance_to_next() for _ in range(4)]

    assert handle.result(timeout=PATIENCE) == 5
    assert waits == [1 * SECOND, 3 * SECOND, 9 * SECOND, 10 * SECOND]


def test_every_attempt_is_journaled_with_its_error_and_the_next_time(workshop: Workshop):
    @action("flaky", retry=STEADY, catalogue=workshop.catalogue)
    def flaky(ctx: Context, name: str) -> None:
        raise Bad(f"{name} {ctx.attempt}")

    handle = workshop.open().start(flaky, name="ada")
    for _ in range(4):
        workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed, match="flaky failed after 5 attempts: Bad: ada 5") as failure:
        handle.result(timeout=PATIENCE)

    assert (failure.value.error_type, failure.value.attempts) == ("Bad", 5)
    failed = data(handle, "attempt_failed")
    assert [one.error.message for one in failed] == [f"ada {n}" for n in range(1, 6)]
    assert all(one.error.type == "Bad" and "in flaky" in one.error.traceback for one in failed)
    assert {bytes(one.input) for one in failed} == {b'{"name":"ada"}'}
    waits = [one.next_at - one.started for one in failed if one.next_at is not None]
    assert waits == [1000, 3000, 9000, 10_000]
    assert failed[-1].next_at is None
    entries = [entry.attempt for entry in handle.journal() if entry.kind == "attempt_failed"]
    assert entries == [1, 2, 3, 4, 5]


def test_jitter_takes_a_share_of_the_delay(workshop: Workshop):
    @action("flaky", retry=Retry(attempts=9, delay=100, factor=1), catalogue=workshop.catalogue)
    def flaky(ctx: Context) -> None:
        if ctx.attempt < 9:
            raise ConnectionError("later")

    handle = workshop.open().start(flaky)
    waits = [workshop.clock.advance_to_next() for _ in range(8)]
    handle.result(timeout=PATIENCE)

    assert all(wait <= 100 * SECOND for wait in waits)
    assert len(set(waits)) > 1


def test_fail_is_permanent(workshop: Workshop):
    @action("refuse", retry=STEADY, catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    handle = workshop.open().start(refuse)
    with pytest.raises(ActionFailed, match="refuse failed: no") as failure:
        handle.result(timeout=PATIENCE)
    assert (failure.value.attempts, failure.value.error_type) == (1, "Fail")
    assert kinds(handle, "refuse") == ["attempt_failed", "failed"]


def test_retry_later_says_when(workshop: Workshop):
    @action("busy", retry=STEADY, catalogue=workshop.catalogue)
    def busy(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise RetryLater("maintenance", after=3600)
        if ctx.attempt == 2:
            raise RetryLater()
        return ctx.attempt

    handle = workshop.open().start(busy)
    assert [workshop.clock.advance_to_next() for _ in range(2)] == [3600 * SECOND, 3 * SECOND]
    assert handle.result(timeout=PATIENCE) == 3
    assert data(handle, "attempt_failed")[0].error.message == "maintenance"


def test_retry_later_uses_attempts_up(workshop: Workshop):
    @action("busy", retry=2, catalogue=workshop.catalogue)
    def busy() -> None:
        raise RetryLater("still busy", after=5)

    handle = workshop.open().start(busy)
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed, match="after 2 attempts: still busy"):
        handle.result(timeout=PATIENCE)


@pytest.mark.parametrize(
    "retry, error, attempts",
    [
        (Retry(attempts=2, on=Bad), Bad("x"), 2),
        (Retry(attempts=2, on=Bad), Worse("x"), 2),
        (Retry(attempts=2, on=Bad), ValueError("x"), 1),
        (Retry(attempts=2, on=(Bad, ValueError)), ValueError("x"), 2),
        (Retry(attempts=2, never_on=Worse), Worse("x"), 1),
        (Retry(attempts=2, never_on=Worse), Bad("x"), 2),
        (Retry(attempts=2, on=Bad), RetryLater("x"), 2),
        (Retry(attempts=2), KeyboardInterrupt("x"), 1),
        (Retry(attempts=2), SystemExit("x"), 1),
    ],
)
def test_policy_says_which_errors_are_retried(workshop: Workshop, retry: Retry, error: BaseException, attempts: int):
    calls: list[int] = []

    @action("flaky", retry=retry, catalogue=workshop.catalogue)
    def flaky(ctx: Context) -> None:
        calls.append(ctx.attempt)
        raise error

    @action("flaky-async", retry=retry, catalogue=workshop.catalogue)
    async def flaky_async() -> None:
        calls.append(len(calls) + 1)
        raise error

    client = workshop.open()
    definitions: list[Any] = [flaky, flaky_async]
    for definition in definitions:
        calls.clear()
        handle = client.start(definition)
        for _ in range(attempts - 1):
            workshop.clock.advance_to_next()
        with pytest.raises(ActionFailed) as failure:
            handle.result(timeout=PATIENCE)
        assert failure.value.error_type == type(error).__name__
        assert calls == list(range(1, attempts + 1))


def test_max_elapsed_ends_the_attempts(workshop: Workshop):
    retry = Retry(attempts=None, delay=10, factor=1, jitter=False, max_elapsed=25)

    @action("flaky", retry=retry, catalogue=workshop.catalogue)
    def flaky() -> None:
        raise ConnectionError("later")

    handle = workshop.open().start(flaky)
    assert [workshop.clock.advance_to_next() for _ in range(2)] == [10 * SECOND] * 2
    with pytest.raises(ActionFailed, match="after 3 attempts"):
        handle.result(timeout=PATIENCE)


def test_result_that_is_no_json_fails_at_once(workshop: Workshop):
    @action("strange", retry=STEADY, catalogue=workshop.catalogue)
    def strange() -> Any:
        return float("nan")

    handle = workshop.open().start(strange)
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)
    assert (failure.value.error_type, failure.value.attempts) == ("InvalidValue", 1)


def test_bad_input_is_refused_before_anything_is_written(workshop: Workshop):
    calls: list[str] = []

    @action("greet", catalogue=workshop.catalogue)
    def greet(name: str) -> None:
        calls.append(name)

    client = workshop.open()
    with pytest.raises(InvalidInput):
        client.action("greet").start(name=7)
    assert (calls, client.runs.list()) == ([], [])


def test_a_call_says_what_it_wants_differently(workshop: Workshop):
    @action("flaky", retry=STEADY, catalogue=workshop.catalogue)
    def flaky() -> None:
        raise ConnectionError("no")

    @service("calls-once", catalogue=workshop.catalogue)
    async def calls_once() -> None:
        await flaky.with_(retry=1)()

    client = workshop.open()
    with pytest.raises(ActionFailed) as failure:
        client.run(flaky.with_(retry=1))
    assert failure.value.attempts == 1
    with pytest.raises(ActionFailed) as failure:
        client.run(calls_once)
    assert failure.value.attempts == 1

    handle = client.start(flaky.with_(retry=Retry(attempts=2, delay=50, jitter=False)))
    assert workshop.clock.advance_to_next() == 50 * SECOND
    with pytest.raises(ActionFailed, match="after 2 attempts"):
        handle.result(timeout=PATIENCE)


def test_backoff_is_kept_across_a_restart(workshop: Workshop):
    """The wait is what is left of it, not begun anew, and the attempts before count."""
    attempts: list[int] = []

    @action("flaky", retry=Retry(attempts=2, delay=1000, max_delay=1000, jitter=False), catalogue=workshop.catalogue)
    def flaky(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ConnectionError("later")

    before = workshop.open()
    handle = before.start(flaky)
    assert workshop.clock.time_to_next() == 1000 * SECOND
    before.close()
    workshop.clock.advance(999)

    after = workshop.open()
    assert workshop.clock.advance_to_next() == 1 * SECOND
    with pytest.raises(ActionFailed, match="after 2 attempts"):
        after.runs.wait(handle.id, timeout=PATIENCE)
    assert attempts == [1, 2]


def test_run_that_waits_for_a_retry_says_so_and_holds_no_memory(workshop: Workshop):
    @action("flaky", retry=Retry(attempts=2, delay=30, jitter=False), catalogue=workshop.catalogue)
    def flaky() -> None:
        raise ConnectionError("the provider is down")

    client = workshop.open()
    handle = client.start(flaky)
    waiting_for = workshop.until_waiting(client, handle)

    assert (waiting_for.kind, waiting_for.until) == ("retry", workshop.clock.now() + 30_000)
    assert waiting_for.text == "attempt 2 of 2 of flaky, after: the provider is down"
    workshop.clock.advance(30)
    with pytest.raises(ActionFailed, match="after 2 attempts"):
        handle.result(timeout=PATIENCE)
