"""Fencing: what carries an old claim is refused as a whole batch; the newest claim alone writes."""

import pytest

from dotdo.errors import FenceLost, StoreError
from dotdo.store.protocol import Store
from tests.store.runs import NODE, Runs, Writing, message


def test_newest_claim_appends_and_older_ones_do_not(store: Store, runs: Runs):
    old = runs.accept("run_1")
    new = runs.claim("run_1")
    assert new.claim == old.claim + 1
    with pytest.raises(FenceLost, match="newer claim"):
        store.write([old.write(old.entry())])
    store.write([new.write(new.entry("completed"))])
    assert runs.journal("run_1") == [(1, "accepted"), (2, "completed")]


def test_batch_with_one_old_claim_writes_nothing_of_any_run(store: Store, runs: Runs):
    good, old = runs.accept("run_1"), runs.accept("run_2")
    runs.claim("run_2")
    entry = good.entry()
    with pytest.raises(FenceLost):
        store.write([good.write(entry), old.write(old.entry())])
    assert runs.journal("run_1") == runs.journal("run_2") == [(1, "accepted")]
    store.write([good.write(entry)])
    assert runs.journal("run_1") == [(1, "accepted"), (2, "completed")]


def test_old_claim_cannot_park_or_end_a_run(store: Store, runs: Runs):
    old = runs.accept("run_1")
    runs.claim("run_1")
    with pytest.raises(FenceLost):
        runs.park(old, due_at=5)
    with pytest.raises(FenceLost):
        runs.end(old)
    found = store.get_run("run_1")
    assert found is not None
    assert found.status == "running"


def test_refused_batch_takes_no_message_and_sends_none(store: Store, runs: Runs):
    old, other = runs.accept("run_1"), runs.accept("run_2")
    store.post(message("run_1", name="a"))
    [waiting] = store.read_inbox(["run_1"])["run_1"]
    runs.claim("run_1")
    with pytest.raises(FenceLost):
        store.write([old.write(old.entry(), taken=[waiting.id], messages=[message("run_2", "child")])])
    assert store.read_inbox(["run_1"])["run_1"] == [waiting]
    assert store.read_inbox([other.id])[other.id] == []


def test_entry_of_a_run_that_does_not_exist_is_refused(store: Store, runs: Runs):
    with pytest.raises(FenceLost):
        store.write([Writing("run_9", 1).write(Writing("run_9", 1).entry())])
    assert store.read_journal("run_9") == []


def test_entry_number_is_used_once(store: Store, runs: Runs):
    """Two writers under one claim cannot be: the second finds the number taken, and nothing is overwritten."""
    run = runs.accept("run_1")
    twin = runs.accept("run_2")
    twin.id, twin.seq, twin.digest = run.id, run.seq, run.digest
    store.write([run.write(run.entry("completed"))])
    with pytest.raises(StoreError, match="refused a write"):
        store.write([twin.write(twin.entry("failed"))])
    assert runs.journal("run_1") == [(1, "accepted"), (2, "completed")]


def test_run_of_another_node_cannot_be_claimed(store: Store, runs: Runs):
    runs.accept("run_1")
    assert store.claim_one("node_b", "run_1") is None
    assert store.claim_one(NODE, "run_1") is not None


def test_ended_run_cannot_be_claimed(store: Store, runs: Runs):
    runs.end(runs.accept("run_1"))
    assert store.claim_one(NODE, "run_1") is None
    assert store.claim_one(NODE, "run_9") is None
