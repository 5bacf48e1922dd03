"""What the platform of these tests offers from Python: actions, effects on a ledger, a service that calls far away."""

import json
import os
from pathlib import Path
from typing import Any, TypedDict

from dotdo import AsyncContext, EffectCall, Fail, Retry, action, call, effect, publish, service, wait_for_event

LEDGER = Path(os.environ["LEDGER"])


class Greeting(TypedDict):
    """What greet-user gives."""

    text: str


@action("greet-user")
async def greet_user(name: str, polite: bool = False) -> Greeting:
    """Greets somebody."""
    return {"text": f"{'Good day' if polite else 'Hello'}, {name}"}


@action("count-to")
async def count_to(number: int) -> int:
    return number


@action("refuse")
async def refuse(reason: str) -> None:
    raise Fail(reason)


@action("fail-twice", retry=Retry(attempts=2, delay=0.01))
async def fail_twice(ctx: AsyncContext) -> None:
    raise ValueError(f"attempt {ctx.attempt}")


@effect("ledger.post", dedup="none", on_unknown="ask")
def post(call: EffectCall, account: str, cents: int) -> str:
    """Writes a line into the ledger."""
    with LEDGER.open("a") as file:
        file.write(json.dumps({"account": account, "cents": cents, "key": call.key}) + "\n")
    return f"{account} has {cents}"


@effect("ledger.lose", on_unknown="ask", retry=1)
async def lose(account: str) -> None:
    """Nobody knows whether this arrives."""
    raise ConnectionError(f"the answer about {account} was lost")


@action("post-blindly")
async def post_blindly(ctx: AsyncContext, account: str) -> str:
    ctx.stage(lose, account=account)
    return account


@action("reserve")
async def reserve(seat: str) -> str:
    return seat


@reserve.undo
async def release(seat: str) -> None:
    pass


@service("book")
async def book(seat: str) -> None:
    await reserve(seat=seat)


@service("approval")
async def approval(name: str) -> dict[str, Any]:
    """Waits for a word."""
    greeted = await greet_user(name=name)
    publish({"greeted": greeted["text"]})
    return {"said": await wait_for_event("answer"), "text": greeted["text"]}


@service("call-far")
async def call_far(action: str, params: dict[str, Any]) -> Any:
    """Calls an action by name, wherever it lives."""
    return await call(action, **params)
