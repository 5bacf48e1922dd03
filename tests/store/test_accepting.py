"""Accepting: a run and its first entry are there together or not at all; an id is taken once."""

import pytest

from dotdo.errors import FenceLost
from dotdo.records import WaitingFor
from dotdo.store.protocol import Store
from tests.store.runs import Runs, Writing


def test_accepted_run_is_there_with_its_first_entry(store: Store, runs: Runs):
    run = runs.accept("run_1", at=5, key="k", trail="t", actor="ada", labels='{"team": "a"}')
    found = store.get_run("run_1")
    assert found is not None
    assert (found.status, found.key, found.trail, found.actor) == ("running", "k", "t", "ada")
    assert (found.labels, found.created_at, found.ended_at, found.root) == ({"team": "a"}, 5, None, "run_1")
    assert runs.journal("run_1") == [(1, "accepted")]
    assert store.read_journal("run_1")[0].digest == run.digest
    assert store.input_digest("run_1") == "digest"


def test_unknown_run_is_none(store: Store):
    assert store.get_run("run_1") is None
    assert store.input_digest("run_1") is None
    assert store.read_journal("run_1") == []


def test_id_that_exists_refuses_the_whole_batch(store: Store, runs: Runs):
    runs.accept("run_1", trail="first")
    again, other = Writing("run_1", 1), Writing("run_2", 1)
    with pytest.raises(FenceLost, match="accepted already"):
        store.write([other.accept(0, {}), again.accept(0, {"trail": "second"})])
    assert store.get_run("run_2") is None
    assert store.read_journal("run_2") == []
    found = store.get_run("run_1")
    assert found is not None
    assert found.trail == "first"


def test_many_runs_are_accepted_in_one_write(store: Store, runs: Runs):
    new = [Writing(f"run_{number:04}", 1) for number in range(1_500)]
    store.write([run.accept(number, {}) for number, run in enumerate(new)])
    assert store.count_by_status() == {"running": 1_500}
    assert runs.journal("run_1499") == [(1, "accepted")]


def test_child_is_accepted_with_the_entry_of_its_parent(store: Store, runs: Runs):
    parent, child = runs.accept("run_1"), Writing("run_1.a", 1)
    accepts = child.accept(0, {"parent": "run_1", "parent_step": "step"}).accepts
    store.write([parent.write(parent.entry("child_started"), accepts=accepts)])
    found = store.get_run("run_1.a")
    assert found is not None
    assert (found.parent, found.root) == ("run_1", "run_1")
    assert runs.journal("run_1") == [(1, "accepted"), (2, "child_started")]


def test_delayed_run_is_due_at_its_start(store: Store, runs: Runs):
    waiting = '{"kind":"start","text":"its delayed start","until":90}'
    runs.accept("run_1", status="pending", due_at=90, owner=None, waiting_for=waiting)
    found = store.get_run("run_1")
    assert found is not None
    assert found.waiting_for == WaitingFor("start", "its delayed start", 90)
    assert store.next_due() == 90
    assert store.claim_due("node_b", 89, 10) == []
    assert [claim.run for claim in store.claim_due("node_b", 90, 10)] == ["run_1"]


def test_text_is_kept_as_it_is(store: Store, runs: Runs):
    """Rows travel as JSON: quotes, escapes, numbers as text, other scripts and large integers come back the same."""
    text = '"quoted" \\ \n\t 007 1e5 null ünï 漢字 😀 \u2028'
    runs.accept("run_1", at=1 << 53, trail=text, key="1")
    found = store.get_run("run_1")
    assert found is not None
    assert (found.trail, found.key, found.created_at) == (text, "1", 1 << 53)
