"""What the journal says of one step: its state, its requests, and how far its effects are."""

import functools
from types import MappingProxyType
from typing import Any, cast

import msgspec

from dotdo.engine.doubts import NO_DOUBTS, Doubt
from dotdo.journal import ChildStarted, Completion, Requested
from dotdo.records import ErrorRecord

# A step's states. `open`: nothing committed. `committed`: effects are being delivered.
OPEN, COMMITTED, COMPLETED, FAILED, CANCELLED = "open", "committed", "completed", "failed", "cancelled"


class Request(msgspec.Struct, gc=False):
    """A request of a step: what was asked, and its answer once there is one.

    refused: it certainly has not happened. again: a person said to send it once more. left: it is not undone, and a
    person said to leave it so. carried: of a generation before. first_at: ms, when its key was first used.
    tries, tried_at: failed tries to settle or undo it, since its step's last attempt, and when (ms) the first was.
    """

    intent: Requested
    answer: msgspec.Raw | None = None
    at: int = 0
    first_at: int = 0
    refused: bool = False
    again: bool = False
    left: bool = False
    carried: bool = False
    error: ErrorRecord | None = None
    tries: int = 0
    tried_at: int | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether it may have happened, and nobody knows."""
        return self.answer is None and not self.refused


class Delivery(msgspec.Struct, gc=False):
    """How far the delivery of one staged effect is.

    begun: a try is under way, or was when its process died. unknown: a try that failed may have happened all the same.
    again: a person said to send it once more. known_at: ms, when it was last known that it had not happened.
    used_at: ms, when its key was first used, if that was before its step was done again.
    """

    tries: int = 0
    delivered: bool = False
    begun: bool = False
    unknown: bool = False
    again: bool = False
    given_up: bool = False
    next_at: int | None = None
    first_at: int | None = None
    known_at: int = 0
    used_at: int = 0
    error: ErrorRecord | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether it may have happened, and nobody knows."""
        return (self.begun or self.unknown) and not self.delivered


# Most steps have neither, so these are shared. They are replaced; who would add to them gets an error.
NO_REQUESTS = cast("dict[str, Request]", MappingProxyType({}))
NO_DELIVERIES = cast("list[Delivery]", ())
NONE = cast("list[str]", ())


@functools.lru_cache(maxsize=1024)
def _spent(action: str, version: int) -> Completion:
    return Completion(action, version, msgspec.Raw(b"null"), msgspec.Raw(b"null"), 0)


class StepRecord(msgspec.Struct, gc=False):
    """What the journal says of one step.

    doubts: deliveries that may have happened before the step was to be done again.
    loaded: the output of an attempt that has just ended here, decoded from the bytes that are being journaled; for the
        service, which takes it once.
    """

    id: str
    state: str = OPEN
    seq: int = 0  # of the entry that committed or failed it
    attempt: int = 0  # the last attempt's number
    failures: int = 0  # failed attempts of the current action (the fallback starts anew)
    first_at: int | None = None
    next_at: int | None = None
    last_error: ErrorRecord | None = None
    fallback: bool = False
    completion: Completion | None = None
    at: int = 0
    error: ErrorRecord | None = None
    not_undone: list[str] = msgspec.field(default_factory=lambda: NONE)
    requests: dict[str, Request] = msgspec.field(default_factory=lambda: NO_REQUESTS)
    deliveries: list[Delivery] = msgspec.field(default_factory=lambda: NO_DELIVERIES)
    doubts: dict[str, Doubt] = msgspec.field(default_factory=lambda: NO_DOUBTS)
    epoch: int = 0
    generation: int = 0
    child: ChildStarted | None = None
    undone: bool = False
    undone_at: int = 0  # the number of the entry that says so
    partly: bool = False
    undo_error: ErrorRecord | None = None
    left: bool = False  # a person said that it stays as it is
    loaded: tuple[Any] | None = None

    @property
    def is_blank(self) -> bool:
        """Whether the journal says nothing of it, or not any more, or only that attempts were lost."""
        if self.state != OPEN or self.failures or self.child is not None:
            return False
        return not self.requests or all(known.carried for known in self.requests.values())

    @property
    def is_unheard_of(self) -> bool:
        """Whether the journal has never had a word of it."""
        return self.is_blank and not self.attempt and not self.epoch

    def spend(self) -> None:
        """The service has the result: unless something of it can be taken back, its values need not be kept."""
        found = self.completion
        if found is not None and not (found.undo or found.effects or found.requests or found.left):
            self.completion = _spent(found.action, found.version)

    @property
    def done(self) -> bool:
        """Whether it has an outcome for the service."""
        return self.state in (COMPLETED, FAILED)
