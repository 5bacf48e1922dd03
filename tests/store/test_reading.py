"""Reading: lists with filters and pages, journals, chains of one moment, and snapshots of versions."""

import msgspec
import pytest

from dotdo.journal import chain
from dotdo.records import Run, RunFilter, WaitingFor
from dotdo.store.protocol import Head, Link, Store
from tests.store.runs import Runs


@pytest.fixture
def five(store: Store, runs: Runs) -> list[str]:
    """Five runs, oldest first; the second failed and the third completed."""
    ids = [f"run_{number}" for number in range(5)]
    writing = [
        runs.accept(id, at=number // 2, trail="odd" if number % 2 else None, name="pay" if number == 2 else "order")
        for number, id in enumerate(ids)
    ]
    runs.end(writing[1], "failed", undo="all", at=9)
    runs.end(writing[2], at=9)
    return ids


def ids(found: list[Run]) -> list[str]:
    return [run.id for run in found]


def test_list_is_newest_first_and_filtered(store: Store, five: list[str]):
    assert ids(store.list_runs(RunFilter())) == five[::-1]
    assert ids(store.list_runs(RunFilter(status="failed"))) == [five[1]]
    assert ids(store.list_runs(RunFilter(undo="all"))) == [five[1]]
    assert ids(store.list_runs(RunFilter(name="pay"))) == [five[2]]
    assert ids(store.list_runs(RunFilter(trail="odd"))) == [five[3], five[1]]
    assert ids(store.list_runs(RunFilter(since=1))) == [five[4], five[3], five[2]]
    assert ids(store.list_runs(RunFilter(trail="odd", status="running"))) == [five[3]]
    assert store.list_runs(RunFilter(name="nobody")) == []


def test_labels_are_found_by_all_that_are_asked_for(store: Store, runs: Runs):
    for number in range(6):
        labels = {"team": "rail" if number % 2 else "road", "tier": "gold" if number < 3 else 'it\'s "silver"'}
        runs.accept(f"run_{number}", at=number, labels=msgspec.json.encode(labels).decode())
    runs.accept("run_plain", at=9)
    assert ids(store.list_runs(RunFilter(labels={"team": "rail"}))) == ["run_5", "run_3", "run_1"]
    assert ids(store.list_runs(RunFilter(labels={"team": "rail", "tier": "gold"}))) == ["run_1"]
    assert ids(store.list_runs(RunFilter(labels={"tier": 'it\'s "silver"'}, limit=2))) == ["run_5", "run_4"]
    assert ids(store.list_runs(RunFilter(labels={"team": "rail"}, before=(3, "run_3")))) == ["run_1"]
    assert store.list_runs(RunFilter(labels={"team": "sea"})) == []
    assert store.list_runs(RunFilter(labels={"team": "rail"}, name="pay")) == []


def test_pages_have_each_run_once_also_among_equal_times(store: Store, five: list[str]):
    seen: list[str] = []
    before = None
    while page := store.list_runs(RunFilter(limit=2, before=before)):
        seen += ids(page)
        before = (page[-1].created_at, page[-1].id)
    assert seen == five[::-1]


def test_children_are_listed_by_their_parent(store: Store, runs: Runs, five: list[str]):
    runs.accept("run_0.a", parent="run_0")
    assert ids(store.list_runs(RunFilter(parent="run_0"))) == ["run_0.a"]


def test_ended_run_has_its_result_and_others_have_none(store: Store, five: list[str]):
    completed, running = store.get_run(five[2]), store.get_run(five[0])
    assert completed is not None
    assert running is not None
    assert (completed.result, completed.status, completed.ended_at) == ("done", "completed", 9)
    assert (running.result, running.error, running.ended_at) == (None, None, None)
    assert store.count_by_status() == {"running": 3, "failed": 1, "completed": 1}


def test_run_that_says_not_what_it_waits_for_waits_for_who_has_it(store: Store, runs: Runs):
    for id, owner in (("run_0", "node_1"), ("run_1", None)):
        runs.accept(id, owner=owner)
    found = {run.id: run.waiting_for for run in store.list_runs(RunFilter())}
    assert found["run_0"] == WaitingFor("engine", "node_1, which has it in memory")
    assert found["run_1"] == WaitingFor("turn", "an engine that takes it")


def test_journals_are_read_whole_or_from_an_entry_on(store: Store, runs: Runs, five: list[str]):
    run = runs.claim(five[0])
    store.write([run.write(run.entry("fired"), run.entry("event"))])
    assert runs.journal(five[0]) == [(1, "accepted"), (2, "fired"), (3, "event")]
    assert [entry.seq for entry in store.read_journal(five[0], after=1)] == [2, 3]
    several = store.read_journals([five[0], five[1], "run_9"])
    assert {run: len(entries) for run, entries in several.items()} == {five[0]: 3, five[1]: 2, "run_9": 0}


def test_run_is_found_by_the_beginning_of_its_id(store: Store, runs: Runs):
    for id in ("run_a1", "run_a2", "run_a2.x", "run_b", "other"):
        runs.accept(id)
    assert store.find_runs("run_a", 10) == ["run_a2.x", "run_a2", "run_a1"]
    assert store.find_runs("run_a", 1) == ["run_a2.x"]
    assert store.find_runs("run_a2", 10) == ["run_a2.x", "run_a2"]
    assert store.find_runs("run_c", 10) == []


# -- chains for the audit ---------------------------------------------------------------------------------------------


def read(store: Store, first: str = "", last: str = "~") -> tuple[list[Head], list[Link]]:
    with store.read_chains(first, last) as (heads, links):
        return list(heads), list(links)


def test_chains_have_what_the_digests_cover(store: Store, five: list[str]):
    heads, links = read(store)
    assert [head.run for head in heads] == five
    assert [head.status for head in heads] == ["running", "failed", "completed", "running", "running"]
    assert [link[0] for link in links] == [five[0], five[1], five[1], five[2], five[2], five[3], five[4]]
    previous = "0" * 64
    for (_, kind, header, _, data_digest, digest), expected in zip(links[1:3], ("accepted", "ended"), strict=True):
        assert kind == expected
        assert digest == chain(previous, header, data_digest)
        previous = digest
    assert heads[1].digest == previous


def test_chains_of_a_range_have_both_ends(store: Store, five: list[str]):
    heads, links = read(store, five[1], five[2])
    assert [head.run for head in heads] == five[1:3]
    assert {link[0] for link in links} == set(five[1:3])


def test_chains_show_one_moment(store: Store, runs: Runs, five: list[str]):
    with store.read_chains("", "~") as (heads, links):
        first = next(heads)
        runs.end(runs.claim(five[3]))
        runs.accept("run_later")
        assert [first.run, *(head.run for head in heads)] == five
        assert [link[1] for link in links if link[0] == five[3]] == ["accepted"]
    assert [link[1] for link in read(store)[1] if link[0] == five[3]] == ["accepted", "ended"]


def test_chains_may_be_left_in_the_middle(store: Store, runs: Runs, five: list[str]):
    with store.read_chains("", "~") as (heads, links):
        next(heads)
        next(links)
    runs.accept("run_later")
    assert store.get_run("run_later") is not None


# -- versions ---------------------------------------------------------------------------------------------------------


def test_snapshot_of_versions_is_kept_under_its_first_content(store: Store):
    store.save_definitions("id", {"a": 1, "b": 2}, 5)
    store.save_definitions("id", {"a": 9}, 6)
    assert store.load_definitions("id") == {"a": 1, "b": 2}
    assert store.load_definitions("other") == {}
