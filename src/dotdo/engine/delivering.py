"""Sends the staged effects of a committed step, each with its own retries, until all are delivered or one is given up.

Every try is journaled. The keys were fixed by the commit, so a try after a crash carries the key of the one before.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.effect import Effect
from dotdo.engine.failing import Block, error_record
from dotdo.engine.history import Delivery, StepRecord
from dotdo.engine.requesting import make_call, run_effect, run_function
from dotdo.engine.service_code import OWN_STEPS
from dotdo.errors import RetryLater
from dotdo.journal import Delivered, Delivering, DeliveryFailed, Empty, StagedEffect
from dotdo.records import ErrorRecord

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


async def deliver(run: "LiveRun", record: StepRecord) -> bool:
    """Delivers what is left; returns whether everything was taken."""
    completion = record.completion
    assert completion is not None
    await run.journal.durable()
    left = [
        (index, effect, delivery)
        for index, (effect, delivery) in enumerate(zip(completion.effects, record.deliveries, strict=True))
        if not delivery.delivered and not delivery.given_up
    ]
    if len(left) == 1:
        await _deliver_one(run, record, *left[0])
    elif left:
        await _deliver_all(run, record, left)
    if all(delivery.delivered for delivery in record.deliveries):
        run.append("effects_completed", Empty(), record.id, record.attempt)
        return True
    # What was dropped because the run stops is no failure of the step.
    return run.is_stopping and not record.id.startswith(OWN_STEPS)


async def _deliver_all(run: "LiveRun", record: StepRecord, left: list[tuple[int, StagedEffect, Delivery]]) -> None:
    run.leave()  # each delivery counts as busy by itself, so that all of them waiting means that the run waits

    async def one(item: tuple[int, StagedEffect, Delivery]) -> None:
        run.enter()
        try:
            await _deliver_one(run, record, *item)
        finally:
            run.leave()

    try:
        async with asyncio.TaskGroup() as group:
            for item in left:
                group.create_task(one(item))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        run.enter()


async def _deliver_one(
    run: "LiveRun", record: StepRecord, index: int, staged: StagedEffect, delivery: Delivery
) -> None:
    effect: Effect[..., Any] | None = run.engine.catalogue.find("effect", staged.effect, staged.version)
    if effect is None:
        raise Block(
            "unknown effect",
            f"The effect {staged.effect}@{staged.version} of {record.id} is not defined in this process. Import the "
            "module that defines it, then retry the run.",
            step=record.id,
        )
    if delivery.begun and effect.lookup is None:
        raise _unknown(effect, staged, record)
    while not delivery.delivered and not delivery.given_up:
        if delivery.next_at is not None and delivery.next_at > run.engine.clock.now():
            text = f"{staged.effect} to be delivered, try {delivery.tries + 1}"
            if delivery.error is not None:
                text += f", after: {delivery.error.message[:200]}"
            await run.waiting.until(f"{record.id}/{index}", delivery.next_at, "delivery", text)
        if run.engine.draining:
            await run.may_attempt()
        if run.is_stopping and not delivery.begun and not record.id.startswith(OWN_STEPS):
            return  # effects not yet begun are dropped when the run stops; those of undos and on_failure are sent
        await _try(run, record, index, effect, staged, delivery)


async def _try(
    run: "LiveRun", record: StepRecord, index: int, effect: Effect[..., Any], staged: StagedEffect, delivery: Delivery
) -> None:
    may_have_happened = delivery.begun or delivery.tries > 0
    if effect.dedup != "key" and (effect.lookup is not None or effect.on_unknown == "ask"):
        # Only so can a later owner know that this may have happened.
        run.append("delivering", Delivering(index), record.id, record.attempt)
        await run.journal.durable()
    tries = delivery.tries + 1
    call = make_call(run, effect, staged.key, record.id, tries)
    try:
        answer = None
        if may_have_happened and effect.dedup != "key" and effect.lookup is not None:
            answer = await run_function(run, effect.lookup, call, effect, bytes(staged.input))
        if answer is None:
            answer = await run_effect(run, effect, call, bytes(staged.input))
        data, _ = effect.schema.dump(answer)
        if run.secrets is not None:
            run.secrets.refuse(data, f"The answer of {effect.subject}")
    except Exception as error:  # whatever an effect raises is its try's failure
        if run.over:
            raise
        record_of = error_record(error, action=staged.effect, step=record.id, attempts=tries)
        next_at = _next_at(run, effect, delivery, tries, error)
        run.append("delivery_failed", DeliveryFailed(index, tries, record_of, next_at), record.id, record.attempt)
    else:
        run.append("delivered", Delivered(index, tries, msgspec.Raw(data)), record.id, record.attempt)


def _next_at(run: "LiveRun", effect: Effect[..., Any], delivery: Delivery, tries: int, error: Exception) -> int | None:
    if not effect.retry.retries(error):
        return None
    now = run.engine.clock.now()
    elapsed = (now - (delivery.first_at or now)) / 1000
    after = error.after if isinstance(error, RetryLater) else None
    delay = effect.retry.delay_before(tries + 1, elapsed=elapsed, after=after)
    return None if delay is None else now + delay


def _unknown(effect: Effect[..., Any], staged: StagedEffect, record: StepRecord) -> Block:
    """A try had begun when the node stopped, and a lost answer is never guessed."""
    return Block(
        "unknown outcome",
        f"Nobody knows whether {effect.name} was delivered (key {staged.key}): the node stopped while it was sent, and "
        "the receiver does not honour our key. Find out at the receiver; to send it again, retry the run.",
        step=record.id,
        error=ErrorRecord("UnknownOutcome", ""),
    )
