"""The work that is measured: the onboarding of docs/benchmarks.md with trivial handlers, and a few relatives of it.

What users get: no special path, every input and result journaled, the hash chain on.
"""

import asyncio
import threading
from pathlib import Path
from typing import Any

from benchmarks import handlers
from benchmarks.handlers import EMAIL as EMAIL
from dotdo import AsyncDo, action, service


class Gate:
    """Keeps runs in flight: their handlers enter it and wait until it is opened."""

    def __init__(self) -> None:
        self._entered, self._expected = 0, 0
        self._all_in, self._open = asyncio.Event(), asyncio.Event()

    async def enter(self) -> None:
        """For handlers."""
        self._entered += 1
        if self._entered == self._expected:
            self._all_in.set()
        await self._open.wait()

    async def wait_for(self, handlers: int) -> None:
        """Returns when so many have entered."""
        self._expected = handlers
        if self._entered < handlers:
            self._all_in.clear()
            await self._all_in.wait()

    def open(self) -> None:
        """Lets all go on."""
        self._open.set()


gate = Gate()


create_user = action("create-user")(handlers.create_user)
set_up_billing = action("set-up-billing")(handlers.set_up_billing)
send_welcome = action("send-welcome")(handlers.send_welcome)
notify_sales = action("notify-sales")(handlers.notify_sales)


@service("onboarding")
async def onboarding(email: str) -> dict[str, Any]:
    """Create the user, then three steps in parallel."""
    user = await create_user(email=email)
    id = user["user_id"]
    billing, mail, sales = await asyncio.gather(
        set_up_billing(user_id=id), send_welcome(user_id=id), notify_sales(user_id=id)
    )
    return {"user": user, "billing": billing, "email": mail, "sales": sales}


@action("notify-sales-gated")
async def notify_sales_gated(user_id: str) -> dict[str, Any]:
    """Waits for the gate."""
    await gate.enter()
    return {"user_id": user_id, "channel": "#sales", "sent": True}


@service("onboarding-gated")
async def onboarding_gated(email: str) -> dict[str, Any]:
    """An onboarding whose last step waits for the gate, with three steps behind it."""
    user = await create_user(email=email)
    id = user["user_id"]
    billing, mail = await asyncio.gather(set_up_billing(user_id=id), send_welcome(user_id=id))
    return {"billing": billing, "email": mail, "sales": await notify_sales_gated(user_id=id)}


@service("wait-an-hour")
async def wait_an_hour(email: str) -> None:
    """One step, then a long timer."""
    await create_user(email=email)
    await asyncio.sleep(3600)


@service("count")
async def count(steps: int) -> int:
    """Many steps in sequence."""
    total = 0
    for number in range(steps):
        total += await add_one(number=number)
    return total


@action("add-one")
async def add_one(number: int) -> int:
    """A very small step."""
    return number + 1


@action("make-text")
async def make_text(size: int) -> str:
    """A result of so many bytes."""
    return "x" * size


spinning, spin_over = threading.Event(), threading.Event()


@action("spin", timeout=600)
def spin() -> int:
    """Keeps one thread busy with Python code until told to stop."""
    spinning.set()
    turns = 0
    while not spin_over.is_set():
        for _ in range(1000):
            turns += 1
    return turns


def open_client(folder: str | Path) -> AsyncDo:
    """A client with its store in `folder`."""
    return AsyncDo(f"sqlite:///{Path(folder) / 'dotdo.db'}", check_replay=False)
