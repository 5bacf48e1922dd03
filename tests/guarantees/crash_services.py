"""What the crash tests kill: onboardings with SQL, a request and staged effects; a tree of runs; a parallel mix.

Every transaction on the application's database also writes a row that nothing keeps from being there twice.
"""

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import dotdo
from dotdo import AsyncContext, Catalogue, Context, EffectCall, Fail, Retry, action, effect, service, wait_for_event
from tests.guarantees.crash_points import point
from tests.guarantees.ledger import act, look

catalogue = Catalogue()
SOON = Retry(attempts=3, delay=0.005, jitter=False)

TABLES = """
    create table users (id integer primary key, name text not null);
    create table transactions (what text not null);
"""


class World:
    """Where effects go: a world of the ledger. in_flight: counts the innocents beside a poison."""

    def __init__(self, address: tuple[str, int], folder: Path) -> None:
        self._address, self._name, self._mended = address, str(folder), folder / "mended"
        self.in_flight = threading.Semaphore(0)

    @property
    def is_mended(self) -> bool:
        """Whether what refuses, or kills, has been mended, for this process and all that follow."""
        return self._mended.exists()

    def mend(self) -> None:
        """Mends it."""
        self._mended.touch()

    def act(self, call: EffectCall, system: str, what: str, *, honours_keys: bool = True) -> str:
        """Has the system do it, with points around."""
        point(f"effect:{system}:before")
        answer = act(self._address, self._name, system, what, call.key, honours_keys=honours_keys)
        point(f"effect:{system}:after")
        return answer

    def look(self, call: EffectCall, system: str) -> str | None:
        """What the system has done under the call's key."""
        point(f"lookup:{system}")
        return look(self._address, self._name, system, call.key)


# -- effects -----------------------------------------------------------------------------------------------------------


async def take_back_customer(call: EffectCall, answer: str) -> None:
    call.resource(World).act(call, "billing", f"take back {answer}")


@effect("crash.customer", dedup="key", undo=take_back_customer, retry=SOON, catalogue=catalogue)
async def open_customer(call: EffectCall, name: str) -> str:
    return call.resource(World).act(call, "billing", f"open {name}")


@effect("crash.close-customer", dedup="key", retry=SOON, catalogue=catalogue)
def close_customer(call: EffectCall, customer: str) -> None:
    call.resource(World).act(call, "billing", f"close {customer}")


@effect("crash.mail", dedup="key", retry=SOON, catalogue=catalogue)
def send_mail(call: EffectCall, to: str, text: str) -> None:
    if call.attempt == 1 and text == "welcome":
        raise ConnectionRefusedError("greylisted: try again")
    call.resource(World).act(call, "mail", f"{text} {to}")


# The receiver knows no keys. To hear it twice does less harm than to wait for a person.
@effect("crash.slack", on_unknown="resend", retry=SOON, catalogue=catalogue)
async def post_slack(call: EffectCall, text: str) -> None:
    call.resource(World).act(call, "slack", text, honours_keys=False)


async def find_form(call: EffectCall) -> str | None:
    return call.resource(World).look(call, "forms")


# The office knows no keys: it files a form as often as it is handed in. What was handed in can be found, or only asked.
@effect("crash.find-form", dedup="find", lookup=find_form, retry=SOON, catalogue=catalogue)
async def hand_in(call: EffectCall, name: str) -> str:
    return call.resource(World).act(call, "forms", f"form {name}", honours_keys=False)


async def take_out(call: EffectCall, answer: str) -> None:
    call.resource(World).act(call, "forms", f"take out {answer}")


@effect("crash.ask-form", undo=take_out, retry=SOON, catalogue=catalogue)
def hand_in_unseen(call: EffectCall, name: str) -> str:
    return call.resource(World).act(call, "forms", f"unseen {name}", honours_keys=False)


# -- actions -----------------------------------------------------------------------------------------------------------


