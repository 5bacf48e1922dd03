"""Stopping a run and taking back what it did.

First every step in flight is settled, then one entry commits the ordered plan, then each step of the plan is undone,
newest first, then on_failure actions run, then the run ends. All of it resumes after a crash where the journal stands.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.action import NO_OVERRIDES, Action, undo_input
from dotdo.engine import asking, requesting
from dotdo.engine.children import cancel_child, undo_child
from dotdo.engine.delivering import drop
from dotdo.engine.failing import Block, message_of, together
from dotdo.engine.remaining import effects_left
from dotdo.engine.settling import leaves_unsettled, settle_in_flight
from dotdo.engine.step_call import OWN_STEPS
from dotdo.engine.step_record import CANCELLED, COMMITTED, COMPLETED, FAILED, OPEN, StepRecord
from dotdo.engine.stepping import StepRun
from dotdo.journal import Ended, Stopping, Undone, UndoPlanned
from dotdo.records import ErrorRecord, Failure

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun
    from dotdo.engine.step_call import Call


async def stop(run: "LiveRun", stopping: Stopping) -> None:
    """Brings a run that has failed or was cancelled to its end, from wherever the journal stands."""
    history = run.history
    if history.stopping is None:
        run.append("stopping", stopping)
        run.journal.update("stopping", owner=run.engine.node, unsettled=leaves_unsettled(run))
    await run.settle_in_flight()
    await _settle_unseen(run)
    if any(block.reason != asking.UNDO_FAILED for block in run.asked):
        raise together(run.take_asked())  # nothing is undone before all that was in flight is settled
    if history.plan is None:
        run.append("undo_planned", UndoPlanned(_plan(run) if run.undoes else []))
        run.journal.update("undoing", owner=run.engine.node, unsettled=leaves_unsettled(run))
    await _undo_planned(run)
    if stopping.status == "failed":
        await tell_of_failure(run, stopping.error)
    undo = how_much_undone(run)
    run.end(Ended(stopping.status, error=stopping.error, undo=undo, not_undone=effects_left(run.history)))


async def undo_ended(run: "LiveRun", ended: Ended) -> None:
    """An operator asked to undo an ended run: a new generation that ends as the old one did, undone."""
    await settle_in_flight(run, {})
    if run.history.plan is None:
        run.append("undo_planned", UndoPlanned(_plan(run)))
        run.journal.update("undoing", owner=run.engine.node, unsettled=leaves_unsettled(run))
    await _undo_planned(run)
    run.end(msgspec.structs.replace(ended, undo=how_much_undone(run), not_undone=effects_left(run.history)))


async def _undo_planned(run: "LiveRun") -> None:
    """Undoes the steps of the plan that are not undone yet, in order, whatever fails. Raises Block for what did."""
    failed = run.take_asked()
    later: list[StepRecord] = []
    for id in run.history.plan or []:
        record = run.history.steps[id]
        if record.undone or record.left:
            continue
        if record.undo_error is None:
            try:
                await undo_step(run, record, later)
            except Block as block:
                run.append("undone", Undone(id, ErrorRecord(block.reason, block.message, step=id)))
                failed.append(block)
        else:
            failed.append(asking.about_undo(run, record, record.undo_error.message, record.undo_error))
    for record in later:
        await undo_child(run, record)
    if failed:
        raise together(failed)


async def take_back(run: "LiveRun", call: "Call") -> None:
    """The service has asked for the undo of a step."""
    await run.may_attempt()
    await undo_step(run, run.history.step(call.id.removeprefix("undo:")))


async def undo_step(run: "LiveRun", record: StepRecord, later: list[StepRecord] | None = None) -> None:
    """Takes one committed step back. Raises Block when its undo fails for good. later: takes children that wait for a
    person, so that the rest can be undone first."""
    completion = record.completion
    if completion is None or record.undone or record.left:
        return
    if record.child is not None:
        await undo_child(run, record, later)
        return
    if not completion.undo:
        return
    action: Action[..., Any] | None = run.engine.catalogue.find("action", completion.action, completion.version)
    if action is None or action.undo_action is None:
        missing = f"the undo of {completion.action}@{completion.version} is not defined in this process"
        raise asking.about_undo(run, record, missing)
    input = undo_input(action.undo_action, bytes(completion.result), bytes(completion.input))
    undo = StepRun(run, f"undo:{record.id}", action.undo_action, input, NO_OVERRIDES)
    await undo.execute()
    if undo.record.state == FAILED:
        error = undo.record.error or ErrorRecord("Error", "it failed")
        raise asking.about_undo(run, record, f"{error.type}: {error.message}", error)
    run.append("undone", Undone(record.id))


def _plan(run: "LiveRun") -> list[str]:
    """The committed steps that declare an undo, newest first, down to the last pivot."""
    steps = [
        record
        for id, record in run.history.steps.items()
        if record.state in (COMMITTED, COMPLETED) and record.completion is not None and not id.startswith(OWN_STEPS)
    ]
    plan: list[str] = []
    for record in sorted(steps, key=lambda item: -item.seq):
        completion = record.completion
        assert completion is not None
        if record.child.pivot if record.child is not None else _is_pivot(run, completion.action, completion.version):
            break
        if completion.undo and not record.undone and not record.left:
            plan.append(record.id)
    return plan


def _is_pivot(run: "LiveRun", action: str, version: int) -> bool:
    found = run.engine.catalogue.find("action", action, version)
    return found is not None and found.pivot


def how_much_undone(run: "LiveRun") -> str:
    """`all` when every committed step that declares an undo is undone, `none` when no step is."""
    declared = [
        record for record in run.history.steps.values() if record.completion is not None and record.completion.undo
    ]
    if not any(record.undone for record in declared):
        return "none"
    return "all" if all(record.undone and not record.partly for record in declared) else "partial"


async def _settle_unseen(run: "LiveRun") -> None:
    """After a crash: attempts that were in flight may have committed their SQL unseen; effects not sent are dropped.

    What a person must be asked is kept in `run.asked`.
    """
    stopping = run.history.stopping
    assert stopping is not None
    await settle_in_flight(run, stopping.in_flight)
    asked = {block.step for block in run.asked}
    for record in list(run.history.steps.values()):
        if record.child is not None:
            if record.state == OPEN:
                await cancel_child(run, record)
        elif record.state == COMMITTED and not record.id.startswith(OWN_STEPS):
            await drop(run, record)
        elif record.state in (OPEN, CANCELLED) and record.requests and record.id not in asked:
            # A step that is given up takes back what it had asked for.
            try:
                await requesting.take_back(run, record)
            except Block as block:
                run.asked = (*run.asked, block)


async def tell_of_failure(run: "LiveRun", error: ErrorRecord) -> None:
    """Runs the on_failure actions; how they end changes nothing else."""
    for action in run.on_failure:
        failure = Failure(run.id, run.accepted.name, error.step, error, error.attempts)
        first = action.schema.parameters[0].name if action.schema.parameters else None
        input = msgspec.json.encode({first: failure} if first else {})
        step = StepRun(run, f"on_failure:{action.name}", action, input, NO_OVERRIDES)
        try:
            await step.execute()
        except (Block, asyncio.CancelledError) as trouble:
            if run.over:
                raise
            run.engine.log.error("on_failure action %s of %s: %s", action.name, run.id, message_of(trouble))
