"""Resources: opened once per engine, closed in reverse when it ends, given to handlers and effects by their type."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from dotdo import ActionFailed, AsyncContext, Context, Effect, EffectCall, action
from tests.workshop import Workshop

events: list[str] = []


class Pool:
    """What a function opens."""

    def __init__(self, name: str) -> None:
        self.name = name


class Cache(Pool):
    """Another kind of it."""


class Session:
    """An async context manager itself."""

    async def __aenter__(self) -> "Session":
        events.append("open session")
        return self

    async def __aexit__(self, *_: object) -> None:
        events.append("close session")


class Lock:
    """A sync context manager itself."""

    def __enter__(self) -> "Lock":
        events.append("open lock")
        return self

    def __exit__(self, *_: object) -> None:
        events.append("close lock")


@asynccontextmanager
async def open_pool() -> AsyncIterator[Pool]:
    events.append("open pool")
    yield Pool("main")
    events.append("close pool")


@contextmanager
def open_cache() -> Iterator[Cache]:
    events.append("open cache")
    yield Cache("cache")
    events.append("close cache")


@contextmanager
def open_badly() -> Iterator[Pool]:
    raise ConnectionError("no pool today")
    yield Pool("never")


class Plain:
    """Neither opened nor closed."""


async def use_pool(call: EffectCall) -> str:
    return call.resource(Pool).name


@pytest.fixture(autouse=True)
def _no_events() -> None:
    events.clear()


def test_resources_live_as_long_as_their_engine(workshop: Workshop):
    @action("use", catalogue=workshop.catalogue)
    def use(ctx: Context) -> list[str]:
        found: list[Any] = [ctx.resource(kind) for kind in (Pool, Cache, Session, Lock, Plain)]
        return [type(one).__name__ for one in found]

    client = workshop.open(resources=[open_pool, open_cache, Session(), Lock, Plain()])
    assert client.run(use) == client.run(use) == ["Pool", "Cache", "Session", "Lock", "Plain"]
    assert events == ["open pool", "open cache", "open session", "open lock"]
    client.close()
    assert events[4:] == ["close lock", "close session", "close cache", "close pool"]


def test_handlers_and_effects_get_the_same_object(workshop: Workshop):
    effect = Effect("use-pool", use_pool, catalogue=workshop.catalogue)
    seen: list[Pool] = []

    @action("use-async", catalogue=workshop.catalogue)
    async def use_async(ctx: AsyncContext) -> str:
        seen.append(ctx.resource(Pool))
        return await ctx.request(effect)

    @action("use", catalogue=workshop.catalogue)
    def use(ctx: Context) -> str:
        seen.append(ctx.resource(Pool))
        return ctx.resource(Pool).name

    pool = Pool("given")
    client = workshop.open(resources=[pool])
    assert (client.run(use_async), client.run(use)) == ("given", "given")
    assert seen == [pool, pool]


def test_subclass_is_found_but_the_exact_type_comes_first(workshop: Workshop):
    @action("use", catalogue=workshop.catalogue)
    def use(ctx: Context) -> str:
        return ctx.resource(Pool).name

    with workshop.open(resources=[Cache("cache")]) as client:
        assert client.run(use) == "cache"
    with workshop.open(resources=[Cache("cache"), Pool("pool")]) as client:
        assert client.run(use) == "pool"


def test_missing_resource_says_how_to_give_it(workshop: Workshop):
    @action("use", catalogue=workshop.catalogue)
    def use(ctx: Context) -> str:
        return ctx.resource(Pool).name

    with pytest.raises(ActionFailed, match=r"No resource of type Pool .*known: Plain.*Do\(resources=\[Pool") as failure:
        workshop.open(resources=[Plain()]).run(use)
    assert failure.value.attempts == 1


def test_resource_that_cannot_be_opened_closes_those_before_it(workshop: Workshop):
    with pytest.raises(ConnectionError, match="no pool today"):
        workshop.open(resources=[open_cache, open_badly])
    assert events == ["open cache", "close cache"]
    workshop.open(resources=[open_cache]).close()  # and nothing stays locked


def test_two_resources_of_one_type_are_refused(workshop: Workshop):
    with pytest.raises(Exception, match="Pool"):
        workshop.open(resources=[Pool("one"), Pool("two")])
