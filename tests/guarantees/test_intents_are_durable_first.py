"""I6: what was asked for is durable before it is sent; whoever is cancelled in between has sent nothing."""

import asyncio
import threading
from pathlib import Path

from dotdo import AsyncContext, EffectCall, action, effect, service
from dotdo.store.protocol import Write
from tests.guarantees.lab import PATIENCE, World, catalogue, in_loop, laboratory


async def hang_up(call: EffectCall, answer: str) -> None:
    call.resource(World).say("hung up")


@effect("intent.phone", dedup="key", undo=hang_up, catalogue=catalogue)
async def phone(call: EffectCall) -> str:
    call.resource(World).say("phoned")
    return "answered"


@action("asks-by-phone", catalogue=catalogue)
async def asks_by_phone(ctx: AsyncContext) -> str:
    return await ctx.request(phone)


@service("impatient", catalogue=catalogue)
async def impatient() -> str:
    try:
        async with asyncio.timeout(5):
            return await asks_by_phone()
    except TimeoutError:
        return "late"


@in_loop
async def test_request_that_is_cancelled_before_its_intent_is_durable_is_never_made(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        reached, gate = threading.Event(), threading.Event()
        write = lab.engine.store.write

        def slow(writes: list[Write]) -> None:
            if any(entry.kind == "requested" for one in writes for entry in one.entries):
                reached.set()
                gate.wait(PATIENCE)
            write(writes)

        lab.engine.store.write = slow  # type: ignore[method-assign]
        handle = await lab.client.start(impatient)
        assert await asyncio.to_thread(reached.wait, PATIENCE)
        lab.clock.advance(5)
        for _ in range(100):  # all that the loop has to do meanwhile is done
            await asyncio.sleep(0)
        gate.set()
        assert await handle.result(timeout=PATIENCE) == "late"
        assert lab.world.said == []
