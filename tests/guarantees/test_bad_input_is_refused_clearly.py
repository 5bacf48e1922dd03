"""What is wrong is refused with one error that says what to do, and a refused request leaves no run and no effect (I3).

What can be wrong with a store's file is in tests/store/test_unusable_files.py, the full disk in
test_full_disk_loses_nothing.py.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncDo,
    Catalogue,
    DefinitionError,
    Do,
    DotdoError,
    Effect,
    EffectCall,
    Fail,
    InputError,
    InvalidInput,
    KeyConflict,
    UnknownName,
    action,
    service,
)
from dotdo.connectors import email
from dotdo.connectors.email import Mailer
from dotdo.errors import ClientClosed, InvalidOperation, InvalidValue, StoreUnusable

pytestmark = pytest.mark.of_files("store files that are missing, torn, newer or of others")

catalogue = Catalogue()
heard: list[str] = []


@dataclass
class Address:
    street: str
    number: int


def send(call: EffectCall, text: str) -> None:
    heard.append(text)


sending = Effect("send", send, dedup="key", catalogue=catalogue)


@action("greet", catalogue=catalogue)
def greet(name: str, times: int = 1) -> str:
    heard.append(name)
    return f"Hello {name}" * times


@action("greet", version=2, catalogue=catalogue)
def greet_again(name: str, address: Address) -> str:
    heard.append(name)
    return name


@action("ship", catalogue=catalogue)
def ship(address: Address, tags: list[int], by: str) -> str:
    heard.append(by)
    return by


@action("welcome", catalogue=catalogue)
async def welcome(template: str) -> str:
    heard.append(template)
    return email.send(to="ada@example.com", template=template).id


@service("tour", catalogue=catalogue)
async def tour(name: str) -> str:
    return await greet(name=name)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Nothing has been heard when a test begins."""
    heard.clear()
    yield
    heard.clear()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Do]:
    with Do(str(tmp_path / "dotdo.db"), catalogue=catalogue) as opened:
        yield opened


