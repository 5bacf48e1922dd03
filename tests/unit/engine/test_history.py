"""What counts as progress after crashes."""

from typing import Any

import msgspec
import pytest

from dotdo.engine.history import MAX_CRASHES, History
from dotdo.journal import Claimed, Completion, Entry


def entry(kind: str, step: str = "") -> Entry:
    return Entry("run_one", 1, kind, step, 0, 1, 0, "", "", "")


def crash(history: History, times: int) -> None:
    for number in range(times):
        history.apply(entry("claimed"), Claimed("node_one", number, crashed=True))


def completed(step: str) -> tuple[Entry, Any]:
    return entry("completed", step), Completion("tell", 1, msgspec.Raw(b"{}"), msgspec.Raw(b"null"), 0)


@pytest.mark.parametrize("step", ["pay", "undo:pay", "on_failure:tell"])
def test_step_that_completes_after_a_crash_is_progress(step: str):
    history = History()
    crash(history, MAX_CRASHES - 1)
    history.apply(*completed(step))
    assert history.crashes == 0


def test_telling_of_a_run_that_is_blocked_for_its_crashes_is_none():
    """It has told of that in one on_failure action, and died in the next: it stays blocked, and is not let loose."""
    history = History()
    crash(history, MAX_CRASHES)
    history.apply(*completed("on_failure:tell"))
    crash(history, 1)
    assert history.crashes == MAX_CRASHES + 1


def test_a_word_of_a_person_lets_it_go_on():
    history = History()
    crash(history, MAX_CRASHES + 1)
    history.apply(*completed("pay"))
    assert history.crashes == 0
