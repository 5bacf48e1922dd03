"""What the test of the killed server serves (`dotdo serve --app`): onboardings with SQL, a request and staged effects,
whose names tell how they must go. What they do to the world arrives at the ledger, or is a row of their file.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from sqlalchemy import text

from dotdo import (
    AsyncContext,
    Catalogue,
    Context,
    EffectCall,
    Fail,
    Failure,
    Retry,
    RetryLater,
    action,
    effect,
    service,
)
from tests.guarantees.ledger import act

catalogue = Catalogue()
SOON = Retry(attempts=4, delay=0.01, jitter=False)


class World:
    """The ledger, as this test's world in it."""

    def __init__(self) -> None:
        self._port, self._name = int(os.environ["LEDGER_PORT"]), os.environ["LEDGER_WORLD"]

    async def act(self, call: EffectCall, system: str, what: str) -> str:
        """Has the system do it; a thread waits for the answer, so a kill finds many under way."""
        return await asyncio.to_thread(act, ("127.0.0.1", self._port), self._name, system, what, call.key)


resources = [World]


@effect("mail", dedup="key", retry=SOON, catalogue=catalogue)
async def mail(call: EffectCall, to: str) -> None:
    if to.startswith("twice") and call.attempt <= 2:
        raise RetryLater("The mail server refuses.", after=0.01)
    await call.resource(World).act(call, "mail", to)


@effect("customer", dedup="key", retry=SOON, catalogue=catalogue)
async def customer(call: EffectCall, name: str) -> str:
    return await call.resource(World).act(call, "billing", name)


@effect("tell", dedup="key", retry=SOON, catalogue=catalogue)
async def tell(call: EffectCall, system: str, what: str) -> None:
    await call.resource(World).act(call, system, what)


@action("delete-user", retry=SOON, catalogue=catalogue)
async def delete_user(ctx: AsyncContext, created: dict[str, Any]) -> None:
    await ctx.sql.execute(text("delete from users where name = :name"), {"name": created["name"]})
    await _applied(ctx, f"delete {created['name']}")


@action("create-user", undo=delete_user, retry=SOON, catalogue=catalogue)
async def create_user(ctx: AsyncContext, name: str) -> dict[str, Any]:
    await ctx.sql.execute(text("insert into users (name) values (:name)"), {"name": name})
    await _applied(ctx, f"create {name}")
    return {"name": name}


@action("create-user", version=2, undo=delete_user, retry=SOON, catalogue=catalogue)
async def create_user_in_team(ctx: AsyncContext, name: str, team: str) -> dict[str, Any]:
    await ctx.sql.execute(text("insert into users (name) values (:name)"), {"name": f"{team}/{name}"})
    await _applied(ctx, f"create {team}/{name}")
    return {"name": f"{team}/{name}"}


async def _applied(ctx: AsyncContext, what: str) -> None:
    """A row for each transaction, which nothing keeps from being there twice."""
    await ctx.sql.execute(text("insert into transactions values (:what)"), {"what": what})


@action("set-up-billing", retry=SOON, catalogue=catalogue)
async def set_up_billing(ctx: AsyncContext, name: str) -> str:
    if name.startswith("refused"):
        raise Fail("The card was refused.")
    return await ctx.request(customer, name=name)


@action("send-welcome", retry=SOON, catalogue=catalogue)
async def send_welcome(ctx: AsyncContext, name: str) -> None:
    found = await ctx.sql.execute(text("select 1 from users where name = :name"), {"name": name})
    if found.first() is None:
        raise Fail("User not found.")
    ctx.stage(mail, to=name)
    await _applied(ctx, f"welcome {name}")


@action("add-to-crm", retry=Retry(attempts=2, delay=0.01, jitter=False), catalogue=catalogue)
def add_to_crm(ctx: Context, name: str) -> None:
    if name.startswith("no-crm") and not Path(f"mended-{name}").exists():
        raise ConnectionError("The CRM is down.")
    ctx.stage(tell, system="crm", what=name)


@action("tell-admin", retry=SOON, catalogue=catalogue)
async def tell_admin(ctx: AsyncContext, failure: Failure) -> None:
    ctx.stage(tell, system="admin", what=failure.run)


@service("onboard", on_failure=[tell_admin], catalogue=catalogue)
async def onboard(name: str) -> str:
    """User, billing, welcome mail, CRM: four steps, one after another."""
    await create_user.with_(version=1)(name=name)
    found = await set_up_billing(name=name)
    await send_welcome(name=name)
    await add_to_crm(name=name)
    return found


@service("sign-up", undo=False, catalogue=catalogue)
async def sign_up(name: str) -> str:
    """The user first, then mail and CRM in parallel; nothing is undone."""
    await create_user.with_(version=1)(name=name)
    await asyncio.gather(send_welcome(name=name), add_to_crm(name=name))
    return name
