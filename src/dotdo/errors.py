"""Every exception of dotdo, by who must act on it.

    DotdoError
    ├── DefinitionError          a definition is wrong: mend the code
    │   ├── DuplicateDefinition      two definitions share a name and version
    │   ├── CalledOutside            an action, effect or context function was called where it cannot work
    │   └── UnknownSecret            no provider has a secret of that name
    ├── InputError               a request was refused before anything happened
    │   ├── InvalidInput             parameters do not fit; lists every problem
    │   ├── UnknownName              no such action, service, effect or run
    │   ├── KeyConflict              the same key with another input
    │   ├── InvalidValue             a value that JSON cannot carry
    │   ├── SecretExposed            a secret would have been stored in the clear
    │   ├── InvalidOperation         the run's state does not allow that
    │   └── UnsupportedProtocol      a worker speaks another version of the worker protocol
    ├── OutcomeError             the request was done, and this is how it ended
    │   ├── ActionFailed             failed for good
    │   ├── RunCancelled             cancelled
    │   ├── RunBlocked               waits for a person
    │   └── StillRunning             not ended within the caller's wait
    ├── HandlerError             raised by handlers and services to steer the policy
    │   ├── Fail                     permanent: it did not happen, do not retry
    │   ├── RetryLater               it did not happen; try again, after a given time
    │   ├── AttemptTimedOut          the attempt's timeout passed
    │   ├── ProcessDied              the process of a handler ended before the handler
    │   └── WorkerLost               the worker of a handler was lost before it told the end
    ├── ReplayError              a service's code does not fit its journal
    │   ├── ReplayMismatch           it asked for other steps than those recorded
    │   ├── ServiceDidIO             it did input or output itself
    │   └── ServiceSpins             it never became idle
    ├── AccessError              a platform over HTTP did not do as asked
    │   ├── AccessDenied             the API key is missing, unknown, revoked, expired, or does not allow this
    │   ├── Unreachable              it cannot be reached; nothing happened
    │   ├── OutcomeUnknown           the answer was lost; ask again, by `run_id` or with the same key
    │   ├── UnknownWorker            the session of a worker is over; it must register again
    │   └── LeaseLost                a task is not that worker's any more; what it says of it changes nothing
    └── StoreError               the store cannot be used: its operator must act
        ├── StoreUnusable            wrong file, version, folder, library; or another engine holds it
        ├── StoreUnavailable         a write or read failed (disk full, I/O error); nothing half done
        ├── SecretUnreadable         a stored secret's key is not here, or it is not what was stored
        ├── FenceLost                the run belongs to a newer claim
        │   └── NodeExpelled             the others took this node for dead; it comes back as a new one
        ├── NodeDraining             the node starts nothing more until it is restarted
        └── ClientClosed             the client was closed

What user code must not swallow derives from BaseException: AttemptOver, RunEvicted.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

MAX_SECONDS = 1_000_000_000  # the longest wait that can be asked for, about 30 years


class DotdoError(Exception):
    """Base of all errors; `code` is stable and shared with HTTP and TypeScript."""

    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class DefinitionError(DotdoError):
    """An action, effect or service is defined wrongly."""

    code = "invalid_definition"


class DuplicateDefinition(DefinitionError):
    """Two definitions share a kind, name and version."""

    code = "duplicate_definition"


class CalledOutside(DefinitionError):
    """A definition was called where it cannot work (outside a service, inside a handler, ...)."""

    code = "called_outside"


class UnknownSecret(DefinitionError):
    """No provider has a secret of that name."""

    code = "unknown_secret"


class Problem(msgspec.Struct, frozen=True):
    """One problem of an input: `path` such as `$.email` and a message in words."""

    path: str
    message: str


class InputError(DotdoError):
    """The request was refused; nothing happened."""

    code = "refused"


class InvalidInput(InputError):
    """The parameters do not fit the schema. `problems` holds every one of them."""

    code = "invalid_input"

    def __init__(self, subject: str, problems: Sequence[Problem]) -> None:
        self.subject, self.problems = subject, tuple(problems)
        lines = [f"  {problem.path}: {problem.message}" for problem in problems]
        super().__init__(f"The input of {subject} is not valid:\n" + "\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return (InvalidInput, (self.subject, self.problems), self.__dict__)


class UnsupportedProtocol(InputError):
    """A worker speaks another version of the worker protocol than the server."""

    code = "unsupported_protocol"


class UnknownName(InputError):
    """No definition or run goes by that name, version or id."""

    code = "unknown_name"


class KeyConflict(InputError):
    """The key was already used for this name with another input."""

    code = "key_conflict"


class InvalidValue(InputError):
    """A value cannot be carried as JSON (NaN, NUL, too deep, too large, not JSON at all)."""

    code = "invalid_value"


class SecretExposed(InputError):
    """A secret's text stands where it would have been stored in the clear, such as in a result."""

    code = "secret_exposed"


class InvalidOperation(InputError):
    """The run's state does not allow the operation (an event for an ended run, ...)."""

    code = "invalid_operation"


class OutcomeError(DotdoError):
    """The run came to an outcome that is not a result; `run_id` names it."""

    code = "outcome"
    run_id: str | None = None


