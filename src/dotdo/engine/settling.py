"""Attempts whose end was not seen: decided through the application's database before the step goes on."""

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from dotdo.engine.attempting import Attempt
from dotdo.errors import StoreError
from dotdo.journal import Completion

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

FIRST_WAIT, LONGEST_WAIT = 1_000, 60_000  # ms between questions to a database that does not answer


async def settle(run: "LiveRun", step: str, generation: int, attempt: int) -> Completion | None:
    """The completion of an attempt that committed unseen; None when it did not, and now never will.

    Waits while the application's database cannot be asked.
    """
    databases = run.engine.databases
    if databases is None:
        return None
    wait = FIRST_WAIT
    while True:
        try:
            return await run.engine.threads.run(partial(databases.settle, (run.id, step, generation, attempt)))
        except StoreError as error:
            due = run.engine.clock.now() + wait
            await run.waiting.until(step, due, "settlement", f"to learn how attempt {attempt} ended: {error}")
            wait = min(wait * 2, LONGEST_WAIT)


async def outlive(run: "LiveRun", future: "asyncio.Future[Any]", attempt: Attempt) -> None:
    """A handler's thread goes on after its attempt: waits for its rollback if it has a transaction open."""
    run.engine.count_outliving(future)
    if attempt.work is not None:
        await asyncio.wait([future])
