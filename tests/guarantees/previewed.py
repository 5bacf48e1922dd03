"""An application with something of everything that a handler can do, to be previewed: SQL, mail, HTTP, own effects.

`python -m tests.guarantees.previewed FOLDER` previews in FOLDER an action that never ends once it has written.
"""

import asyncio
import contextlib
import sys
import threading
from typing import Any

from sqlalchemy import text

from dotdo import (
    AsyncContext,
    Catalogue,
    Context,
    Do,
    Effect,
    EffectCall,
    Fail,
    action,
    effect,
    now,
    publish,
    service,
    sleep,
    wait_for_event,
)
from dotdo.connectors import email, http

INSERT = text("insert into notes (text) values (:note) returning id")
COUNT = text("select count(*) from notes")


class Application:
    """The definitions, in a catalogue. released: what handlers that do not end wait for."""

    def __init__(self, catalogue: Catalogue, send: Effect[..., Any], order: Effect[..., Any], url: str) -> None:
        self.released = threading.Event()
        released = self.released

        def stand_in(call: EffectCall, input: dict[str, Any]) -> dict[str, str]:
            return {"id": f"cus_of_{input['name']}"}

        @effect("create-customer", dedup="key", preview=stand_in, catalogue=catalogue)
        def create_customer(call: EffectCall, name: str) -> dict[str, str]:
            raise AssertionError("a preview sends nothing")

        @action("sign-up", catalogue=catalogue)
        def sign_up(ctx: Context, name: str) -> int:
            id = ctx.sql.execute(INSERT, {"note": name}).scalar_one()
            email.send(to=f"{name}@example.com", subject="Welcome", text=f"Hello {name}")
            http.post(f"{url}/contacts", json={"name": name})
            ctx.stage(send, text=name)
            return id

        @sign_up.undo
        def delete(ctx: Context, id: int) -> None:
            ctx.sql.execute(text("delete from notes where id = :id"), {"id": id})

        @action("bill", catalogue=catalogue)
        async def bill(ctx: AsyncContext, name: str) -> str:
            customer = await ctx.request(create_customer, name=name)
            await ctx.session.execute(INSERT, {"note": f"bill of {name}"})
            return f"{customer['id']} {(await ctx.sql.execute(COUNT)).scalar_one()}"

        @action("order", catalogue=catalogue)
        async def order_(ctx: AsyncContext) -> str:
            await ctx.sql.execute(INSERT, {"note": "order"})
            return await ctx.request(order, text="tea")

        @action("call", catalogue=catalogue)
        async def call(ctx: AsyncContext) -> int:
            return (await ctx.request(http.call, method="POST", url=f"{url}/customers")).status

        @action("tell", catalogue=catalogue)
        def tell(ctx: Context) -> None:
            ctx.stage(send, text="it failed")

        @action("break", catalogue=catalogue, on_failure=[tell])
        def break_(ctx: Context) -> None:
            ctx.sql.execute(INSERT, {"note": "broken"})
            ctx.stage(send, text="broken")
            raise ConnectionError("after the write")

        @action("refuse", catalogue=catalogue)
        def refuse() -> None:
            raise Fail("no")

        @service("child", catalogue=catalogue)
        async def child(name: str) -> str:
            await sleep(60)
            return await bill(name=name)

        @service("onboard", catalogue=catalogue, on_failure=[tell])
        async def onboard(name: str, fails: bool = False) -> list[Any]:
            began = now()
            id = await sign_up(name=name)
            publish({"step": 1})
            async with asyncio.TaskGroup() as group:
                task = group.create_task(child(name=name))
                group.create_task(tell())
            await sleep(3 * 24 * 3600)
            if fails:
                await refuse()
            return [id, task.result(), (now() - began).total_seconds()]

        @service("approve", catalogue=catalogue)
        async def approve() -> None:
            await sign_up(name="approved")
            await wait_for_event("approved", timeout=60)

        @service("bug", catalogue=catalogue, on_failure=[tell])
        async def bug() -> None:
            await sign_up(name="bug")
            raise KeyError("oops")

        @action("commit", catalogue=catalogue)
        def commit(ctx: Context) -> None:
            sql = ctx.sql
            sql.execute(INSERT, {"note": "committed?"})
            for attempt in (sql.commit, lambda: sql.exec_driver_sql("commit"), ctx.session.commit):
                with contextlib.suppress(Exception):
                    attempt()
            ctx.session.execute(text("create table left_over (id integer)"))

        @action("hang", timeout=0.5, catalogue=catalogue)
        def hang(ctx: Context) -> None:
            sql = ctx.sql
            sql.execute(INSERT, {"note": "hanging"})
            released.wait(60)
            sql.execute(INSERT, {"note": "after its time"})

        @action("hang-async", timeout=0.1, catalogue=catalogue)
        async def hang_async(ctx: AsyncContext) -> None:
            await ctx.sql.execute(INSERT, {"note": "hanging"})
            await asyncio.Event().wait()

        @action("exit", catalogue=catalogue)
        async def exit_(ctx: AsyncContext) -> None:
            await ctx.sql.execute(INSERT, {"note": "exit"})
            sys.exit(3)

        @action("too-big", catalogue=catalogue)
        def too_big(ctx: Context) -> str:
            ctx.sql.execute(INSERT, {"note": "too big"})
            return "x" * (70 << 20)


def die_in_the_middle(folder: str) -> None:
    """A preview that holds its transaction until the process is killed."""
    catalogue = Catalogue()

    @action("hold", catalogue=catalogue)
    def hold(ctx: Context) -> None:
        ctx.sql.execute(INSERT, {"note": "held"})
        print("written", flush=True)
        threading.Event().wait()

    with Do("sqlite://", sql=f"sqlite:///{folder}/app.db", catalogue=catalogue) as client:
        client.preview(hold)


if __name__ == "__main__":
    die_in_the_middle(sys.argv[1])
