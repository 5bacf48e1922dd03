"""A fallback is tried when the retries are used up and the first is undone; the journal says whose result stands."""

from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    Context,
    DefinitionError,
    Fail,
    InvalidInput,
    Retry,
    RunBlocked,
    action,
    service,
)
from tests.workshop import PATIENCE, Workshop, data, kinds

STEADY = Retry(attempts=2, delay=10, jitter=False)


def test_fallback_gets_the_same_input_when_the_retries_are_used_up(workshop: Workshop):
    calls: list[str] = []

    @action("charge-elsewhere", catalogue=workshop.catalogue)
    def charge_elsewhere(ctx: Context, cents: int) -> str:
        calls.append(f"elsewhere {cents}")
        return "elsewhere"

    @action("charge", retry=STEADY, fallback=charge_elsewhere, catalogue=workshop.catalogue)
    def charge(ctx: Context, cents: int) -> str:
        calls.append(f"charge {cents}")
        raise ConnectionError("down")

    handle = workshop.open().start(charge, cents=5)
    workshop.clock.advance_to_next()
    assert handle.result(timeout=PATIENCE) == "elsewhere"

    assert calls == ["charge 5", "charge 5", "elsewhere 5"]
    failed = data(handle, "attempt_failed")
    assert [(one.action, one.fallback) for one in failed] == [("charge", False)] * 2
    (completed,) = data(handle, "completed")
    assert (completed.action, completed.fallback) == ("charge-elsewhere", True)
    assert kinds(handle, "charge") == ["attempt_failed", "attempt_failed", "completed"]


def test_fallback_is_not_tried_while_the_first_may_still_succeed(workshop: Workshop):
    @action("never", catalogue=workshop.catalogue)
    def never() -> str:
        raise NotImplementedError

    @action("flaky", retry=STEADY, fallback=never, catalogue=workshop.catalogue)
    def flaky(ctx: Context) -> str:
        if ctx.attempt == 1:
            raise ConnectionError("down")
        return "itself"

    handle = workshop.open().start(flaky)
    workshop.clock.advance_to_next()
    assert handle.result(timeout=PATIENCE) == "itself"
    assert data(handle, "completed")[0].fallback is False


