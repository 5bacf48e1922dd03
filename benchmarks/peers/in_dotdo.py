"""dotdo, embedded: client and engine in one process, on SQLite or on PostgreSQL. The trivial job is benchmarks/jobs.py,
the one for real is examples/onboarding as it is, with the users in a file beside the store or in the same PostgreSQL.
"""

import itertools
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.peers.measuring import Plan, real, trivial
from dotdo import AsyncDo


async def measured(plan: dict[str, Any], folder: str, url: str | None, application: str) -> dict[str, Any]:
    """url: of the store; None: a file in `folder`. application: URL of the application's database."""
    the_plan, numbers = Plan(**plan), itertools.count(1)
    store = url or f"sqlite:///{Path(folder, 'dotdo.db')}"
    async with AsyncDo(store, check_replay=False) as client:

        async def onboard(_: int) -> None:
            result = await client.run(jobs.onboarding, email=jobs.EMAIL)
            assert result["sales"]["sent"]

        async def act(_: int) -> None:
            await client.run(jobs.create_user, email=jobs.EMAIL)

        found = {"onboarding": await trivial(onboard, act, the_plan)}
    from examples.onboarding.app import customer_onboarding
    from examples.onboarding.providers import resources

    async with AsyncDo(store, sql=application, resources=resources(), check_replay=False) as client:

        async def onboard_for_real(_: int) -> None:
            number = next(numbers)
            await client.run(customer_onboarding, user_name=f"User {number}", user_email=f"user{number}@example.com")

        return {**found, "real": await real(onboard_for_real, the_plan), "memory": the_plan.memory()}
