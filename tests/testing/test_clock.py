"""The hand-moved clock: it stands still, moves as it is told, and tells whoever waits."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from dotdo.testing import ManualClock


def test_clock_stands_still_until_it_is_moved():
    clock = ManualClock(datetime(2031, 5, 1, tzinfo=UTC))
    before = clock.now()
    assert before == datetime(2031, 5, 1, tzinfo=UTC).timestamp() * 1000
    assert clock.now() == before
    clock.advance(1.5)
    assert clock.now() == before + 1500


@pytest.mark.parametrize(
    "by, milliseconds",
    [
        (0.25, 250),
        (90, 90_000),
        (timedelta(minutes=2), 120_000),
        ("250 ms", 250),
        ("90 s", 90_000),
        ("1.5 minutes", 90_000),
        ("3 days", 3 * 86_400_000),
        ("1 week", 7 * 86_400_000),
        ("1 h 30 min", 5_400_000),
        (" 1 day, 2 hours ", 26 * 3_600_000),
    ],
)
def test_durations_are_seconds_timedeltas_or_text(by: str | float | timedelta, milliseconds: int):
    clock = ManualClock()
    before = clock.now()
    clock.advance(by)
    assert clock.now() - before == milliseconds


@pytest.mark.parametrize("by", ["", "soon", "3", "3 fortnights", "days", "3 days ago", -1, timedelta(days=-1)])
def test_nonsense_and_moves_back_are_refused(by: str | float | timedelta):
    clock = ManualClock()
    before = clock.now()
    with pytest.raises(ValueError, match=r"duration|never goes back"):
        clock.advance(by)
    assert clock.now() == before


def test_start_needs_a_time_zone():
    with pytest.raises(ValueError, match="time zone"):
        ManualClock(datetime(2031, 5, 1))


def test_waiting_ends_only_by_moving():
    clock = ManualClock()
    due = clock.now() + 1000
    assert clock.until(due) is None
    clock.advance(0.999)
    assert clock.until(due) is None
    clock.advance(0.001)
    assert clock.until(due) == 0.0


def test_every_move_is_told_after_it_was_made():
    clock = ManualClock()
    seen: list[int] = []
    clock.on_change(lambda: seen.append(clock.now()))
    clock.advance(1)
    clock.advance("1 s")
    assert seen == [clock.now() - 1000, clock.now()]


def test_advance_to_next_moves_to_the_earliest_wait():
    clock = ManualClock()
    clock.until(clock.now() + 5000)
    clock.until(clock.now() + 2000)
    assert clock.advance_to_next() == timedelta(seconds=2)
    assert clock.advance_to_next() == timedelta(seconds=3)


def test_time_to_next_tells_without_moving():
    clock = ManualClock()
    before = clock.now()
    clock.until(before + 2000)
    assert clock.time_to_next() == clock.time_to_next() == timedelta(seconds=2)
    assert clock.now() == before


def test_advance_to_next_blocks_until_something_waits():
    clock = ManualClock()
    moved: list[timedelta] = []
    waiting = threading.Thread(target=lambda: moved.append(clock.advance_to_next()))
    waiting.start()
    clock.until(clock.now() + 7000)
    waiting.join(timeout=60)
    assert moved == [timedelta(seconds=7)]


def test_advance_to_next_overlooks_what_is_further_off():
    clock = ManualClock()
    clock.until(clock.now() + 3_600_000)
    with pytest.raises(TimeoutError, match="Nothing came to wait"):
        clock.advance_to_next(within="1 minute", timeout=0)
    clock.until(clock.now() + 60_000)
    assert clock.advance_to_next(within="1 minute") == timedelta(minutes=1)
