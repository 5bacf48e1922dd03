"""Actions as definitions: what a handler may look like, what a definition says, and where it may be called."""

import asyncio
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest

from dotdo import (
    Action,
    AsyncContext,
    Catalogue,
    Concurrency,
    Context,
    DefinitionError,
    InvalidInput,
    Rate,
    Retry,
    Secret,
    action,
)
from dotdo.action import NO_OVERRIDES, undo_input
from dotdo.errors import CalledOutside


@dataclasses.dataclass
class Ticket:
    ticket_id: int
    seat_row: str = "A"


def define(handler: Callable[..., Any], **policies: Any) -> Action[..., Any]:
    given: dict[str, Any] = {"catalogue": Catalogue(), **policies}
    return Action("book", handler, **given)


def sync_plain(ticket_id: int) -> int:
    """Does nothing.

    At length.
    """
    return ticket_id


def sync_context(ctx: Context, ticket_id: int) -> int:
    return ticket_id


async def async_plain(ticket_id: int) -> int:
    return ticket_id


async def async_context(ctx: AsyncContext, ticket_id: int) -> int:
    return ticket_id


def unhinted_context(ctx, ticket_id: int) -> int:
    return ticket_id


def named_otherwise(c: Context, ticket_id: int) -> int:
    return ticket_id


def quoted_context(ctx: "Context", /, ticket_id: int) -> int:
    return ticket_id


# -- handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handler, takes_context, is_async",
    [
        (sync_plain, False, False),
        (sync_context, True, False),
        (async_plain, False, True),
        (async_context, True, True),
        (unhinted_context, True, False),
        (named_otherwise, True, False),
        (quoted_context, True, False),
        (lambda ticket_id: ticket_id, False, False),
        (functools.partial(sync_context, ticket_id=1), True, False),
        (functools.partial(async_plain), False, True),
    ],
)
def test_handlers_are_sync_or_async_with_or_without_a_context(
    handler: Callable[..., Any], takes_context: bool, is_async: bool
):
    found = define(handler)
    assert (found.takes_context, found.is_async) == (takes_context, is_async)
    assert [parameter.name for parameter in found.schema.parameters] == ["ticket_id"]


def test_a_class_with_call_can_be_a_handler():
    class Booker:
        async def __call__(self, ctx: AsyncContext, ticket_id: int) -> int:
            return ticket_id

    found = define(Booker())
    assert (found.takes_context, found.is_async) == (True, True)


def context_second(ticket_id: int, ctx: Context) -> None: ...
def context_by_keyword(*, ctx: Context, ticket_id: int) -> None: ...
def context_perhaps(ctx: Context | None, ticket_id: int) -> None: ...
def context_of_async(ctx: AsyncContext) -> None: ...
async def context_of_sync(ctx: Context) -> None: ...
def generator(ticket_id: int): yield ticket_id  # fmt: skip


async def async_generator(ticket_id: int): yield ticket_id  # fmt: skip


@pytest.mark.parametrize(
    "handler, message",
    [
        (context_second, "ctx: Context must be the first, positional parameter"),
        (context_by_keyword, "ctx: Context must be the first, positional parameter"),
        (context_perhaps, "Context'> is not a type that dotdo can read from JSON"),
        (context_of_async, "a def handler takes Context, not AsyncContext"),
        (context_of_sync, "an async def handler takes AsyncContext, not Context"),
        (generator, "a generator cannot be a handler"),
        (async_generator, "a generator cannot be a handler"),
        ("text", "'text' cannot be called"),
    ],
)
def test_handlers_that_cannot_work_are_refused_at_their_definition(handler: Any, message: str):
    catalogue = Catalogue()
    with pytest.raises(DefinitionError, match=rf"^action book@1: .*{message}"):
        Action("book", handler, catalogue=catalogue)
    assert catalogue.all("action") == [], "nothing is left of it"


# -- decorator and class ----------------------------------------------------------------------------------------------

POLICIES: dict[str, Any] = {
    "version": 3,
    "retry": Retry(attempts=9),
    "timeout": 5.0,
    "pivot": True,
    "wire": "camel",
}


