"""What failures mean: errors as they are journaled, and which exceptions of a service fail a run.

Only a failed action, `Fail`, and cancellation fail a run. Any other exception of a service's code is a bug.
"""

import asyncio
import traceback
from typing import cast

from dotdo.errors import ActionFailed, Fail
from dotdo.journal import Blocked
from dotdo.records import ErrorRecord

MAX_MESSAGE = 4_000
MAX_TRACEBACK = 12_000


class Block(BaseException):
    """Raised inside the engine: the run must wait for a person. `reason` in a word or two, the message in full.

    A request may raise it in a handler, and an `except Exception` there must not swallow it.
    """

    def __init__(self, reason: str, message: str, *, step: str | None = None, error: ErrorRecord | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.step, self.error = reason, carried(message), step, error

    def data(self) -> Blocked:
        """As an entry's data."""
        error = self.error
        return Blocked(
            self.reason,
            ErrorRecord(
                error.type if error else "Blocked", self.message, error.traceback if error else "", step=self.step
            ),
        )


def error_record(
    error: BaseException, *, action: str | None = None, step: str | None = None, attempts: int = 1
) -> ErrorRecord:
    """An exception as journaled: type, message, and traceback trimmed to the user's own frames."""
    return ErrorRecord(
        type(error).__name__, message_of(error), _traceback_of(error), action=action, step=step, attempts=attempts
    )


def message_of(error: BaseException) -> str:
    """The error's text, whatever its `__str__` does."""
    try:
        text = str(error)
    except Exception as failure:  # hostile exceptions must not hurt the engine
        text = f"(its text could not be made: {type(failure).__name__})"
    return carried(text)


def carried(text: str) -> str:
    """A message as every store can keep it, whatever a user's exception put into it."""
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "... (cut)"


def _traceback_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/dotdo/engine/" not in frame.filename.replace("\\", "/")]
    text = "".join(traceback.format_list(own[-20:]))
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_TRACEBACK else "... (cut)\n" + text[-MAX_TRACEBACK:]


def leaves(error: BaseException) -> list[BaseException]:
    """The single exceptions in a (group of) exception."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return [leaf for member in group.exceptions for leaf in leaves(member)]
    return [error]


def is_failure(error: BaseException) -> bool:
    """Whether a service's exception fails the run; otherwise it is a bug."""
    return all(isinstance(leaf, ActionFailed | Fail | asyncio.CancelledError) for leaf in leaves(error))


def failure_record(error: BaseException) -> tuple[ErrorRecord, list[str]]:
    """The error of a failed run, and the steps that caused it."""
    found = leaves(error)
    failed = [leaf for leaf in found if isinstance(leaf, ActionFailed)]
    causes = _causes(error)
    if failed:
        first = failed[0]
        record = ErrorRecord(
            carried(str(first.error_type)),
            carried(str(first.error_message)),
            "",
            action=carried(str(first.action)),
            step=first.step,
            attempts=first.attempts,
        )
        return record, causes
    return error_record(found[0]), causes


def _causes(error: BaseException) -> list[str]:
    """The failed steps in an exception, also those behind a failure that the service put in its own words."""
    causes: list[str] = []
    seen: set[int] = set()
    waiting = leaves(error)
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, ActionFailed) and each.step is not None:
            causes.append(each.step)
        waiting += [leaf for near in (each.__cause__, each.__context__) if near is not None for leaf in leaves(near)]
    return sorted(causes)
