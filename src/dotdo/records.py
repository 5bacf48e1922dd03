"""The frozen records that travel between layers, and the states of 1.5.

A run is durable work under an id; its journal (journal.py) is the truth, and these records are what callers see of it.
"""

import base64
import hashlib
import time
from typing import Any, Literal

import msgspec

from dotdo.errors import MAX_SECONDS, DefinitionError
from dotdo.policy import Retry, check_text, seconds

RunKind = Literal["action", "service"]
Status = Literal["pending", "running", "waiting", "stopping", "undoing", "completed", "failed", "cancelled", "blocked"]
Undo = Literal["none", "partial", "all"]

# How much sooner a run gets its turn than others, wherever runs wait; 0 when nothing is said.
LOWEST_PRIORITY, HIGHEST_PRIORITY = -10, 10

ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})

# What a person can answer to the question of a blocked run.
Outcome = Literal["happened", "did_not_happen", "try_again"]


def erased_text(at: int, by: str | None) -> str:
    """That a run's data was erased, when (ms) and by whom, in words."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at / 1000))
    return f"its data was erased on {when}" + (f" by {by}" if by else "")


def cursor_of(created_at: int, id: str) -> str:
    """The cursor of the page of runs that comes after this one."""
    return base64.urlsafe_b64encode(msgspec.json.encode((created_at, id))).decode().rstrip("=")


def place_of(cursor: str) -> tuple[int, str]:
    """What `cursor_of` was made of. Raises ValueError or MsgspecError for any other text."""
    padded = cursor + "=" * (-len(cursor) % 4)
    return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=tuple[int, str])


def keyed_run_id(name: str, key: str) -> str:
    """The id of the one run of that name under that idempotency key."""
    return "run_" + hashlib.sha256(f"{name}\0{key}".encode()).hexdigest()[:32]


class ErrorRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as journaled: its type's name, message, trimmed traceback, and the step it came from."""

    type: str
    message: str
    traceback: str = ""
    action: str | None = None
    step: str | None = None
    attempts: int = 1