class ActionFailed(OutcomeError):
    """An action (or child service) failed for good.

    Its text names the type of an exception that is not ours: the message of a KeyError tells little by itself.

    `action` is its name, `step` the step in the run, `attempts` how many were made, `error_type` the type's name of the
    last error, `error_message` its message, `run_id` the run's id, `undo` what was undone (`none`, `partial`, `all`).
    """

    code = "action_failed"

    def __init__(
        self,
        action: str,
        error_type: str,
        error_message: str,
        *,
        attempts: int = 1,
        step: str | None = None,
        run_id: str | None = None,
        undo: str = "none",
    ) -> None:
        self.action, self.error_type, self.error_message = action, error_type, error_message
        self.attempts, self.step, self.run_id, self.undo = attempts, step, run_id, undo
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        super().__init__(f"{action} failed{tries}: {failure_text(error_type, error_message)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_action_failed, (self.action, self.error_type, self.error_message, self.__dict__.copy()))


def _rebuild_action_failed(action: str, error_type: str, error_message: str, state: dict[str, Any]) -> ActionFailed:
    error = ActionFailed(action, error_type, error_message, attempts=state.get("attempts", 1))
    error.__dict__.update(state)
    return error


class RunCancelled(OutcomeError):
    """The run was cancelled."""

    code = "cancelled"


class RunBlocked(OutcomeError):
    """The run waits for a person; the message spells out the question."""

    code = "blocked"


class StillRunning(OutcomeError, TimeoutError):
    """The run had not ended when the caller's wait was over; it goes on."""

    code = "still_running"


class HandlerError(DotdoError):
    """Raised by handlers, effects and services to steer the policy."""

    code = "handler_error"


class Fail(HandlerError):
    """A permanent failure: the step is not retried. `raise Fail("User not found.")`."""

    code = "fail"

    def __init__(self, message: str = "Failed for good.") -> None:
        super().__init__(message)


class RetryLater(HandlerError):
    """Not now: try again after `after` seconds (None: as the retry policy says). It counts as an attempt.

    Raised by an effect it also says that this try certainly did not happen: the receiver refused it, or was never
    reached. unknown: it may have happened all the same, only the time of the next try is known.

    Raises ValueError for an `after` that is no number of seconds, or more than some 30 years.
    """

    code = "retry_later"

    def __init__(
        self, message: str = "Asked to be tried again later.", *, after: float | None = None, unknown: bool = False
    ) -> None:
        super().__init__(message)
        if after is not None and not (isinstance(after, int | float) and after <= MAX_SECONDS):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"RetryLater(after={after!r}): a number of seconds up to {MAX_SECONDS:,} is needed.")
        self.after, self.unknown = after, unknown


class AttemptTimedOut(HandlerError):
    """The attempt did not end within the action's `timeout`."""

    code = "timed_out"


class ProcessDied(HandlerError):
    """The process that a handler with `pool="process"` ran in has ended; the message says how."""

    code = "process_died"


class WorkerLost(HandlerError):
    """The worker that had a task died, froze, or was cut off before it told how it ended. Nobody knows."""

    code = "worker_lost"


class ReplayError(DotdoError):
    """The code of a service does not fit what its journal says happened."""

    code = "replay_error"


class ReplayMismatch(ReplayError):
    """On replay the service asked for other steps than the recorded ones."""

    code = "replay_mismatch"


class ServiceDidIO(ReplayError):
    """A service did input or output, or started a thread, on its own loop."""

    code = "service_did_io"


class ServiceSpins(ReplayError):
    """A service ran on and on without waiting for anything."""

    code = "service_spins"


class AccessError(DotdoError):
    """A platform over HTTP did not do as asked."""

    code = "access_error"


class AccessDenied(AccessError):
    """The API key is missing, unknown, revoked, expired, or does not allow this. Nothing happened."""

    code = "access_denied"


class Unreachable(AccessError):
    """The platform cannot be reached. Nothing happened."""

    code = "unreachable"


class OutcomeUnknown(AccessError):
    """The answer was lost, so nobody here knows whether the request was done. `run_id` names the run, if it was."""

    code = "outcome_unknown"
    run_id: str | None = None


class UnknownWorker(AccessError):
    """The session of a worker is over, because its lease ended or the server was started anew. It registers again."""

    code = "unknown_worker"


class LeaseLost(AccessError):
    """A task is not that worker's any more. What the worker says of it changes nothing."""

    code = "lease_lost"


class StoreError(DotdoError):
    """The store cannot be used."""

    code = "store_error"


class StoreUnusable(StoreError):
    """The store cannot be opened; the message says why and what to do."""

    code = "store_unusable"


class StoreUnavailable(StoreError):
    """The store did not take a write or answer a read."""

    code = "store_unavailable"


class SecretUnreadable(StoreError):
    """A stored secret cannot be read: its key is not here, or it was changed or moved."""

    code = "secret_unreadable"


class FenceLost(StoreError):
    """A write carried an old claim: the run belongs to somebody else now."""

    code = "fence_lost"


class NodeExpelled(FenceLost):
    """The other nodes took this one for dead and have its runs now; it comes back as a new node by itself."""

    code = "node_expelled"


class NodeDraining(StoreError):
    """The node starts nothing more, because too many handlers' threads hang; the message says which. Restart it."""

    code = "node_draining"


class ClientClosed(StoreError):
    """The client was closed and takes no more calls."""

    code = "client_closed"


class AttemptOver(BaseException):
    """The attempt has ended (timed out, cancelled, its node stops); its context does nothing any more."""


class RunEvicted(BaseException):
    """The run left this process's memory; its code must end at once."""


def failure_text(type: str, message: str) -> str:
    """What an error says, with its type where the message was not written for people."""
    return f"{type}: {message}" if message and type not in _OURS else message or type


# Types of errors whose messages are written for people: what is raised here, and what the engine says by itself.
_OURS = {name for name, kind in globals().items() if isinstance(kind, type)} | {
    "Cancelled",
    "DeadlineExceeded",
    "Error",
    "NotUndone",
    "UndoFailed",
}
