"""Slots of actions with limits, from the engine's side: asks for them, waits, and gives them back.

The store decides, for all nodes (store/limiting.py). A step that waits holds no thread, and its run may leave memory;
when its turn comes the run is left a message. What a run has when it leaves this process in any way stays its own: its
next owner asks again and keeps it, and the store takes it back if nobody does.
"""

import asyncio
import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec

from dotdo import codec
from dotdo.action import Action
from dotdo.engine.waking import Wake
from dotdo.errors import ClientClosed, StoreError
from dotdo.offer import OfferedAction
from dotdo.policy import Limits
from dotdo.store.protocol import Limit, Place, Settled, SlotAsk

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun
    from dotdo.engine.stepping import StepRun

LIMIT = "limit"  # what a run waits for
# How long, in seconds, a run may take to come back for slots that it had, or got, while no node had it in memory.
GRACE = 10.0
RETRY_SECONDS, MOST_RETRY_SECONDS = 0.1, 5.0
SWEEP_SECONDS = 1.0
LONGEST_KEY = 80


async def take_slots(step: "StepRun", action: Action[..., Any], given: Limits) -> SlotAsk:
    """Returns when the step has a slot of each limit of its action, and may attempt."""
    run, limiter = step.run, step.run.engine.limiter
    input = action.schema.renamed(step.input) if isinstance(action, OfferedAction) else step.input
    limits, texts = limits_of_step(action, given, input)
    ask = SlotAsk(action.name, run.id, step.id, run.journal.claim, run.accepted.options.priority or 0, limits)
    try:
        place = await limiter.ask(ask)
        if place.scope is not None:
            await run.waiting.for_slot(step.id, place.ticket, texts[place.scope])
        await run.may_attempt()  # the lease may be over by now, and somebody else have the slot
    except BaseException:
        give_back(run, ask)
        raise
    return ask


def give_back(run: "LiveRun", slots: SlotAsk) -> None:
    """The step needs its slots no more, or waits for them no more. What a run has that has left this process, its next
    owner needs."""
    if not run.over:
        run.engine.limiter.give_back(slots)


def limits_of_step(action: Action[..., Any], limits: Limits, input: bytes) -> tuple[tuple[Limit, ...], dict[str, str]]:
    """The limits of one call, in the order in which they are taken, and what each is in words, by its scope. Those of a
    key come first: a step that waits for one of them is in nobody else's way."""
    found: list[tuple[bool, Limit, str]] = []
    keyed = any(each.key for each in (*limits.concurrency, *limits.rate))
    params: Any = codec.decode(input) if keyed else None
    for each in limits.concurrency:
        of = _of(each.key, params)
        text = f"one of the {each.limit} attempts of {action.name}{of and f' with {of}'} that run at a time, to end"
        found.append((not of, Limit(f"concurrency {action.name} {of}".rstrip(), each.limit), text))
    for each in limits.rate:
        of, rate = _of(each.key, params), each.read()
        text = f"its turn: {action.name}{of and f' with {of}'} may start {each.limit}"
        scope = f"rate {action.name} {rate.seconds} {of}".rstrip()
        found.append((not of, Limit(scope, rate.count, rate.seconds * 1000), text))
    found.sort(key=lambda one: one[0])
    return tuple(limit for _, limit, _ in found), {limit.scope: text for _, limit, text in found}


def _of(key: str | None, params: Any) -> str:
    """For which value of a key it is."""
    if key is None:
        return ""
    value = params
    for part in key.split("."):
        value = cast("dict[str, Any]", value).get(part) if isinstance(value, dict) else None
    text = msgspec.json.encode(value, order="sorted").decode()
    if len(text) > LONGEST_KEY:
        text = f"{text[: LONGEST_KEY // 2]}... ({hashlib.sha256(text.encode()).hexdigest()[:32]})"
    return f"{key}={text}"


