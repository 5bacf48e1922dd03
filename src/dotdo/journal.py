"""The journal: what each kind of entry holds, and the hash chain that ties a run's entries together.

An entry's digest covers the digest before it, its own header, and the digest of its data; so data can be erased
without breaking the chain, while an edited, deleted or moved entry breaks it. The head of an unfinished or ended
run is anchored under an HMAC key that lives outside the store, which shows a truncated journal.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from dotdo.errors import InvalidOperation
from dotdo.records import ErrorRecord, Options, Outcome, Question, RunKind

GENESIS = "0" * 64
# Data of more bytes is not written into its row; the row has its place instead.
LARGE = 256 * 1024
PLACE = "@"  # no JSON begins so


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One journal row. `seq` counts from 1; `step`, `attempt` are empty and 0 where they have no meaning."""

    run: str
    seq: int
    kind: str
    step: str
    generation: int
    attempt: int
    at: int
    data: str
    data_digest: str
    digest: str


def link(
    previous: str, run: str, seq: int, kind: str, step: str, generation: int, attempt: int, at: int, data: bytes
) -> Entry:
    """The next entry of a run, chained to the digest `previous`."""
    data_digest = hashlib.sha256(data).hexdigest()
    # As `chain` does it: this is called for every entry.
    covered = f"{previous}|{run}|{seq}|{kind}|{step}|{generation}|{attempt}|{at}|{data_digest}"
    digest = hashlib.sha256(covered.encode()).hexdigest()
    return Entry(run, seq, kind, step, generation, attempt, at, data.decode(), data_digest, digest)


def place_of(digest: str, run: str | None = None) -> str:
    """What stands in a row for large data with that digest. run: whose it is; a message may be handed on."""
    return PLACE + (digest if run is None else f"{run}/{digest}")


def input_digest(input: bytes | msgspec.Raw) -> str:
    """What tells whether the same key came with the same input."""
    return hashlib.sha256(input).hexdigest()[:32]


def chain(previous: str, header: str, data_digest: str) -> str:
    """SHA-256 over the previous digest, the header and the data's digest."""
    return hashlib.sha256(f"{previous}|{header}|{data_digest}".encode()).hexdigest()


def anchor(key: bytes, run: str, seq: int, digest: str) -> str:
    """HMAC-SHA256 of a run's head under a key kept outside the store (RFC 2104)."""
    inner, outer = _padded(key)
    hashed, signed = inner.copy(), outer.copy()
    hashed.update(f"{run}|{seq}|{digest}".encode())
    signed.update(hashed.digest())
    return signed.hexdigest()


@functools.lru_cache(maxsize=16)
def _padded(key: bytes) -> tuple[Any, Any]:
    """The two hashes of RFC 2104 with the key taken in: `hmac.digest` sets both up for each call, at 10 us."""
    block = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
    return hashlib.sha256(bytes(b ^ 0x36 for b in block)), hashlib.sha256(bytes(b ^ 0x5C for b in block))


class RegistryEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the store's registry: runs that were deleted, with their heads. Chained and anchored on its own."""

    number: int
    kind: str
    at: int
    actor: str | None
    data: str
    data_digest: str
    digest: str
    anchor: str


def register(
    key: bytes, previous: RegistryEntry | None, kind: str, at: int, actor: str | None, data: str
) -> RegistryEntry:
    """The entry that follows `previous` in the registry."""
    number = previous.number + 1 if previous else 1
    data_digest = hashlib.sha256(data.encode()).hexdigest()
    digest = chain(previous.digest if previous else GENESIS, f"registry|{number}|{kind}|{at}|{actor}", data_digest)
    return RegistryEntry(number, kind, at, actor, data, data_digest, digest, anchor(key, "registry", number, digest))


