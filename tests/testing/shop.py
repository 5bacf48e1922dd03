"""A small application that the tests of the test kit test: orders with a payment, stock in SQL, and letters."""

import asyncio
from typing import Any

from dotdo import AsyncContext, Catalogue, Context, EffectCall, Fail, Retry, action, effect, service, sleep
from dotdo import wait_for_event as event

catalogue = Catalogue()
SOON = Retry(attempts=3, delay=60, jitter=False)


class Outside:
    """What really happened, by the functions themselves."""

    def __init__(self) -> None:
        self.happened: list[str] = []


async def refund(call: EffectCall, answer: dict[str, Any]) -> None:
    call.resource(Outside).happened.append(f"refund {answer['id']}")


@effect("shop.charge", dedup="key", undo=refund, retry=SOON, catalogue=catalogue)
async def charge(call: EffectCall, card: str, cents: int) -> dict[str, Any]:
    call.resource(Outside).happened.append(f"charge {card}")
    return {"id": f"payment of {cents}"}


@effect("shop.letter", retry=SOON, catalogue=catalogue)
def letter(call: EffectCall, to: str, text: str) -> str:
    call.resource(Outside).happened.append(f"{text} to {to}")
    return "posted"


@action("reserve", retry=SOON, catalogue=catalogue)
def reserve(ctx: Context, item: str) -> str:
    ctx.sql.exec_driver_sql("insert into reserved values (?)", (item,))
    return f"reserved {item}"


@reserve.undo
async def release(ctx: AsyncContext, reserved: str, input: dict[str, Any]) -> None:
    await ctx.sql.exec_driver_sql("delete from reserved where item = ?", (input["item"],))


@action("pay", retry=SOON, catalogue=catalogue)
async def pay(ctx: AsyncContext, card: str) -> str:
    payment = await ctx.request(charge, card=card, cents=100)
    return payment["id"]


@pay.undo
def pay_back(ctx: Context, payment: str) -> None:
    ctx.stage(letter, to="bank", text=f"refund {payment}")


@action("thank", retry=SOON, catalogue=catalogue)
async def thank(ctx: AsyncContext, name: str) -> str:
    ctx.stage(letter, to=name, text="thanks")
    return name


@action("ask", retry=SOON, catalogue=catalogue)
async def ask(ctx: AsyncContext, name: str) -> str:
    return await ctx.request(letter, to=name, text="how are you")


@action("check", catalogue=catalogue)
def check(fine: bool) -> None:
    if not fine:
        raise Fail("not fine")


@action("alarm", catalogue=catalogue)
def alarm(ctx: Context, failure: Any) -> None:
    ctx.stage(letter, to="staff", text="an order failed")


@service("order", on_failure=[alarm], catalogue=catalogue)
async def order(name: str, fine: bool = True) -> str:
    await reserve(item="book")
    async with asyncio.TaskGroup() as group:
        paid = group.create_task(pay(card="visa"))
        group.create_task(thank(name=name))
    await sleep(3 * 24 * 3600)
    await check(fine=fine)
    return paid.result()


@service("approval", catalogue=catalogue)
async def approval() -> str:
    return f"{await event('approved')} by {await order(name='child')}"