class Limiter:
    """What the steps of one engine ask for and give back; many at a time, so that they share a transaction."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._asks: list[tuple[SlotAsk, asyncio.Future[Place]]] = []
        self._gone: list[tuple[str, str, str]] = []
        self._settles = False
        self._next_sweep = 0.0
        self._seen, self._limited = -1, False
        self._wake: Wake | None = None
        self._due = 0
        self._wait = RETRY_SECONDS

    async def ask(self, ask: SlotAsk) -> Place:
        """Where the step stands now that it has asked. Raises ClientClosed."""
        future: asyncio.Future[Place] = self._engine.loop.create_future()
        self._asks.append((ask, future))
        self._settle_soon()
        return await future

    def give_back(self, ask: SlotAsk) -> None:
        """The step needs its slots no more, or waits for them no more."""
        self._gone.append((ask.run, ask.step, ask.pool))
        self._settle_soon()

    async def sweep(self, now: int | None = None) -> None:
        """Hands out what time has freed, and what the runs of dead nodes had; not too often, unless it is known that
        now is the time."""
        engine = self._engine
        if now is None and (engine.loop.time() < self._next_sweep or not self._has_limits()):
            return
        self._next_sweep = engine.loop.time() + SWEEP_SECONDS
        now = engine.clock.now() if now is None else now
        self._follow(await engine.committer.call(lambda: engine.store.sweep_slots(now, now - round(GRACE * 1000))))

    def _has_limits(self) -> bool:
        """Whether any action here has some: what others have is for nodes that offer it."""
        catalogue = self._engine.catalogue
        if catalogue.changes != self._seen:
            self._seen = catalogue.changes
            self._limited = any(each.limits is not None for each in catalogue.all("action"))
        return self._limited

    def _follow(self, settled: Settled) -> None:
        """Has those told that may start, and comes back when time has freed more."""
        engine = self._engine
        for run in settled.woken:
            engine.hint(run)
        if settled.next_at is not None and (self._wake is None or settled.next_at < self._due):
            if self._wake is not None:
                self._wake.cancel()
            self._due = settled.next_at
            self._wake = engine.alarm.at(self._due, self._time_is_up)

    def _time_is_up(self) -> None:
        self._wake = None
        if not self._engine.closing:
            self._engine.spawn(self._sweep_now())

    async def _sweep_now(self) -> None:
        try:
            await self.sweep(self._engine.clock.now())
        except ClientClosed:
            return
        except StoreError as error:  # the claimer's look comes later, and often
            self._engine.log.debug("slots are handed out later: %s", error)

    def _settle_soon(self) -> None:
        if not self._settles:
            self._settles = True
            self._engine.spawn(self._settle())

    async def _settle(self) -> None:
        try:
            while self._asks or self._gone:
                asks, self._asks = self._asks, []
                gone, self._gone = self._gone, []
                await self._settle_these([one for one in asks if not one[1].done()], gone)
        finally:
            self._settles = False

    async def _settle_these(
        self, asks: list[tuple[SlotAsk, "asyncio.Future[Place]"]], gone: list[tuple[str, str, str]]
    ) -> None:
        engine = self._engine
        wanted = [ask for ask, _ in asks]
        settle = partial(engine.store.settle_slots, wanted, gone, engine.clock.now())
        try:
            settled = await engine.committer.call(settle)
        except ClientClosed as error:
            for _, future in asks:
                if not future.done():
                    future.set_exception(error)
            return
        except StoreError as error:
            engine.log.warning("slots are asked for and given back later: %s", error)
            self._asks, self._gone = asks + self._asks, gone + self._gone
            await asyncio.sleep(self._wait)
            self._wait = min(2 * self._wait, MOST_RETRY_SECONDS)
            return
        self._wait = RETRY_SECONDS
        for (_, future), place in zip(asks, settled.places, strict=True):
            if not future.done():
                future.set_result(place)
        self._follow(settled)
