"""Messages: kept in order until their run journals them, never lost between a park and an arrival, taken once."""

import pytest

from dotdo.errors import InvalidOperation, UnknownName
from dotdo.store.protocol import Store
from tests.store.runs import NODE, Runs, message


def names(store: Store, run: str) -> list[str]:
    return [one.name for one in store.read_inbox([run])[run]]


def test_messages_are_read_in_order_of_arrival(store: Store, runs: Runs):
    runs.accept("run_1")
    runs.accept("run_2")
    for name in "cab":
        store.post(message("run_1", name=name, at=9))
    store.post(message("run_2", name="other"))
    assert names(store, "run_1") == ["c", "a", "b"]
    found = store.read_inbox(["run_1", "run_2", "run_9"])
    assert {run: len(messages) for run, messages in found.items()} == {"run_1": 3, "run_2": 1, "run_9": 0}
    first = found["run_1"][0]
    assert (first.kind, first.value, first.actor, first.at, first.sender) == ("event", "null", "ada", 9, None)


def test_message_is_deleted_in_the_write_that_journals_it(store: Store, runs: Runs):
    run = runs.accept("run_1")
    store.post(message("run_1", name="a"))
    store.post(message("run_1", name="b"))
    first = store.read_inbox(["run_1"])["run_1"][0]
    store.write([run.write(run.entry("event"), taken=[first.id])])
    assert names(store, "run_1") == ["b"]
    assert runs.journal("run_1") == [(1, "accepted"), (2, "event")]


def test_same_key_of_a_sender_is_one_message(store: Store, runs: Runs):
    runs.accept("run_1")
    runs.accept("run_2")
    for run, sender in (
        ("run_1", "k"),
        ("run_1", "k"),
        ("run_1", "l"),
        ("run_1", None),
        ("run_1", None),
        ("run_2", "k"),
    ):
        store.post(message(run, name=str(sender), sender=sender))
    assert names(store, "run_1") == ["k", "l", "None", "None"]
    assert names(store, "run_2") == ["k"]


def test_message_for_an_unknown_run_is_refused(store: Store, runs: Runs):
    with pytest.raises(UnknownName, match="no run 'run_9'"):
        store.post(message("run_9"))
    assert names(store, "run_9") == []


# -- waking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["event", "cancel", "child", "deadline"])
def test_message_makes_a_parked_run_due_at_once(store: Store, runs: Runs, kind: str):
    runs.park(runs.accept("run_1"), due_at=1_000)
    assert store.post(message("run_1", kind, at=7)) is None, "nobody has it in memory"
    assert store.next_due() == 7


def test_message_names_the_owner_of_a_run_in_memory(store: Store, runs: Runs):
    runs.accept("run_1")
    assert store.post(message("run_1")) == NODE


def test_message_that_came_while_its_run_was_being_parked_is_not_lost(store: Store, runs: Runs):
    """The owner has read its inbox and decided to park; the message arrives before the park is written."""
    run = runs.accept("run_1")
    assert names(store, "run_1") == []
    store.post(message("run_1", name="late", at=5))
    runs.park(run, due_at=None, now=6)
    assert store.next_due() == 6
    assert [claim.run for claim in store.claim_due("node_b", 6, 1)] == ["run_1"]
    assert names(store, "run_1") == ["late"]


def test_cancellation_that_is_kept_until_its_run_is_blocked_wakes_it_then(store: Store, runs: Runs):
    """The run tells that it will be blocked, and waits until it can. A slot, for which it may wait, counts at once."""
    run = runs.accept("run_1")
    store.post(message("run_1", "cancel", at=5))
    store.post(message("run_1", "event", at=5))
    store.write([run.write(update=run.update(due_at=90, now=6, keeps_inbox=1))])
    assert store.next_due() == 90
    runs.block(run)
    assert store.next_due() == 0, "it is a person's word"
    other = runs.accept("run_2")
    store.post(message("run_2", "cancel", at=5))
    store.write([other.write(messages=[message("run_2", "slot")])])
    store.write([other.write(update=other.update(due_at=90, now=6, keeps_inbox=1))])
    assert [claim.run for claim in store.claim_due(NODE, 6, 9)] == ["run_1", "run_2"]


