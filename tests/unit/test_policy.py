"""Policies: how often and when something is tried again, and the checks that definitions share."""

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotdo import DefinitionError, Fail, InvalidInput, Retry, RetryLater
from dotdo.errors import (
    MAX_SECONDS,
    AttemptTimedOut,
    CalledOutside,
    DotdoError,
    InputError,
    InvalidValue,
    UnknownName,
)
from dotdo.policy import Concurrency, Limits, Rate, check_text, limits_of, one_of, retry_of, seconds

STEADY = Retry(attempts=10, delay=2, factor=3, max_delay=100, jitter=False)


def delays(retry: Retry, upto: int) -> list[int | None]:
    return [retry.delay_before(attempt, elapsed=0) for attempt in range(2, upto + 1)]


def test_delays_grow_by_the_factor_up_to_the_cap():
    assert delays(STEADY, 7) == [2_000, 6_000, 18_000, 54_000, 100_000, 100_000]


def test_attempts_counts_all_attempts_so_one_means_no_retry():
    assert delays(Retry(attempts=3, jitter=False), 5) == [1_000, 2_000, None, None]
    assert delays(Retry(attempts=1), 2) == [None]


def test_default_is_a_few_attempts_with_full_jitter():
    retry = Retry()
    assert (retry.attempts, retry.jitter) == (4, True)
    drawn = {retry.delay_before(2, elapsed=0) for _ in range(100)}
    assert len(drawn) > 50, "jitter spreads the attempts"
    assert all(delay is not None and 0 <= delay <= 1_000 for delay in drawn)


def test_nothing_is_tried_after_max_elapsed():
    retry = Retry(attempts=None, max_elapsed=10, delay=4, factor=1, jitter=False)
    assert retry.delay_before(2, elapsed=6) == 4_000
    assert retry.delay_before(2, elapsed=6.001) is None
    assert retry.delay_before(1_000, elapsed=0) == 4_000, "without a number of attempts only the time counts"


def test_what_the_failure_asked_for_replaces_the_delay_but_not_the_limits():
    assert STEADY.delay_before(2, elapsed=0, after=0.25) == 250
    assert STEADY.delay_before(2, elapsed=0, after=0) == 0
    assert STEADY.delay_before(2, elapsed=0, after=5_000) == 5_000_000, "max_delay caps what we compute, not this"
    assert STEADY.delay_before(11, elapsed=0, after=1) is None
    assert Retry(attempts=5, max_elapsed=60).delay_before(2, elapsed=50, after=11) is None


def test_a_time_that_has_passed_already_means_now():
    assert STEADY.delay_before(2, elapsed=0, after=-30) == 0


@pytest.mark.parametrize("factor", [1, 2, 1000])
def test_many_attempts_overflow_nothing(factor: float):
    retry = Retry(attempts=None, max_elapsed=MAX_SECONDS, factor=factor, delay=MAX_SECONDS, max_delay=60, jitter=False)
    assert retry.delay_before(100_000, elapsed=0) == 60_000


@settings(deadline=None)
@given(
    retry=st.builds(
        Retry,
        attempts=st.integers(1, 50),
        delay=st.floats(0, 1e6),
        factor=st.floats(1, 1000),
        max_delay=st.floats(0, 1e6),
        jitter=st.booleans(),
        max_elapsed=st.none() | st.floats(0.001, 1e6),
    ),
    attempt=st.integers(2, 60),
    elapsed=st.floats(0, 1e6),
)
def test_delay_stays_within_what_the_policy_says(retry: Retry, attempt: int, elapsed: float):
    delay = retry.delay_before(attempt, elapsed=elapsed)
    assert retry.attempts is not None
    if attempt > retry.attempts:
        assert delay is None
    elif delay is not None:
        assert 0 <= delay <= retry.max_delay * 1000 + 0.5
        assert retry.max_elapsed is None or elapsed + delay / 1000 <= retry.max_elapsed + 0.001
    else:
        assert retry.max_elapsed is not None
        assert elapsed + retry.max_delay > retry.max_elapsed


ANYTHING = Retry(on=BaseException)


@pytest.mark.parametrize(
    "error",
    [
        Fail("no"),
        InvalidInput("action a@1", []),
        InvalidValue("NaN"),
        UnknownName("x"),
        DefinitionError("no database was given"),
        CalledOutside("an action in an action"),
    ],
)
def test_permanent_errors_are_never_retried_whatever_on_says(error: Exception):
    assert not ANYTHING.retries(error)
    assert not Retry(on=type(error)).retries(error)


def test_retry_later_is_retried_whatever_on_and_never_on_say():
    assert Retry(on=ValueError, never_on=RetryLater).retries(RetryLater("busy"))


@pytest.mark.parametrize(
    "retry, error, expected",
    [
        (Retry(), ValueError(), True),
        (Retry(), AttemptTimedOut("slow"), True),
        (Retry(), KeyboardInterrupt(), False),
        (Retry(on=OSError), ConnectionError(), True),
        (Retry(on=OSError), ValueError(), False),
        (Retry(on=(OSError, ValueError)), ValueError(), True),
        (Retry(never_on=ConnectionError), ConnectionRefusedError(), False),
        (Retry(never_on=ConnectionError), OSError(), True),
        (Retry(on=OSError, never_on=(ConnectionError, TimeoutError)), TimeoutError(), False),
    ],
)
def test_on_and_never_on_choose_by_type(retry: Retry, error: BaseException, expected: bool):
    assert retry.retries(error) is expected