class Data(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of the data of entries."""


class Chain(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A run that goes on for another: the first of all, the one before, and its own number (the first is 0). senders:
    keys of events that those before had taken, the newest ones."""

    first: str
    previous: str
    number: int
    senders: list[str] = []


class Accepted(Data, frozen=True):
    """The first entry: what was asked for. `seed` feeds the run's random numbers and ids; `pins` names the snapshot of
    newest versions that the run keeps. chain: the run goes on for another."""

    kind: RunKind
    name: str
    version: int
    input: msgspec.Raw
    seed: str
    node: str
    options: Options = Options()
    parent: str | None = None
    parent_step: str | None = None
    pins: str | None = None
    chain: Chain | None = None


class Claimed(Data, frozen=True):
    """A node took the run over; `crashed`: the node before did not give it back."""

    node: str
    claim: int
    crashed: bool = False


class StagedEffect(Data, frozen=True):
    """An effect to send after the commit, or a request's answer: which effect, under which key, with what input."""

    effect: str
    version: int
    key: str
    input: msgspec.Raw


class Completion(Data, frozen=True):
    """All that one commit makes durable. As data of `committed` (effects follow) or `completed` (there are none).

    action, version: whose attempt it was (a fallback's differs from the step's name). undo: whether it declares one.
    left: what a child run has sent.
    """

    action: str
    version: int
    input: msgspec.Raw
    result: msgspec.Raw
    started: int
    effects: list[StagedEffect] = []
    requests: list[str] = []
    undo: bool = False
    sql: list[str] = []
    fallback: bool = False
    left: list[str] = []


class AttemptFailed(Data, frozen=True):
    """An attempt's end without a commit. next_at: when the next one is due (None: there is none)."""

    action: str
    version: int
    input: msgspec.Raw
    error: ErrorRecord
    started: int
    next_at: int | None = None
    fallback: bool = False


class Requested(Data, frozen=True):
    """The intent of a call to the outside world, journaled before it is made. Again when it is known that the call
    before did not happen, or a person said to make it again."""

    request: str
    effect: str
    version: int
    key: str
    epoch: int
    input: msgspec.Raw


class Answered(Data, frozen=True):
    """The answer of a request; it belongs to the step and is replayed on retries."""

    request: str
    answer: msgspec.Raw


class RequestFailed(Data, frozen=True):
    """A request that certainly did not happen; or, with `unknown`, one of which nobody knows."""

    request: str
    error: ErrorRecord
    unknown: bool = False


class Delivering(Data, frozen=True):
    """A try to deliver begins; written only for effects whose lost answer a person must judge."""

    effect: int


class Delivered(Data, frozen=True):
    """A staged effect was taken by its receiver."""

    effect: int
    tries: int
    answer: msgspec.Raw = msgspec.Raw(b"null")


class DeliveryFailed(Data, frozen=True):
    """A try to deliver failed. next_at: when the next one is due (None: it is given up). unknown: whether it, or one
    before it, may have happened all the same."""

    effect: int
    tries: int
    error: ErrorRecord
    next_at: int | None = None
    unknown: bool = False


class EffectsDropped(Data, frozen=True):
    """The run stops: these effects of the step will not be sent. unknown: those that may have been sent before."""

    effects: list[int]
    unknown: list[int] = []


class StepFailed(Data, frozen=True):
    """The step failed for good. not_undone: effects that had already left."""

    error: ErrorRecord
    not_undone: list[str] = []
    fallback: bool = False


class Fired(Data, frozen=True):
    """A timer of the service became due."""

    due: int


class EventReceived(Data, frozen=True):
    """An event from outside, in order of arrival."""

    name: str
    value: msgspec.Raw
    sender: str | None = None
    actor: str | None = None


class ChildStarted(Data, frozen=True):
    """A child run was started for this step. kind: `action` where the step's action lives on another node. pivot: that
    of such an action."""

    run: str
    name: str
    version: int
    input: msgspec.Raw
    kind: RunKind = "service"
    pivot: bool = False


class Published(Data, frozen=True):
    """Progress that the service tells its readers; nothing is done with it."""

    value: msgspec.Raw


class Stopping(Data, frozen=True):
    """The run stops: why, how it will end, which steps caused it, and which attempts (by step) were in flight."""

    status: str
    error: ErrorRecord
    causes: list[str] = []
    in_flight: dict[str, int] = {}


class UndoPlanned(Data, frozen=True):
    """The steps to undo, in order."""

    steps: list[str]


class Undone(Data, frozen=True):
    """A step's undo came to its end. partly: of a child run that could not be undone as a whole. left: what that had
    sent and has not taken back."""

    step: str
    error: ErrorRecord | None = None
    partly: bool = False
    left: list[str] = []


class Blocked(Data, frozen=True):
    """The run waits for a person; the error says why, the questions what can be answered."""

    reason: str
    error: ErrorRecord
    questions: list[Question] = []


class Resolved(Data, frozen=True):
    """A person's answer to a question of a blocked run. answer: of an effect that happened."""

    key: str
    about: str
    outcome: Outcome
    answer: msgspec.Raw = msgspec.Raw(b"null")
    actor: str | None = None


class Reopened(Data, frozen=True):
    """The run was opened again: `retry`, `undo`, or `resolve` when a person had answered its last question."""

    operation: str
    actor: str | None = None
    dropped: list[str] = []


class CancelRequested(Data, frozen=True):
    """Somebody asked for the run to be cancelled."""

    actor: str | None = None


class Ended(Data, frozen=True):
    """The terminal entry of a generation. continued_as: the run that goes on for this one."""

    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorRecord | None = None
    undo: str = "none"
    not_undone: list[str] = []
    continued_as: str | None = None


class Erased(Data, frozen=True):
    """The last entry of a run whose data was erased: all entries before it have an empty text for data, and keep the
    digest of what that was. at: ms. With what the run's row must agree with."""

    name: str
    version: int
    status: str
    undo: str
    at: int
    actor: str | None = None
    continued_as: str | None = None


class Empty(Data, frozen=True):
    """No data: the kind says it all."""


def weight(data: Data) -> int:
    """About how many bytes the data is as JSON, as far as it can be large."""
    weigh = _WEIGH.get(type(data))
    return 0 if weigh is None else weigh(data)


def _of_completion(data: Any) -> int:
    size = len(data.input) + len(data.result)
    return size + sum(len(effect.input) for effect in data.effects) if data.effects else size


_WEIGH: dict[type[Data], Callable[[Any], int]] = {
    Completion: _of_completion,
    Ended: lambda data: len(data.result),
    AttemptFailed: lambda data: len(data.input),
    Requested: lambda data: len(data.input),
    Answered: lambda data: len(data.answer),
    Delivered: lambda data: len(data.answer),
    EventReceived: lambda data: len(data.value),
    ChildStarted: lambda data: len(data.input),
    Accepted: lambda data: len(data.input),
}

KINDS: dict[str, type[Data]] = {
    "accepted": Accepted,
    "claimed": Claimed,
    "attempt_failed": AttemptFailed,
    "requested": Requested,
    "answered": Answered,
    "request_failed": RequestFailed,
    "request_undone": Answered,
    "request_undo_failed": RequestFailed,
    "committed": Completion,
    "completed": Completion,
    "delivering": Delivering,
    "delivered": Delivered,
    "delivery_failed": DeliveryFailed,
    "effects_completed": Empty,
    "effects_dropped": EffectsDropped,
    "failed": StepFailed,
    "step_cancelled": Empty,
    "lost": Empty,
    "fired": Fired,
    "event": EventReceived,
    "published": Published,
    "child_started": ChildStarted,
    "cancel_requested": CancelRequested,
    "stopping": Stopping,
    "undo_planned": UndoPlanned,
    "undone": Undone,
    "blocked": Blocked,
    "resolved": Resolved,
    "reopened": Reopened,
    "ended": Ended,
    "erased": Erased,
}

_decoders = {kind: msgspec.json.Decoder(data) for kind, data in KINDS.items()}
encode_data = msgspec.json.Encoder().encode


def read(entry: Entry) -> Any:
    """The data of an entry as the record of its kind. Raises InvalidOperation when it was erased."""
    if not entry.data:
        raise InvalidOperation(f"The data of entry {entry.seq} of the run {entry.run} was erased.")
    return _decoders[entry.kind].decode(entry.data)
