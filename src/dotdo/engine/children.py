"""Child services: each call is a run of its own, accepted in the same commit as the entry that names it.

The child's end reaches the parent as a message in the transaction that ends the child, so neither can be lost. The id
of a child begins with its root's id.
"""

import asyncio
import hashlib
from typing import TYPE_CHECKING

import msgspec

from dotdo.engine.accepting import new_run
from dotdo.engine.history import OPEN, StepRecord
from dotdo.errors import InvalidOperation
from dotdo.journal import ChildStarted, Completion, Empty, Ended, StepFailed, Undone
from dotdo.records import ErrorRecord, Options
from dotdo.store.protocol import Message

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun
    from dotdo.engine.service_code import Call


class ChildOutcome(msgspec.Struct, frozen=True):
    """What the message of an ended child says."""

    status: str
    generation: int
    undo: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorRecord | None = None
    not_undone: list[str] = []


_decode = msgspec.json.Decoder(ChildOutcome)


def root_of(run: str) -> str:
    """The id of the root of a run's tree."""
    return run.partition(".")[0]


async def start_child(run: "LiveRun", call: "Call") -> None:
    """Starts the child run of a call, unless the journal has it, and waits for its end."""
    record = run.history.step(call.id)
    if record.child is None:
        await run.may_attempt()
        record = _accept_child(run, call, record)
    child = record.child
    assert child is not None
    text = f"the child run {child.run} ({child.name})"
    try:
        message = await run.waiting.for_child(child.run, text, call.id)
    except asyncio.CancelledError:
        if not run.over and run.status != "blocked":
            await cancel_child(run, record)
        raise
    _finish(run, call.id, record, message, cancelled=False)


def _accept_child(run: "LiveRun", call: "Call", record: StepRecord) -> StepRecord:
    digest = hashlib.sha256(f"{run.id}|{call.id}|{record.epoch}".encode()).hexdigest()[:16]
    id = f"{root_of(run.id)}.{digest}"
    definition = call.definition
    of = run.accepted.options
    options = Options(
        trail=of.trail,
        actor=of.actor,
        priority=of.priority,
        traceparent=of.traceparent,
        tracestate=of.tracestate,
    )
    if run.trace is not None:
        options = run.trace.carried(options)
    accepted = new_run(
        run.engine,
        id,
        definition,
        "service",
        call.input,
        options,
        parent=run.id,
        parent_step=call.id,
        pins=run.accepted.pins,
    )
    run.append("child_started", ChildStarted(id, definition.name, definition.version, msgspec.Raw(call.input)), call.id)
    run.journal.accept(accepted)
    run.journal.when_durable(lambda error: None if error else run.engine.start_child(accepted))
    return record


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
        run.append(
            "completed",
            Completion(child.name, child.version, child.input, outcome.result, run.history.accepted_at, undo=True),
            step,
            1,
        )
    elif cancelled:
        run.append("step_cancelled", Empty(), step)
    else:
        error = outcome.error or ErrorRecord("Cancelled", "the child run was cancelled")
        run.append("failed", StepFailed(error, outcome.not_undone), step, 1)


def child_message(run: "LiveRun", ended: Ended) -> Message | None:
    """The message that tells a run's parent of its end. A chain of runs is one child, known by the first."""
    parent, chain = run.accepted.parent, run.accepted.chain
    if parent is None or (ended.continued_as is not None and run.history.plan is None):
        return None
    outcome = ChildOutcome(
        ended.status, run.history.generation, ended.undo, ended.result, ended.error, ended.not_undone
    )
    sender = f"{run.id}/{run.history.generation}"
    value = msgspec.json.encode(outcome).decode()
    return Message(parent, "child", chain.first if chain else run.id, value, sender, None, run.engine.clock.now())


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
    for id in await run.engine.read(lambda: run.engine.store.runs_of_chain(child.run)):
        undo = await _undo_run(run, record, child, id, is_patient=later is None)
        waits = waits or undo is None
        # In part: down to a pivot of the child's, or because a person said to leave the rest as it is.
        partly = partly or undo == "partial"
    if waits and later is not None:
        later.append(record)
    else:
        run.append("undone", Undone(record.id, None, partly))


async def _undo_run(
    run: "LiveRun", record: StepRecord, child: ChildStarted, id: str, *, is_patient: bool
) -> str | None:
    """How much of one run is undone now; None when it waits for a person and the parent does not."""
    sender = f"{run.id}/{run.history.generation}"
    try:
        await run.engine.post(Message(id, "undo", "", "null", sender, "parent", run.engine.clock.now()))
    except InvalidOperation:
        found = await run.engine.get(id)
        if found.ended:
            return found.undo  # it is undone already
        # An earlier owner of this run asked for it, and it is under way.
        if found.status == "blocked" and not is_patient:
            return None
    text = f"the child run {id} ({child.name}) to be undone" + (", or what it asks a person" if is_patient else "")
    while True:
        message = await run.waiting.for_child(child.run, text, record.id)
        run.journal.take(message.id)
        if not (message.sender or "").startswith(f"{id}/"):
            continue  # of another run of its chain, undone before this process took over
        outcome = _decode.decode(message.value)
        if outcome.status != "blocked":
            return outcome.undo
        if not is_patient:
            return None
