"""Staged effects: nothing leaves before the commit, everything after it, under keys that never change."""

from datetime import timedelta
from typing import Any, cast

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    Context,
    DefinitionError,
    Fail,
    InvalidInput,
    RetryLater,
    RunCancelled,
    action,
    service,
)
from tests.workshop import PATIENCE, Workshop, data, kinds


def test_handler_that_raises_sends_nothing(workshop: Workshop):
    @action("notify", retry=1, catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        ctx.stage(workshop.send, text="never")
        raise Fail("no")

    handle = workshop.open().start(notify)
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)

    assert workshop.receiver.heard == []
    assert kinds(handle, "notify") == ["attempt_failed", "failed"]


def test_only_what_the_attempt_that_commits_has_staged_is_sent(workshop: Workshop):
    @action("notify", retry=3, catalogue=workshop.catalogue)
    async def notify(ctx: AsyncContext) -> None:
        ctx.stage(workshop.send, text=f"from attempt {ctx.attempt}")
        if ctx.attempt < 3:
            raise ConnectionError("not yet")

    handle = workshop.open().start(notify)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    assert workshop.receiver.texts() == ["from attempt 3"]


def test_nothing_leaves_while_the_handler_runs(workshop: Workshop):
    heard: list[int] = []

    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> str:
        staged = ctx.stage(workshop.send, text="hello")
        heard.append(len(workshop.receiver.heard))
        return staged.id

    key = workshop.open().run(notify)

    assert heard == [0]
    assert [(one.text, one.key) for one in workshop.receiver.heard] == [("hello", key)]


def test_step_is_committed_before_it_is_completed(workshop: Workshop):
    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> str:
        ctx.stage(workshop.send, text="one")
        ctx.stage(workshop.send, text="two")
        return "done"

    handle = workshop.open().start(notify)
    assert handle.result(timeout=PATIENCE) == "done"

    assert kinds(handle, "notify") == ["committed", "delivered", "delivered", "effects_completed"]
    (committed,) = data(handle, "committed")
    assert [effect.key for effect in committed.effects] == sorted_by_arrival(workshop)
    assert len({effect.key for effect in committed.effects}) == 2


def sorted_by_arrival(workshop: Workshop) -> list[str]:
    return [key for _, key in sorted((one.text == "two", one.key) for one in workshop.receiver.heard)]


def test_refused_delivery_is_repeated_under_its_key_without_the_handler(workshop: Workshop):
    runs: list[int] = []

    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        runs.append(ctx.attempt)
        ctx.stage(workshop.send, text="hello")

    workshop.receiver.fail("send", ConnectionError("busy"), ConnectionError("busy"))
    handle = workshop.open().start(notify)
    waits = [workshop.clock.advance_to_next() for _ in range(2)]
    handle.result(timeout=PATIENCE)

    assert waits == [timedelta(seconds=10), timedelta(seconds=20)]  # the effect's own policy
    assert runs == [1]
    assert [one.attempt for one in workshop.receiver.heard] == [1, 2, 3]
    assert len(set(workshop.receiver.keys("send"))) == 1
    assert kinds(handle, "notify") == ["committed", *["delivery_failed"] * 2, "delivered", "effects_completed"]


def test_each_effect_has_its_own_retries(workshop: Workshop):
    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        ctx.stage(workshop.send, text="refused at first")
        ctx.stage(workshop.ask, text="taken at once")

    workshop.receiver.fail("send", ConnectionError("busy"))
    handle = workshop.open().start(notify)
    workshop.receiver.wait_for("ask")
    workshop.clock.advance_to_next()
    handle.result(timeout=PATIENCE)

    assert [one.text for one in workshop.receiver.heard if one.what == "ask"] == ["taken at once"]
    assert workshop.receiver.texts("send") == ["refused at first"] * 2


def test_keys_differ_between_runs_and_between_steps(workshop: Workshop):
    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context, text: str) -> None:
        ctx.stage(workshop.send, text=text)

    @service("twice", catalogue=workshop.catalogue)
    async def twice() -> None:
        await notify(text="a")
        await notify(text="a")

    client = workshop.open()
    client.run(twice)
    client.run(twice)

    keys = workshop.receiver.keys("send")
    assert len(keys) == len(set(keys)) == 4


