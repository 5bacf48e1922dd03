"""Mistakes that a type checker must catch: pyright, strict, must find an error of that kind on each marked line.

A marker where there is no error is an error itself, so none of these can go unnoticed. Read by
tests/unit/test_typing.py; never imported.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from dataclasses import dataclass

from dotdo import Action, AsyncContext, AsyncDo, Context, Do, EffectCall, Service, action, effect, service


@dataclass
class User:
    user_id: str


@action("create")
def create(ctx: Context, name: str, *, number: int = 0) -> User:
    ctx.stage(post, 5)  # pyright: ignore[reportArgumentType]
    ctx.stage(post)  # pyright: ignore[reportCallIssue]
    ctx.stage(plain, "a")  # pyright: ignore[reportArgumentType, reportCallIssue]
    ctx.stage(lambda: None)  # pyright: ignore[reportArgumentType, reportCallIssue]
    answer: str = ctx.request(post, "a")  # pyright: ignore[reportAssignmentType]
    return User(name + answer * number)


@action("create-async")
async def create_async(ctx: AsyncContext, name: str) -> User:
    await ctx.request(post, account="a", colour="red")  # pyright: ignore[reportCallIssue]
    answer: str = await ctx.request(post, account="a")  # pyright: ignore[reportAssignmentType]
    return User(name + answer)


@effect("post")
def post(call: EffectCall, account: str, cents: int = 0) -> int:
    return cents


def plain(text: str) -> str:
    return text


@service("flow")
async def flow(name: str) -> User:
    await create(5)  # pyright: ignore[reportArgumentType]
    await create()  # pyright: ignore[reportCallIssue]
    await create(name, 5)  # pyright: ignore[reportCallIssue]
    await create(name, number="5")  # pyright: ignore[reportArgumentType]
    await create(name, colour="red")  # pyright: ignore[reportCallIssue]
    user: str = await create(name)  # pyright: ignore[reportAssignmentType]
    create(name).user_id  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await create.with_(timeout="5")(name)  # pyright: ignore[reportArgumentType]
    await create.with_(timeuot=5)(name)  # pyright: ignore[reportCallIssue]
    await child(name)  # pyright: ignore[reportArgumentType]
    return User(user)


@service("child")
async def child(number: int) -> str:
    return str(number)


# -- definitions ------------------------------------------------------------------------------------------------------


@service("sync-service")  # pyright: ignore[reportArgumentType]
def sync_service(name: str) -> None: ...


@action("bad-option", retries=5)  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
def bad_option(name: str) -> None: ...


@effect("bad-choice", dedup="keys")  # pyright: ignore[reportArgumentType]
def bad_choice(name: str) -> None: ...


Action(name="a", handler=plain, timeout="soon")  # pyright: ignore[reportArgumentType, reportCallIssue]
Action(name="a", handler=plain, colour="red")  # pyright: ignore[reportCallIssue]
Action(name="a")  # pyright: ignore[reportCallIssue]
Service(name="s", handler=plain)  # pyright: ignore[reportArgumentType]
wrong: Action[[int], str] = Action(name="a", handler=plain)  # pyright: ignore[reportAssignmentType]


# -- clients ----------------------------------------------------------------------------------------------------------


def with_do(client: Do) -> None:
    client.run(create, 5)  # pyright: ignore[reportArgumentType, reportCallIssue]
    client.run(create, colour="red")  # pyright: ignore[reportCallIssue]
    client.run(create)  # pyright: ignore[reportCallIssue]
    client.run(plain, "a")  # pyright: ignore[reportArgumentType, reportCallIssue]
    client.run(post, "a")  # pyright: ignore[reportArgumentType, reportCallIssue]
    number: int = client.run(create, "Ada")  # pyright: ignore[reportAssignmentType]
    text: str = client.start(create, "Ada").result()  # pyright: ignore[reportAssignmentType]
    client.start(create, "Ada").result(number)  # pyright: ignore[reportCallIssue]
    client.action("create", kye=text)  # pyright: ignore[reportCallIssue]
    client.action.execute(name="create", params={}, wiat=5)  # pyright: ignore[reportCallIssue]
    client.action.execute("create")  # pyright: ignore[reportCallIssue]
    client.action("create").invoke({"name": "Ada"})  # pyright: ignore[reportArgumentType]
    client.runs.list(state="failed")  # pyright: ignore[reportCallIssue]
    Do("sqlite://", resource=[])  # pyright: ignore[reportCallIssue]


async def with_async_do(client: AsyncDo) -> None:
    await client.run(create, 5)  # pyright: ignore[reportArgumentType, reportCallIssue]
    client.run(create, "Ada").user_id  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    number: int = await client.run(create_async, "Ada")  # pyright: ignore[reportAssignmentType]
    client.action("create", kye=number)  # pyright: ignore[reportCallIssue]
