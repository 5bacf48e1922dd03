"""Typed calls as users write them. Pyright, strict, must find each type as claimed, and nothing to complain about.

Read by tests/unit/test_typing.py; never imported.
"""

# pyright: strict

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any, assert_type
from uuid import UUID

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

import dotdo
from dotdo import (
    Action,
    ActionFailed,
    AsyncContext,
    AsyncDo,
    AsyncHandle,
    Catalogue,
    Context,
    Do,
    Effect,
    EffectCall,
    EnvironmentSecrets,
    Failure,
    FileSecrets,
    Handle,
    Preview,
    Retry,
    Run,
    Secret,
    Service,
    Staged,
    Step,
    action,
    effect,
    service,
)


@dataclass
class User:
    user_id: str


# -- handlers: sync and async, with and without a context -------------------------------------------------------------


@action("sync-with-context", retry=Retry(attempts=5), timeout=30)
def sync_with_context(ctx: Context, name: str, *, email: str = "") -> User:
    assert_type(ctx.sql, Connection)
    assert_type(ctx.session, Session)
    assert_type(ctx.database("crm"), Connection)
    assert_type(ctx.stage(post, "account", cents=5), Staged)
    assert_type(ctx.request(post, account="a"), User)
    assert_type(ctx.request(post_async, 5), int)
    assert_type(ctx.resource(Catalogue), Catalogue)
    assert_type(ctx.resource(Catalogue, default=Catalogue), Catalogue)
    return User(name + email)


@action("sync-without-context")
def sync_without_context(name: str) -> User:
    return User(name)


@action("async-with-context", version=2, retry=3, wire="camel")
async def async_with_context(ctx: AsyncContext, name: str, number: int = 0) -> User:
    assert_type(ctx.sql, AsyncConnection)
    assert_type(ctx.session, AsyncSession)
    assert_type(ctx.stage(post, "account"), Staged)
    assert_type(await ctx.request(post, account="a", cents=1), User)
    assert_type(await ctx.request(post_async, number=5), int)
    assert_type((ctx.run_id, ctx.step, ctx.attempt, ctx.idempotency_key), tuple[str, str, int, str])
    assert_type((ctx.actor, ctx.trail), tuple[str | None, str | None])
    return User(name * number)


@action("async-without-context")
async def async_without_context(name: str) -> list[User]:
    return [User(name)]


@sync_with_context.undo
def undo(ctx: Context, user: User, input: dict[str, Any]) -> None: ...


@effect("post", dedup="key", key_window=86_400)
def post(call: EffectCall, account: str, cents: int = 0) -> User:
    assert_type((call.key, call.attempt), tuple[str, int])
    return User(account * cents)


@effect("post-async")
async def post_async(number: int) -> int:
    return number


needs_number: Effect[[int], int] = post_async
needs_name: Action[[str], list[User]] = async_without_context
assert_type(undo, Action[..., Any])


# -- the same without decorators --------------------------------------------------------------------------------------


def plain_handler(amount: int) -> float:
    return float(amount)


async def async_handler(ctx: AsyncContext, amount: int) -> float:
    return float(amount)


def context_handler(ctx: Context, amount: int) -> float:
    return float(amount)


async def flow(amount: int) -> str:
    return str(await by_class(amount))


by_class = Action(name="by-class", handler=plain_handler)
by_class_async = Action("by-class-async", async_handler, retry=2, timeout=3)
by_class_context = Action("by-class-context", context_handler, version=2, fallback=by_class, on_failure=[])
flow_by_class = Service(name="flow", handler=flow, undo=False)


async def calls_classes() -> None:
    assert_type(await by_class(amount=1), float)
    assert_type(await by_class_async(1), float)
    assert_type(await by_class_context(amount=1), float)
    assert_type(await flow_by_class(amount=1), str)


# -- services ---------------------------------------------------------------------------------------------------------


@service("signup", on_failure=[undo])
async def signup(name: str, email: str = "") -> User:
    user = await sync_with_context(name, email=email)
    assert_type(user, User)
    assert_type(await async_with_context(name=name, number=1), User)
    assert_type(await async_without_context(name), list[User])
    assert_type(sync_without_context(name), Step[User])
    changed = sync_with_context.with_(timeout=5, retry=Retry(attempts=2), key="first")
    assert_type(await changed(name), User)
    assert_type(await child(5), str)
    assert_type(await child.with_(version=1)(number=5), str)
    both = await asyncio.gather(sync_without_context(name), async_without_context(name))
    assert_type(both, tuple[User, list[User]])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sync_without_context(name))
    assert_type(task.result(), User)
    async with asyncio.timeout(5):
        await dotdo.sleep(1)
    assert_type(dotdo.now(), datetime)
    assert_type(dotdo.now() + timedelta(days=3), datetime)
    assert_type(dotdo.uuid(), UUID)
    assert_type(dotdo.random(), Random)
    assert_type(await dotdo.wait_for_event("approved", timeout=5), Any)
    assert_type(await dotdo.call("elsewhere", amount=5), Any)
    assert_type(await dotdo.map(async_without_context, ["a", "b"], limit=5), list[list[User]])
    assert_type(await dotdo.map(child, range(5)), list[str])
    assert_type(await dotdo.map(child, range(5), return_exceptions=True), list[str | ActionFailed])
    return user


