"""The jobs as Restate's handlers, for granian to serve. Handlers are executed again from their log, and a step that was
under way is executed again as well, so each call to the outside carries the run's id."""

import asyncio
import os
from functools import cache
from typing import Any

import restate  # pyright: ignore[reportMissingImports]  # in its own environment only

from benchmarks import handlers
from benchmarks.peers.outside import Outside, insert_user, open_database

onboarding = restate.Workflow("Onboarding")
single = restate.Service("Single")
for_real = restate.Workflow("OnboardingForReal")


@onboarding.main()
async def run(ctx: restate.WorkflowContext, email: str) -> dict[str, Any]:
    """Create the user, then three steps in parallel."""
    user = await ctx.run_typed("create-user", handlers.create_user, email=email)
    id = user["user_id"]
    steps = [
        ctx.run_typed("set-up-billing", handlers.set_up_billing, user_id=id),
        ctx.run_typed("send-welcome", handlers.send_welcome, user_id=id),
        ctx.run_typed("notify-sales", handlers.notify_sales, user_id=id),
    ]
    await restate.gather(*steps)
    billing, mail, sales = [await step for step in steps]
    return {"user": user, "billing": billing, "email": mail, "sales": sales}


@single.handler()
async def create(ctx: restate.Context, email: str) -> dict[str, Any]:
    """One step."""
    return await ctx.run_typed("create-user", handlers.create_user, email=email)


@for_real.main()
async def run_for_real(ctx: restate.WorkflowContext, number: int) -> dict[str, str]:
    """The four steps, in order."""
    outside, key = _outside(), ctx.key()
    user_id = await ctx.run_typed("create-user", _create_user, id=f"user_{key}", number=number)
    customer_id = await ctx.run_typed("billing", outside.create_customer, key=f"{key}-billing", number=number)
    await ctx.run_typed("welcome", outside.send_welcome, key=f"{key}-welcome", number=number)
    await ctx.run_typed("sales", outside.notify_sales, number=number)
    return {"user_id": user_id, "customer_id": customer_id}


@cache
def _outside() -> Outside:
    return Outside()


async def _create_user(id: str, number: int) -> str:
    return await asyncio.to_thread(_insert, id, number)


def _insert(id: str, number: int) -> str:
    with _database().begin() as connection:
        connection.execute(insert_user(connection.dialect.name, id, number))
    return id


@cache
def _database() -> Any:
    return open_database(os.environ["BENCHMARK_APPLICATION"])


app = restate.app([onboarding, single, for_real])
