"""Slots of limits: never more than there are, by priority and in order of asking, kept by whoever has asked.

Each store decides the same way; nothing here knows of attempts, only of steps that ask and give back.
"""

from collections.abc import Sequence

import pytest

from dotdo.store.protocol import Limit, Place, SlotAsk, Store
from tests.store.runs import NODE, Runs, Writing

THREE = (Limit("concurrency send", 3),)
ONE = (Limit("concurrency send", 1),)


class Desk:
    """Steps of runs that ask, each with the number of a run; a store's answers in short."""

    def __init__(self, store: Store, runs: Runs) -> None:
        self.store, self.runs = store, runs
        self.claims: dict[int, int] = {}
        self.pools: dict[int, str] = {}

    def ask(self, *numbers: int, limits: Sequence[Limit] = ONE, priority: int = 0, now: int = 0, pool: str = "send"):
        """Has runs ask in one transaction; returns for each whether it may start."""
        for number in numbers:
            if number not in self.claims:
                self.runs.accept(self.run(number))
                self.claims[number] = 1
            self.pools[number] = pool
        asks = [SlotAsk(pool, self.run(each), "step", self.claims[each], priority, tuple(limits)) for each in numbers]
        settled = self.store.settle_slots(asks, [], now)
        self.places: list[Place] = settled.places
        self.next_at = settled.next_at
        return [place.scope is None for place in self.places]

    def free(self, *numbers: int, now: int = 0) -> list[int]:
        """Has runs give back; returns the runs that may start now."""
        gone = [(self.run(number), "step", self.pools[number]) for number in numbers]
        return self.numbers(self.store.settle_slots([], gone, now).woken)

    def sweep(self, now: int = 0, before: int = 0) -> list[int]:
        """Has the store look; returns the runs that may start now."""
        settled = self.store.sweep_slots(now, before)
        self.next_at = settled.next_at
        return self.numbers(settled.woken)

    def told(self, number: int) -> list[str]:
        """The messages of that kind for a run."""
        run = self.run(number)
        return [each.name for each in self.store.read_inbox([run])[run] if each.kind == "slot"]

    def writing(self, number: int) -> Writing:
        """The run as its owner writes it."""
        head = self.store.read_journal(self.run(number))[-1]
        return Writing(self.run(number), self.claims[number], head.seq, head.digest)

    @staticmethod
    def run(number: int) -> str:
        """The id of a run."""
        return f"run_{number:04}"

    @staticmethod
    def numbers(runs: list[str]) -> list[int]:
        """The numbers of runs."""
        return [int(run.removeprefix("run_")) for run in runs]


@pytest.fixture
def desk(store: Store, runs: Runs) -> Desk:
    """Who asks."""
    return Desk(store, runs)


def test_no_more_than_the_limit_start_and_the_next_one_is_told(desk: Desk):
    assert desk.ask(1, 2, 3, 4, 5, limits=THREE) == [True, True, True, False, False]
    assert desk.free(2) == [4]
    assert desk.told(4) == [f"{desk.places[3].ticket}"]
    assert desk.told(5) == []
    assert desk.ask(6, limits=THREE) == [False], "nobody overtakes"
    assert desk.free(1, 3) == [5, 6]
    assert desk.free(4, 5, 6) == []
    assert desk.ask(7, 8, 9, 10, limits=THREE) == [True, True, True, False]


def test_giving_back_twice_frees_one(desk: Desk):
    assert desk.ask(1, 2, 3) == [True, False, False]
    assert desk.free(1) == [2]
    assert desk.free(1) == []
    assert desk.free(3) == [], "it only waited"
    assert desk.free(2) == []


def test_who_asks_again_keeps_its_place_and_what_it_has(desk: Desk):
    assert desk.ask(1, 2, 3) == [True, False, False]
    before = [place.ticket for place in desk.places]
    assert desk.ask(3, 2, 1) == [False, False, True]
    assert [place.ticket for place in desk.places] == before[::-1]
    assert desk.free(1) == [2]