def test_undeliverable_effect_fails_the_step_undoes_it_and_lists_what_has_left(workshop: Workshop):
    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> str:
        ctx.stage(workshop.ask, text="sent")
        ctx.stage(workshop.send, text="refused for good")
        return "ticket"

    @notify.undo
    def take_back(ctx: Context, ticket: str) -> None:
        ctx.stage(workshop.ask, text=f"undo {ticket}")

    workshop.receiver.fail("send", Fail("unknown address"))
    client = workshop.open()
    handle = client.start(notify)
    with pytest.raises(ActionFailed, match=r"notify failed: send could not be delivered: unknown address") as failure:
        handle.result(timeout=PATIENCE)

    assert (failure.value.action, failure.value.error_type, failure.value.undo) == ("notify", "Fail", "all")
    assert sorted(workshop.receiver.texts()) == ["refused for good", "sent", "undo ticket"]
    (failed,) = data(handle, "failed")
    assert failed.not_undone == ["ask"]
    assert client.runs.get(handle.id).not_undone == ["notify: ask"]
    (undone,) = data(handle, "undone")
    assert undone.step == "notify"
    steps = [(entry.step, entry.kind) for entry in handle.journal()]
    assert steps.index(("", "undone")) < steps.index(("notify", "failed"))


def test_undeliverable_effect_is_given_up_after_its_last_try(workshop: Workshop):
    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        ctx.stage(workshop.send, text="hello")

    workshop.receiver.fail("send", *[RetryLater(f"busy {n}", after=10) for n in range(3)])
    handle = workshop.open().start(notify)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed, match="busy 2") as failure:
        handle.result(timeout=PATIENCE)

    assert failure.value.attempts == 3
    tries = data(handle, "delivery_failed")
    assert [(one.tries, one.next_at is None) for one in tries] == [(1, False), (2, False), (3, True)]


def test_error_is_that_of_the_effect_that_was_given_up(workshop: Workshop):
    """Another effect of the step that merely stumbled later must not be blamed."""

    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        ctx.stage(workshop.send, text="refused")
        ctx.stage(workshop.ask, text="stumbles")

    workshop.receiver.fail("send", Fail("unknown address"))
    workshop.receiver.fail("ask", ConnectionError("busy"), ConnectionError("busy"))
    handle = workshop.open().start(notify)
    workshop.clock.advance_to_next()
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed, match="send could not be delivered: unknown address"):
        handle.result(timeout=PATIENCE)


def test_staged_effects_of_an_undo_are_delivered(workshop: Workshop):
    @action("create", catalogue=workshop.catalogue)
    def create() -> str:
        return "thing"

    @create.undo
    def remove(ctx: Context, thing: str) -> None:
        ctx.stage(workshop.send, text=f"remove {thing}")

    @action("refuse", retry=1, catalogue=workshop.catalogue)
    def refuse() -> None:
        raise Fail("no")

    @service("create-and-fail", catalogue=workshop.catalogue)
    async def create_and_fail() -> None:
        await create()
        await refuse()

    workshop.receiver.fail("send", ConnectionError("busy"))
    handle = workshop.open().start(create_and_fail)
    workshop.clock.advance_to_next()
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)

    assert workshop.receiver.texts() == ["remove thing"] * 2
    assert len(set(workshop.receiver.keys("send"))) == 1


def test_cancelling_does_not_wait_for_the_next_try(workshop: Workshop):
    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        ctx.stage(workshop.send, text="hello")

    workshop.receiver.fail("send", ConnectionError("busy"))
    handle = workshop.open().start(notify)
    workshop.receiver.wait_for("send")
    handle.cancel()
    with pytest.raises(RunCancelled):
        handle.result(timeout=PATIENCE)

    assert workshop.receiver.texts() == ["hello"]
    (dropped,) = data(handle, "effects_dropped")
    assert dropped.effects == [0]


@pytest.mark.parametrize("effect", ["a name", lambda: None, len])
def test_only_effects_can_be_staged(workshop: Workshop, effect: object):
    problems: list[str] = []

    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        with pytest.raises(DefinitionError, match="is not an effect") as refused:
            cast("Any", ctx).stage(effect, text="hello")
        problems.append(refused.value.message)

    workshop.open().run(notify)
    assert "define it with @effect" in problems[0]


def test_input_of_an_effect_is_checked_when_it_is_staged(workshop: Workshop):
    @action("notify", catalogue=workshop.catalogue)
    def notify(ctx: Context) -> None:
        ctx.stage(workshop.send, text=7, colour="red")

    handle = workshop.open().start(notify)
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)

    assert failure.value.error_type == InvalidInput.__name__
    assert "$.text" in failure.value.error_message
    assert "$.colour" in failure.value.error_message
    assert failure.value.attempts == 1  # a refused input does not get better by trying again
    assert workshop.receiver.heard == []
