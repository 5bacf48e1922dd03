"""Child runs: each call of a child service, or of an action that lives on another node (elsewhere.py), is a run of its
own, accepted in the same commit as the entry that names it.

The child's end reaches the parent as a message in the transaction that ends the child, so neither can be lost. The id
of a child begins with its root's id.
"""

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.action import NO_OVERRIDES, Overrides
from dotdo.engine.accepting import left_to_others, new_run
from dotdo.engine.remaining import effects_left
from dotdo.engine.step_record import OPEN, StepRecord
from dotdo.errors import InvalidOperation
from dotdo.journal import ChildStarted, Completion, Empty, Ended, StepFailed, Undone
from dotdo.offer import Remote
from dotdo.policy import numbers_of
from dotdo.records import ErrorRecord, Options
from dotdo.store.protocol import Message

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun
    from dotdo.engine.step_call import Call


class ChildOutcome(msgspec.Struct, frozen=True):
    """What the message of an ended child says. undoable: whether it can be undone, as far as its definition goes.
    left: effects of an action that have left, and stay or are undone with it."""

    status: str
    generation: int
    undo: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorRecord | None = None
    not_undone: list[str] = []
    undoable: bool = True
    left: list[str] = []


_decode = msgspec.json.Decoder(ChildOutcome)


def root_of(run: str) -> str:
    """The id of the root of a run's tree."""
    return run.partition(".")[0]


def has_child(run: "LiveRun", call: "Call") -> bool:
    """Whether the journal has a child run for a call, be its action defined here by now."""
    record = run.history.steps.get(call.id)
    return record is not None and record.child is not None


async def start_child(run: "LiveRun", call: "Call") -> None:
    """Starts the child run of a call, unless the journal has it, and waits for its end."""
    await run_child(run, call.id, call.definition, call.input)


async def run_child(
    run: "LiveRun", step: str, definition: Any, input: bytes, overrides: Overrides = NO_OVERRIDES
) -> None:
    """Starts the child run of a step, unless the journal has it, and waits for its end.

    definition: of a service; or a Remote, of which another node has the definition, and so takes the run.
    """
    record = run.history.step(step)
    if record.child is None:
        await run.may_attempt()
        _accept_child(run, record, definition, input, overrides)
    child = record.child
    assert child is not None
    place = "" if child.kind == "service" else f"@{child.version}, on a node that has it"
    try:
        message = await run.waiting.for_child(child.run, f"the child run {child.run} ({child.name}{place})", step)
    except asyncio.CancelledError:
        if not run.over and run.status != "blocked":
            await cancel_child(run, record)
        raise
    _finish(run, step, record, message, cancelled=False)


def _accept_child(
    run: "LiveRun", record: StepRecord, definition: Any, input: bytes, overrides: Overrides = NO_OVERRIDES
) -> None:
    digest = hashlib.sha256(f"{run.id}|{record.id}|{record.epoch}".encode()).hexdigest()[:16]
    id = f"{root_of(run.id)}.{digest}"
    of, remote = run.accepted.options, isinstance(definition, Remote)
    options = Options(
        trail=of.trail,
        actor=of.actor,
        priority=of.priority,
        traceparent=of.traceparent,
        tracestate=of.tracestate,
        timeout=overrides.timeout,
        retry=None if overrides.retry is None else numbers_of(overrides.retry),
    )
    if run.trace is not None:
        options = run.trace.carried(options)
    kind, pivot = (definition.kind, definition.pivot) if remote else ("service", False)
    accepted = new_run(
        run.engine,
        id,
        definition,
        kind,
        input,
        options,
        parent=run.id,
        parent_step=record.id,
        pins=run.accepted.pins,
    )
    if remote:
        accepted.row = left_to_others(accepted.row)
    engine, started = run.engine, ChildStarted(id, definition.name, definition.version, msgspec.Raw(input), kind, pivot)
    run.append("child_started", started, record.id)
    run.journal.accept(accepted)
    run.journal.when_durable(
        lambda error: None if error else engine.hint(id) if remote else engine.intake.start_child(accepted)
    )


async def cancel_child(run: "LiveRun", record: StepRecord) -> None:
    """Has a child run cancelled and waits for its end; a child that completed first counts as completed."""
    child = record.child
    assert child is not None, "the caller looked"
    try:
        await run.engine.post(Message(child.run, "cancel", "", "null", None, "parent", run.engine.clock.now()))
    except InvalidOperation:
        run.engine.log.debug("child %s had ended before it was cancelled", child.run)  # its message is on its way
    message = await run.waiting.for_child(child.run, f"the child run {child.run} to end", record.id)
    _finish(run, record.id, record, message, cancelled=True)


def _finish(run: "LiveRun", step: str, record: StepRecord, message: Message, *, cancelled: bool) -> None:
    child = record.child
    assert child is not None
    outcome = _decode.decode(message.value)
    run.journal.take(message.id)
    if outcome.status == "completed":
        completion = Completion(
            child.name,
            child.version,
            child.input,
            outcome.result,
            run.history.accepted_at,
            undo=outcome.undoable,
            left=outcome.left,
        )
        run.append("completed", completion, step, max(record.attempt, 1))
    elif cancelled:
        run.append("step_cancelled", Empty(), step)
    else:
        error = outcome.error or ErrorRecord("Cancelled", "the child run was cancelled")
        run.append("failed", StepFailed(error, outcome.not_undone), step, max(record.attempt, 1))


