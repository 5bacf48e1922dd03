"""A run as its readers see it, of its row and the entry at its head."""

from typing import Any

import msgspec

from dotdo.journal import Blocked, Ended, Erased, Published
from dotdo.records import ENDED, HELD, ErrorRecord, Run, WaitingFor, erased_text
from dotdo.store.blobs import Blobs, is_elsewhere

_ended = msgspec.json.Decoder(Ended)
_blocked = msgspec.json.Decoder(Blocked)
_erased = msgspec.json.Decoder(Erased)
_published = msgspec.json.Decoder(Published)
_waiting = msgspec.json.Decoder(WaitingFor)
_TURN = WaitingFor("turn", "an engine that takes it")


def progress_of(data: str) -> Any:
    """What was published last, as plain values."""
    return msgspec.json.decode(_published.decode(data).value)


def run_of(row: tuple[Any, ...], blobs: Blobs | None = None) -> Run:
    """A run of its row. blobs: for a result that is larger than a row; a list of runs goes without it."""
    (id, root, parent, _, kind, name, version, key, _, trail, actor, labels, status, undo, generation) = row[:15]
    waiting_for, _, owner, _, _, _, _, _, created_at, ended_at, priority = row[15:26]
    head_kind, head, progress, continues = row[-4:]  # a later schema may have more columns before these
    if is_elsewhere(head):
        head_kind, head = (head_kind, blobs.whole(id, head)) if blobs else ("", "")
    result, error, not_undone, continued_as, erased = None, None, list[str](), None, None
    waits = _waiting.decode(waiting_for) if waiting_for else None
    if head_kind == "ended":
        ended = _ended.decode(head)
        if status in ENDED:
            result, error, not_undone = msgspec.json.decode(ended.result), ended.error, ended.not_undone
            continued_as = ended.continued_as
    elif head_kind == "erased":
        erased = _erased.decode(head)
        continued_as = erased.continued_as
        error = None if status == "completed" else ErrorRecord("Erased", erased_text(erased.at, erased.actor))
    elif head_kind == "blocked" and status == "blocked":
        blocked = _blocked.decode(head)
        error = blocked.error
        waits = WaitingFor("person", waits.text if waits else error.message, None, error.step, blocked.questions)
    if waits is None and ended_at is None:
        waits = WaitingFor(HELD, f"{owner}, which has it in memory") if owner else _TURN
    return Run(
        id=id,
        kind=kind,
        name=name,
        version=version,
        status=status,
        undo=undo,
        generation=generation,
        result=result,
        error=error,
        not_undone=not_undone,
        waiting_for=waits,
        progress=progress_of(progress) if progress else None,
        key=key,
        trail=trail,
        actor=actor,
        labels=msgspec.json.decode(labels),
        priority=priority,
        parent=parent,
        root=root,
        continues=continues,
        continued_as=continued_as,
        created_at=created_at,
        ended_at=ended_at,
        erased_at=erased.at if erased else None,
        erased_by=erased.actor if erased else None,
    )
