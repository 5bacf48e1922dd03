"""Policies as pure data: when an attempt or a delivery is tried again, and how many attempts may run or start.

Nothing here waits or knows a clock: `Retry.delay_before` gives milliseconds, and the engine makes the wait durable.
"""

import random
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import msgspec

from dotdo import keys
from dotdo.errors import MAX_SECONDS, DefinitionError, Fail, InputError, RetryLater

L = TypeVar("L")
MOST_AT_A_TIME = 10_000

ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed attempt is tried again.

    attempts: how many attempts in all, 1 or more (None: as many as `max_elapsed` allows).
    delay, factor, max_delay: seconds before the second attempt, growth from one to the next, and their cap.
    jitter: full jitter (a random share of the delay), which keeps many retries from arriving together; see
        "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    max_elapsed: seconds since the first attempt after which no further one is made.
    on, never_on: exception types that are retried (default: all), and types that never are.
    """

    attempts: int | None = 4
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True
    max_elapsed: float | None = None
    on: ExceptionTypes = Exception
    never_on: ExceptionTypes = ()

    def __post_init__(self) -> None:
        if self.attempts is not None and (type(self.attempts) is not int or self.attempts < 1):
            raise DefinitionError(
                f"Retry(attempts={self.attempts!r}): a whole number of at least 1 is needed; 1 means no retry."
            )
        if self.attempts is None and self.max_elapsed is None:
            raise DefinitionError("Retry(attempts=None) needs max_elapsed, or it would try for ever.")
        numbers = (self.delay, self.max_delay, self.factor)
        are_numbers = all(isinstance(each, int | float) for each in numbers)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not are_numbers or not (
            0 <= self.delay <= MAX_SECONDS and 0 <= self.max_delay <= MAX_SECONDS and 1 <= self.factor <= 1000
        ):
            raise DefinitionError(
                f"Retry(delay={self.delay!r}, max_delay={self.max_delay!r}, factor={self.factor!r}): delay and "
                f"max_delay must be numbers of seconds from 0 to {MAX_SECONDS:,}, and factor from 1 to 1000."
            )
        seconds(self.max_elapsed, "max_elapsed")
        _check_types(self.on, "on")
        _check_types(self.never_on, "never_on")

    def retries(self, error: BaseException) -> bool:
        """Whether this kind of error is retried at all. `Fail`, refused inputs and wrong definitions never are."""
        if isinstance(error, RetryLater):
            return True
        if isinstance(error, Fail | InputError | DefinitionError):
            return False
        return isinstance(error, self.on) and not isinstance(error, self.never_on)

    def delay_before(self, attempt: int, *, elapsed: float, after: float | None = None) -> int | None:
        """Milliseconds to wait before `attempt` (2 for the first retry), or None when no further one is made.

        elapsed: seconds since the first attempt began. after: what the failure itself asked for (`RetryLater`,
        `Retry-After`), in seconds; it replaces the computed delay.
        """
        if self.attempts is not None and attempt > self.attempts:
            return None
        wait = max(0.0, after) if after is not None else self._backoff(attempt - 1)
        if self.max_elapsed is not None and elapsed + wait > self.max_elapsed:
            return None
        return round(wait * 1000)

    def _backoff(self, retry: int) -> float:
        # The exponent is bounded so that a long max_elapsed cannot overflow a float.
        wait = min(self.max_delay, self.delay * self.factor ** min(retry - 1, 64))
        return random.uniform(0, wait) if self.jitter else wait  # noqa: S311 - spreading load, not a secret


def _check_types(given: object, name: str) -> None:
    types = cast("tuple[object, ...]", given if isinstance(given, tuple) else (given,))
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in types):
        raise DefinitionError(
            f"Retry({name}={given!r}): a type of exceptions is needed, or a tuple of such, as in "
            f"{name}=(ConnectionError, TimeoutError)."
        )


def numbers_of(retry: Retry) -> dict[str, Any]:
    """What of a policy can be written down: all but the types of exceptions."""
    return {name: getattr(retry, name) for name in _NUMBERS}


def with_numbers(retry: Retry, numbers: dict[str, Any] | None) -> Retry | None:
    """A policy with what was written down of another one; None when nothing was."""
    return None if numbers is None else msgspec.structs.replace(retry, **numbers)


_NUMBERS = ("attempts", "delay", "factor", "max_delay", "jitter", "max_elapsed")


def retry_of(value: "Retry | int | None", default: Retry) -> Retry:
    """The policy that a `retry=` argument means: a Retry, a number of attempts, or None for the default."""
    if value is None:
        return default
    if type(value) is int:
        return Retry(attempts=value)
    if not isinstance(value, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
        raise DefinitionError(f"retry={value!r}: a Retry or a number of attempts is needed, such as retry=5.")
    return value


class Concurrency(msgspec.Struct, frozen=True):
    """How many attempts of an action may run at the same time, on all nodes together.

    limit: 1 or more. key: a parameter (or a path into one, such as `order.customer_id`): then so many for each of its
    values, and all others go on meanwhile. Raises DefinitionError.
    """

    limit: int
    key: str | None = None

    def __post_init__(self) -> None:
        _check_count(self.limit, f"Concurrency({self.limit!r})")
        _check_key(self.key, "Concurrency")


class Rate(msgspec.Struct, frozen=True):
    """How many attempts of an action may start within a time, on all nodes together.

    limit: such as `100/minute`; a second, minute, hour or day. No such time, wherever it begins, has more of them. key:
    as of Concurrency. Raises DefinitionError.
    """

    limit: str
    key: str | None = None

    def __post_init__(self) -> None:
        _check_count(self.read().count, f"Rate({self.limit!r})")
        _check_key(self.key, "Rate")

    def read(self) -> keys.Rate:
        """The limit in numbers."""
        if not isinstance(self.limit, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
            raise DefinitionError(f"Rate({self.limit!r}): text is needed, such as 100/minute.")
        return keys.read_rate(self.limit)


class Limits(msgspec.Struct, frozen=True):
    """The limits of one action."""

    concurrency: tuple[Concurrency, ...] = ()
    rate: tuple[Rate, ...] = ()

    def described(self) -> dict[str, Any]:
        """What listings show of them."""
        return {
            name: [
                {key: value for key, value in msgspec.structs.asdict(one).items() if value is not None} for one in all
            ]
            for name, all in msgspec.structs.asdict(self).items()
            if all
        }


def limits_of(
    subject: str,
    names: frozenset[str] | None,
    concurrency: "int | Concurrency | Sequence[int | Concurrency] | None",
    rate: "str | Rate | Sequence[str | Rate] | None",
) -> Limits | None:
    """The limits that the arguments of a definition mean; None when there are none. names: of its parameters, None for
    any."""
    limits = Limits(
        tuple(_limit(subject, names, each, "concurrency", Concurrency, int) for each in _several(concurrency)),
        tuple(_limit(subject, names, each, "rate", Rate, str) for each in _several(rate)),
    )
    known = [each.key for each in limits.concurrency], [(each.key, each.read().seconds) for each in limits.rate]
    for name, all in zip(("concurrency", "rate"), known, strict=True):
        if len(set(all)) < len(all):
            raise DefinitionError(f"{subject}: two limits in {name}= are for the same; the lower one is enough.")
    return limits if limits.concurrency or limits.rate else None


def _several(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(cast("list[Any]", given)) if isinstance(given, list | tuple) else [given]


def _limit(subject: str, names: frozenset[str] | None, given: Any, name: str, kind: type[L], short: type) -> L:
    limit = cast("Any", kind)(given) if isinstance(given, short) else given
    if not isinstance(limit, Concurrency | Rate) or not isinstance(limit, kind):
        what = "a number or a Concurrency" if short is int else "a Rate, or text such as 100/minute,"
        raise DefinitionError(f"{subject}: {name}={given!r}: {what} is needed.")
    if limit.key is not None and names is not None and limit.key.partition(".")[0] not in names:
        raise DefinitionError(
            f"{subject}: {limit!r}: its key is no parameter; there are {', '.join(sorted(names)) or 'none'}."
        )
    return limit


def _check_count(value: int, name: str) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not (is_count and 1 <= value <= MOST_AT_A_TIME):
        raise DefinitionError(f"{name}: a whole number from 1 to {MOST_AT_A_TIME:,} is needed.")


def _check_key(key: str | None, what: str) -> None:
    is_path = key is None or (isinstance(key, str) and all(part.isidentifier() for part in key.split(".")))  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_path:
        raise DefinitionError(
            f"{what}(key={key!r}): the name of a parameter is needed, or a path into one, such as order.customer_id."
        )


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """Which ended runs are deleted: those of trees (a run and its children) that ended longer ago than `older_than`.

    older_than: seconds. name, status: only runs of that action or service, or that ended so. Deleted runs are gone for
    good, with their keys; which ones is kept for the audit.
    """

    older_than: float
    name: str | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        is_number = isinstance(self.older_than, int | float)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not (is_number and 0 <= self.older_than <= MAX_SECONDS):
            raise DefinitionError(
                f"Retention(older_than={self.older_than!r}): a number of seconds is needed, such as 90 * 24 * 3600."
            )
        if self.status not in (None, "completed", "failed", "cancelled"):
            raise DefinitionError(
                f"Retention(status={self.status!r}): only runs that have ended are deleted, so it is one of completed, "
                "failed, cancelled."
            )


def check_text(value: str | None, name: str) -> None:
    """Checks what names a run, step or event: None, or text of 1 to 500 characters that every store can keep."""
    if value is None:
        return
    is_text = isinstance(value, str) and 0 < len(value) <= 500  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_text or "\0" in value or value.encode("utf-8", "ignore").decode() != value:
        raise DefinitionError(
            f"{name}={value!r:.80}: 1 to 500 characters of text without NUL or surrogates are needed."
        )


def one_of(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Checks a choice by name: a typing error must not count as the other choice."""
    if value not in choices:
        raise DefinitionError(f"{name}={value!r}: one of {', '.join(choices)} is needed.")


def yes_or_no(value: bool, name: str) -> bool:
    """Checks a flag: whatever else counts as true would do so silently."""
    if not isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"{name}={value!r:.80}: True or False is needed.")
    return value


def patience(value: float | None, name: str, *, endless: bool = True) -> None:
    """Checks how long somebody waits: a number of seconds, 0 to look only, or None for the end if it may be endless."""
    is_number = isinstance(value, int | float) and value >= 0
    if not (is_number or (endless and value is None)):
        no_end = ", or None to wait for the end" if endless else ""
        raise DefinitionError(f"{name}={value!r}: a number of seconds is needed{no_end}.")


def seconds(value: float | None, name: str) -> float | None:
    """Checks a duration in seconds: None, or a number above 0."""
    if value is not None and not (isinstance(value, int | float) and value > 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"{name}={value!r}: a number of seconds above 0 is needed.")
    return value