def test_message_that_is_taken_with_the_park_wakes_nobody(store: Store, runs: Runs):
    run = runs.accept("run_1")
    store.post(message("run_1"))
    [waiting] = store.read_inbox(["run_1"])["run_1"]
    store.write([run.write(run.entry("event"), taken=[waiting.id], update=run.update(due_at=None))])
    assert store.next_due() is None


def test_message_of_one_run_to_another_wakes_it_in_the_same_write(store: Store, runs: Runs):
    parent, child = runs.accept("run_1"), runs.accept("run_1.a")
    runs.park(parent, due_at=None)
    to_parent = message("run_1", "child", name="run_1.a", at=8)
    ended = child.entry("ended")
    store.write([child.write(ended, messages=[to_parent], update=child.update("completed", ended_at=8))])
    assert store.next_due() == 8
    assert names(store, "run_1") == ["run_1.a"]


def test_event_does_not_start_a_delayed_run_early(store: Store, runs: Runs):
    runs.accept("run_1", status="pending", due_at=90, owner=None)
    store.post(message("run_1", at=5))
    assert store.next_due() == 90
    store.post(message("run_1", "cancel", at=6))
    assert store.next_due() == 6


def test_blocked_run_waits_for_a_person_whatever_comes(store: Store, runs: Runs):
    run = runs.accept("run_1")
    store.post(message("run_1", name="early"))
    runs.block(run)
    store.post(message("run_1", name="late", at=5))
    assert store.next_due() is None
    assert names(store, "run_1") == ["early", "late"]


# -- what the state of a run allows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("kind", ["event", "cancel", "child", "deadline"])
def test_ended_run_takes_no_messages(store: Store, runs: Runs, status: str, kind: str):
    runs.end(runs.accept("run_1"), status)
    with pytest.raises(InvalidOperation, match=f"has ended \\({status}\\)"):
        store.post(message("run_1", kind))
    assert names(store, "run_1") == []


def test_end_of_a_run_clears_what_came_too_late(store: Store, runs: Runs):
    run = runs.accept("run_1")
    store.post(message("run_1", name="too late"))
    runs.end(run)
    assert names(store, "run_1") == []


REFUSED = {
    "retry": "is completed; only a failed, cancelled or blocked run can be retried",
    "undo": "cannot be undone: everything it did is undone already",
}


@pytest.mark.parametrize(
    "kind, status, undo, allowed",
    [
        ("retry", "failed", "all", True),
        ("retry", "cancelled", "none", True),
        ("retry", "completed", "none", False),
        ("undo", "completed", "none", True),
        ("undo", "failed", "partial", True),
        ("undo", "completed", "all", False),
    ],
)
def test_operators_reopen_ended_runs(store: Store, runs: Runs, kind: str, status: str, undo: str, allowed: bool):
    runs.end(runs.accept("run_1"), status, undo=undo)
    if not allowed:
        with pytest.raises(InvalidOperation, match=REFUSED[kind]):
            store.post(message("run_1", kind, at=5))
        assert (store.next_due(), names(store, "run_1")) == (None, [])
        return
    store.post(message("run_1", kind, at=5))
    found = store.get_run("run_1")
    assert found is not None
    assert (found.status, found.ended_at, found.result, store.next_due()) == ("pending", None, None, 5)


@pytest.mark.parametrize("kind", ["retry", "undo"])
def test_running_run_is_not_reopened(store: Store, runs: Runs, kind: str):
    runs.accept("run_1")
    with pytest.raises(InvalidOperation, match="is running"):
        store.post(message("run_1", kind))


@pytest.mark.parametrize("kind", ["retry", "cancel"])
def test_blocked_run_is_reopened_by_a_person(store: Store, runs: Runs, kind: str):
    runs.block(runs.accept("run_1"))
    store.post(message("run_1", kind, at=5))
    assert store.next_due() == 5