def test_decorator_and_class_are_the_same():
    alert = define(lambda failure: None)
    backup = Action("backup", sync_plain, catalogue=Catalogue())
    policies = {**POLICIES, "on_failure": [alert], "fallback": backup, "undo": lambda ticket: None}
    one = action("book", catalogue=Catalogue(), **policies)(sync_plain)
    other = Action(name="book", handler=sync_plain, catalogue=Catalogue(), **policies)
    assert isinstance(one, Action)
    assert one.definition() == other.definition()
    for found in (one, other):
        assert (found.retry, found.timeout, found.pivot) == (Retry(attempts=9), 5.0, True)
        assert (found.fallback, found.on_failure) == (backup, (alert,))
        assert found.undo_action is not None
        assert found.undo_action.handler is policies["undo"]


def test_an_action_looks_like_its_handler():
    found = define(sync_plain, version=2)
    assert (found.__name__, found.__qualname__, found.__module__) == ("sync_plain", "sync_plain", __name__)
    assert found.__doc__ == sync_plain.__doc__
    assert found.__wrapped__ is sync_plain
    assert repr(found) == "<Action book@2>"


def test_a_listing_shows_schemas_and_policies():
    found = define(sync_plain, timeout=3, retry=2, undo=lambda output: None).definition()
    assert (found.kind, found.name, found.version, found.doc) == ("action", "book", 1, "Does nothing.\n\nAt length.")
    assert found.input_schema["required"] == ["ticket_id"]
    assert found.output_schema == {"type": "integer"}
    assert found.policy == {
        "retry": {"attempts": 2, "delay": 1.0, "max_delay": 60.0},
        "timeout": 3,
        "undo": "book.undo",
        "fallback": None,
        "pivot": False,
        "on_failure": [],
    }


