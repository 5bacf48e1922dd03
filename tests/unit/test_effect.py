"""Effects as definitions: what can be found again by name after a crash, and what cannot."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from dotdo import Catalogue, DefinitionError, Effect, EffectCall, InvalidInput, Retry, effect
from dotdo.effect import DEFAULT_RETRY, find_resource
from dotdo.errors import CalledOutside


@dataclass
class Context:
    """Of the application: only dotdo's own are no input."""

    page: str


def show(context: Context) -> str:
    return context.page


CALL = EffectCall("key", "run_1", "book:1", 2, actor="ada", trail="t")


def post(call: EffectCall, account: str, cents: int = 0) -> str:
    """Posts to the ledger."""
    return f"{account} {cents} {call.key}"


async def post_async(account: str) -> str:
    return account


def unhinted_call(call, account: str) -> str:
    return account


def take_back(call: EffectCall, answer: str, input: dict[str, Any]) -> None: ...
def look_up(call: EffectCall, input: dict[str, Any]) -> str | None: ...


def define(function: Callable[..., Any], **options: Any) -> Effect[..., Any]:
    return Effect("ledger.post", function, catalogue=Catalogue(), **options)


@pytest.mark.parametrize(
    "function, takes_call, is_async", [(post, True, False), (post_async, False, True), (unhinted_call, True, False)]
)
def test_functions_are_sync_or_async_with_or_without_the_call(
    function: Callable[..., Any], takes_call: bool, is_async: bool
):
    found = define(function)
    assert (found.takes_call, found.is_async) == (takes_call, is_async)
    assert "call" not in found.schema.names


def test_decorator_and_class_are_the_same():
    options: dict[str, Any] = {
        "version": 2,
        "dedup": "key",
        "key_window": 60.0,
        "undo": take_back,
        "lookup": look_up,
        "on_unknown": "resend",
        "retry": 2,
        "timeout": 5.0,
    }
    one = effect("ledger.post", catalogue=Catalogue(), **options)(post)
    other = Effect(name="ledger.post", function=post, catalogue=Catalogue(), **options)
    assert isinstance(one, Effect)
    assert one.definition() == other.definition()
    for found in (one, other):
        assert (found.version, found.dedup, found.on_unknown, found.key_window) == (2, "key", "resend", 60.0)
        assert (found.undo, found.lookup) == (take_back, look_up)
        assert (found.retry, found.timeout) == (Retry(attempts=2), 5.0)
        assert repr(found) == "<Effect ledger.post@2>"
        assert (found.__name__, found.__doc__) == ("post", "Posts to the ledger.")


def test_defaults_are_careful():
    found = define(post)
    assert (found.dedup, found.on_unknown) == ("none", "ask"), "an outcome that nobody knows is never guessed"
    assert found.retry == DEFAULT_RETRY
    assert found.timeout == 60.0


def test_another_effect_may_be_the_undo():
    assert define(post, undo=Effect("ledger.undo", take_back, catalogue=Catalogue())).undo is take_back


def test_a_listing_shows_schemas_and_how_it_is_deduplicated():
    found = define(post, undo=take_back).definition()
    assert (found.kind, found.name, found.doc) == ("effect", "ledger.post", "Posts to the ledger.")
    assert found.input_schema["required"] == ["account"]
    assert found.output_schema == {"type": "string"}
    assert found.policy == {"dedup": "none", "on_unknown": "ask", "undo": True, "preview": False}


# -- what cannot be found again ---------------------------------------------------------------------------------------


def closure_over(account: str) -> Callable[..., Any]:
    def function(cents: int) -> str:
        return f"{account} {cents}"

    return function


def defined_inside_but_keeps_nothing() -> Callable[..., Any]:
    def function(cents: int) -> int:
        return cents

    return function


@pytest.mark.parametrize("function", [lambda cents: cents, closure_over("a")])
def test_lambdas_and_closures_are_refused_with_the_reason(function: Callable[..., Any]):
    catalogue = Catalogue()
    with pytest.raises(DefinitionError) as caught:
        Effect("ledger.post", function, catalogue=catalogue)
    assert str(caught.value) == (
        "effect ledger.post@1: a lambda or closure cannot be an effect. After a crash another process must find it by "
        "its name: define it with @effect at module level and pass what it needs as parameters."
    )
    assert catalogue.find("effect", "ledger.post") is None


def test_a_function_that_keeps_nothing_of_where_it_was_defined_is_fine():
    define(defined_inside_but_keeps_nothing())


