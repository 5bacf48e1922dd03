"""What the model has found, each once more as a test of its own."""

import json
from collections.abc import Iterator
from typing import cast

import pytest

from dotdo import AsyncDo, Handle
from dotdo.engine import parking
from dotdo.engine.engine import Engine
from dotdo.store.protocol import Message
from dotdo.testing import TestDo
from tests.model.reference import NAP, PATIENCE
from tests.model.trips import Outside, catalogue


@pytest.fixture
def outside() -> Outside:
    """The world that trips are made in."""
    return Outside()


@pytest.fixture
def do(outside: Outside) -> Iterator[TestDo]:
    """A client that makes trips."""
    with TestDo(catalogue=catalogue, resources=[outside]) as client:
        yield client


def begin(do: TestDo, word: str = "") -> Handle[str]:
    """A trip that has come as far as it gets. word: that it is sent."""
    run = do.service("trip", trail="trip").start(city="Oslo")
    do.settle()
    if word:
        run.send_event("word", word)
        do.settle()
    return run


def resolve(do: TestDo, id: str, outcome: str) -> None:
    """Answers each question in this way."""
    for question in do.runs.get(id).questions:
        do.runs.resolve(id, outcome, key=question.key)  # type: ignore[arg-type]
    do.settle()


def test_retry_sends_again_what_was_asked_about_although_the_tries_are_used_up(do: TestDo, outside: Outside):
    outside.troubles = {"lost"}
    run = begin(do, "yes")
    assert run.get().status == "blocked"
    outside.troubles = set()
    do.runs.retry(run.id)
    do.settle()
    assert outside.deeds["trip"][2:] == ["charge Oslo", "tell", "charge again Oslo", "pack Oslo"]


def test_person_may_have_a_request_of_a_cancelled_run_sent_again_to_be_taken_back(do: TestDo, outside: Outside):
    outside.troubles = {"lost"}
    run = begin(do, "yes")
    run.cancel()
    do.settle()
    assert run.get().status == "blocked"
    resolve(do, run.id, "try_again")
    assert outside.deeds["trip"][2:] == ["charge Oslo", "tell", "charge again Oslo", "tell"]
    assert run.get().status == "blocked"
    outside.troubles = set()
    resolve(do, run.id, "try_again")
    assert outside.deeds["trip"][6:] == ["charge again Oslo", "refund Oslo", "unbook Oslo"]
    assert (run.get().status, run.get().undo) == ("cancelled", "all")


def test_request_that_is_to_be_sent_again_is_not_once_its_run_is_cancelled(do: TestDo, outside: Outside):
    outside.troubles = {"lost"}
    run = begin(do, "yes")
    known = json.dumps([question.key for question in run.get().questions])

    async def retry_and_cancel(client: AsyncDo) -> None:
        engine = cast("Engine", await client.platform())
        messages = [Message(run.id, kind, "", known, None, None, do.clock.now()) for kind in ("retry", "cancel")]
        await engine.write(lambda: [engine.store.post(message) for message in messages])  # taken together

    do.call(retry_and_cancel)
    do.settle()
    assert [question.about for question in run.get().questions] == ["request"]
    assert "charge again Oslo" not in outside.deeds["trip"]


def test_undeliverable_step_that_a_person_leaves_as_it_is_has_failed(do: TestDo, outside: Outside):
    outside.troubles = {"full", "stuck"}
    run = begin(do)
    do.advance(30)
    assert [question.about for question in run.get().questions] == ["undo"]
    resolve(do, run.id, "did_not_happen")
    assert (run.get().status, run.get().undo) == ("failed", "none")


def test_event_that_came_after_its_time_is_there_when_the_run_is_retried(do: TestDo):
    run = begin(do)
    do.advance(PATIENCE)
    run.send_event("word", "yes")
    run.cancel()
    do.settle()
    do.runs.retry(run.id)
    do.settle()
    do.advance(NAP)
    run.send_event("word", "well")
    assert run.result(timeout=60) == "Oslo: yes, well"


def test_run_whose_step_a_person_left_as_it_was_can_be_retried(do: TestDo, outside: Outside):
    outside.troubles = {"stuck"}
    run = begin(do)
    run.cancel()
    do.settle()
    resolve(do, run.id, "did_not_happen")
    assert (run.get().status, run.get().undo) == ("cancelled", "none")
    do.runs.retry(run.id)
    do.settle()
    for word in ("yes", "well"):
        run.send_event("word", word)
        do.settle()
        do.advance(NAP)
    assert run.result(timeout=60) == "Oslo: yes, well"
    assert outside.deeds["trip"].count("book Oslo") == 1


def test_parent_of_a_child_that_a_person_left_as_it_was_is_undone_in_part(do: TestDo, outside: Outside):
    run = begin(do, "yes")
    do.advance(NAP)
    run.send_event("word", "well")
    assert run.result(timeout=60)
    outside.troubles = {"stuck"}
    do.runs.undo(run.id)
    do.settle()
    (child,) = do.runs.list(parent=run.id)
    resolve(do, child.id, "did_not_happen")
    outside.troubles = set()
    resolve(do, run.id, "try_again")
    assert (do.runs.get(child.id).undo, run.get().undo) == ("none", "partial")


def test_child_is_undone_once_although_its_parent_has_left_memory_meanwhile(
    do: TestDo, outside: Outside, monkeypatch: pytest.MonkeyPatch
):
    run = begin(do, "yes")
    do.advance(NAP)
    run.send_event("word", "well")
    assert run.result(timeout=60)
    monkeypatch.setattr(parking, "LINGER_FOR_CHILD", 0.0)
    outside.troubles = {"stuck"}
    do.runs.undo(run.id)
    do.settle()
    (child,) = do.runs.list(parent=run.id)
    assert (run.get().status, child.status) == ("waiting", "blocked")
    resolve(do, child.id, "did_not_happen")
    assert [entry.kind for entry in do.runs.journal(child.id)].count("ended") == 2
    assert do.runs.get(child.id).generation == 2
