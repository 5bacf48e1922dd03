"""The system's clock: milliseconds that never go back."""

import time

import pytest

from dotdo.clock import Clock, SystemClock


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


def test_nobody_moves_the_system_clock_by_hand():
    clock: Clock = SystemClock()
    called: list[int] = []
    clock.on_change(lambda: called.append(1))
    clock.now()
    assert called == []
