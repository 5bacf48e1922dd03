"""What failures mean: errors as they are journaled, and which exceptions of a service fail a run.

Only a failed action, `Fail`, and cancellation fail a run. Any other exception of a service's code is a bug.
"""

import asyncio
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, cast

from dotdo.errors import ActionFailed, Fail, RetryLater
from dotdo.journal import Blocked
from dotdo.policy import Retry
from dotdo.records import ErrorRecord, Question
from dotdo.redacting import clean_all

MAX_MESSAGE = 4_000
MAX_NAME = 200
MOST_LEAVES = 10  # of a group, in its text
MAX_TRACEBACK = 12_000
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_LIBRARIES = (os.path.dirname(os.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
MAX_FRAMES = 200  # the innermost ones that are looked at: a recursion may have left a hundred thousand


class Block(BaseException):
    """Raised inside the engine: the run must wait for a person. `reason` in a word or two, the message in full.

    A request may raise it in a handler, and an `except Exception` there must not swallow it. questions: what can be
    answered; without any, the person mends something and retries the run.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        step: str | None = None,
        error: ErrorRecord | None = None,
        questions: Sequence[Question] = (),
    ) -> None:
        super().__init__(message)
        self.reason, self.message, self.step, self.error = reason, text_of(message), step, error
        self.questions = list(questions)

    def data(self) -> Blocked:
        """As an entry's data."""
        error = self.error
        return Blocked(
            self.reason,
            ErrorRecord(
                error.type if error else "Blocked", self.message, error.traceback if error else "", step=self.step
            ),
            self.questions,
        )


class ContinueAsNew(BaseException):
    """Raised in a service by `dotdo.continue_as_new()`: it ends here, and goes on as a new run of `definition`.

    input: not sealed yet, so never a part of the text.
    """

    def __init__(self, definition: Any, input: bytes) -> None:
        super().__init__(f"goes on as {definition.name}@{definition.version}")
        self.definition, self.input = definition, input


def together(blocks: Sequence[Block]) -> Block:
    """Several reasons to wait for a person as one, with all their questions."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    message = " Also: ".join(block.message for block in blocks)
    questions = [question for block in blocks for question in block.questions]
    return Block(first.reason, message, step=first.step, error=first.error, questions=questions)


class Told(Exception):
    """The cause of an exception that was raised in another process: what there is to tell of it."""

    def __init__(self, type: str, message: str, traceback: str) -> None:
        super().__init__(message)
        self.type, self.message, self.traceback = type, message, traceback


def error_record(
    error: BaseException, *, action: str | None = None, step: str | None = None, attempts: int = 1
) -> ErrorRecord:
    """An exception as journaled: type, message, and traceback trimmed to the user's own frames."""
    told = error.__cause__
    if isinstance(told, Told):
        return ErrorRecord(told.type, told.message, told.traceback, action=action, step=step, attempts=attempts)
    return ErrorRecord(
        carried(type(error).__name__, MAX_NAME),
        message_of(error),
        _traceback_of(error),
        action=action,
        step=step,
        attempts=attempts,
    )


def message_of(error: BaseException) -> str:
    """The error's text, whatever its `__str__` does; a group's with what is in it."""
    text, is_group = text_of(error), isinstance(error, BaseExceptionGroup)
    if not is_group:
        return text
    inside = [f"{type(leaf).__name__}: {text_of(leaf)}" for leaf in leaves(error)[:MOST_LEAVES]]
    return carried("; ".join([text, *inside]))


def text_of(value: object) -> str:
    """The text of anything that user code made, as it can be kept. Its `__str__` may raise what it likes."""
    try:
        return carried("".join([str(value)]))  # joined, so that it is plain text and no class of the user's
    except BaseException as failure:  # hostile exceptions must not hurt the engine, be it by sys.exit()
        return f"(its text could not be made: {type(failure).__name__})"


def carried(text: str, limit: int = MAX_MESSAGE) -> str:
    """A message as every store can keep it, whatever a user's exception put into it."""
    is_long = len(text) > limit
    if is_long:
        # Cleaned before it is cut: half of a secret would be recognised no more.
        text = clean_all(text[: 16 * limit])
    text = text[:limit].replace("\0", "").encode("utf-8", "replace").decode()
    return text + "... (cut)" if is_long else text


def _traceback_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__, limit=-MAX_FRAMES)
    own = [frame for frame in frames if "/dotdo/engine/" not in frame.filename.replace("\\", "/")]
    text = "".join(traceback.format_list(own[-20:]))
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_TRACEBACK else "... (cut)\n" + clean_all(text)[-MAX_TRACEBACK:]


def place_of(record: ErrorRecord) -> str:
    """Where the user's code raised, for the end of a message: the innermost frame that is no library's. Without its
    folder, which does not concern those who call a server."""
    frames = _FRAME.findall(record.traceback)
    own = [frame for frame in frames if not frame[0].startswith(_LIBRARIES) and "site-packages" not in frame[0]]
    if not frames:
        return ""
    file, line, function = (own or frames)[-1]
    return f" ({PurePath(file).name}, line {line}, in {function})"


def leaves(error: BaseException) -> list[BaseException]:
    """The single exceptions in a (group of) exception."""
    found: list[BaseException] = []
    waiting = [error]  # not by recursion: groups may be nested as deeply as anything
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", each)
            waiting += reversed(group.exceptions)
        else:
            found.append(each)
    return found


def decisive(error: BaseException, retry: Retry) -> BaseException:
    """What decides over an attempt's next one: of a group, such as a TaskGroup's, one that is not retried, if there is;
    else one that says when; else the group, or its only one."""
    found = leaves(error)
    for leaf in found:
        if not retry.retries(leaf):
            return leaf
    later = [leaf for leaf in found if isinstance(leaf, RetryLater)]
    return later[0] if later else found[0] if len(found) == 1 else error


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
        # A service may have made it itself, of whatever values.
        step, attempts = cast("object", first.step), cast("object", first.attempts)
        record = ErrorRecord(
            text_of(first.error_type),
            text_of(first.error_message),
            "",
            action=text_of(first.action),
            step=None if step is None else text_of(step),
            attempts=attempts if isinstance(attempts, int) and 0 < attempts < 1 << 62 else 1,
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
        if isinstance(each, ActionFailed) and isinstance(each.step, str):
            causes.append(each.step)
        waiting += [leaf for near in (each.__cause__, each.__context__) if near is not None for leaf in leaves(near)]
    return sorted(causes)