@contextlib.contextmanager
def refused(client: Do, kind: type[DotdoError], *texts: str) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The block raises that error with those texts, runs no handler, and leaves no run."""
    before = len(client.runs.list())
    with pytest.raises(kind) as caught:
        yield caught
    for text in texts:
        assert text in caught.value.message
    assert heard == []
    assert len(client.runs.list()) == before


# -- parameters -------------------------------------------------------------------------------------------------------


def test_every_problem_of_an_input_is_listed_with_its_place(client: Do):
    wrong = {"address": {"street": 5, "nmber": 1}, "tags": [1, "two", 3, None], "colour": "red"}
    with refused(client, InvalidInput, "action ship@1") as caught:
        client.action("ship").invoke(**wrong)
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert set(problems) == {
        "$.address.street",
        "$.address.number",
        "$.address.nmber",
        "$.tags[1]",
        "$.tags[3]",
        "$.by",
        "$.colour",
    }
    assert problems["$.by"] == problems["$.address.number"] == "is required"
    assert problems["$.tags[1]"] == "expected `int`, got `str`"
    assert "known are: address, tags, by" in problems["$.colour"]


def test_missing_and_wrong_parameters_of_a_service_are_refused(client: Do):
    with refused(client, InvalidInput, "service tour@1", "$.name: is required"):
        client.service("tour").start()
    with refused(client, InvalidInput, "$.name: expected `str`, got `int`"):
        client.run(tour, name=5)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with refused(client, InvalidInput, "$: takes 1 argument, 2 were given"):
        client.run(tour, "Ada", "Ben")  # pyright: ignore[reportCallIssue]
    with refused(client, InvalidInput, "$.name: was given twice"):
        client.run(tour, "Ada", name="Ben")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "value, text",
    [
        (float("nan"), "$.name is nan, which is not a JSON number"),
        ("a\0b", "$.name contains a NUL character"),
        ("\ud800", "lone surrogate"),
        (object(), "is not JSON"),
        ("x" * (64 * 1024 * 1024 + 1), "at most 64 MiB are carried"),
    ],
    ids=["nan", "nul", "surrogate", "object", "large"],
)
def test_value_that_json_cannot_carry_is_refused(client: Do, value: Any, text: str):
    with refused(client, InvalidValue, text):
        client.action("greet", version=1).invoke(name=value)


def test_cyclic_and_deep_values_are_refused(client: Do):
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    for value in (cyclic, deep):
        with refused(client, InvalidValue, "deep"):
            client.action("greet", version=1).invoke(name=value)


@pytest.mark.parametrize("option", [{"key": ""}, {"key": "k" * 501}, {"delay": -1}, {"deadline": float("nan")}])
def test_wrong_option_of_a_call_is_refused(client: Do, option: dict[str, Any]):
    with refused(client, DefinitionError, next(iter(option))):
        client.action("greet", version=1, **option).invoke(name="Ada")


# -- names and states -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, texts",
    [
        ("gret", ["There is no action 'gret'. Did you mean greet?"]),
        ("nothing-like-it", ["There is no action 'nothing-like-it'. Known: greet, ship, welcome."]),
        ("greet@7", ["There is no action greet@7; known versions: 1, 2."]),
        ("greet@x", ["a version is a whole number, as in greet@2"]),
        ("tour", ["tour is a service, not an action."]),
    ],
)
def test_unknown_name_or_version_tells_what_there_is(client: Do, name: str, texts: list[str]):
    with refused(client, UnknownName, *texts):
        client.action(name).invoke(name="Ada")


def test_without_definitions_it_says_to_import_them(tmp_path: Path):
    with (
        Do(str(tmp_path / "dotdo.db"), catalogue=Catalogue()) as client,
        refused(client, UnknownName, "No action is defined; import the module that defines it first."),
    ):
        client.action("greet").invoke(name="Ada")


def test_unknown_run_is_refused_whatever_is_asked_of_it(client: Do):
    runs = client.runs
    for ask in (runs.get, runs.wait, runs.journal, runs.cancel, runs.retry, runs.undo):
        with refused(client, UnknownName, "There is no run 'run_9'."):
            ask("run_9")
    with refused(client, UnknownName, "There is no run 'run_9'."):
        runs.send_event("run_9", "approved")


def test_operation_that_the_state_does_not_allow_is_refused(client: Do):
    handle = client.action("greet@1").start(name="Ada")
    handle.result(timeout=60)
    heard.clear()
    with refused(client, InvalidOperation, "has ended (completed)"):
        handle.cancel()
    with refused(client, InvalidOperation, "has ended (completed)"):
        handle.send_event("approved")
    with refused(client, InvalidOperation, "only a failed, cancelled or blocked run can be retried"):
        client.runs.retry(handle.id)


def test_key_with_another_input_is_refused(client: Do):
    client.action("greet@1", key="k").invoke(name="Ada")
    heard.clear()
    with refused(client, KeyConflict, "The key 'k' was already used for greet with another input", "Use a new key"):
        client.action("greet@1", key="k").invoke(name="Ben")


# -- closed clients ---------------------------------------------------------------------------------------------------


def test_closed_client_refuses_every_call(tmp_path: Path):
    client = Do(str(tmp_path / "dotdo.db"), catalogue=catalogue)
    handle = client.action("greet@1").start(name="Ada")
    handle.result(timeout=60)
    client.close()
    client.close()  # twice is once
    for call in (lambda: client.run(greet, name="Ben"), handle.result, handle.get, client.runs.list):
        with pytest.raises(ClientClosed, match="client is closed"):
            call()


async def closed() -> AsyncDo:
    client = AsyncDo("sqlite://", catalogue=catalogue)
    assert await client.run(greet, name="Ada") == "Hello Ada"
    await client.close()
    return client


def test_closed_async_client_refuses_every_call():
    async def main() -> None:
        client = await closed()
        with pytest.raises(ClientClosed, match="client is closed"):
            await client.run(greet, name="Ben")
        with pytest.raises(ClientClosed):
            await client.runs.list()

    asyncio.run(main())


def test_whoever_waits_is_told_when_the_client_closes():
    async def main() -> None:
        client = AsyncDo("sqlite://", catalogue=catalogue)
        handle = await client.action("greet@1", delay=3600).start(name="Ada")
        waiting = asyncio.create_task(handle.result())
        await handle.get()  # the engine answers in order: it has heard of the one that waits, too
        await client.close()
        with pytest.raises(ClientClosed, match="stopped before the run ended; the run goes on later"):
            await waiting

    asyncio.run(main())


# -- what definitions need --------------------------------------------------------------------------------------------


def test_missing_email_template_fails_the_step_at_once(tmp_path: Path):
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "new-user-welcome-v1.txt").write_text("Subject: Welcome\n\nHello\n")
    mailer = Mailer("smtp://localhost:1", sender="us@example.com", templates=templates)
    with Do(str(tmp_path / "dotdo.db"), catalogue=catalogue, resources=[mailer]) as client:
        with pytest.raises(ActionFailed, match=r"There is no e-mail template 'new-user-welcom-v1\.txt'") as caught:
            client.run(welcome, template="new-user-welcom-v1")
        assert (caught.value.error_type, caught.value.attempts) == (Fail.__name__, 1)
        assert heard == ["new-user-welcom-v1"], "not tried again: a retry would not find it either"


def test_database_that_cannot_be_used_is_refused(tmp_path: Path):
    for sql, text in (("nonsense", "nonsense"), ("oracle+nothing://x", "oracle")):
        with pytest.raises(DefinitionError, match=text):
            Do(str(tmp_path / "dotdo.db"), catalogue=catalogue, sql=sql).__enter__()
    with Do(str(tmp_path / "dotdo.db"), catalogue=catalogue) as client:
        assert client.run(greet, name="Ada") == "Hello Ada"


def test_codes_of_errors_say_who_must_act():
    assert issubclass(InvalidInput, InputError)
    assert {error.code for error in (InvalidInput, UnknownName, KeyConflict, InvalidValue, InvalidOperation)} == {
        "invalid_input",
        "unknown_name",
        "key_conflict",
        "invalid_value",
        "invalid_operation",
    }
    assert {StoreUnusable.code, ClientClosed.code} == {"store_unusable", "client_closed"}