def test_higher_priority_goes_first_and_in_order_of_asking_within(desk: Desk):
    assert desk.ask(1) == [True]
    desk.ask(2, 3)
    desk.ask(4, 5, priority=7)
    desk.ask(6, priority=-7)
    order = [1]
    for _ in range(5):
        order += desk.free(order[-1])
    assert order == [1, 4, 5, 2, 3, 6]


def test_one_slot_in_ten_goes_to_whoever_has_waited_the_longest(desk: Desk):
    """However much asks with a higher priority: the low ones get through, the oldest first, also of several kinds."""
    assert desk.ask(1) == [True]
    desk.ask(2, priority=-10)
    desk.ask(3, priority=5)
    desk.ask(*range(100, 140), priority=9)
    order = [1]
    for _ in range(30):
        order += desk.free(order[-1])
    assert [(place, number) for place, number in enumerate(order, 1) if number < 100] == [(1, 1), (10, 2), (20, 3)]
    assert [number for number in order if number >= 100] == list(range(100, 128))


def test_each_limit_counts_its_own_turns(desk: Desk):
    """What another limit hands out says nothing of who has waited the longest for this one."""
    limits = {name: (Limit(f"concurrency {name}", 1),) for name in ("send", "call")}
    for first, pool in ((1000, "send"), (2000, "call")):
        desk.ask(first, limits=limits[pool], pool=pool)
        desk.ask(first + 1, limits=limits[pool], pool=pool, priority=-1)
        desk.ask(*range(first + 2, first + 14), limits=limits[pool], pool=pool)
    orders = [[1000], [2000]]
    for _ in range(12):
        for order in orders:
            order += desk.free(order[-1])
    assert [order.index(first + 1) + 1 for order, first in zip(orders, (1000, 2000), strict=True)] == [10, 10]


def test_actions_have_slots_of_their_own(desk: Desk):
    assert desk.ask(1, 2) == [True, False]
    other = (Limit("concurrency call", 1),)
    assert desk.ask(3, 4, limits=other, pool="call") == [True, False]
    assert desk.free(3) == [4]


def test_key_that_is_used_up_keeps_nobody_else_waiting(desk: Desk):
    """Two at a time, one for each key: a flood of one key leaves the other slot alone."""

    def of(key: str) -> tuple[Limit, ...]:
        return (Limit(f"concurrency send {key}", 1), Limit("concurrency send", 2))

    assert desk.ask(1, 2, 3, 4, limits=of("a")) == [True, False, False, False]
    assert desk.ask(5, limits=of("b")) == [True]
    assert desk.ask(6, limits=of("c")) == [False], "two run"
    assert desk.free(1) == [6], "it waited for that slot before the next one of its key did"
    assert desk.free(5) == [2]
    assert desk.free(2, 6) == [3]
    assert desk.free(3) == [4]


def test_parked_run_is_due_with_its_slot(desk: Desk, runs: Runs, store: Store):
    desk.ask(1, 2)
    runs.park(desk.writing(2))
    assert store.next_due() is None
    assert desk.free(1, now=40) == [2]
    assert store.next_due() == 40
    [claim] = store.claim_due(NODE, 40, 10)
    desk.claims[2] = claim.claim
    assert desk.ask(2) == [True]


def test_run_that_was_told_before_it_was_parked_is_due(desk: Desk, runs: Runs, store: Store):
    desk.ask(1, 2)
    writing = desk.writing(2)
    desk.free(1, now=40)
    runs.park(writing, now=41)
    assert store.next_due() == 41


def test_slot_of_a_lost_node_is_handed_on_but_its_place_stays(desk: Desk, runs: Runs, store: Store):
    assert desk.ask(1, 2, 3, now=5) == [True, False, False]
    assert desk.sweep(now=100, before=50) == [], "its node is there"
    runs.take_over("node_b", 7)
    assert desk.sweep(now=100, before=50) == [], "nobody has found out yet"
    store.rescue(7, 10)
    assert desk.sweep(now=100, before=5) == [], "it may come back yet"
    assert desk.sweep(now=100, before=50) == [2]
    desk.claims[1] = runs.claim(desk.run(1), "node_b").claim
    assert desk.ask(1) == [False]
    assert desk.free(2) == [1], "it had asked first"


