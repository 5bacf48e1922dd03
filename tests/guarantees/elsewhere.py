"""Nodes that define different things: URL ROLE... It says `ready`, and goes on until its input ends, or it is killed.

`sales` has the services, and actions of its own; `billing` has actions that those call by name, with their SQL, effects
and undos. What they do to the world is told as in node.py.
"""

import asyncio
import os
from typing import Any

from sqlalchemy import text

import dotdo
from dotdo import AsyncContext, AsyncDo, Catalogue, Fail, action, call, effect, service
from tests.guarantees.node import TOLD, tell
from tests.guarantees.node_process import be_node


def definitions(*roles: str) -> Catalogue:
    """What a node with these roles defines."""
    catalogue = Catalogue()
    for role in roles:
        _ROLES[role](catalogue)
    return catalogue


def _sales(catalogue: Catalogue) -> None:
    @action("reserve", catalogue=catalogue)
    async def reserve(item: str) -> str:
        tell(f"reserves {item}")
        return item

    @reserve.undo
    async def _release(item: str) -> None:
        tell(f"releases {item}")

    @action("ship", retry=1, catalogue=catalogue)
    async def ship(item: str) -> str:
        if item == "lost":
            raise Fail("it cannot be shipped")
        return f"{item} is on its way"

    @service("order", catalogue=catalogue)
    async def order(item: str, cents: int) -> list[Any]:
        await reserve(item)
        receipt = await call("charge", item=item, cents=cents)
        return [receipt, await ship(item)]

    @service("orders", catalogue=catalogue)
    async def orders(items: list[str]) -> list[Any]:
        return await dotdo.map("charge", [{"item": item, "cents": 1} for item in items], limit=10)

    @service("misorder", catalogue=catalogue)
    async def misorder(item: str) -> Any:
        await reserve(item)
        return await call("charge", item=item, dollars=1)

    @service("which", catalogue=catalogue)
    async def which(names: list[str]) -> list[Any]:
        return [await call(name) for name in names]


def _billing(catalogue: Catalogue) -> None:
    @effect("mail", dedup="key", catalogue=catalogue)
    async def mail(to: str) -> None:
        tell(f"mails {to}")

    @action("charge", retry=1, catalogue=catalogue)
    async def charge(ctx: AsyncContext, item: str, cents: int) -> dict[str, Any]:
        tell(f"charges {item}")
        await ctx.sql.execute(text("insert into charges values (:item, :cents)"), {"item": item, "cents": cents})
        ctx.stage(mail, item)
        if cents < 0:
            raise Fail("nobody pays that")
        while os.path.exists(f"{os.environ[TOLD]}.{item}"):  # noqa: ASYNC110, ASYNC240 - of another process, and short
            await asyncio.sleep(0.01)
        return {"item": item, "cents": cents, "by": os.getpid()}

    @charge.undo
    async def _refund(ctx: AsyncContext, receipt: dict[str, Any]) -> None:
        await ctx.sql.execute(text("delete from charges where item = :item"), receipt)
        tell(f"refunds {receipt['item']}")


def _versioned(version: int) -> Any:
    def define(catalogue: Catalogue) -> None:
        @action("version", version=version, catalogue=catalogue)
        async def tell_version() -> int:
            return version

    return define


_ROLES: dict[str, Any] = {"sales": _sales, "billing": _billing, "v1": _versioned(1), "v2": _versioned(2)}


if __name__ == "__main__":
    be_node(lambda url, *roles: AsyncDo(url, catalogue=definitions(*roles)))
