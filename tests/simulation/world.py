"""What simulated services do, and the world in which they do it: a ledger that remembers, and providers that fail.

A service runs a plan: nested lists and records that a seed has made. Its actions say in their input what they do.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import apsw

from dotdo import (
    ActionFailed,
    AsyncContext,
    Catalogue,
    Context,
    EffectCall,
    Fail,
    Retry,
    RetryLater,
    action,
    effect,
    service,
    wait_for_event,
)
from tests.simulation.machine import SimulatedLoop

catalogue = Catalogue()
SOON = Retry(attempts=4, delay=5, factor=2, max_delay=60, jitter=False)

Spec = dict[str, Any]
BUG = "the plan has a bug"
TABLES = "create table stock (what text not null); create table transactions (what text not null)"


class Bug(Exception):
    """What a service raises that nobody has planned for: it fails no run, and blocks it."""


class Arrival(NamedTuple):
    """One call as the provider saw it."""

    system: str
    what: str
    key: str
    happened: bool


class World:
    """The outside: providers and their ledger, which outlive the process. store: where journaled intents are seen."""

    def __init__(self, store: str) -> None:
        self.arrivals: list[Arrival] = []
        self.answers: dict[tuple[str, str], str] = {}
        self.asked: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.inside = 0  # of what only one may be in at a time
        self.deaths: Counter[str] = Counter()  # of processes, by the hostile run that has killed them
        self.mended: set[str] = set()  # hostile runs whose code was mended
        self.refusals: Counter[str] = Counter()  # of undos, by their step
        self.loop: SimulatedLoop | None = None
        self.began: Callable[[str, str], None] = lambda run, step: None  # called with each attempt of a handler
        self.alarmed: Callable[[str], None] = lambda run: None  # called when operators are told of a run
        self.is_intended = self._is_intended  # looks into a file; other stores are looked into otherwise
        self._store = store
        self._reader: apsw.Connection | None = None

    async def act(self, call: EffectCall, system: str, what: str) -> str:
        """A provider acts, and may lose its answer, refuse, be silent; or the caller dies."""
        assert self.loop is not None, "somebody calls"
        chance = self.loop.chance
        self._look_for_intent(call)
        fault = chance.fault(
            {
                "effect.kill": 0.012,
                "effect.lost": 0.05,
                "effect.not_done": 0.05,
                "effect.refused": 0.04,
                "effect.silent": 0.01,
                "effect.kill_after": 0.02,
            }
        )
        await asyncio.sleep(chance.seconds(0.2))
        if fault == "effect.kill":
            return await self.die()
        if fault == "effect.refused":
            raise RetryLater("busy", after=7)
        if fault == "effect.not_done":
            raise ConnectionError("the line is dead")
        answer = self._happen(call, system, what)
        await asyncio.sleep(chance.seconds(0.2))
        if fault == "effect.lost":
            raise ConnectionError("the answer was lost")
        if fault == "effect.silent":
            await asyncio.get_running_loop().create_future()
        if fault == "effect.kill_after":
            return await self.die()
        return answer

    def look(self, call: EffectCall, system: str) -> str | None:
        """What has happened under a key."""
        return self.answers.get((system, call.key))

    def look_anywhere(self, key: str) -> str | None:
        """What a person finds out: whether anything has happened under a key."""
        return next((answer for (_, known), answer in self.answers.items() if known == key), None)

    def _happen(self, call: EffectCall, system: str, what: str) -> str:
        known = self.answers.get((system, call.key))
        again = known is not None and system == "keyed"
        self.arrivals.append(Arrival(system, what, call.key, not again))
        if known is None:
            known = self.answers[system, call.key] = f"{system} {len(self.answers)}"
        return known

    def _look_for_intent(self, call: EffectCall) -> None:
        """I6: what is sent stands in the journal, and is durable."""
        if not self.is_intended(call.run_id, call.key.removesuffix(".undo")):
            self.wrong.append(f"I6: {call.key} is sent, and its intent is not durable")

    def _is_intended(self, run: str, key: str) -> bool:
        if self._reader is None:
            self._reader = apsw.Connection(self._store, flags=apsw.SQLITE_OPEN_READONLY, vfs="unix")
        query = "select 1 from journal where run = ? and kind in ('requested', 'committed') and instr(data, ?)"
        return bool(self._reader.execute(query, (run, key)).fetchall())

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Where only one may be at a time. A process that dies takes all of its own with it."""
        self.inside += 1
        if self.inside > 1:
            self.wrong.append(f"limit: {self.inside} at a time")
        try:
            yield
        finally:
            self.inside -= 1

    def close(self) -> None:
        """Nothing more is asked."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def die(self) -> Any:
        """The process is gone before anything else happens in it."""
        assert self.loop is not None, "somebody calls"
        self.loop.die()
        await self.loop.create_future()


# -- effects -----------------------------------------------------------------------------------------------------------


async def take_back(call: EffectCall, answer: str) -> None:
    await call.resource(World).act(call, "keyed", f"take back {answer}")


@effect("keyed", dedup="key", undo=take_back, retry=SOON, catalogue=catalogue)
async def keyed(call: EffectCall, what: str) -> str:
    return await call.resource(World).act(call, "keyed", what)


@effect("windowed", dedup="key", key_window=30, retry=SOON, catalogue=catalogue)
async def windowed(call: EffectCall, what: str) -> str:
    return await call.resource(World).act(call, "windowed", what)


async def find(call: EffectCall) -> str | None:
    return call.resource(World).look(call, "found")


@effect("found", dedup="find", lookup=find, retry=SOON, catalogue=catalogue)
async def found(call: EffectCall, what: str) -> str:
    return await call.resource(World).act(call, "found", what)


@effect("asked", retry=SOON, catalogue=catalogue)
async def asked(call: EffectCall, what: str) -> str:
    return await call.resource(World).act(call, "asked", what)


@effect("resent", on_unknown="resend", retry=SOON, catalogue=catalogue)
async def resent(call: EffectCall, what: str) -> str:
    return await call.resource(World).act(call, "resent", what)


EFFECTS = {"keyed": keyed, "found": found, "asked": asked, "resent": resent, "windowed": windowed}


# -- actions -----------------------------------------------------------------------------------------------------------


async def do(ctx: AsyncContext, spec: Spec) -> int:
    """What the handlers of most actions do."""
    ctx.resource(World).began(ctx.run_id, ctx.step)
    for kind in spec.get("stage", ()):
        ctx.stage(EFFECTS[kind], what=f"staged {spec['n']} at {ctx.attempt}")
    for kind in spec.get("request", ()):
        await ctx.request(EFFECTS[kind], what=f"requested {spec['n']}")
    await asyncio.sleep(spec.get("seconds", 0))
    _fail(ctx.attempt, spec)
    return spec["n"]


def _fail(attempt: int, spec: Spec) -> None:
    if spec.get("refuses"):
        raise Fail(f"{spec['n']} is refused")
    if attempt <= spec.get("fails", 0):
        raise ConnectionError(f"{spec['n']} fails at {attempt}")


@action("plain", retry=SOON, catalogue=catalogue)
async def plain(ctx: AsyncContext, spec: Spec) -> int:
    return await do(ctx, spec)


@action("undoable", retry=SOON, catalogue=catalogue)
async def undoable(ctx: AsyncContext, spec: Spec) -> int:
    return await do(ctx, spec)


@undoable.undo
async def undo(ctx: AsyncContext, n: int, input: dict[str, Any]) -> None:
    refusals, of = ctx.resource(World).refusals, f"{ctx.run_id} {n}"
    if refusals[of] < input["spec"].get("stubborn", 0):
        refusals[of] += 1
        raise Fail(f"{n} cannot be taken back")
    for kind in input["spec"].get("undo", ()):
        ctx.stage(EFFECTS[kind], what=f"undo of {n} at {ctx.attempt}")


@action("pivot", pivot=True, retry=SOON, catalogue=catalogue)
async def pivot(ctx: AsyncContext, spec: Spec) -> int:
    return await do(ctx, spec)


@action("stocked", retry=SOON, catalogue=catalogue)
def stocked(ctx: Context, spec: Spec) -> int:
    ctx.sql.exec_driver_sql("insert into stock values (?)", (f"{ctx.run_id} {spec['n']}",))
    ctx.sql.exec_driver_sql("insert into transactions values (?)", (f"{ctx.run_id} {ctx.step}",))
    for kind in spec.get("stage", ()):
        ctx.stage(EFFECTS[kind], what=f"staged {spec['n']} at {ctx.attempt}")
    _fail(ctx.attempt, spec)
    return spec["n"]


@stocked.undo
def unstock(ctx: Context, n: int) -> None:
    ctx.sql.exec_driver_sql("delete from stock where what = ?", (f"{ctx.run_id} {n}",))
    ctx.sql.exec_driver_sql("insert into transactions values (?)", (f"{ctx.run_id} {ctx.step}",))


@action("tell", retry=SOON, catalogue=catalogue)
async def tell(ctx: AsyncContext, failure: Any) -> None:
    ctx.resource(World).alarmed(ctx.run_id)
    ctx.stage(keyed, what="it failed")


ACTIONS: dict[str, Any] = {"plain": plain, "undoable": undoable, "pivot": pivot, "stocked": stocked}


# -- services ----------------------------------------------------------------------------------------------------------


async def _play(node: Any) -> Any:
    match node:
        case list():
            return [await _play(one) for one in node]
        case {"do": name, **spec}:
            return await ACTIONS[name](spec=spec)
        case {"beside": nodes}:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_play(one)) for one in nodes]
            return [task.result() for task in tasks]
        case {"sleep": seconds}:
            return await asyncio.sleep(seconds)
        case {"within": seconds, "node": inner}:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await _play(inner)
            return "late"
        case {"event": name}:
            return await wait_for_event(name)
        case {"try": inner}:
            result: Any = None
            try:
                result = await _play(inner)
            except* ActionFailed as failed:
                result = [str(one) for one in failed.exceptions]
            return result
        case {"child": inner}:
            return await child(plan=inner)
        case {"bug": nodes, "after": seconds}:
            begun = [asyncio.ensure_future(_play(one)) for one in nodes]
            await asyncio.sleep(seconds)
            raise Bug(f"{BUG}, and {len(begun)} tasks under way")
        case _:
            raise AssertionError(f"no such node: {json.dumps(node)}")


@service("sim", on_failure=[tell], catalogue=catalogue)
async def sim(plan: list[Any]) -> Any:
    return await _play(plan)


@service("child", catalogue=catalogue)
async def child(plan: list[Any]) -> Any:
    return await _play(plan)