@pytest.mark.parametrize(
    "given",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"attempts": None},
        {"delay": -1},
        {"delay": math.nan},
        {"delay": math.inf},
        {"max_delay": -1},
        {"max_delay": math.nan},
        {"max_delay": math.inf},
        {"factor": 0.5},
        {"factor": math.nan},
        {"factor": 1001},
        {"max_elapsed": 0},
        {"max_elapsed": -5},
        {"max_elapsed": math.nan},
    ],
)
def test_nonsense_is_refused_when_the_policy_is_made(given: dict[str, Any]):
    with pytest.raises(DefinitionError, match=r"Retry|max_elapsed"):
        Retry(**given)


def test_policies_are_values():
    assert Retry(attempts=3) == Retry(attempts=3)
    assert len({Retry(attempts=3), Retry(attempts=3), Retry(attempts=4)}) == 2
    with pytest.raises(AttributeError):
        Retry().attempts = 5  # type: ignore[misc]


def test_a_number_stands_for_attempts():
    assert retry_of(7, STEADY) == Retry(attempts=7)
    assert retry_of(None, STEADY) is STEADY
    assert retry_of(STEADY, Retry()) is STEADY
    for nonsense in ("3", 2.5, {"attempts": 3}):
        with pytest.raises(DefinitionError, match="a Retry or a number of attempts"):
            retry_of(nonsense, STEADY)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, math.nan, "30"])
def test_durations_are_numbers_above_zero(value: Any):
    with pytest.raises(DefinitionError, match=r"timeout=.*seconds above 0"):
        seconds(value, "timeout")


def test_durations_may_be_left_out():
    assert seconds(None, "timeout") is None
    assert seconds(0.5, "timeout") == 0.5


def test_a_misspelt_choice_is_not_taken_for_another_one():
    one_of("ask", "on_unknown", ("resend", "ask"))
    with pytest.raises(DefinitionError, match="on_unknown='aks': one of resend, ask"):
        one_of("aks", "on_unknown", ("resend", "ask"))


@pytest.mark.parametrize("text", ["a", "x" * 500, "signup:42", "Zürich, 東京 🙂", "two\nlines", None])
def test_keys_trails_and_labels_are_any_ordinary_text(text: str | None):
    check_text(text, "key")


@pytest.mark.parametrize("text", ["", "x" * 501, "a\0b", "\ud800", 5, b"bytes"])
def test_text_that_no_store_could_keep_is_refused(text: Any):
    with pytest.raises(DefinitionError, match=r"key=.*1 to 500 characters"):
        check_text(text, "key")


def test_retry_later_refuses_a_time_that_never_comes():
    for after in (math.inf, math.nan, MAX_SECONDS * 2):
        with pytest.raises(ValueError, match="RetryLater"):
            RetryLater("later", after=after)
    assert RetryLater(after=30).after == 30
    assert isinstance(RetryLater(), DotdoError)
    assert not isinstance(RetryLater(), InputError)


def test_limits_of_a_definition_are_checked():
    names = frozenset({"customer", "order"})
    limits = limits_of("action x@1", names, [5, Concurrency(1, key="order.customer")], "100/minute")
    assert limits == Limits((Concurrency(5), Concurrency(1, "order.customer")), (Rate("100/minute"),))
    assert limits is not None
    assert limits.described() == {
        "concurrency": [{"limit": 5}, {"limit": 1, "key": "order.customer"}],
        "rate": [{"limit": "100/minute"}],
    }
    assert limits_of("action x@1", names, None, []) is None
    assert Rate("5/h").read().seconds == 3600


@pytest.mark.parametrize(
    "concurrency, rate, text",
    [
        (0, None, "Concurrency(0): a whole number from 1 to 10,000"),
        (True, None, "Concurrency(True): a whole"),
        ("5", None, "action x@1: concurrency='5': a number or a Concurrency is needed"),
        ([Concurrency(1, key="custmer")], None, "its key is no parameter; there are customer, order."),
        ([5, 6], None, "two limits in concurrency= are for the same"),
        (None, 5, "action x@1: rate=5: a Rate, or text such as 100/minute, is needed"),
        (None, "5 per minute", "'5 per minute' is no rate"),
        (None, "20000/day", "a whole number from 1 to 10,000"),
        (None, ["5/m", "6/minute"], "two limits in rate= are for the same"),
        (Rate("5/s"), None, "a number or a Concurrency is needed"),
    ],
)
def test_limits_that_mean_nothing_are_refused(concurrency: Any, rate: Any, text: str):
    with pytest.raises(DefinitionError, match=re.escape(text)):
        limits_of("action x@1", frozenset({"customer", "order"}), concurrency, rate)


@pytest.mark.parametrize("key", ["", "a b", "a..b", 'a"', 5])
def test_key_of_a_limit_is_a_path(key: Any):
    for kind in (lambda: Concurrency(1, key), lambda: Rate("1/s", key)):
        with pytest.raises(DefinitionError, match="the name of a parameter is needed, or a path into one"):
            kind()
