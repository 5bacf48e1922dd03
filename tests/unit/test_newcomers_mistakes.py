"""What a newcomer gets wrong is refused at once, or told with its place and what to do about it."""

import asyncio
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dotdo
from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    Catalogue,
    Context,
    DefinitionError,
    Do,
    Failure,
    FromSecret,
    InvalidInput,
    Retention,
    Retry,
    RetryLater,
    RunBlocked,
    action,
    effect,
    service,
    wait_for_event,
)
from tests.patience import PATIENCE

catalogue = Catalogue()


class Opaque:
    pass


@pytest.fixture(scope="module")
def client() -> Iterator[Do]:
    with Do("sqlite://", catalogue=catalogue) as opened:
        yield opened


def handler(n: int = 1) -> int:
    return n


async def words() -> Any:
    yield "one"


def takes_opaque(thing: Opaque) -> None: ...


def takes_context(ctx: Context, text: str) -> None: ...


@action("told", catalogue=catalogue)
def told(failure: Failure) -> None: ...


@action("told-more", catalogue=catalogue)
def told_more(failure: Failure, whom: str, how: str = "") -> None: ...


async def waits() -> None: ...


WRONG_DEFINITIONS: dict[str, tuple[Callable[[], object], str]] = {
    "bare action": (lambda: action(handler), '@action needs a name for handler: write @action("send-mail")'),  # type: ignore[arg-type]
    "bare service": (lambda: service(words), "@service needs a name for words: write @service"),  # type: ignore[arg-type]
    "bare effect": (lambda: effect(handler), "@effect needs a name for handler: write @effect"),  # type: ignore[arg-type]
    "name": (lambda: action("my mail"), "'my mail' cannot be the name of actions"),
    "retry=True": (lambda: action("a", retry=True, catalogue=catalogue)(handler), "retry=True: a Retry or a number"),
    "retry text": (lambda: action("a", retry="3", catalogue=catalogue)(handler), "such as retry=5"),  # type: ignore[arg-type]
    "attempts text": (lambda: Retry(attempts="3"), "Retry(attempts='3'): a whole number of at least 1"),  # type: ignore[arg-type]
    "delay": (lambda: Retry(delay=datetime.timedelta(0, 5)), "delay=datetime.timedelta(seconds=5), max_delay=60.0"),  # type: ignore[arg-type]
    "on text": (lambda: Retry(on="ValueError"), "Retry(on='ValueError'): a type of exceptions is needed"),  # type: ignore[arg-type]
    "on a list": (lambda: Retry(never_on=[ValueError]), "or a tuple of such, as in never_on=(ConnectionError"),  # type: ignore[arg-type]
    "on an instance": (lambda: Retry(on=ValueError()), "Retry(on=ValueError()): a type of exceptions"),  # type: ignore[arg-type]
    "generator": (lambda: service("a", catalogue=catalogue)(words), "has a `yield`; return all values"),  # type: ignore[arg-type]
    "fallback": (lambda: action("a", fallback=words, catalogue=catalogue)(handler), "words at 0x"),  # type: ignore[arg-type]
    "on_failure": (
        lambda: action("a", on_failure=[words], catalogue=catalogue)(handler),  # type: ignore[list-item]
        "is not an action; define it with @action",
    ),
    "on_failure of a service": (
        lambda: service("a", on_failure=[words], catalogue=catalogue)(waits),  # type: ignore[list-item]
        "service a@1: on_failure: <function words at",
    ),
    "one on_failure": (
        lambda: action("a", on_failure=told, catalogue=catalogue)(handler),  # type: ignore[arg-type]
        "on_failure=<Action told@1>: a list of actions is needed, as in [tell_admin]",
    ),
    "on_failure takes more": (
        lambda: action("a", on_failure=[told_more], catalogue=catalogue)(handler),
        "its on_failure told-more takes whom, too; it is given a Failure, and no more",
    ),
    "a definition of a definition": (
        lambda: action("a", catalogue=catalogue)(told),
        "<Action told@1> is a definition itself; the bare function is needed",
    ),
    "undo by a service": (
        lambda: action("a", undo=look_up_nothing, catalogue=catalogue)(handler),
        "undo=<Service look-up-nothing@1>: an action is needed, or a function",
    ),
    "undo by a name": (
        lambda: action("b", undo="refund", catalogue=catalogue)(handler),  # type: ignore[arg-type]
        "action b@1: undo='refund': an action is needed, or a function",
    ),
    "undo of a service": (
        lambda: service("a", undo=told, catalogue=catalogue)(waits),  # type: ignore[arg-type]
        "a service is undone by undoing its steps, so each of its actions declares its own undo",
    ),
    "pivot": (
        lambda: action("a", pivot="no", catalogue=catalogue)(handler),  # type: ignore[arg-type]
        "action a@1: pivot='no': True or False is needed",
    ),
    "catalogue": (
        lambda: action("a", catalogue="shop")(handler),  # type: ignore[arg-type]
        "catalogue='shop': a Catalogue is needed",
    ),
    "effect with a context": (
        lambda: effect("a", catalogue=catalogue)(takes_context),
        "effect a@1: an effect takes no context",
    ),
    "form without a place": (lambda: FromSecret("TOKEN", "Bearer"), "its form has no {}, where the secret goes in"),
    "retention text": (
        lambda: Retention(older_than="30d"),  # type: ignore[arg-type]
        "Retention(older_than='30d'): a number of seconds is needed, such as 90 * 24 * 3600",
    ),
    "retention of what runs": (
        lambda: Retention(older_than=1, status="running"),
        "one of completed, failed, cancelled",
    ),
    "own class": (
        lambda: action("a", catalogue=catalogue)(takes_opaque),
        "Take what JSON has, a dataclass, a TypedDict",
    ),
}


