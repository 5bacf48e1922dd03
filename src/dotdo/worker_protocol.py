"""What a server and its workers say to each other: versions 1 and 2 of the worker protocol, as records. No I/O.

`contract/worker-protocol.md` is its text, `contract/golden/*.json` are its examples; both ends are tested against them.
Unknown fields are ignored and those with a default may be left out, so an older worker and a newer server get along. A
worker says the lowest version that has all that it means, so an older server refuses what it would not keep.
"""

from typing import Any, Literal

import msgspec

from dotdo.policy import Retry

PROTOCOL = 2
WITH_LIMITS = 2  # the first version whose servers keep to `concurrency` and `rate` of an action
MOST_BYTES = 16 * 1024 * 1024  # of one request's body
BESIDES = 16  # tasks of other kinds that a worker is given at a time, beside its `concurrency` of actions

FailureKind = Literal["error", "fail", "refused", "retry_later", "timed_out"]
State = Literal["accepted", "lease_lost", "refused"]


# -- register ----------------------------------------------------------------------------------------------------------


class RetryOffer(msgspec.Struct, frozen=True):
    """When a failed attempt or delivery is tried again; the numbers of `dotdo.Retry`, in seconds."""

    attempts: int | None = 4
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True
    max_elapsed: float | None = None

    @staticmethod
    def of(retry: Retry) -> "RetryOffer":
        """As far as it can be told: which errors are retried, the worker itself says with each of them."""
        return RetryOffer(*(getattr(retry, name) for name in RetryOffer.__struct_fields__))


class Reference(msgspec.Struct, frozen=True):
    """Another action that the same worker, or the server, has."""

    name: str
    version: int = 1


class ConcurrencyOffer(msgspec.Struct, frozen=True):
    """How many attempts may run at a time; key: a parameter, or a path into one, for each of whose values."""

    limit: int
    key: str | None = None


class RateOffer(msgspec.Struct, frozen=True):
    """How many attempts may start within a time, such as `100/minute`; key: as of ConcurrencyOffer."""

    limit: str
    key: str | None = None


class ActionOffer(msgspec.Struct, frozen=True):
    """An action whose handler the worker has. Schemas are JSON Schema 2020-12; an empty one takes anything.
    concurrency, rate: from version 2 on."""

    name: str
    version: int = 1
    doc: str = ""
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    retry: RetryOffer | None = None
    timeout: float | None = None
    undo: Reference | None = None
    fallback: Reference | None = None
    on_failure: list[Reference] = []
    pivot: bool = False
    concurrency: list[ConcurrencyOffer] = []
    rate: list[RateOffer] = []


class EffectOffer(msgspec.Struct, frozen=True):
    """An effect that the worker can perform. undo, lookup: whether it has such functions, too."""

    name: str
    version: int = 1
    doc: str = ""
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    dedup: Literal["key", "find", "none"] = "none"
    key_window: float | None = None
    on_unknown: Literal["resend", "ask"] = "ask"
    retry: RetryOffer | None = None
    timeout: float | None = 60.0
    undo: bool = False
    lookup: bool = False


class Register(msgspec.Struct, frozen=True):
    """POST /v1/worker/register. name: for people. databases: names of the application's databases in which handlers
    commit; the same name means the same database at every worker."""

    protocol: int
    name: str = ""
    sdk: str = ""
    concurrency: int = 10
    databases: list[str] = []
    actions: list[ActionOffer] = []
    effects: list[EffectOffer] = []


class Registered(msgspec.Struct, frozen=True):
    """The answer. protocol: the version that the worker has named. served_here: what was offered, but is defined by the
    server itself, which runs it."""

    worker: str
    protocol: int
    lease_seconds: float
    heartbeat_seconds: float
    poll_seconds: float
    max_body: int
    served_here: list[str] = []


# -- claim -------------------------------------------------------------------------------------------------------------


class Claim(msgspec.Struct, frozen=True):
    """POST /v1/worker/claim. after: the batch that came last. wait: seconds for which the worker is ready to wait."""

    worker: str
    after: int = 0
    wait: float = 0.0


class CompletionStart(msgspec.Struct, frozen=True):
    """What the server knows already of an attempt's completion."""

    action: str
    version: int
    started: int
    undo: bool
    fallback: bool


class ActionTask(msgspec.Struct, frozen=True, tag="action", tag_field="kind"):
    """One attempt of an action. key: the step's idempotency key. epoch: of the keys of its effects."""

    id: str
    token: str
    name: str
    version: int
    run: str
    step: str
    generation: int
    attempt: int
    epoch: int
    key: str
    actor: str | None
    trail: str | None
    timeout: float | None
    input: msgspec.Raw
    completion: CompletionStart
    traceparent: str | None = None