def test_fallback_has_retries_of_its_own(workshop: Workshop):
    attempts: list[int] = []

    @action("second", retry=STEADY, catalogue=workshop.catalogue)
    def second(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            raise ConnectionError("down, too")
        return "second"

    @action("first", retry=1, fallback=second, catalogue=workshop.catalogue)
    def first() -> str:
        raise Fail("no")

    handle = workshop.open().start(first)
    workshop.clock.advance_to_next()
    assert handle.result(timeout=PATIENCE) == "second"
    assert attempts == [2, 3]  # attempts are numbered by step


def test_step_fails_when_its_fallback_does(workshop: Workshop):
    @action("second", retry=1, catalogue=workshop.catalogue)
    def second() -> None:
        raise Fail("second says no")

    @action("first", retry=1, fallback=second, catalogue=workshop.catalogue)
    def first() -> None:
        raise Fail("first says no")

    @service("tries-both", catalogue=workshop.catalogue)
    async def tries_both() -> None:
        await first()

    client = workshop.open()
    definitions: list[Any] = [first, tries_both]
    for definition in definitions:
        handle = client.start(definition)
        with pytest.raises(ActionFailed, match="second says no") as failure:
            handle.result(timeout=PATIENCE)
        assert failure.value.action == "first"  # it was called; the journal knows who stood in
        (failed,) = data(handle, "failed")
        assert failed.fallback is True
        assert [one.action for one in data(handle, "attempt_failed")] == ["first", "second"]


def test_first_is_undone_before_the_fallback_starts(workshop: Workshop):
    @action("buy-elsewhere", catalogue=workshop.catalogue)
    async def buy_elsewhere(ctx: AsyncContext) -> str:
        return await ctx.request(workshop.ask, text="elsewhere")

    @action("buy", retry=1, fallback=buy_elsewhere, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        await ctx.request(workshop.order, text="bread")
        raise Fail("no")

    workshop.receiver.fail("cancel", ConnectionError("busy"))
    handle = workshop.open().start(buy)
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)
    assert [one.what for one in workshop.receiver.heard] == ["order", "cancel", "cancel", "ask"]


def test_fallback_never_starts_while_the_outcome_of_the_first_is_unknown(workshop: Workshop):
    """A request that was never answered, to a receiver that cannot be asked: a person must find out first."""

    @action("buy-elsewhere", catalogue=workshop.catalogue)
    async def buy_elsewhere() -> str:
        raise NotImplementedError

    many = Retry(attempts=100, delay=0, jitter=False)  # on a slow machine time is over before anything was asked for

    @action("buy", retry=many, fallback=buy_elsewhere, timeout=0.05, catalogue=workshop.catalogue)
    async def buy(ctx: AsyncContext) -> str:
        return await ctx.request(workshop.hang, text="bread")

    handle = workshop.open().start(buy)
    with pytest.raises(RunBlocked, match="Nobody knows whether hang happened"):
        handle.result(timeout=PATIENCE)
    assert workshop.receiver.texts() == ["bread"]


def test_own_undo_of_the_fallback_applies_to_its_own_output(workshop: Workshop):
    undone: list[str] = []

    @action("second", catalogue=workshop.catalogue)
    def second(name: str) -> str:
        return f"second {name}"

    @second.undo
    def undo_second(ctx: Context, made: str, input: dict[str, Any]) -> None:
        undone.append(f"{made} {input}")

    @action("first", retry=1, fallback=second, catalogue=workshop.catalogue)
    def first(name: str) -> str:
        raise Fail("no")

    @first.undo
    def undo_first(ctx: Context, made: str) -> None:
        raise NotImplementedError

    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("makes-and-fails", catalogue=workshop.catalogue)
    async def makes_and_fails() -> None:
        assert await first(name="ada") == "second ada"
        await refuse()

    with pytest.raises(ActionFailed) as failure:
        workshop.open().run(makes_and_fails)
    assert failure.value.undo == "all"
    assert undone == ["second ada {'name': 'ada'}"]


def test_fallback_goes_on_after_a_restart(workshop: Workshop):
    calls: list[str] = []

    @action("second", retry=Retry(attempts=2, delay=1000, max_delay=1000, jitter=False), catalogue=workshop.catalogue)
    def second() -> str:
        calls.append("second")
        if calls.count("second") == 1:
            raise ConnectionError("down")
        return "second"

    @action("first", retry=1, fallback=second, catalogue=workshop.catalogue)
    def first() -> str:
        calls.append("first")
        raise Fail("no")

    before = workshop.open()
    handle = before.start(first)
    workshop.clock.time_to_next()
    before.close()
    after = workshop.open()
    workshop.clock.advance(1000)
    assert after.runs.wait(handle.id, timeout=PATIENCE).result == "second"
    assert calls == ["first", "second", "second"]


def test_chains_are_refused(workshop: Workshop):
    third = action("third", catalogue=workshop.catalogue)(lambda: None)
    second = action("second", fallback=third, catalogue=workshop.catalogue)(lambda: None)
    with pytest.raises(DefinitionError, match="no chains"):
        action("first", fallback=second, catalogue=workshop.catalogue)(lambda: None)


def test_input_that_the_fallback_would_refuse_is_found_when_it_is_defined(workshop: Workshop):
    @action("second", catalogue=workshop.catalogue)
    def second(account: str) -> str:
        raise NotImplementedError

    with pytest.raises((DefinitionError, InvalidInput), match="second"):

        @action("first", fallback=second, catalogue=workshop.catalogue)
        def first(name: str) -> str:
            raise NotImplementedError
