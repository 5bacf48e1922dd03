"""`TestDo`: a client of a test's own, virtual time, fakes, and what can be asked of runs."""

import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from dotdo import ActionFailed, DefinitionError, RunBlocked
from dotdo.testing import Stuck, TestDo
from dotdo.testing.killing import Point
from tests.testing.shop import (
    SOON,
    Outside,
    approval,
    catalogue,
    charge,
    check,
    letter,
    order,
    pay,
    reserve,
    thank,
)

DAY = 24 * 3600 * 1000


# -- time ------------------------------------------------------------------------------------------------------------


def test_time_skips_while_the_test_waits_for_a_run(do: TestDo, outside: Outside):
    began = do.clock.now()
    assert do.run(order, name="ada") == "payment of 100"
    assert do.clock.now() == began + 3 * DAY
    assert sorted(outside.happened) == ["charge visa", "thanks to ada"]


def test_time_stands_still_while_the_test_does_something_else(do: TestDo):
    began = do.clock.now()
    handle = do.start(order, name="ada")
    do.settle()
    assert do.clock.now() == began
    run = handle.get()
    assert run.waiting_for is not None
    assert run.waiting_for.until == began + 3 * DAY


def test_advance_goes_from_one_thing_that_is_due_to_the_next(do: TestDo):
    began = do.clock.now()
    fake = do.fake(check, raises=ConnectionError, times=2)
    handle = do.start(order, name="ada")
    do.advance("1 day")
    assert fake.count == 0
    do.advance(timedelta(days=2))
    assert fake.count == 1
    do.advance("1 week")
    assert fake.count == 3
    run = handle.get()
    assert run.status == "completed"
    # The retries have their own waits, at their own times, though a week passed at once.
    assert run.ended_at is not None
    assert began + 3 * DAY < run.ended_at < began + 3 * DAY + 60_000
    assert do.clock.now() == began + 10 * DAY


def test_time_never_goes_back(do: TestDo):
    with pytest.raises(ValueError, match="never goes back"):
        do.advance(-1)


def test_wait_for_what_no_time_brings_is_told_at_once(do: TestDo):
    handle = do.start(approval)
    with pytest.raises(Stuck, match=r"approval \(run_\w+\) is running: it waits for the event 'approved'"):
        handle.result()
    handle.send_event("approved", "ben")
    assert handle.result() == "ben by payment of 100"


def test_what_comes_while_it_is_looked_for_a_wait_is_no_wait_for_ever(do: TestDo, monkeypatch: pytest.MonkeyPatch):
    """The last look before a test is called stuck finds that something moves again."""
    handle, tested = do.start(approval), do._tested
    look, sent = tested.answer_questions, list[str]()

    async def look_while_it_comes() -> bool:
        if not sent:
            sent.append("approved")
            await tested.handle(handle.id).send_event("approved", "ben")
        return await look()

    monkeypatch.setattr(tested, "answer_questions", look_while_it_comes)
    assert handle.result() == "ben by payment of 100"
    assert sent == ["approved"]


# -- fakes -----------------------------------------------------------------------------------------------------------


def test_fake_answers_instead_of_an_effect(do: TestDo, outside: Outside):
    fake = do.fake(charge, result={"id": "faked"})
    assert do.run(order, name="ada") == "faked"
    assert fake.calls == [{"card": "visa", "cents": 100}]
    assert outside.happened == ["thanks to ada"]


def test_fake_raises_as_often_as_told_and_then_the_real_thing_is_called(do: TestDo, outside: Outside):
    began = do.clock.now()
    fake = do.fake(charge, raises=ConnectionRefusedError, times=2)
    run = do.start(pay, card="visa")
    assert run.result() == "payment of 100"
    assert fake.count == 3
    assert outside.happened == ["charge visa"]
    assert do.clock.now() == began + 2 * 60 * 1000


def test_fake_that_always_raises_uses_the_retries_up_and_the_run_is_undone(do: TestDo, reserved: Callable[[], Any]):
    do.fake(check, raises=ValueError("out of paper"))
    run = do.start(order, name="ada")
    with pytest.raises(ActionFailed, match="out of paper"):
        run.result()
    assert do.undone(run) == ["pay", "reserve"]
    assert reserved() == []
    assert [one.input["text"] for one in do.sent(letter)][1:] == ["refund payment of 100", "an order failed"]


def test_fake_function_gets_what_it_names(do: TestDo):
    do.fake(charge, lambda call, cents: {"id": f"{cents} cents under {call.key.split('.')[0]}"})
    run = do.start(pay, card="amex")
    assert run.result() == f"100 cents under {run.id}"


