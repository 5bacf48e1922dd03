"""Sends the staged effects of a committed step, each with its own retries, until all are delivered or one is given up.

Every try is journaled. The keys were fixed by the commit, so a try after a crash carries the key of the one before.
Whether a try whose answer was lost is repeated is decided by `deciding.next_move`, as for requests.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.effect import Effect
from dotdo.engine import asking
from dotdo.engine.calling import answer_of, make_call, run_effect, run_function
from dotdo.engine.deciding import leaves_unknown, next_move
from dotdo.engine.doubts import first_used
from dotdo.engine.failing import Block, error_record, together
from dotdo.engine.step_call import OWN_STEPS
from dotdo.engine.step_record import Delivery, StepRecord
from dotdo.errors import InputError, RetryLater
from dotdo.journal import Delivered, Delivering, DeliveryFailed, EffectsDropped, Empty, StagedEffect

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

NO_ANSWER = msgspec.Raw(b"null")


async def deliver(run: "LiveRun", record: StepRecord, *, resumed: bool) -> bool:
    """Delivers what is left; returns whether everything was taken. Raises Block when a person must say what was.

    resumed: an earlier owner of the run may have begun tries that its journal does not know.
    """
    completion = record.completion
    assert completion is not None
    await run.journal.durable()
    left = [
        (index, effect, delivery)
        for index, (effect, delivery) in enumerate(zip(completion.effects, record.deliveries, strict=True))
        if not delivery.delivered and not delivery.given_up
    ]
    if len(left) == 1:
        await _deliver_one(run, record, *left[0], resumed=resumed)
    elif left:
        await _deliver_all(run, record, left, resumed=resumed)
    # What was dropped because the run stops is no failure of the step.
    stops = run.is_stopping and not record.id.startswith(OWN_STEPS)
    if not stops and not _all_delivered(record):
        await _settle_given_up(run, record)
    if _all_delivered(record):
        run.append("effects_completed", Empty(), record.id, record.attempt)
        return True
    return stops


def _all_delivered(record: StepRecord) -> bool:
    return all(delivery.delivered for delivery in record.deliveries)


async def _deliver_all(
    run: "LiveRun", record: StepRecord, left: list[tuple[int, StagedEffect, Delivery]], *, resumed: bool
) -> None:
    asked: list[Block] = []
    under_way = len(left)
    # Each delivery counts as busy by itself, so that all of them waiting means that the run waits. The last one to end
    # hands that over to the step: in between the run must not be parked.
    run.busy += under_way - 1

    async def one(item: tuple[int, StagedEffect, Delivery]) -> None:
        try:
            await _deliver_one(run, record, *item, resumed=resumed)
        except Block as block:
            # The others are not cut short, or nobody would know of them either.
            asked.append(block)
            if not record.id.startswith(OWN_STEPS):
                run.block(block)

    def ended(task: asyncio.Task[None]) -> None:
        nonlocal under_way
        under_way -= 1
        if under_way:
            run.leave()

    try:
        async with asyncio.TaskGroup() as group:
            for item in left:
                group.create_task(one(item)).add_done_callback(ended)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if asked and record.id.startswith(OWN_STEPS):
        raise together(asked)


async def _deliver_one(
    run: "LiveRun", record: StepRecord, index: int, staged: StagedEffect, delivery: Delivery, *, resumed: bool
) -> None:
    effect = _effect_of(run, record, staged)
    unseen = resumed and effect.dedup == "key" and effect.key_window is not None
    own = record.id.startswith(OWN_STEPS)
    while not delivery.delivered and not delivery.given_up and (own or not run.is_stopping):
        if delivery.next_at is not None and delivery.next_at > run.engine.clock.now() and not delivery.again:
            text = f"{staged.effect} to be delivered, try {delivery.tries + 1}"
            if delivery.error is not None:
                text += f", after: {delivery.error.message[:200]}"
            await run.waiting.until(f"{record.id}/{index}", delivery.next_at, "delivery", text)
        if run.engine.draining:
            await run.may_attempt()
        if run.is_stopping and not own:
            return  # no new try when the run stops; those of undos and on_failure are made
        in_doubt = delivery.in_doubt or (unseen and _may_have_begun(record, effect, delivery))
        await _try(run, record, index, effect, staged, delivery, in_doubt=in_doubt)
        unseen = False


def _may_have_begun(record: StepRecord, effect: Effect[..., Any], delivery: Delivery) -> bool:
    """Tries inside the window of a key are not journaled before they are made, because they can be repeated; so after
    it nobody knows whether there was one, unless that was found out since."""
    assert effect.key_window is not None, "the caller looked"
    return delivery.known_at < first_used(record, delivery) + effect.key_window * 1000


def _effect_of(run: "LiveRun", record: StepRecord, staged: StagedEffect) -> Effect[..., Any]:
    effect: Effect[..., Any] | None = run.engine.catalogue.find("effect", staged.effect, staged.version)
    if effect is None:
        raise Block(
            "unknown effect",
            f"The effect {staged.effect}@{staged.version} of {record.id} is not defined in this process. Import the "
            "module that defines it, then retry the run.",
            step=record.id,
        )
    return effect


async def _try(
    run: "LiveRun",
    record: StepRecord,
    index: int,
    effect: Effect[..., Any],
    staged: StagedEffect,
    delivery: Delivery,
    *,
    in_doubt: bool,
) -> None:
    move = next_move(effect, first_used(record, delivery), run.engine.clock.now())
    if in_doubt and move == "ask" and not delivery.again:
        raise asking.about_delivery(run, record, effect, staged, delivery)
    looks_up = in_doubt and move == "look up" and not delivery.again
    if move != "send" or delivery.again:
        # Only so can a later owner know that this may have happened.
        run.append("delivering", Delivering(index), record.id, record.attempt)
        await run.journal.durable()
    tries, answer = delivery.tries + 1, None
    call = make_call(run, effect, staged.key, record.id, tries)
    try:
        if looks_up:
            answer = await run_function(run, effect.lookup, call, effect, bytes(staged.input))
            in_doubt = False
        if answer is None:
            answer = await run_effect(run, effect, call, bytes(staged.input))
    except Exception as error:  # whatever an effect raises is its try's failure
        if run.over:
            raise
        unknown = leaves_unknown(effect, error, was_unknown=in_doubt)
        record_of = error_record(error, action=staged.effect, step=record.id, attempts=tries)
        next_at = _next_at(run, effect, delivery, tries, error)
        failed = DeliveryFailed(index, tries, record_of, next_at, unknown)
        run.append("delivery_failed", failed, record.id, record.attempt)
    else:
        run.append("delivered", Delivered(index, tries, _kept(run, effect, answer)), record.id, record.attempt)


def _kept(run: "LiveRun", effect: Effect[..., Any], answer: Any) -> msgspec.Raw:
    """The answer for the journal; the effect has happened, also when its answer cannot be kept."""
    try:
        return msgspec.Raw(answer_of(run, effect, answer)[0])
    except InputError as error:
        run.engine.log.warning("the answer of %s is not kept: %s", effect.name, error.message)
        return NO_ANSWER


def _next_at(run: "LiveRun", effect: Effect[..., Any], delivery: Delivery, tries: int, error: Exception) -> int | None:
    if not effect.retry.retries(error):
        return None
    now = run.engine.clock.now()
    elapsed = (now - (delivery.first_at or now)) / 1000
    after = error.after if isinstance(error, RetryLater) else None
    delay = effect.retry.delay_before(tries + 1, elapsed=elapsed, after=after)
    return None if delay is None else now + delay


# -- what nobody knows ---------------------------------------------------------------------------------------------


async def _settle_given_up(run: "LiveRun", record: StepRecord) -> None:
    """Tries are used up, and the last ones may have been taken: a step fails only when it is known that they were not,
    or when the effect says that it does not matter."""
    assert record.completion is not None
    asked: list[Block] = []
    for index, (staged, delivery) in enumerate(zip(record.completion.effects, record.deliveries, strict=True)):
        if delivery.given_up and delivery.unknown:
            effect = _effect_of(run, record, staged)
            known = await _look_up(run, record, index, effect, staged, delivery)
            if not known and effect.on_unknown == "ask":
                asked.append(asking.about_delivery(run, record, effect, staged, delivery))
    if asked:
        raise together(asked)


async def _look_up(
    run: "LiveRun", record: StepRecord, index: int, effect: Effect[..., Any], staged: StagedEffect, delivery: Delivery
) -> bool:
    """Whether a lookup could tell, and then it is journaled. It is asked once."""
    if effect.lookup is None:
        return False
    call = make_call(run, effect, staged.key, record.id, delivery.tries)
    try:
        found = await run_function(run, effect.lookup, call, effect, bytes(staged.input))
    except Exception as error:  # whatever it raises: nobody knows
        if run.over:
            raise
        run.engine.log.warning("%s could not be looked up: %s", staged.key, error_record(error).message)
        return False
    if found is None:
        run.append("effects_dropped", EffectsDropped([index]), record.id, record.attempt)
    else:
        delivered = Delivered(index, delivery.tries, _kept(run, effect, found))
        run.append("delivered", delivered, record.id, record.attempt)
    return True


def _is_not_announced(effect: Effect[..., Any]) -> bool:
    """Whether a try may not be journaled before it is made, so that after a crash one may have been under way."""
    return effect.dedup == "key" or (effect.lookup is None and effect.on_unknown == "resend")


async def drop(run: "LiveRun", record: StepRecord) -> None:
    """The run stops: what was not begun is not sent; what may have been sent is looked up, or listed as such."""
    assert record.completion is not None
    dropped: list[int] = []
    unknown: list[int] = []
    for index, (staged, delivery) in enumerate(zip(record.completion.effects, record.deliveries, strict=True)):
        if delivery.delivered or delivery.given_up:
            continue
        effect: Effect[..., Any] | None = run.engine.catalogue.find("effect", staged.effect, staged.version)
        # What was committed here since, was tried here only.
        unseen = record.seq < run.crashed and (effect is None or _is_not_announced(effect))
        if delivery.in_doubt or unseen:
            if effect is not None and await _look_up(run, record, index, effect, staged, delivery):
                continue
            unknown.append(index)
        dropped.append(index)
    if dropped:
        run.append("effects_dropped", EffectsDropped(dropped, unknown), record.id, record.attempt)
