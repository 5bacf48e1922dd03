"""What the API's answers look like: records of their own, so that nothing internal leaves by accident.

Names are those of the Python interface. Times are ms since 1970 by the store's clock.
"""

from typing import Any, cast

import msgspec

from dotdo.journal import Entry
from dotdo.preview import Preview
from dotdo.records import Definition, ErrorRecord, Run, WaitingFor


class RunError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run failed, was cancelled or is blocked; without its traceback, which stays in the journal."""

    type: str
    message: str
    action: str | None = None
    step: str | None = None
    attempts: int = 1


class RunShape(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    id: str
    kind: str
    name: str
    version: int
    status: str
    undo: str
    generation: int
    result: Any
    error: RunError | None
    not_undone: list[str]
    waiting_for: WaitingFor | None
    progress: Any
    key: str | None
    trail: str | None
    actor: str | None
    labels: dict[str, str]
    priority: int
    parent: str | None
    root: str
    continues: str | None
    continued_as: str | None
    created_at: int
    ended_at: int | None
    erased_at: int | None
    erased_by: str | None


class Page(msgspec.Struct, frozen=True):
    """A page of runs, newest first. next: the cursor of the page after it, None on the last one."""

    runs: list[RunShape]
    next: str | None


class EntryShape(msgspec.Struct, frozen=True):
    """One entry of a journal. digest: of the entry in the run's hash chain."""

    seq: int
    kind: str
    step: str
    generation: int
    attempt: int
    at: int
    data: Any
    digest: str


class Journal(msgspec.Struct, frozen=True):
    """The entries of a run."""

    entries: list[EntryShape]


class Definitions(msgspec.Struct, frozen=True):
    """What can be called."""

    definitions: list[Definition]


def run_shape(run: Run) -> RunShape:
    """A run as the API shows it."""
    return RunShape(
        id=run.id,
        kind=run.kind,
        name=run.name,
        version=run.version,
        status=run.status,
        undo=run.undo,
        generation=run.generation,
        result=run.result,
        error=None if run.error is None else _error(run.error),
        not_undone=run.not_undone,
        waiting_for=None if run.waiting_for is None else _waiting_for(run.waiting_for),
        progress=run.progress,
        key=run.key,
        trail=run.trail,
        actor=run.actor,
        labels=run.labels,
        priority=run.priority,
        parent=run.parent,
        root=run.root,
        continues=run.continues,
        continued_as=run.continued_as,
        created_at=run.created_at,
        ended_at=run.ended_at,
        erased_at=run.erased_at,
        erased_by=run.erased_by,
    )


def entry_shape(entry: Entry) -> EntryShape:
    """An entry as the API shows it, without tracebacks."""
    data: dict[str, Any] | None = msgspec.json.decode(entry.data) if entry.data else None  # it was erased
    _drop_tracebacks(data)
    return EntryShape(entry.seq, entry.kind, entry.step, entry.generation, entry.attempt, entry.at, data, entry.digest)


def preview_shape(found: Preview[Any]) -> dict[str, Any]:
    """A preview as the API shows it, without tracebacks."""
    shape: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(found, result=None))
    _drop_tracebacks(shape)
    return {**shape, "result": found.result}


def _waiting_for(waiting: WaitingFor) -> WaitingFor:
    if not waiting.questions:
        return waiting
    questions = [msgspec.structs.replace(one, error=_plain(one.error)) for one in waiting.questions]
    return msgspec.structs.replace(waiting, questions=questions)


def _plain(error: ErrorRecord | None) -> ErrorRecord | None:
    return None if error is None else msgspec.structs.replace(error, traceback="")


_ERROR_FIELDS = set(ErrorRecord.__struct_fields__)


def _drop_tracebacks(value: Any) -> None:
    """Out of every error in an entry: its own, those of its questions, and of what `on_failure` actions are told."""
    if isinstance(value, list):
        for one in cast("list[Any]", value):
            _drop_tracebacks(one)
    elif isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if "traceback" in fields and "message" in fields and fields.keys() <= _ERROR_FIELDS:
            del fields["traceback"]
        for one in fields.values():
            if isinstance(one, dict | list):
                _drop_tracebacks(one)


def _error(error: ErrorRecord) -> RunError:
    return RunError(error.type, error.message, error.action, error.step, error.attempts)