def call_second(account: str, call: EffectCall) -> None: ...
def undo_of_nothing() -> None: ...
def undo_without_call(answer: str) -> None: ...
def undo_wants_more(call: EffectCall, answer: str, reason: str) -> None: ...
def undo_of_other_type(first: int, answer: str) -> None: ...
def lookup_by_answer(call: EffectCall, answer: str) -> None: ...
def generator(account: str): yield account  # fmt: skip


@pytest.mark.parametrize(
    "function, options, message",
    [
        (post, {"dedup": "keys"}, "dedup='keys': one of key, find, none"),
        (post, {"on_unknown": "retry"}, "on_unknown='retry': one of resend, ask"),
        (post, {"dedup": "find"}, "needs lookup="),
        (post, {"key_window": 0}, "key_window=0"),
        (post, {"key_window": 60}, 'key_window= is for dedup="key"'),
        (post, {"timeout": -1}, "timeout=-1"),
        (post, {"retry": "often"}, "retry='often'"),
        (post, {"undo": undo_of_nothing}, "its undo undo_of_nothing cannot be called"),
        (post, {"undo": undo_without_call}, "its undo undo_without_call cannot be called"),
        (post, {"undo": undo_wants_more}, "its undo undo_wants_more cannot be called"),
        (post, {"undo": undo_of_other_type}, "its undo undo_of_other_type cannot be called"),
        (post, {"lookup": lookup_by_answer}, "its lookup lookup_by_answer cannot be called"),
        (call_second, {}, "call: EffectCall must be the first, positional parameter"),
        (generator, {}, "a generator cannot be a handler"),
    ],
)
def test_what_could_not_work_is_refused_at_its_definition(
    function: Callable[..., Any], options: dict[str, Any], message: str
):
    with pytest.raises(DefinitionError, match=message):
        define(function, **options)


# -- where an effect may be called ------------------------------------------------------------------------------------


def test_called_directly_it_says_what_is_meant():
    with pytest.raises(CalledOutside) as caught:
        define(post)(account="a")
    assert str(caught.value) == (
        "effect ledger.post@1 was called directly. Inside a handler stage it (ctx.stage(post, ...)) or ask for its "
        "answer (await ctx.request(post, ...)); in a unit test call post.plain(...)."
    )


def test_plain_calls_the_bare_function():
    assert define(post).plain(CALL, "a", cents=5) == "a 5 key"
    assert asyncio.run(define(post_async).plain(account="b")) == "b"


def test_input_is_checked_like_that_of_an_action():
    with pytest.raises(InvalidInput, match=r"The input of effect ledger\.post@1 is not valid"):
        define(post).schema.accept({"account": 1})


# -- the call and its resources ---------------------------------------------------------------------------------------


class Pool: ...


class FancyPool(Pool): ...


def test_the_call_says_whose_effect_it_is():
    assert (CALL.key, CALL.run_id, CALL.step, CALL.attempt) == ("key", "run_1", "book:1", 2)
    assert (CALL.actor, CALL.trail) == ("ada", "t")
    pool = Pool()
    assert EffectCall("k", "r", "s", 1, resources={Pool: pool}).resource(Pool) is pool


def test_resources_are_found_by_type_or_by_a_type_above_it():
    pool, fancy = Pool(), FancyPool()
    assert find_resource({Pool: pool, FancyPool: fancy}, Pool) is pool, "the exact type first"
    assert find_resource({FancyPool: fancy}, Pool) is fancy
    with pytest.raises(DefinitionError, match=r"No resource of type FancyPool was given .*known: Pool"):
        find_resource({Pool: pool}, FancyPool)
    with pytest.raises(DefinitionError, match=r"known: none.*Do\(resources=\[Pool\(\.\.\.\)\]\)"):
        CALL.resource(Pool)


def test_an_empty_resource_is_a_resource():
    empty: dict[str, int] = {}
    assert find_resource({dict: empty}, dict) is empty


def test_a_default_is_made_once_and_kept():
    resources: dict[type, Any] = {}
    first = find_resource(resources, Pool, Pool)
    assert find_resource(resources, Pool, Pool) is first
    assert find_resource({Pool: first}, Pool, FancyPool) is first


def test_threads_that_need_a_default_at_once_share_one():
    resources: dict[type, Any] = {}
    barrier = threading.Barrier(8)
    found: list[Pool] = []

    def slow() -> Pool:
        barrier.wait(timeout=60)  # every thread has seen that there is none
        return Pool()

    threads = [threading.Thread(target=lambda: found.append(find_resource(resources, Pool, slow))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 8
    assert set(found) == {resources[Pool]}


def test_class_of_the_application_may_be_called_context():
    assert effect("show", catalogue=Catalogue())(show).plain(Context("home")) == "home"
