"""The system's clock: milliseconds that never go back."""

import time

import pytest

from dotdo.clock import Clock, StoreClock, SystemClock


def test_now_is_the_time_in_milliseconds():
    before = time.time() * 1000
    now = SystemClock().now()
    assert before - 1 <= now <= time.time() * 1000
    assert isinstance(now, int)


def test_clock_stands_still_while_the_system_clock_is_set_back(monkeypatch: pytest.MonkeyPatch):
    clock = SystemClock()
    told = [1_000.0, 1_001.5, 900.0, 1_001.4, 1_002.0]
    monkeypatch.setattr(time, "time", lambda: told.pop(0))
    assert [clock.now() for _ in range(5)] == [1_000_000, 1_001_500, 1_001_500, 1_001_500, 1_002_000]


def test_until_is_the_real_time_left_and_never_negative(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(time, "time", lambda: 50.0)
    clock = SystemClock()
    assert clock.until(52_500) == 2.5
    assert clock.until(50_000) == 0
    assert clock.until(1) == 0


@pytest.mark.parametrize("jump", [3600.0, -3600.0], ids=["forward", "back"])
def test_clock_of_a_shared_store_goes_on_while_the_clock_of_the_machine_is_set(
    monkeypatch: pytest.MonkeyPatch, jump: float
):
    """As when a machine has come up with a wrong clock, and is told the time a while later. Between two words of the
    server an hour ahead would do: the clock would then stand still for an hour, and all waits with it."""
    clock, since_boot, wall = StoreClock(), 50.0, 5_000_000.0
    monkeypatch.setattr("dotdo.clock.monotonic", lambda: since_boot)
    monkeypatch.setattr(time, "time", lambda: wall)
    clock.correct(9_000_000_000_000, 0.1)
    assert clock.now() == 9_000_000_000_050
    wall, since_boot = wall + jump, since_boot + 1.0
    assert clock.now() == 9_000_000_001_050
    clock.correct(9_000_000_001_050, 0.0)
    wall, since_boot = wall + 1.0, since_boot + 1.0
    assert clock.now() == 9_000_000_002_050


def test_nobody_moves_the_system_clock_by_hand():
    clock: Clock = SystemClock()
    called: list[int] = []
    clock.on_change(lambda: called.append(1))
    clock.now()
    assert called == []
