"""Claiming: due runs in order and in bounded batches; runs of nodes that are gone become free, marked as crashed."""

from dotdo.store.protocol import Claim, Store
from tests.store.runs import NODE, Runs, Writing


def test_due_runs_are_claimed_oldest_first_and_no_more_than_asked_for(store: Store, runs: Runs):
    for number, due in enumerate((30, 10, 20, 40)):
        runs.park(runs.accept(f"run_{number}"), due_at=due)
    assert store.next_due() == 10
    assert store.claim_due("node_b", 5, 10) == []
    assert {claim.run for claim in store.claim_due("node_b", 35, 2)} == {"run_1", "run_2"}
    assert store.next_due() == 30
    assert store.claim_due("node_b", 35, 2) == [Claim("run_0", 2, False)]
    assert store.claim_due("node_b", 35, 2) == []


def test_run_without_a_time_waits_for_a_message(store: Store, runs: Runs):
    runs.park(runs.accept("run_1"), due_at=None)
    assert store.next_due() is None
    assert store.claim_due("node_b", 1 << 60, 10) == []


def test_owned_and_ended_runs_are_not_due(store: Store, runs: Runs):
    runs.accept("run_1")
    runs.end(runs.accept("run_2"))
    assert store.next_due() is None
    assert store.claim_due(NODE, 1 << 60, 10) == []


def test_runs_of_a_dead_node_are_rescued_in_bounded_batches_and_marked(store: Store, runs: Runs):
    for number in range(5):
        runs.accept(f"run_{number}")
    runs.end(runs.accept("run_ended"))
    assert store.rescue(7, 10) == 0, "its node is alive"
    runs.take_over("node_b", 7)
    assert store.rescue(7, 3) == 3
    assert store.rescue(7, 3) == 2
    assert store.rescue(7, 3) == 0
    claims = store.claim_due("node_b", 7, 10)
    assert sorted(claims, key=lambda claim: claim.run) == [Claim(f"run_{n}", 2, True) for n in range(5)]


def test_crash_mark_goes_when_the_run_is_parked(store: Store, runs: Runs):
    runs.accept("run_1")
    runs.take_over("node_b", 0)
    store.rescue(0, 10)
    run = runs.claim("run_1", "node_b")
    runs.park(run, due_at=5)
    assert store.claim_due("node_b", 5, 10) == [Claim("run_1", 3, False)]


def test_node_that_leaves_gives_its_runs_back_as_not_crashed(store: Store, runs: Runs):
    runs.accept("run_1")
    runs.end(runs.accept("run_2"))
    store.leave(NODE, 9)
    assert store.next_due() == 9
    assert store.claim_due("node_b", 9, 10) == [Claim("run_1", 2, False)]


def test_node_that_leaves_keeps_its_hands_off_the_runs_of_others(store: Store, runs: Runs):
    runs.accept("run_1", owner="node_b")
    store.leave(NODE, 9)
    assert store.next_due() is None


def test_parked_run_says_what_it_waits_for(store: Store, runs: Runs):
    runs.park(runs.accept("run_1"), due_at=50, text="a timer of a day")
    found = store.get_run("run_1")
    assert found is not None
    assert found.waiting_for is not None
    assert (found.status, found.waiting_for.text, found.waiting_for.until) == ("waiting", "a timer of a day", 50)


def flood(runs: Runs, count: int) -> None:
    """So many due runs of one name."""
    ids = [f"run_flood{number:06}" for number in range(count)]
    made = [Writing(id, 1).accept(0, {"name": "flood", "due_at": 10, "owner": None}) for id in ids]
    runs.store.write(made)


def test_flood_of_one_name_keeps_no_other_waiting(store: Store, runs: Runs):
    """Older runs of another name, and more than are ever claimed together: the next batch has something of each."""
    flood(runs, 3_000)
    assert len(store.claim_due("node_b", 20, 500)) == 500
    for name in ("order", "refund"):
        runs.park(runs.accept(f"run_{name}", name=name), due_at=15)
    claimed = {claim.run for claim in store.claim_due("node_b", 20, 500)}
    assert {"run_order", "run_refund"} < claimed
    assert 150 < len(claimed) <= 500
    assert len(store.claim_due("node_b", 20, 500)) == 500, "the flood has all turns again"


def test_names_take_turns_also_where_there_is_room_for_one_run_only(store: Store, runs: Runs):
    """The others are older; a node that is full, and takes one run whenever one has ended, takes each name in turn."""
    flood(runs, 50)
    for number in range(2):
        runs.park(runs.accept(f"run_order{number}", name="order"), due_at=15)
        runs.park(runs.accept(f"run_refund{number}", name="refund"), due_at=16)
    taken = [claim.run.rstrip("0123456789") for _ in range(8) for claim in store.claim_due("node_b", 20, 1)]
    assert sorted(taken[:3]) == sorted(taken[3:6]) == ["run_flood", "run_order", "run_refund"]
    assert taken[6:] == ["run_flood"] * 2


def test_names_that_only_wait_leave_the_whole_batch_to_what_is_due(store: Store, runs: Runs):
    flood(runs, 300)
    for number in range(100):
        runs.park(runs.accept(f"run_sleeps{number}", name=f"sleeps-{number}"), due_at=1_000)
    assert len(store.claim_due("node_b", 20, 200)) == 200