class Question(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a blocked run asks of a person; `client.runs.resolve` answers it.

    key: names the question within its run: the idempotency key under which the effect was sent, or the undo's step.
    about: whether a `request` or `delivery` has happened, or what to do about an `undo` (of a step) or `request_undo`
    that failed for good. effect, version: of the effect, or of the action whose undo it is. input: what it was given,
    plain JSON. at: ms, when it was first tried. error: why nobody knows. answers: those that are possible. shape: the
    JSON Schema of the answer that goes with `happened`; None: there is none.
    """

    key: str
    about: Literal["request", "delivery", "undo", "request_undo"]
    step: str
    effect: str
    text: str
    at: int
    version: int = 1
    input: Any = None
    error: ErrorRecord | None = None
    answers: list[Outcome] = []
    shape: dict[str, Any] | None = None


class WaitingFor(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an unfinished run does not move, in words and data.

    kind: timer, event, retry, delivery, answer, child, start, person, action, engine, turn, restart, limit, store.
    until: ms of the store's clock, if known. questions: what a person is asked.
    """

    kind: str
    text: str
    until: int | None = None
    step: str | None = None
    questions: list[Question] = []


# The kind where only the memory of the node that has the run could say more.
HELD = "engine"


class Options(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a caller may say about one run, beside its input.

    key: idempotency key. version: which version (None: the newest). trail: ties runs together. delay and deadline:
    seconds before the start, and for the whole run. priority: from -10 to 10 (None: 0); where runs wait, the higher
    goes first. labels: text by name. actor: who asked. timeout, retry: instead of the action's own (the numbers of a
    Retry by name). traceparent, tracestate: the place in a trace that the run belongs to (W3C Trace Context).
    """

    key: str | None = None
    version: int | None = None
    trail: str | None = None
    delay: float | None = None
    deadline: float | None = None
    priority: int | None = None
    labels: dict[str, str] = {}
    actor: str | None = None
    timeout: float | None = None
    retry: dict[str, Any] | None = None
    traceparent: str | None = None
    tracestate: str | None = None


def check_options(options: Options) -> None:
    """Checks what a caller said beside the input. Raises DefinitionError."""
    check_text(options.key, "key")
    check_text(options.trail, "trail")
    check_text(options.actor, "actor")
    check_labels(options.labels)
    for name in ("deadline", "delay"):
        value = getattr(options, name)
        if value is not None and not (isinstance(value, int | float) and 0 <= value <= MAX_SECONDS):
            raise DefinitionError(f"{name}={value!r}: a number of seconds from 0 to {MAX_SECONDS:,} is needed.")
    if options.priority is not None:
        check_priority(options.priority)
    seconds(options.timeout, "timeout")
    if options.retry is not None:
        Retry(**options.retry)


def check_labels(labels: dict[str, str]) -> None:
    """Checks what a run is found by. Raises DefinitionError."""
    if not isinstance(labels, dict):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
        raise DefinitionError(f"labels={labels!r:.80}: text by name is needed, such as {{'team': 'sales'}}.")
    for name, text in labels.items():
        check_text(name, "labels: a name")
        if text is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise DefinitionError(f"labels: {name}=None: text is needed; leave it out if it has none.")
        check_text(text, f"labels: {name}")
        if "=" in name:
            raise DefinitionError(f"labels: a name is without `=`, as filters are NAME=VALUE; this one is {name!r}.")


def check_priority(value: int) -> None:
    """Checks how much sooner a run is to get its turn. Raises DefinitionError."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
    if not (is_whole and LOWEST_PRIORITY <= value <= HIGHEST_PRIORITY):
        raise DefinitionError(
            f"priority={value!r}: a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY} is needed. "
            "Where runs wait the higher goes first; one that says nothing has 0."
        )


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run as callers see it. Times are ms since 1970 by the store's clock.

    `result` is plain JSON values and is there when `status` is completed; `error` when it failed, was cancelled or is
    blocked. `undo` says how much of what it had committed was taken back. `not_undone` lists effects that stay, as
    `step: effect`, with `(perhaps)` behind those of which nobody knows whether they happened. `progress` is what its
    service published last. `continues` and `continued_as` are the runs before and after it, when a service has
    continued as new. `erased_at`, `erased_by`: when, and by whom, its data was erased; what it held is None then.
    """

    id: str
    kind: RunKind
    name: str
    version: int
    status: Status
    undo: Undo = "none"
    generation: int = 0
    result: Any = None
    error: ErrorRecord | None = None
    not_undone: list[str] = []
    waiting_for: WaitingFor | None = None
    progress: Any = None
    key: str | None = None
    trail: str | None = None
    actor: str | None = None
    labels: dict[str, str] = {}
    priority: int = 0
    parent: str | None = None
    root: str = ""
    continues: str | None = None
    continued_as: str | None = None
    created_at: int = 0
    ended_at: int | None = None
    erased_at: int | None = None
    erased_by: str | None = None

    @property
    def ended(self) -> bool:
        """Whether this generation has come to its end."""
        return self.status in ENDED

    @property
    def rests(self) -> bool:
        """Whether it has ended, or is blocked: nothing happens to it by itself."""
        return self.ended or self.status == "blocked"

    @property
    def questions(self) -> list[Question]:
        """What a blocked run asks of a person; see `client.runs.resolve`."""
        return self.waiting_for.questions if self.waiting_for is not None else []


class Progress(msgspec.Struct, frozen=True):
    """What a run has published since a reader asked last. after: where to go on reading. ended: nothing more comes,
    because the run has ended or is blocked. continued_as: the run that goes on for it."""

    values: list[Any]
    after: int
    ended: bool
    continued_as: str | None = None


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs to list; None does not restrict. labels: those that have all of these. before: continue after this run
    (its created_at and id)."""

    status: str | None = None
    undo: str | None = None
    name: str | None = None
    trail: str | None = None
    parent: str | None = None
    labels: dict[str, str] = {}
    since: int | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


class Failure(msgspec.Struct, frozen=True):
    """What an `on_failure` action is given: which run failed, where, why, and after how many attempts."""

    run: str
    name: str
    step: str | None
    error: ErrorRecord
    attempts: int = 1


class Node(msgspec.Struct, frozen=True):
    """A process with an engine, on a store that several share. started_at: ms since 1970. lease: ms for which it is
    taken for alive if nothing more is heard of it. offers: its definitions, as `kind name@version`. runs: how many it
    has in memory."""

    id: str
    host: str
    pid: int
    started_at: int
    lease: int
    offers: list[str]
    runs: int


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A definition as listed: name, versions, schemas and what its policies say."""

    kind: Literal["action", "service", "effect"]
    name: str
    version: int
    doc: str = ""
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    policy: dict[str, Any] = {}