def test_fake_of_an_action_replaces_its_handler(do: TestDo, outside: Outside):
    fake = do.fake(pay, lambda ctx, card: f"{card} at attempt {ctx.attempt}")
    assert do.run(order, name="ada") == "visa at attempt 1"
    assert fake.calls == [{"card": "visa"}]
    assert outside.happened == ["thanks to ada"]


async def answers(card: str) -> str:
    return f"awaited {card}"


def test_fake_may_be_async_where_the_real_thing_is(do: TestDo):
    do.fake(pay, answers)
    assert do.run(pay, card="visa") == "awaited visa"
    with pytest.raises(DefinitionError, match="cannot be `async def`"):
        do.fake(letter, answers)


def test_fake_output_is_checked_like_any_other(do: TestDo):
    do.fake(pay, result=7)
    with pytest.raises(ActionFailed, match="pay"):
        do.run(pay.with_(retry=1), card="visa")


@pytest.mark.parametrize(
    "given", [{}, {"times": 2, "result": "x"}, {"result": {"id": "x"}, "function": dict}, {"definition": "pay"}]
)
def test_fake_that_says_nothing_or_too_much_is_refused(do: TestDo, given: dict[str, Any]):
    given = dict(given)
    with pytest.raises(DefinitionError):
        do.fake(given.pop("definition", charge), given.pop("function", None), **given)


def test_fakes_of_one_client_are_unknown_to_others(do: TestDo):
    with TestDo(catalogue=catalogue, resources=[Outside()]) as other:
        do.fake(charge, result={"id": "faked"})
        other.fake(charge, result={"id": "other"})
        results: list[str] = []
        threads = [
            threading.Thread(target=lambda client=client: results.append(client.run(pay, card="visa")))
            for client in (do, other) * 4
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["faked"] * 4 + ["other"] * 4
    assert charge.function.__module__ == "tests.testing.shop"


# -- what has come about -----------------------------------------------------------------------------------------------


def test_steps_of_a_run_say_how_they_went(do: TestDo):
    do.fake(reserve, lambda item: "by phone")
    do.fake(charge, raises=TimeoutError("no answer"), times=1, result={"id": "second"})
    run = do.start(order, name="ada", fine=False)
    with pytest.raises(ActionFailed, match="not fine"):
        run.result()
    paid = do.step(run, "pay")
    assert (paid.state, paid.result, paid.input, paid.undone) == ("completed", "second", {"card": "visa"}, True)
    assert [(one.name, one.state) for one in paid.effects] == [("shop.charge", "answered")]
    assert [failure.error.message for failure in paid.failures if failure.error] == ["no answer"]
    thanked = do.step(run, "thank")
    assert [(one.name, one.state) for one in thanked.effects] == [("shop.letter", "delivered")]
    failed = do.step(run, "check")
    assert (failed.state, failed.error and failed.error.message) == ("failed", "not fine")
    assert [step.name for step in do.steps(run) if step.purpose == "undo"] == ["pay", "reserve"]
    with pytest.raises(AssertionError, match=r"0 steps of .* are named 'pray'; it has: reserve:"):
        do.step(run, "pray")


def test_sent_effects_carry_their_keys_and_answers(do: TestDo):
    run = do.start(order, name="ada")
    run.result()
    [charged] = do.sent(charge)
    assert (charged.run, charged.input, charged.answer) == (
        run.id,
        {"card": "visa", "cents": 100},
        {"id": "payment of 100"},
    )
    assert charged.key.startswith(f"{run.id}.")
    assert {one.effect for one in do.sent()} == {"shop.charge", "shop.letter"}


def test_questions_of_a_blocked_run_are_the_tests_to_answer(do: TestDo):
    do.fake(letter, raises=TimeoutError)
    run = do.start(thank, name="ada")
    with pytest.raises(RunBlocked, match=r"Nobody knows whether shop\.letter was delivered"):
        run.result()
    do.runs.resolve(run.id, "happened")
    assert run.result() == "ada"
    assert SOON.attempts == 3


def test_same_seed_gives_the_same_ids(do_options: dict[str, Any]):
    def ids(seed: str) -> list[str]:
        with TestDo(**do_options, seed=seed) as do:
            do.start(thank, name="ada")
            do.start(thank, name="ada")
            return sorted(run.id for run in do.runs.list())

    first = ids("a")
    assert len(set(first)) == 2
    assert ids("a") == first
    assert not {*ids("b")} & {*first}


def test_closed_client_leaves_no_rows_in_the_database(do_options: dict[str, Any], tmp_path: Path):
    with TestDo(**do_options) as do:
        do.points.deadly = Point("sql commit", 1, "before")
        assert do.run(order, name="ada") == "payment of 100"
        assert do.was_killed
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
        assert connection.execute("select * from dotdo_applied").fetchall() == []
        assert connection.execute("select * from reserved").fetchall() == [("book",)]
