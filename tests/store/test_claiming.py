"""Claiming: due runs in order and in bounded batches; runs of nodes that are gone become free, marked as crashed."""

from dotdo.records import RunFilter
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


def waiting(runs: Runs, count: int, priority: int, name: str = "order", due_at: int = 10) -> None:
    """So many due runs of a priority."""
    ids = [f"run_{name}{priority:+}_{number:05}" for number in range(count)]
    row = {"name": name, "due_at": due_at, "owner": None, "priority": priority}
    runs.store.write([Writing(id, 1).accept(0, dict(row)) for id in ids])


def kinds(claims: list[Claim]) -> list[str]:
    """Names and priorities of what was claimed."""
    return sorted({claim.run.removeprefix("run_").partition("_")[0] for claim in claims})


def test_highest_priority_is_claimed_first_however_much_was_there_before(store: Store, runs: Runs):
    waiting(runs, 2_000, -10)
    waiting(runs, 2_000, 0, due_at=11)
    waiting(runs, 30, 5, due_at=12)
    waiting(runs, 20, 5, name="refund", due_at=13)
    claims = store.claim_due("node_b", 20, 100)
    assert (len(claims), kinds(claims)) == (50, ["order+5", "refund+5"]), "a batch is of one priority"
    assert kinds(store.claim_due("node_b", 20, 2_500)) == ["order+0"]
    assert kinds(store.claim_due("node_b", 20, 2_500)) == ["order-10"]
    assert store.claim_due("node_b", 20, 2_500) == []


def test_what_is_not_due_yet_holds_nobody_up(store: Store, runs: Runs):
    waiting(runs, 10, 10, due_at=1_000)
    waiting(runs, 10, 0)
    assert kinds(store.claim_due("node_b", 20, 100)) == ["order+0"]
    assert kinds(store.claim_due("node_b", 1_000, 100)) == ["order+10"]


def test_one_batch_in_ten_is_for_whoever_has_waited_the_longest(store: Store, runs: Runs):
    """Full batches, so that more of the first wait all the time: the lowest get their share, oldest first."""
    waiting(runs, 200, 9, due_at=12)
    waiting(runs, 10, -3, due_at=10)
    waiting(runs, 10, 2, due_at=11)
    batches = [kinds(store.claim_due("node_b", 20, 5)) for _ in range(40)]
    assert batches.count(["order+9"]) == 36
    assert [batch for batch in batches if batch != ["order+9"]] == [["order-3"]] * 2 + [["order+2"]] * 2
    assert [number % 10 for number, batch in enumerate(batches, 1) if batch != ["order+9"]] == [0] * 4


def test_what_is_urgent_waits_for_one_batch_of_others_however_small_that_is(store: Store, runs: Runs):
    """There is room for more than have waited the longest: the turn is over, and the next one is not theirs."""
    waiting(runs, 200, 9, due_at=12)
    waiting(runs, 1, -3, due_at=10)
    waiting(runs, 1, 2, due_at=11)
    batches = [kinds(store.claim_due("node_b", 20, 5)) for _ in range(20)]
    assert batches[9::10] == [["order-3"], ["order+2"]]
    assert batches.count(["order+9"]) == 18


def test_names_take_turns_within_a_priority(store: Store, runs: Runs):
    waiting(runs, 300, 3, name="flood")
    waiting(runs, 5, 3, name="order", due_at=15)
    waiting(runs, 5, 0, name="other", due_at=1)
    claims = store.claim_due("node_b", 20, 20)
    assert kinds(claims) == ["flood+3", "order+3"]
    assert sum("order" in claim.run for claim in claims) == 5


def test_priority_is_read_back(store: Store, runs: Runs):
    runs.accept("run_1", priority=-7)
    runs.accept("run_2")
    found = {run.id: run.priority for run in store.list_runs(RunFilter())}
    assert found == {"run_1": -7, "run_2": 0}