@service("child")
async def child(number: int) -> str:
    return str(number)


@action("tell-admin")
def tell_admin(failure: Failure) -> None:
    assert_type((failure.run, failure.attempts), tuple[str, int])


# -- clients ----------------------------------------------------------------------------------------------------------


# -- secrets ----------------------------------------------------------------------------------------------------------


@action("sign-in")
def sign_in(ctx: Context, password: Secret[str]) -> bool:
    assert_type(password.reveal(), str)
    assert_type(ctx.secret("API_KEY"), Secret[str])
    return password == ctx.secret("API_KEY")


@effect("register")
async def register(call: EffectCall, password: Secret[str]) -> str:
    return call.secret("API_KEY").reveal()


class Vault:
    def get(self, name: str) -> str | None:
        return None


def with_secrets() -> None:
    for given in (Vault(), {"API_KEY": "x"}, [EnvironmentSecrets("SHOP_"), FileSecrets(), Vault()]):
        with Do(secrets=given) as client:
            assert_type(client.run(sign_in, password=Secret("x")), bool)


def with_do(client: Do) -> None:
    assert_type(client.run(sync_with_context, "Ada", email="ada@example.com"), User)
    assert_type(client.run(async_with_context, name="Ada", number=5), User)
    assert_type(client.run(signup, name="Ada"), User)
    assert_type(client.preview(sync_with_context, "Ada", email="ada@example.com"), Preview[User])
    assert_type(client.preview(signup, name="Ada").result, User | None)
    assert_type(client.action("x").preview(a=1), Preview[Any])
    assert_type(client.run(signup.with_(key="signup:42", deadline=60, labels={"a": "b"}), "Ada"), User)
    handle = client.start(signup, "Ada", email="")
    assert_type(handle, Handle[User])
    assert_type(handle.result(timeout=30), User)
    assert_type(handle.get(), Run)
    assert_type(client.start(async_without_context.with_(delay=5), "Ada").result(), list[User])
    assert_type(client.action("signup", key="k", version=2, wait=30).invoke(anything=1), Any)
    assert_type(client.service("signup", labels={"a": "b"}).start(name="Ada"), Handle[Any])
    assert_type(client.start(sync_without_context, "Ada", within=object()), Handle[User])
    assert_type(client.service("signup", within=object()).start(name="Ada"), Handle[Any])
    assert_type(client.action.execute(name="x", params={"a": 1}, trail="t").status == "failed", bool)
    assert_type(client.runs.list(status="failed", limit=5), list[Run])
    with client.trail("signup:42"):
        client.runs.send_event(handle.id, "approved", {"by": "grace"}, key="k")


async def with_async_do(client: AsyncDo) -> None:
    assert_type(await client.run(sync_with_context, "Ada", email="ada@example.com"), User)
    assert_type(await client.run(async_without_context, name="Ada"), list[User])
    assert_type(await client.run(signup.with_(key="signup:42"), "Ada"), User)
    handle = await client.start(signup, "Ada")
    assert_type(handle, AsyncHandle[User])
    assert_type(await handle.result(timeout=30), User)
    assert_type(await client.start(sync_without_context, "Ada"), AsyncHandle[User])
    assert_type(await client.action("signup", key="k").invoke(anything=1), Any)
    assert_type(await client.service("signup").start(name="Ada"), AsyncHandle[Any])
    assert_type(await client.start(sync_without_context, "Ada", within=object()), AsyncHandle[User])
    async with client as opened:
        assert_type(opened, AsyncDo)


def open_clients() -> None:
    with Do("sqlite:///dotdo.db", sql="sqlite:///app.db", resources=[Catalogue], actor="ada", grace=5) as client:
        assert_type(client, Do)


# -- a decorated function keeps its place where functions are wanted --------------------------------------------------

calls: Sequence[Callable[[str], Coroutine[Any, Any, User]]] = [sync_without_context, sync_with_context, signup]
