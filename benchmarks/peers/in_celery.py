"""Celery on Redis, with two worker processes, which acknowledge a task when it is done; Redis flushes its log before it
acknowledges (`appendfsync always`). It keeps results, not progress: a task that a worker's death interrupts is begun
anew.

Results are awaited by a look at all open ones every few milliseconds: with hundreds in flight, Celery's own waiting
for Redis' messages now and then misses one. Alone, it is Celery's own `get`.
"""

import asyncio
import itertools
from typing import Any

from benchmarks import handlers
from benchmarks.peers import celery_tasks
from benchmarks.peers.measuring import Plan, real, trivial

LOOK_SECONDS = 0.005


class Results:
    """Submits jobs, and hands each its result over when it is there."""

    def __init__(self) -> None:
        self._backend = celery_tasks.app.backend
        self._open: dict[str, asyncio.Future[None]] = {}
        self._under_way = 0

    async def of(self, job: Any) -> None:
        """Returns when the job has its result; raises if that is an error."""
        self._under_way += 1
        try:
            submitted = job.apply_async()
            await asyncio.sleep(0)  # the others, if there are any, submit theirs
            if self._under_way > 1:
                await self._look_for(submitted.id)
            submitted.get(timeout=60)
        finally:
            self._under_way -= 1

    async def _look_for(self, id: str) -> None:
        self._open[id] = asyncio.get_running_loop().create_future()
        if len(self._open) == 1:
            self._looking = asyncio.create_task(self._look())
        await self._open[id]

    async def _look(self) -> None:
        while self._open:
            await asyncio.sleep(LOOK_SECONDS)
            ids = list(self._open)
            values = self._backend.client.mget([self._backend.get_key_for_task(id) for id in ids])
            for id, value in zip(ids, values, strict=True):
                if value is not None:
                    self._open.pop(id).set_result(None)


async def measured(plan: dict[str, Any]) -> dict[str, Any]:
    """Redis and the workers are up; where, is in the environment."""
    the_plan, results, numbers = Plan(**plan), Results(), itertools.count(1)

    async def onboard(_: int) -> None:
        await results.of(celery_tasks.onboarding(handlers.EMAIL))

    async def act(_: int) -> None:
        await results.of(celery_tasks.create_user.s(handlers.EMAIL))

    async def onboard_for_real(_: int) -> None:
        await results.of(celery_tasks.onboarding_for_real(next(numbers)))

    found = {"onboarding": await trivial(onboard, act, the_plan)}
    return {**found, "real": await real(onboard_for_real, the_plan), "memory": the_plan.memory()}
