"""Services as definitions: what a handler may look like, what is said about it, and where it may be called."""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dotdo import (
    Action,
    ActionFailed,
    AsyncContext,
    Catalogue,
    Context,
    DefinitionError,
    Do,
    RunBlocked,
    Service,
    action,
    service,
)
from dotdo.action import NO_OVERRIDES
from dotdo.errors import CalledOutside
from dotdo.testing import ManualClock

shop = Catalogue()


@dataclasses.dataclass
class Order:
    order_id: int
    line_count: int = 0


@action("count-lines", catalogue=shop, wire="camel")
async def count_lines(order_id: int) -> Order:
    return Order(order_id, 3)


@service("check-out", catalogue=shop, wire="camel")
async def check_out(order_id: int) -> Order:
    """Checks an order out."""
    return await count_lines(order_id)


@service("outer", catalogue=shop)
async def outer(order_id: int) -> int:
    order = await check_out.with_(key="the-child")(order_id=order_id)
    return order.line_count


@service("bug-fails", on_bug="fail", undo=False, catalogue=shop)
async def bug_fails() -> None:
    raise KeyError("no such thing")


@service("bug-blocks", catalogue=shop)
async def bug_blocks() -> None:
    raise KeyError("no such thing")


def define(handler: Callable[..., Any], **options: Any) -> Service[..., Any]:
    given: dict[str, Any] = {"catalogue": Catalogue(), **options}
    return Service("check-out", handler, **given)


async def plain(order_id: int) -> int:
    """Does nothing."""
    return order_id


# -- definitions ------------------------------------------------------------------------------------------------------


def test_decorator_and_class_are_the_same():
    alert = Action("alert", lambda failure: None, catalogue=Catalogue())
    options: dict[str, Any] = {
        "version": 2,
        "undo": False,
        "on_failure": [alert],
        "on_bug": "fail",
        "wire": "camel",
    }
    one = service("check-out", catalogue=Catalogue(), **options)(plain)
    other = Service(name="check-out", handler=plain, catalogue=Catalogue(), **options)
    assert isinstance(one, Service)
    assert one.definition() == other.definition()
    for found in (one, other):
        assert (found.version, found.undoes, found.on_bug, found.on_failure) == (2, False, "fail", (alert,))
        assert (found.__name__, found.__doc__, found.__wrapped__) == ("plain", "Does nothing.", plain)
        assert repr(found) == "<Service check-out@2>"


def test_a_listing_shows_schemas_and_policies():
    found = define(plain).definition()
    assert (found.kind, found.name, found.version, found.doc) == ("service", "check-out", 1, "Does nothing.")
    assert found.input_schema["required"] == ["order_id"]
    assert found.output_schema == {"type": "integer"}
    assert found.policy == {"undo": True, "on_bug": "block", "on_failure": []}


def not_async(order_id: int) -> None: ...
async def takes_context(ctx: AsyncContext, order_id: int) -> None: ...
async def takes_sync_context(order_id: int, ctx: Context) -> None: ...
async def any_number(*order_id: int) -> None: ...
async def generator(order_id: int): yield order_id  # fmt: skip


@pytest.mark.parametrize(
    "handler, message",
    [
        (not_async, "a service is an `async def`"),
        (generator, "a service is an `async def`"),
        (takes_context, "a service takes no context. Work on the world belongs in actions"),
        (takes_sync_context, "a service takes no context"),
        (any_number, "cannot be passed by name"),
    ],
)
def test_handlers_that_cannot_work_are_refused_at_their_definition(handler: Any, message: str):
    catalogue = Catalogue()
    with pytest.raises(DefinitionError, match=rf"^service check-out@1: .*{message}"):
        Service("check-out", handler, catalogue=catalogue)
    assert catalogue.all("service") == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"on_bug": "ignore"}, "on_bug='ignore': one of block, fail"),
        ({"wire": "kebab"}, "wire='kebab'"),
        ({"version": "1"}, "a version is a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        define(plain, **options)


def test_plain_calls_the_bare_function():
    assert asyncio.run(define(plain).plain(5)) == 5


def test_called_outside_a_service_it_says_what_is_meant():
    with pytest.raises(CalledOutside) as caught:
        define(plain)(order_id=1)
    assert str(caught.value) == (
        "service check-out@1 was called outside a service. Call client.start(plain, ...) or client.run(...) to run it "
        "durably, or call it inside a service."
    )


def test_with_gives_a_copy_that_says_more():
    found = define(plain, version=3)
    twice = found.with_(key="k", trail="t", labels={"a": "b"}).with_(deadline=60, delay=1, version=2)
    assert (found.options.key, found.options.version, found.overrides) == (None, 3, NO_OVERRIDES)
    options = twice.options
    assert (options.key, options.version, options.trail, options.labels) == ("k", 2, "t", {"a": "b"})
    assert (options.deadline, options.delay) == (60, 1)
    assert (twice.overrides.step_key, twice.overrides.version) == ("k", 2)
    with pytest.raises(DefinitionError, match="key=''"):
        found.with_(key="")


# -- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path):
    with Do(f"sqlite:///{tmp_path / 'dotdo.db'}", catalogue=shop, clock=ManualClock(), check_replay=True) as client:
        yield client


def test_typed_calls_give_typed_outputs_and_calls_by_name_what_is_on_the_wire(client: Do):
    assert client.run(check_out, order_id=7) == Order(7, 3)
    assert client.run(outer, 7) == 3, "a child service gives its typed output, too"
    assert client.service("check-out").invoke(orderId=7) == {"orderId": 7, "lineCount": 3}
    run = client.service.execute(name="check-out", params={"orderId": 7})
    assert (run.kind, run.name, run.status, run.result) == (
        "service",
        "check-out",
        "completed",
        {"orderId": 7, "lineCount": 3},
    )


def test_a_child_is_a_run_of_its_own_under_the_key_of_its_step(client: Do):
    handle = client.start(outer, order_id=7)
    assert handle.result(timeout=60) == 3
    (child,) = client.runs.list(parent=handle.id)
    assert (child.name, child.root, child.parent) == ("check-out", handle.id, handle.id)
    assert "check-out:the-child" in {entry.step for entry in handle.journal()}


def test_a_bug_blocks_unless_the_service_says_otherwise(client: Do):
    with pytest.raises(RunBlocked, match="KeyError"):
        client.service("bug-blocks", wait=20).invoke()
    handle = client.start(bug_fails)
    with pytest.raises(ActionFailed, match="no such thing"):
        handle.result(timeout=60)
    assert handle.get().status == "failed"


def test_services_and_actions_are_listed_apart(client: Do):
    assert [found.name for found in client.service.list()] == ["bug-blocks", "bug-fails", "check-out", "outer"]
    assert [found.name for found in client.action.list()] == ["count-lines"]
