"""A run that leaves memory in the very moment in which it was woken is woken all the same: no wake-up is lost.

What has idled for long enough is parked by a timer of the engine's loop, which may ring in any turn of that: after a
message was taken and before the step that it was for goes on, or between the end of a step's parts and its own.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dotdo import AsyncContext, Catalogue, EffectCall, action, effect, service
from dotdo.engine.running import LiveRun
from dotdo.engine.waiting import Waiting
from tests.guarantees.lab import PATIENCE, World, in_loop, laboratory

pytestmark = pytest.mark.usefixtures("each_store")


def definitions() -> Catalogue:
    """A service that waits for a slot; and one that has two messages delivered meanwhile."""
    catalogue = Catalogue()

    @action("hold-slot", concurrency=1, catalogue=catalogue)
    async def hold_slot(ctx: AsyncContext, gate: str) -> str:
        world = ctx.resource(World)
        world.say(f"at {gate}")
        await world.pass_gate(gate)
        return gate

    @effect("tell", dedup="key", catalogue=catalogue)
    async def tell(call: EffectCall, whom: str) -> None:
        call.resource(World).say(f"told {whom}")
        await call.resource(World).pass_gate(f"telling {whom}")

    @action("tell-both", catalogue=catalogue)
    async def tell_both(ctx: AsyncContext) -> None:
        for whom in ("Ada", "Grace"):
            ctx.stage(tell, whom=whom)

    @service("holds", catalogue=catalogue)
    async def holds(gate: str) -> str:
        return await hold_slot(gate=gate)

    @service("tells", catalogue=catalogue)
    async def tells(gate: str) -> str:
        held, _ = await asyncio.gather(hold_slot(gate=gate), tell_both())
        return held

    return catalogue


def parked_after(monkeypatch: pytest.MonkeyPatch, method: Callable[..., Any]) -> list[str]:
    """Has the timer of each run that idles ring just after one of its methods has returned; the runs it was, once it
    has happened."""
    rung: list[str] = []

    def then_rings(self: LiveRun, *given: Any) -> None:
        method(self, *given)
        timer = self._parking
        if timer is not None and not self.over:
            timer.cancel()
            rung.append(self.id)
            self._park()

    monkeypatch.setattr(LiveRun, method.__name__, then_rings)
    monkeypatch.setattr("dotdo.engine.parking.LINGER", PATIENCE)  # at no other time
    return rung


@in_loop
async def test_run_that_took_the_message_of_its_slot_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rung, waits, for_slot = parked_after(monkeypatch, LiveRun.take), asyncio.Event(), Waiting.for_slot

    async def is_told(*given: Any) -> None:
        waits.set()
        await for_slot(*given)

    monkeypatch.setattr(Waiting, "for_slot", is_told)
    async with laboratory(tmp_path, catalogue=definitions()) as lab, asyncio.timeout(PATIENCE):
        first = await lab.client.service("holds").start(gate="first")
        await lab.world.heard("at first")
        second = await lab.client.service("holds").start(gate="second")
        await waits.wait()
        for gate in ("first", "second"):
            lab.world.open(gate)
        assert [await first.result(), await second.result()] == ["first", "second"]
        assert rung == [second.id]


@in_loop
async def test_step_whose_deliveries_have_ended_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with laboratory(tmp_path, catalogue=definitions()) as lab, asyncio.timeout(PATIENCE):
        first = await lab.client.service("holds").start(gate="first")
        await lab.world.heard("at first")
        rung = parked_after(monkeypatch, LiveRun.leave)
        second = await lab.client.service("tells").start(gate="second")
        for whom in ("Ada", "Grace"):
            await lab.world.heard(f"told {whom}")
            lab.world.open(f"telling {whom}")
        # Though another step of the same run has to wait for long yet.
        await lab.until_journal_has(second.id, "effects_completed")
        for gate in ("first", "second"):
            lab.world.open(gate)
        assert [await first.result(), await second.result()] == ["first", "second"]
        assert set(rung) <= {second.id}