@pytest.mark.parametrize("define, text", WRONG_DEFINITIONS.values(), ids=WRONG_DEFINITIONS)
def test_wrong_definition_is_refused_where_it_stands(define: Callable[[], object], text: str):
    with pytest.raises(DefinitionError) as refused:
        define()
    assert text in str(refused.value)


@effect("told-effect", catalogue=catalogue)
def told_effect(number: int) -> None: ...


@action("echo", retry=1, catalogue=catalogue)
def echo(value: int = 0) -> int:
    return value


WRONG_CALLS: dict[str, tuple[Callable[[Do], object], str]] = {
    "by name": (lambda client: client.run("echo", 1), "By name it is client.action('echo').invoke(...)"),  # type: ignore[arg-type]
    "a function": (lambda client: client.run(handler), "decorate it with @action or @service"),  # type: ignore[arg-type]
    "its result": (lambda client: client.run(echo.plain(1)), "1 is not an action or service. Give the definition"),
    "labels": (lambda client: client.action("echo", labels=["a"]).invoke(), "labels=['a']: text by name is needed"),  # type: ignore[arg-type]
    "no label": (lambda client: client.action("echo", labels={"a": None}).invoke(), "labels: a=None: text is needed"),  # type: ignore[dict-item]
    "timeout": (lambda client: client.start(echo).result(timeout="1"), "timeout='1': a number of seconds is needed"),  # type: ignore[arg-type]
    "a definition by name": (lambda client: client.action(echo), "<Action echo@1> is no name, such as 'charge'"),  # type: ignore[arg-type]
    "an effect": (lambda client: client.run(told_effect, 1), "is an effect: a handler of an action stages or requests"),  # type: ignore[call-overload]
    "a bare function": (lambda client: client.run(echo.plain, 1), "is a bare function; give <Action echo@1> itself"),  # type: ignore[call-overload]
    "two versions": (lambda client: client.action("echo@1", version=2), "'echo@1', version=2: one whole number from 1"),
    "version": (lambda client: client.action("echo", version=0), "'echo', version=0: one whole number from 1"),
    "a run": (lambda client: client.runs.get(client.start(echo).get()), "this is a Run: give its `.id`"),  # type: ignore[arg-type]
    "a handle": (lambda client: client.runs.cancel(client.start(echo)), "this is a Handle: give its `.id`"),  # type: ignore[arg-type]
    "a handle of none": (lambda client: client.handle(None), "The id of a run is needed"),  # type: ignore[arg-type]
    "limit": (lambda client: client.runs.list(limit=-1), "limit=-1: a whole number from 1 is needed"),
    "since": (lambda client: client.runs.list(since=datetime.datetime(2030, 1, 1)), "int(since.timestamp() * 1000)"),  # type: ignore[arg-type]
    "before": (lambda client: client.runs.list(before="run_1"), "the last run of the page before is needed"),  # type: ignore[arg-type]
    "labels of a list": (lambda client: client.runs.list(labels={"a": 1}), "labels: a=1: 1 to 500 characters"),  # type: ignore[dict-item]
    "after": (lambda client: client.runs.journal("run_1", after="2"), "after='2': the number of an entry is needed"),  # type: ignore[arg-type]
    "prune": (lambda client: client.runs.prune(older_than="30d"), "a number of seconds is needed, such as 90 * 24"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(
    "options, text",
    [
        ({"grace": "10s"}, "grace='10s': a number of seconds is needed."),
        ({"engine": "no"}, "engine='no': True or False is needed"),
        ({"check_replay": "no"}, "check_replay='no': True or False is needed"),
        ({"resources": {"printer": 1}}, "resources={'printer': 1}: a list of objects"),
        ({"resources": 5}, "resources=5: a list of objects"),
        ({"retention": 30}, "retention=30: a Retention is needed"),
        ({"retention": [30]}, "retention=[30]: a Retention is needed"),
        ({"catalogue": "shop"}, "catalogue='shop': a Catalogue is needed"),
    ],
)
def test_option_of_a_client_is_refused_where_it_is_given(options: dict[str, Any], text: str):
    with pytest.raises(DefinitionError) as refused:
        Do("sqlite://", **options)
    assert text in str(refused.value)


def test_store_without_a_name_is_no_folder():
    with pytest.raises(DefinitionError, match="The store is an empty text"), Do(""):
        pass


@pytest.mark.parametrize("wait", ["1s", -1])
def test_wait_that_cannot_be_is_refused_before_there_is_a_run(client: Do, wait: Any):
    before = len(client.runs.list(name="echo", limit=1000))
    with pytest.raises(DefinitionError, match=r"wait=.*: a number of seconds is needed, or None"):
        client.action("echo", wait=wait).invoke()
    assert len(client.runs.list(name="echo", limit=1000)) == before


def test_client_by_name_has_the_methods_of_the_async_one(client: Do):
    run = client.action("echo").execute({"value": 3})
    assert (run.status, run.result) == ("completed", 3)


@pytest.mark.parametrize("call, text", WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_call_is_refused_with_what_to_do(client: Do, call: Callable[[Do], object], text: str):
    with pytest.raises(DefinitionError) as refused:
        call(client)
    assert text in str(refused.value)


def test_number_of_arguments_is_told_in_words(client: Do):
    with pytest.raises(InvalidInput, match=r"takes 1 argument, 2 were given"):
        client.run(echo, 1, 2)  # type: ignore[call-arg]


@action("raise-it", retry=1, catalogue=catalogue)
def raise_it(kind: str) -> None:
    if kind == "no message":
        raise dotdo.Fail
    raise {"key": KeyError("id"), "empty": ValueError(), "fail": dotdo.Fail("card declined")}[kind]


@pytest.mark.parametrize(
    "kind, text",
    [
        ("key", "raise-it failed: KeyError: 'id'"),
        ("empty", "raise-it failed: ValueError"),
        ("fail", "raise-it failed: card declined"),
        ("no message", "raise-it failed: Failed for good."),
    ],
)
def test_failure_names_the_type_of_an_exception_that_was_not_written_for_people(client: Do, kind: str, text: str):
    with pytest.raises(ActionFailed) as failed:
        client.run(raise_it, kind)
    assert str(failed.value) == text


@action("give-coroutine", retry=1, catalogue=catalogue)
def give_coroutine() -> Any:
    sleeping = asyncio.sleep(0)
    sleeping.close()
    return sleeping


@action("give-generator", retry=1, catalogue=catalogue)
def give_generator() -> Any:
    return (n for n in range(3))


@pytest.mark.parametrize(
    "definition, text",
    [
        (give_coroutine, "coroutine is not JSON; await it, and take what that gives"),
        (give_generator, "generator is not JSON; make a list of it"),
    ],
)
def test_result_that_is_not_there_yet_says_what_to_do(client: Do, definition: Any, text: str):
    with pytest.raises(ActionFailed, match=text):
        client.run(definition)


noted: list[str] = []


@effect("note-down", dedup="key", catalogue=catalogue)
def note_down(text: str) -> str:
    noted.append(text)
    return text


@action("forgets-to-await", catalogue=catalogue)
async def forgets_to_await(ctx: AsyncContext) -> None:
    ctx.request(note_down, "never")  # pyright: ignore[reportUnusedCoroutine]  # the mistake


@action("awaits-together", catalogue=catalogue)
async def awaits_together(ctx: AsyncContext) -> list[str]:
    return await asyncio.gather(*(asyncio.create_task(ctx.request(note_down, text)) for text in ("one", "two")))


def test_request_that_was_never_awaited_fails_its_action(client: Do):
    with pytest.raises(
        ActionFailed, match=r"never awaited it, so it was not sent: write `await ctx\.request"
    ) as failed:
        client.run(forgets_to_await)
    assert (failed.value.error_type, failed.value.attempts) == ("DefinitionError", 1)
    assert noted == []
    assert client.run(awaits_together) == ["one", "two"]
    assert sorted(noted) == ["one", "two"]
    assert client.preview(forgets_to_await).status == "failed"


def test_key_without_a_server_is_refused():
    with pytest.raises(DefinitionError, match="give its url=, too, or DOTDO_URL"):
        Do(api_key="do_x")


@service("look-up-nothing", catalogue=catalogue)
async def look_up_nothing() -> str:
    known: dict[str, str] = {}
    return known["id"]


@service("parse-nothing", catalogue=catalogue)
async def parse_nothing() -> object:
    return datetime.datetime.strptime("soon", "%Y")  # raises in the standard library


@service("step-not-awaited", catalogue=catalogue)
async def step_not_awaited() -> object:
    return echo(1)


@service("retry-later", catalogue=catalogue)
async def retry_later() -> None:
    raise RetryLater("the shop is closed.")


@service("sleeps-wrongly", catalogue=catalogue)
async def sleeps_wrongly() -> None:
    await dotdo.sleep("3 days")  # type: ignore[arg-type]


@service("sleeps-for-a-timedelta", catalogue=catalogue)
async def sleeps_for_a_timedelta() -> None:
    await dotdo.sleep(datetime.timedelta(days=3))  # type: ignore[arg-type]


@service("waits-for-nothing", catalogue=catalogue)
async def waits_for_nothing() -> None:
    await wait_for_event("")


@service("waits-wrongly", catalogue=catalogue)
async def waits_wrongly() -> None:
    await wait_for_event("paid", timeout="1h")  # type: ignore[arg-type]


@service("event-that-never-comes", catalogue=catalogue)
async def event_that_never_comes() -> None:
    await wait_for_event("paid", timeout=0.001)


@service("asks-its-client", catalogue=catalogue)
async def asks_its_client(how: str) -> object:
    made, other = clients["made"], clients["other"]
    calls: dict[str, Callable[[], object]] = {
        "run": lambda: made.run(echo, 1),
        "by name": lambda: made.action("echo").invoke(value=1),
        "start": lambda: made.start(echo, 1),
        "read": lambda: made.runs.list(),
        "other client": lambda: other.run(echo, 1),
    }
    return calls[how]()


@service("asks-an-async-client", catalogue=catalogue)
async def asks_an_async_client() -> object:
    return await AsyncDo("sqlite://", catalogue=catalogue).run(echo, 1)


@action("asks-for-a-service", retry=1, catalogue=catalogue)
def asks_for_a_service() -> int:
    return clients["other"].run(echo, 1)


@service("asks-in-an-action", catalogue=catalogue)
async def asks_in_an_action() -> int:
    return await asks_for_a_service()


clients: dict[str, Do] = {}


@pytest.fixture
def two_clients(client: Do) -> Iterator[None]:
    with Do("sqlite://", catalogue=catalogue) as other:
        clients.update(made=client, other=other)
        yield


@pytest.mark.parametrize("how", ["run", "by name", "start", "read", "other client"])
@pytest.mark.usefixtures("two_clients")
def test_client_in_a_service_is_told_to_call_the_action_itself(client: Do, how: str):
    with pytest.raises(RunBlocked, match=r"A client was called inside a service\. Call actions and services there"):
        client.start(asks_its_client, how).result(timeout=PATIENCE)


@pytest.mark.usefixtures("two_clients")
def test_async_client_in_a_service_too_but_not_in_an_action(client: Do):
    with pytest.raises(RunBlocked, match="A client was called inside a service"):
        client.start(asks_an_async_client).result(timeout=PATIENCE)
    assert client.start(asks_in_an_action).result(timeout=PATIENCE) == 1


@service("calls-what-is-no-name", catalogue=catalogue)
async def calls_what_is_no_name() -> None:
    await dotdo.call(echo)  # type: ignore[arg-type]


@service("maps-what-is-no-action", catalogue=catalogue)
async def maps_what_is_no_action() -> None:
    await dotdo.map(handler, [1])  # type: ignore[call-overload]


BLOCKED: dict[str, tuple[Any, str]] = {
    "call of a definition": (calls_what_is_no_name, r"<Action echo@1> is no name.*`await charge\(...\)` in a service"),
    "map of a function": (maps_what_is_no_action, r"map\(<function handler at .*: an action or service is needed"),
    "bug": (look_up_nothing, r"KeyError: 'id' \(.*test_newcomers_mistakes.py, line \d+, in look_up_nothing\). Nothing"),
    "in a library": (parse_nothing, r"ValueError: .*test_newcomers_mistakes.py, line \d+, in parse_nothing\)"),
    "not awaited": (step_not_awaited, r"dotdo.step.Step is not JSON; await it"),
    "retry later": (retry_later, r"RetryLater \(the shop is closed\), which is for handlers. A service waits itself"),
    "sleep": (sleeps_wrongly, r"sleep\(\) takes a number of seconds, such as 3 \* 24 \* 3600; '3 days' is none \("),
    "timedelta": (
        sleeps_for_a_timedelta,
        r"timedelta\(days=3\) is none, but its total_seconds\(\) is",
    ),
    "no event": (waits_for_nothing, r"event='': 1 to 500 characters"),
    "timeout": (waits_wrongly, r"wait_for_event\(timeout=...\) takes a number of seconds"),
    "event": (
        event_that_never_comes,
        r"TimeoutError: No event 'paid' came within 0.001 s \(.*in event_that_never_comes",
    ),
}


@pytest.mark.parametrize("filter", [{"status": "done"}, {"undo": "yes"}])
def test_filter_that_no_run_can_have_is_refused(client: Do, filter: Any):
    with pytest.raises(DefinitionError, match=r"='(done|yes)': one of (pending, running|none, partial)"):
        client.runs.list(**filter)


@pytest.mark.parametrize("definition, text", BLOCKED.values(), ids=BLOCKED)
def test_mistake_in_a_service_blocks_it_with_what_and_where(client: Do, definition: Any, text: str):
    with pytest.raises(RunBlocked, match=text):
        client.start(definition).result(timeout=PATIENCE)
