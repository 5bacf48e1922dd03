"""Policies as pure data: how often and when an attempt or a delivery is tried again.

Nothing here waits or knows a clock: `Retry.delay_before` gives milliseconds, and the engine makes the wait durable.
"""

import random

import msgspec

from dotdo.errors import MAX_SECONDS, DefinitionError, Fail, InputError, RetryLater

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
        if self.attempts is not None and self.attempts < 1:
            raise DefinitionError(f"Retry(attempts={self.attempts}): at least 1 is needed; 1 means no retry.")
        if self.attempts is None and self.max_elapsed is None:
            raise DefinitionError("Retry(attempts=None) needs max_elapsed, or it would try for ever.")
        if not (0 <= self.delay <= MAX_SECONDS and 0 <= self.max_delay <= MAX_SECONDS and 1 <= self.factor <= 1000):
            raise DefinitionError(
                f"Retry: delay and max_delay must be from 0 to {MAX_SECONDS:,} seconds, and factor from 1 to 1000."
            )
        seconds(self.max_elapsed, "max_elapsed")

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


def retry_of(value: "Retry | int | None", default: Retry) -> Retry:
    """The policy that a `retry=` argument means: a Retry, a number of attempts, or None for the default."""
    if value is None:
        return default
    if isinstance(value, int):
        return Retry(attempts=value)
    if not isinstance(value, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
        raise DefinitionError(f"retry={value!r}: a Retry or a number of attempts is needed.")
    return value


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """Which ended runs are deleted: those of trees (a run and its children) that ended longer ago than `older_than`.

    older_than: seconds. name, status: only runs of that action or service, or that ended so. Deleted runs are gone for
    good, with their keys; which ones is kept for the audit.
    """

    older_than: float
    name: str | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.older_than <= MAX_SECONDS:
            raise DefinitionError(f"Retention(older_than={self.older_than!r}): a number of seconds is needed.")
        if self.status not in (None, "completed", "failed", "cancelled"):
            raise DefinitionError(f"Retention(status={self.status!r}): only runs that have ended are deleted.")


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


def seconds(value: float | None, name: str) -> float | None:
    """Checks a duration in seconds: None, or a number above 0."""
    if value is not None and not (isinstance(value, int | float) and value > 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"{name}={value!r}: a number of seconds above 0 is needed.")
    return value
