"""The job as Restate's handlers, for granian to serve."""

from typing import Any

import restate  # pyright: ignore[reportMissingImports]  # in its own environment only

from benchmarks import handlers

onboarding = restate.Workflow("Onboarding")
single = restate.Service("Single")


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


app = restate.app([onboarding, single])
