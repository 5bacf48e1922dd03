"""An effect's code is called so that whatever it raises is a failure of its try, and nothing else is."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dotdo.effect import EffectCall
from dotdo.engine.calling import run_companion
from dotdo.engine.threads import Threads

CALL = EffectCall("key", "run_1", "step", 1)


async def waits_for_ever(call: EffectCall) -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_call_that_is_closed_with_its_loop_is_closed(kind: str):
    """As at the end of a process, or of a killed engine in a test: a coroutine gets GeneratorExit and must pass it on.
    Python says so in a RuntimeError otherwise."""
    loop, may_end = asyncio.new_event_loop(), threading.Event()
    function: Callable[..., Any] = waits_for_ever if kind == "async def" else lambda call: may_end.wait()
    work = loop.create_task(run_companion(Threads(loop), function, CALL, None, {}))
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    tasks = asyncio.all_tasks(loop)
    assert work in tasks
    for task in tasks:
        coroutine: Any = task.get_coro()
        coroutine.close()
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    may_end.set()
    loop.close()


def test_generator_exit_of_its_own_is_a_failure():
    async def raises(call: EffectCall) -> None:
        await asyncio.sleep(0)
        raise GeneratorExit

    async def run() -> None:
        with pytest.raises(RuntimeError, match="It raised GeneratorExit"):
            await run_companion(Threads(asyncio.get_running_loop()), raises, CALL, None, {})

    asyncio.run(run())