class EffectTask(msgspec.Struct, frozen=True, tag="effect", tag_field="kind"):
    """One try to perform an effect. attempt: which try this is."""

    id: str
    token: str
    name: str
    version: int
    run: str
    step: str
    attempt: int
    key: str
    actor: str | None
    trail: str | None
    timeout: float | None
    input: msgspec.Raw
    traceparent: str | None = None


class LookupTask(EffectTask, frozen=True, tag="lookup", tag_field="kind"):
    """To find out by its key whether an effect has happened."""


class EffectUndoTask(EffectTask, frozen=True, tag="effect_undo", tag_field="kind"):
    """To take back an effect that has happened. answer: what it had answered."""

    answer: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))


class SettleTask(msgspec.Struct, frozen=True, tag="settle", tag_field="kind"):
    """To decide an attempt whose end the server has not seen, in the application's databases."""

    id: str
    token: str
    name: str
    version: int
    run: str
    step: str
    generation: int
    attempt: int


Task = ActionTask | EffectTask | LookupTask | EffectUndoTask | SettleTask


class Batch(msgspec.Struct, frozen=True):
    """The answer. batch: its number; the one before when it is empty. cancelled: tasks that nobody wants any more."""

    batch: int
    tasks: list[Task] = []
    cancelled: list[str] = []


# -- complete ----------------------------------------------------------------------------------------------------------


class StagedCall(msgspec.Struct, frozen=True):
    """An effect that a handler has staged."""

    effect: str
    version: int
    key: str
    input: msgspec.Raw


class HandlerResult(msgspec.Struct, frozen=True):
    """What an attempt commits. requests: those that it has made, as their answers name them. sql: the database in which
    its completion is committed, if it has used one."""

    result: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    effects: list[StagedCall] = []
    requests: list[str] = []
    sql: list[str] = []


class Failure(msgspec.Struct, frozen=True):
    """Why a task failed. kind: `error`; `fail` (permanent); `refused` (nothing was begun: a wrong input or definition);
    `retry_later`; `timed_out`. retry: False when the definition says never to retry such an error. after: seconds.
    unknown: of an effect that asks to be tried later: it may have happened all the same. module: of Python's class."""

    type: str = "Error"
    message: str = ""
    traceback: str = ""
    kind: FailureKind = "error"
    retry: bool = True
    after: float | None = None
    unknown: bool = False
    module: str = ""


class Completed(msgspec.Struct, frozen=True, tag="completed", tag_field="outcome"):
    """A task is done. completion: of an action, or what settling found (null: it never commits). answer: of an effect.
    found: whether a lookup found it. unkept: why the answer of an effect, which has happened, cannot be told."""

    task: str
    token: str
    completion: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    answer: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    found: bool = False
    unkept: str = ""


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="outcome"):
    """A task failed; what it did in a database is rolled back."""

    task: str
    token: str
    error: Failure


class Released(msgspec.Struct, frozen=True, tag="released", tag_field="outcome"):
    """A task was not begun, and is given back."""

    task: str
    token: str


Outcome = Completed | Failed | Released


class Complete(msgspec.Struct, frozen=True):
    """POST /v1/worker/complete."""

    worker: str
    tasks: list[Outcome] = []


class TaskState(msgspec.Struct, frozen=True):
    """What became of an outcome. detail: why it was not accepted."""

    task: str
    state: State
    detail: str = ""


class Results(msgspec.Struct, frozen=True):
    """The answer, in the order of the request."""

    results: list[TaskState] = []


# -- heartbeat, request, drain, leave ----------------------------------------------------------------------------------


class Heartbeat(msgspec.Struct, frozen=True):
    """POST /v1/worker/heartbeat. tasks: those that the worker has. after: the batch that came last."""

    worker: str
    tasks: list[str] = []
    after: int = 0


class Beat(msgspec.Struct, frozen=True):
    """The answer. cancelled: of those, nobody wants them any more. lost: they are somebody else's, or nobody's."""

    lease_seconds: float
    cancelled: list[str] = []
    lost: list[str] = []


class RequestCall(msgspec.Struct, frozen=True):
    """POST /v1/worker/request. number: counts the requests of the attempt from 1; the same one again is the same
    request. wait: seconds for which the worker is ready to wait."""

    worker: str
    task: str
    token: str
    number: int
    effect: str
    version: int
    input: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    wait: float = 0.0


class RequestState(msgspec.Struct, frozen=True):
    """The answer. state: `pending` (ask again), `answered`, `failed`, or `over` (the attempt is). request: names it in
    the completion."""

    state: Literal["pending", "answered", "failed", "over"]
    request: str = ""
    answer: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    error: Failure | None = None


class OfWorker(msgspec.Struct, frozen=True):
    """POST /v1/worker/drain, /v1/worker/leave. after: of one that leaves, the batch that came last (null: unknown)."""

    worker: str
    after: int | None = None


class Done(msgspec.Struct, frozen=True):
    """The answer: nothing to tell."""