@action("add-user", retry=SOON, catalogue=catalogue)
def add_user(ctx: Context, name: str) -> int:
    point("handler:add-user:enter")
    cursor = ctx.sql.exec_driver_sql("insert into users (name) values (?) returning id", (name,))
    id = int(cursor.scalar_one())
    ctx.sql.exec_driver_sql("insert into transactions values (?)", (f"add {name}",))
    point("handler:add-user:exit")
    return id


@add_user.undo
async def remove_user(ctx: AsyncContext, id: int, input: dict[str, Any]) -> None:
    point("handler:remove-user:enter")
    await ctx.sql.exec_driver_sql("delete from users where id = ?", (id,))
    await ctx.sql.exec_driver_sql("insert into transactions values (?)", (f"remove {input['name']}",))
    point("handler:remove-user:exit")


@action("open-billing", retry=SOON, catalogue=catalogue)
async def open_billing(ctx: AsyncContext, name: str) -> str:
    point("handler:open-billing:enter")
    customer = await ctx.request(open_customer, name=name)
    if ctx.attempt == 1:
        raise ConnectionResetError("once, after the answer")
    point("handler:open-billing:exit")
    return customer


@open_billing.undo
def close_billing(ctx: Context, customer: str) -> None:
    point("handler:close-billing:enter")
    ctx.stage(close_customer, customer=customer)
    point("handler:close-billing:exit")


@action("welcome", retry=SOON, catalogue=catalogue)
async def welcome(ctx: AsyncContext, id: int) -> str:
    """SQL and a staged effect in one step."""
    point("handler:welcome:enter")
    name = (await ctx.sql.exec_driver_sql("select name from users where id = ?", (id,))).scalar_one()
    await ctx.sql.exec_driver_sql("insert into transactions values (?)", (f"welcome {name}",))
    ctx.stage(send_mail, to=name, text="welcome")
    point("handler:welcome:exit")
    return name


@action("tell-sales", retry=SOON, catalogue=catalogue)
def tell_sales(ctx: Context, name: str) -> None:
    point("handler:tell-sales:enter")
    ctx.stage(post_slack, text=f"{name} is here")
    ctx.stage(send_mail, to="sales", text=f"about {name}")
    point("handler:tell-sales:exit")


@action("file-found", retry=SOON, catalogue=catalogue)
async def file_found(ctx: AsyncContext, name: str) -> str:
    ctx.stage(hand_in, name=f"{name}, staged")
    return await ctx.request(hand_in, name=name)


@action("file-unseen", retry=SOON, catalogue=catalogue)
def file_unseen(ctx: Context, name: str) -> str:
    ctx.stage(hand_in_unseen, name=f"{name}, staged")
    receipt = ctx.request(hand_in_unseen, name=name)
    point("handler:file-unseen:exit")
    return receipt


@action("file-and-refuse", retry=SOON, catalogue=catalogue)
async def file_and_refuse(ctx: AsyncContext, name: str) -> None:
    await ctx.request(hand_in_unseen, name=name)
    raise Fail("refused")


@action("refuse", catalogue=catalogue)
def refuse() -> None:
    raise Fail("refused")


@action("refuse-unless-mended", catalogue=catalogue)
def refuse_unless_mended(ctx: Context) -> None:
    if not ctx.resource(World).is_mended:
        raise Fail("not mended")


@action("alert", retry=SOON, catalogue=catalogue)
def alert(ctx: Context, failure: Any) -> None:
    ctx.stage(send_mail, to="admin", text=failure["error"]["message"])


# -- services ----------------------------------------------------------------------------------------------------------


@service("onboard", catalogue=catalogue)
async def onboard(name: str) -> dict[str, Any]:
    id = await add_user(name=name)
    async with asyncio.TaskGroup() as group:
        billing = group.create_task(open_billing(name=name))
        group.create_task(welcome(id=id))
    await tell_sales(name=name)
    return {"id": id, "customer": billing.result()}