def child_message(run: "LiveRun", ended: Ended) -> Message | None:
    """The message that tells a run's parent of its end. A chain of runs is one child, known by the first."""
    parent, chain = run.accepted.parent, run.accepted.chain
    if parent is None or (ended.continued_as is not None and run.history.plan is None):
        return None
    undoable, left = _of_action(run, ended) if run.accepted.kind == "action" else (True, [])
    outcome = ChildOutcome(
        ended.status,
        run.history.generation,
        _undone_of(run, ended),
        ended.result,
        ended.error,
        ended.not_undone,
        undoable,
        left,
    )
    sender = f"{run.id}/{run.history.generation}"
    value = msgspec.json.encode(outcome).decode()
    return Message(parent, "child", chain.first if chain else run.id, value, sender, None, run.engine.clock.now())


def _of_action(run: "LiveRun", ended: Ended) -> tuple[bool, list[str]]:
    """Whether a run of an action can be undone, and the effects of it that have left."""
    completion = run.history.step(run.accepted.name).completion
    undoable = ended.status != "completed" or (completion is not None and completion.undo)
    return undoable, effects_left(run.history) if ended.status == "completed" else []


def _undone_of(run: "LiveRun", ended: Ended) -> str:
    """How much of it is undone, for its parent: of nothing at all, because a person or a pivot said so, not all is."""
    if ended.undo == "none" and run.history.plan is not None:
        steps = run.history.steps.values()
        if any(step.completion is not None and step.completion.undo and not step.undone for step in steps):
            return "partial"
    return ended.undo


def blocked_message(run: "LiveRun") -> Message | None:
    """The message that tells a run's parent that the undo of this run, which had ended, waits for a person."""
    parent, chain = run.accepted.parent, run.accepted.chain
    if parent is None or run.history.ended is None:
        return None
    outcome = ChildOutcome("blocked", run.history.generation, "none")
    sender = f"{run.id}/{run.history.generation}/{run.journal.seq}"
    value = msgspec.json.encode(outcome).decode()
    return Message(parent, "child", chain.first if chain else run.id, value, sender, None, run.engine.clock.now())


def take_child_message(run: "LiveRun", message: Message) -> None:
    """Gives the message of an ended child to whoever waits for it."""
    future = run.waiting.children.get(message.name)
    if future is not None and not future.done():
        future.set_result(message)
    elif _is_awaited(run, message.name):
        run.waiting.early.setdefault(message.name, []).append(message)
    else:
        run.journal.take(message.id)  # nobody will ask: an operator undid or retried the child by hand


def holds_messages(run: "LiveRun") -> bool:
    """Whether messages of children are here that the run will ask for, but not yet: as long as they are in its inbox it
    would be woken for them, again and again. Those that nobody will ask for any more are taken."""
    early = run.waiting.early
    for child in list(early):
        if not _is_awaited(run, child):
            for message in early.pop(child):
                run.journal.take(message.id)
    return any(early.values())


def _is_awaited(run: "LiveRun", child: str) -> bool:
    known = [step for step in run.history.steps.values() if step.child is not None and step.child.run == child]
    return any(
        step.state == OPEN or (not step.undone and (run.history.plan is not None or f"undo:{step.id}" in run.tasks))
        for step in known
    )


async def undo_child(run: "LiveRun", record: StepRecord, later: list[StepRecord] | None = None) -> None:
    """Undoes a child's run (all of its chain, newest first), and waits until it is.

    later: takes the step instead, when the child waits for a person, so that other steps can be undone meanwhile.
    """
    child = record.child
    assert child is not None
    partly = waits = False
    left: list[str] = []
    for id in await run.engine.read(lambda: run.engine.store.runs_of_chain(child.run)):
        undo, remains = await _undo_run(run, record, child, id, is_patient=later is None)
        waits = waits or undo is None
        # In part: down to a pivot of the child's, or because a person said to leave the rest as it is.
        partly = partly or undo == "partial"
        left += remains
    if waits and later is not None:
        later.append(record)
    else:
        run.append("undone", Undone(record.id, None, partly, left))


async def _undo_run(
    run: "LiveRun", record: StepRecord, child: ChildStarted, id: str, *, is_patient: bool
) -> tuple[str | None, list[str]]:
    """How much of one run is undone now, and what it had sent and stays; None when it waits for a person and the parent
    does not."""
    sender = f"{run.id}/{run.history.generation}"
    try:
        # Else it was asked for before the parent left memory, and the answer is here.
        if not any((known.sender or "").startswith(f"{id}/") for known in run.waiting.early.get(child.run, ())):
            await run.engine.post(Message(id, "undo", "", "null", sender, "parent", run.engine.clock.now()))
    except InvalidOperation:
        found = await run.engine.get(id)
        if found.ended:
            return found.undo, found.not_undone  # it is undone already
        # An earlier owner of this run asked for it, and it is under way.
        if found.status == "blocked" and not is_patient:
            return None, []
    text = f"the child run {id} ({child.name}) to be undone" + (", or what it asks a person" if is_patient else "")
    while True:
        message = await run.waiting.for_child(child.run, text, record.id)
        run.journal.take(message.id)
        if not (message.sender or "").startswith(f"{id}/"):
            continue  # of another run of its chain, undone before this process took over
        outcome = _decode.decode(message.value)
        if outcome.status != "blocked":
            return outcome.undo, outcome.not_undone
        if not is_patient:
            return None, []
