"""Stopping a run and taking back what it did.

First every step in flight is settled, then one entry commits the ordered plan, then each step of the plan is undone,
newest first, then on_failure actions run, then the run ends. All of it resumes after a crash where the journal stands.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.action import NO_OVERRIDES, Action, undo_input
from dotdo.engine import requesting
from dotdo.engine.children import cancel_child, undo_child
from dotdo.engine.failing import Block, message_of
from dotdo.engine.history import COMMITTED, COMPLETED, FAILED, OPEN, StepRecord
from dotdo.engine.service_code import OWN_STEPS
from dotdo.engine.settling import leaves_unsettled, settle_in_flight
from dotdo.engine.stepping import StepRun
from dotdo.journal import EffectsDropped, Ended, Stopping, Undone, UndoPlanned
from dotdo.records import ErrorRecord, Failure

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


async def stop(run: "LiveRun", stopping: Stopping) -> None:
    """Brings a run that has failed or was cancelled to its end, from wherever the journal stands."""
    history = run.history
    if history.stopping is None:
        run.append("stopping", stopping)
        run.journal.update("stopping", owner=run.engine.node, unsettled=leaves_unsettled(run))
    await run.settle_in_flight()
    await _settle_unseen(run)
    if history.plan is None:
        run.append("undo_planned", UndoPlanned(_plan(run) if run.undoes else []))
        run.journal.update("undoing", owner=run.engine.node, unsettled=leaves_unsettled(run))
    failed = await undo_planned(run)
    if failed:
        raise Block(
            "undo failed",
            "Could not be undone: " + "; ".join(failed) + ". Everything else of the plan was undone. Take it back by "
            "hand, or mend the undo action and retry the undo.",
        )
    if stopping.status == "failed":
        await tell_of_failure(run, stopping.error)
    undo = how_much_undone(run)
    run.end(Ended(stopping.status, error=stopping.error, undo=undo, not_undone=_not_undone(run)))


async def undo_ended(run: "LiveRun", ended: Ended) -> None:
    """An operator asked to undo an ended run: a new generation that ends as the old one did, undone."""
    await settle_in_flight(run, {})
    if run.history.plan is None:
        run.append("undo_planned", UndoPlanned(_plan(run)))
        run.journal.update("undoing", owner=run.engine.node, unsettled=leaves_unsettled(run))
    failed = await undo_planned(run)
    if failed:
        raise Block("undo failed", "Could not be undone: " + "; ".join(failed) + ".")
    run.end(msgspec.structs.replace(ended, undo=how_much_undone(run), not_undone=_not_undone(run)))


async def undo_planned(run: "LiveRun") -> list[str]:
    """Undoes the steps of the plan that are not undone yet, in order; returns those that could not be, in words."""
    failed: list[str] = []
    for id in run.history.plan or []:
        record = run.history.steps[id]
        if not record.undone and record.undo_error is None:
            try:
                await undo_step(run, record)
            except Block as block:
                run.append("undone", Undone(id, ErrorRecord(block.reason, block.message, step=id)))
        if record.undo_error is not None:
            failed.append(f"{id} ({record.undo_error.message})")
    return failed


async def undo_step(run: "LiveRun", record: StepRecord) -> None:
    """Takes one committed step back. Raises Block when its undo fails for good."""
    completion = record.completion
    if completion is None or record.undone:
        return
    if record.child is not None:
        await undo_child(run, record)
    elif completion.undo:
        action: Action[..., Any] | None = run.engine.catalogue.find("action", completion.action, completion.version)
        if action is None or action.undo_action is None:
            raise Block(
                "no undo",
                f"The undo of {completion.action}@{completion.version} is not defined in this process.",
                step=record.id,
            )
        input = undo_input(action.undo_action, bytes(completion.result), bytes(completion.input))
        undo = StepRun(run, f"undo:{record.id}", action.undo_action, input, NO_OVERRIDES)
        await undo.execute()
        if undo.record.state == FAILED:
            error = undo.record.error
            raise Block("undo failed", error.message if error else "it failed", step=record.id)
    else:
        return
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
        if _is_pivot(run, completion.action, completion.version):
            break
        if (completion.undo or record.child is not None) and not record.undone:
            plan.append(record.id)
    return plan


def _is_pivot(run: "LiveRun", action: str, version: int) -> bool:
    found = run.engine.catalogue.find("action", action, version)
    return found is not None and found.pivot


def how_much_undone(run: "LiveRun") -> str:
    """`all` when every committed step that declares an undo is undone, `none` when no step is."""
    declared = [
        record.undone
        for record in run.history.steps.values()
        if record.completion is not None and (record.completion.undo or record.child is not None)
    ]
    if not any(declared):
        return "none"
    return "all" if all(declared) else "partial"


def _not_undone(run: "LiveRun") -> list[str]:
    """Effects that had left: a step's undo takes back what it wrote, not what was sent."""
    found: list[str] = []
    for id, record in run.history.steps.items():
        if record.completion is None or id.startswith(OWN_STEPS):
            continue
        effects = zip(record.completion.effects, record.deliveries, strict=False)
        found += [f"{id}: {effect.effect}" for effect, delivery in effects if delivery.delivered]
    return found


async def _settle_unseen(run: "LiveRun") -> None:
    """After a crash: attempts that were in flight may have committed their SQL unseen; effects not sent are dropped."""
    stopping = run.history.stopping
    assert stopping is not None
    await settle_in_flight(run, stopping.in_flight)
    for record in list(run.history.steps.values()):
        if record.state == OPEN and record.child is not None:
            await cancel_child(run, record)
        elif record.state == COMMITTED and not record.id.startswith(OWN_STEPS):
            left = [n for n, d in enumerate(record.deliveries) if not d.delivered and not d.given_up]
            if left:
                run.append("effects_dropped", EffectsDropped(left), record.id, record.attempt)
        elif record.state == OPEN and record.requests:
            # A step that is given up takes back what it had asked for.
            await requesting.undo_requests(run, record)


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