def test_slot_is_kept_for_the_run_that_comes_back_in_time(desk: Desk, runs: Runs, store: Store):
    assert desk.ask(1, 2, now=5) == [True, False]
    runs.take_over("node_b", 7)
    store.rescue(7, 10)
    desk.claims[1] = runs.claim(desk.run(1), "node_b").claim
    assert desk.ask(1) == [True]
    assert desk.sweep(now=100, before=50) == []
    assert desk.free(1) == [2]


@pytest.mark.parametrize("rests", ["ended", "blocked"])
def test_run_that_rests_has_no_slot_and_waits_for_none(desk: Desk, runs: Runs, rests: str):
    assert desk.ask(1, 2, 3) == [True, False, False]
    for number in (1, 2):
        if rests == "ended":
            runs.end(desk.writing(number))
        else:
            runs.block(desk.writing(number))
    assert desk.sweep() == [3]
    assert desk.free(3) == []


def test_changed_limit_counts_from_the_next_ask_on(desk: Desk):
    assert desk.ask(1, 2, 3, 4) == [True, False, False, False]
    assert desk.ask(5, limits=THREE) == [False]
    assert [len(desk.told(number)) for number in (2, 3, 4)] == [1, 1, 0]


def test_no_time_of_a_rates_length_has_more_starts(desk: Desk):
    rate = (Limit("rate send 1", 2, 1_000),)
    assert [desk.ask(n, limits=rate, now=now) for n, now in ((1, 100), (2, 500), (3, 500))] == [[True], [True], [False]]
    assert desk.next_at == 1_100
    assert desk.free(1, 2, now=600) == [], "that they have ended makes no difference"
    assert desk.sweep(now=1_099) == []
    assert desk.ask(4, limits=rate, now=1_099) == [False]
    assert desk.sweep(now=1_100) == [3]
    assert desk.next_at == 1_500
    assert desk.ask(5, limits=rate, now=1_499) == [False]
    assert desk.sweep(now=1_600) == [4]
    assert desk.next_at == 2_100
    assert desk.free(5, now=1_700) == []
    assert desk.sweep(now=2_100) == []
    assert desk.next_at is None
    assert desk.ask(6, limits=rate, now=2_100) == [True]


def test_start_counts_from_when_it_had_all_its_slots(desk: Desk):
    """Of a rate for a key, and one at a time in all: what waits for the second after the first has not started."""

    def of(key: str) -> tuple[Limit, ...]:
        return (Limit(f"rate send 1 {key}", 1, 1_000), Limit("concurrency send", 1))

    assert desk.ask(1, limits=of("a"), now=0) == [True]
    assert desk.ask(2, 3, limits=of("b"), now=100) == [False, False]
    assert desk.next_at is None, "nobody knows when the first of these starts"
    assert desk.free(1, now=5_000) == [2]
    assert desk.free(2, now=5_100) == []
    assert desk.sweep(now=5_999) == []
    assert desk.sweep(now=6_000) == [3]


def test_start_that_never_came_counts_for_nothing(desk: Desk):
    of = (Limit("rate send 1 a", 1, 1_000), Limit("concurrency send", 1))
    assert desk.ask(1, limits=(Limit("concurrency send", 1),)) == [True]
    assert desk.ask(2, 3, limits=of, now=100) == [False, False]
    assert desk.free(2, now=200) == []
    assert desk.free(1, now=300) == [3]


def test_many_wait_and_each_gets_its_turn(desk: Desk):
    numbers = list(range(1, 501))
    assert desk.ask(*numbers).count(True) == 1
    for number in numbers[:100]:
        assert desk.free(number) == [number + 1]


def test_steps_are_counted_by_action_and_by_what_they_wait_for(store: Store, desk: Desk):
    assert store.count_limited() == []
    desk.ask(1, 2, 3)
    rate = (Limit("rate call 60", 1, 60_000),)
    desk.ask(4, 5, 6, limits=rate, pool="call")
    assert store.count_limited() == [("call", "", 1), ("call", "rate", 2), ("send", "", 1), ("send", "concurrency", 2)]
    desk.free(1, 2, 3)
    assert [one for one in store.count_limited() if one[0] == "send"] == []