@pytest.mark.parametrize(
    "policies, message",
    [
        ({"timeout": 0}, "timeout=0: a number of seconds above 0"),
        ({"timeout": "5"}, "timeout='5'"),
        ({"retry": "3"}, "retry='3': a Retry or a number of attempts"),
        ({"retry": 0}, "at least 1 is needed"),
        ({"wire": "kebab"}, "wire='kebab'"),
        ({"version": 0}, "a version is a whole number from 1"),
    ],
)
def test_policies_that_make_no_sense_are_refused(policies: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        define(sync_plain, **policies)


# -- where an action may be called ------------------------------------------------------------------------------------


def test_plain_calls_the_bare_handler():
    class Fake(Context):
        __slots__ = ()

        def __init__(self) -> None: ...

    assert define(sync_plain).plain(5) == 5
    assert define(sync_context).plain(Fake(), ticket_id=6) == 6
    assert asyncio.run(define(async_plain).plain(ticket_id=7)) == 7
    assert define(lambda self: self).plain(self=8) == 8, "parameters may have any name"


def test_called_outside_a_service_it_says_what_is_meant():
    with pytest.raises(CalledOutside) as caught:
        define(sync_plain)(5)
    assert str(caught.value) == (
        "action book@1 was called outside a service. Call sync_plain.plain(...) for the bare handler, "
        "client.run(sync_plain, ...) to run it durably, or call it inside a service."
    )


# -- with_ ------------------------------------------------------------------------------------------------------------


def test_with_gives_a_copy_and_leaves_the_definition_alone():
    found = define(sync_plain, version=2)
    once = found.with_(key="k", retry=5, timeout=9, trail="t", deadline=60, delay=1, priority=0, labels={"a": "b"})
    assert (found.options.key, found.overrides) == (None, NO_OVERRIDES)
    options = once.options
    assert (options.key, options.version, options.trail, options.labels) == ("k", 2, "t", {"a": "b"})
    assert (options.deadline, options.delay, options.priority) == (60, 1, 0)
    assert (once.overrides.retry, once.overrides.timeout) == (Retry(attempts=5), 9)
    assert (once.overrides.step_key, once.overrides.version) == ("k", None)
    assert once.catalogue.get("action", "book") is found


def test_with_adds_to_what_was_said_before():
    once = define(sync_plain).with_(timeout=9, labels={"a": "b"}, key="first", priority=4)
    twice = once.with_(retry=Retry(attempts=1)).with_(key="second", trail="t").with_(version=3)
    assert (twice.overrides.timeout, twice.overrides.retry) == (9, Retry(attempts=1))
    assert (twice.overrides.version, twice.options.version) == (3, 3)
    assert (twice.options.key, twice.overrides.step_key) == ("second", "second")
    assert (twice.options.labels, twice.options.trail, twice.options.priority) == ({"a": "b"}, "t", 4)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"timeout": -1}, "timeout=-1"),
        ({"retry": "2"}, "retry='2'"),
        ({"key": ""}, "key=''"),
        ({"key": "\ud800"}, "key="),
        ({"key": 5}, "key=5"),
    ],
)
def test_with_refuses_what_makes_no_sense(given: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        define(sync_plain).with_(**given)


# -- undo and fallback ------------------------------------------------------------------------------------------------


def book(row: str) -> Ticket:
    return Ticket(1, row)


def test_undo_is_an_action_of_its_own_with_the_same_version():
    catalogue = Catalogue()
    found = Action("book", book, version=4, catalogue=catalogue)

    @found.undo
    def cancel(ctx: Context, ticket: Ticket) -> None: ...

    assert isinstance(cancel, Action)
    assert found.undo_action is cancel
    assert catalogue.get("action", "book.undo", 4) is cancel


@pytest.mark.parametrize("wire", ["snake", "camel"])
def test_undo_receives_the_output_and_the_input_if_it_asks_for_it(wire: str):
    def by_output(ticket: Ticket) -> None: ...
    def by_both(ticket: Ticket, input: dict[str, Any]) -> None: ...
    def by_input(input: dict[str, Any]) -> None: ...
    def by_nothing() -> None: ...
    def with_default(ticket: Ticket, because: str = "undone") -> None: ...

    for undo, expected in (
        (by_output, {"ticket": Ticket(1, "B")}),
        (by_both, {"ticket": Ticket(1, "B"), "input": {"row": "B"}}),
        (by_input, {"input": {"row": "B"}}),
        (by_nothing, {}),
        (with_default, {"ticket": Ticket(1, "B"), "because": "undone"}),
    ):
        found = define(book, undo=undo, wire=wire)
        assert found.undo_action is not None
        output, _ = found.schema.dump(book("B"))
        given = undo_input(found.undo_action, output, found.schema.accept({"row": "B"}))
        assert found.undo_action.schema.arguments(given) == expected


def test_undo_that_takes_other_things_is_refused():
    def wrong(ticket: Ticket, row: str, seat: int) -> None: ...

    for define_it in (lambda: define(book, undo=wrong), lambda: define(book).undo(wrong)):
        with pytest.raises(DefinitionError, match=r"its undo book\.undo takes row, seat; an undo gets the output"):
            define_it()


def test_fallback_takes_the_same_input_and_has_none_itself():
    catalogue = Catalogue()

    def other(row: str, colour: str = "red") -> Ticket: ...  # type: ignore[empty-body]
    def needs_more(row: str, seat: int) -> Ticket: ...  # type: ignore[empty-body]
    def takes_less() -> Ticket: ...  # type: ignore[empty-body]

    last = Action("last", other, catalogue=catalogue)
    middle = Action("middle", book, fallback=last, catalogue=catalogue)
    assert middle.fallback is last
    with pytest.raises(DefinitionError, match="its fallback middle has a fallback itself; no chains"):
        define(book, fallback=middle)
    with pytest.raises(DefinitionError, match="its fallback more needs seat; a fallback is given the same input"):
        define(book, fallback=Action("more", needs_more, catalogue=catalogue))
    with pytest.raises(DefinitionError, match="its fallback less does not take row"):
        define(book, fallback=Action("less", takes_less, catalogue=catalogue))


def test_every_problem_of_an_input_names_the_action():
    with pytest.raises(InvalidInput, match="The input of action book@7 is not valid"):
        define(book, version=7).schema.accept({"row": 1, "col": 2})


def test_limit_that_goes_by_a_secret_is_refused_when_it_is_defined():
    def pay(token: Secret[str], account: dict[str, str], card: dict[str, Secret[str]]) -> None: ...

    for key in ("token", "card", "card.number"):
        with pytest.raises(DefinitionError, match=f"key='{key}'.*is a Secret.*stored in the clear"):
            define(pay, concurrency=Concurrency(1, key=key))
    with pytest.raises(DefinitionError, match="is a Secret"):
        define(pay, rate=[Rate("1/s"), Rate("5/s", key="token")])
    assert define(pay, concurrency=[3, Concurrency(1, key="account.id")]).limits is not None


def test_limit_of_an_undo_that_goes_by_a_secret_of_its_input_is_refused():
    def pay(token: Secret[str]) -> str:
        return "paid"

    def refund(paid: str, input: dict[str, str]) -> None: ...

    catalogue = Catalogue()
    undo = action("refund", concurrency=Concurrency(1, key="input.token"), catalogue=catalogue)(refund)
    with pytest.raises(DefinitionError, match=r"action refund@1.*is a Secret"):
        action("pay", undo=undo, catalogue=catalogue)(pay)
