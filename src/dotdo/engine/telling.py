"""An error told to another process, and one that was told: how failures travel between a server and its workers."""

from dotdo.engine.failing import Told, error_record
from dotdo.engine.pool_worker import Raised
from dotdo.engine.process_pool import error_of_class
from dotdo.errors import MAX_SECONDS, AttemptTimedOut, DefinitionError, Fail, InputError, RetryLater
from dotdo.offer import NotRetried
from dotdo.policy import Retry
from dotdo.worker_protocol import Failure, FailureKind


def failure_of(error: BaseException, retry: Retry | None = None) -> Failure:
    """What to tell of an error. retry: the policy that says whether such errors are retried."""
    record, kind = error_record(error), type(error)
    how: FailureKind = "error"
    if isinstance(error, RetryLater):
        how = "retry_later"
    elif isinstance(error, Fail):
        how = "fail"
    elif isinstance(error, DefinitionError | InputError):
        how = "refused"
    elif isinstance(error, AttemptTimedOut):
        how = "timed_out"
    return Failure(
        type=record.type,
        message=record.message,
        traceback=record.traceback,
        kind=how,
        retry=retry is None or retry.retries(error),
        after=error.after if isinstance(error, RetryLater) else None,
        unknown=error.unknown if isinstance(error, RetryLater) else False,
        module=kind.__module__ if record.type == kind.__name__ else "",
    )


def error_of(failure: Failure) -> BaseException:
    """The error that was told, of its class as far as this process knows it; its text is the one that was told."""
    message = failure.message
    error: BaseException
    if failure.kind == "retry_later":
        after = None if failure.after is None else min(max(failure.after, 0.0), MAX_SECONDS)
        error = RetryLater(message, after=after, unknown=failure.unknown)
    elif failure.kind == "fail":
        error = Fail(message)
    elif failure.kind == "refused":
        error = DefinitionError(message)
    elif failure.kind == "timed_out":
        error = AttemptTimedOut(message)
    elif not failure.retry:
        error = NotRetried(message)
    else:
        error = error_of_class(Raised(failure.module, failure.type, message))
    error.__cause__ = Told(failure.type, message, failure.traceback)
    return error