@service("onboard-refused", on_failure=[alert], catalogue=catalogue)
async def onboard_refused(name: str) -> None:
    await onboard.plain(name)
    await add_user(name="partner")
    await refuse()


@service("files-forms", catalogue=catalogue)
async def files_forms(name: str) -> list[str]:
    """Nothing here may be handed in twice."""
    await add_user(name=name)
    found, unseen = await asyncio.gather(file_found(name=name), file_unseen(name=name))
    return [found.partition("-")[0], unseen.partition("-")[0]]


@service("files-in-vain", catalogue=catalogue)
async def files_in_vain(name: str) -> None:
    await add_user(name=name)
    await file_and_refuse(name=name)


@service("family", on_failure=[alert], catalogue=catalogue)
async def family(refused: bool) -> list[Any]:
    """Children side by side and one below the other."""
    first = await asyncio.gather(member(name="ada", friend="ben"), member(name="cleo", friend=None))
    await asyncio.sleep(0.01)
    if refused:
        await asyncio.gather(add_user(name="dan"), refuse(), return_exceptions=True)
        await member(name="refused", friend=None)
    return list(first)


@service("member", catalogue=catalogue)
async def member(name: str, friend: str | None) -> list[Any]:
    await add_user(name=name)
    below = await member(name=friend, friend=None) if friend else None
    if name == "refused":
        await refuse()
    await tell_sales(name=name)
    return [name, below]


@service("mendable", catalogue=catalogue)
async def mendable(name: str) -> str:
    """Fails and is undone until it is mended."""
    await add_user(name=name)
    customer = await open_billing(name=name)
    await refuse_unless_mended()
    await tell_sales(name=name)
    return customer


@service("steered", catalogue=catalogue)
async def steered(name: str) -> None:
    """Tells sales of whom it is told, and waits for ever."""
    await add_user(name=name)
    await asyncio.gather(open_billing(name=name), tell_sales(name=await wait_for_event("next")))
    await wait_for_event("next")


@service("rounds", catalogue=catalogue)
async def rounds(number: int, last: int) -> int:
    """Continues as new after each round."""
    await add_user(name=f"round {number}")
    if number < last:
        dotdo.continue_as_new(number=number + 1, last=last)
    return number


@service("rounds-of-a-child", catalogue=catalogue)
async def rounds_of_a_child() -> None:
    """Undoes its child's whole chain."""
    await rounds(number=0, last=1)
    await refuse()


@service("hurries", catalogue=catalogue)
async def hurries() -> list[str]:
    """Steps that are cancelled, left behind or late while their transactions and effects are under way."""
    left = asyncio.create_task(welcome(id=await add_user(name="left")))
    seen: list[str] = []
    for number in range(4):
        try:
            async with asyncio.timeout(number * 0.004):
                await add_user(name=f"hurry {number}")
        except TimeoutError:
            seen.append(f"late {number}")
    await tell_sales(name="hurry")
    return [] if left.cancelled() else ["ended"]


@action("poison", catalogue=catalogue)
def poison(ctx: Context, innocents: int) -> str:
    """Kills its process once the innocents are in flight beside it, or soon; not if it has been mended."""
    world = ctx.resource(World)
    if world.is_mended:
        return "mended"
    point("handler:poison")
    for _ in range(innocents):
        world.in_flight.acquire(timeout=0.2)
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@action("innocent", catalogue=catalogue)
def innocent(ctx: Context, number: int) -> int:
    """Takes a moment, so that it is in flight when the poison works."""
    point(f"handler:innocent-{number}")
    ctx.resource(World).in_flight.release()
    threading.Event().wait(0.1)
    return number


@service("poisoned", catalogue=catalogue)
async def poisoned(innocents: int) -> str:
    return await poison(innocents=innocents)


@service("beside", catalogue=catalogue)
async def beside(number: int) -> int:
    return await innocent(number=number)
