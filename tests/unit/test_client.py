"""`Do`: the same client without await; names, options, trails, handles and records as callers meet them, embedded and
over HTTP alike."""

import contextvars
import dataclasses
import datetime
import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    AsyncHandle,
    Catalogue,
    Context,
    DefinitionError,
    Do,
    Fail,
    Handle,
    InvalidInput,
    Retry,
    RunCancelled,
    StillRunning,
    UnknownName,
    action,
    service,
    wait_for_event,
)
from dotdo.async_names import AsyncByName, AsyncNames
from dotdo.async_runs import AsyncRuns
from dotdo.client import ByName, Names, Runs
from dotdo.errors import ClientClosed, InputError, StoreUnusable
from dotdo.testing import ManualClock
from tests.doors import DOORS, Door, actor_through, open_sync
from tests.patience import PATIENCE

house = Catalogue()


@dataclasses.dataclass
class Bill:
    total: Decimal
    due: datetime.date
    lines: list[str]


@action("bill", catalogue=house)
def bill(lines: list[str], *, due: datetime.date = datetime.date(2030, 1, 1)) -> Bill:
    """Adds up."""
    return Bill(Decimal("1.10") * len(lines), due, lines)


@action("who", catalogue=house)
async def who(ctx: AsyncContext) -> list[str | None]:
    return [ctx.trail, ctx.actor]


@action("any-names", catalogue=house)
def any_names(
    key: str,
    version: int,
    name: str,
    wait: float,
    trail: str,
    delay: int,
    deadline: int,
    priority: str,
    labels: list[str],
    self: int,
    definition: str,
    params: dict[str, int],
    kind: str,
    input: str,
    options: str,
    timeout: int,
) -> list[Any]:
    return [
        key,
        version,
        name,
        wait,
        trail,
        delay,
        deadline,
        priority,
        labels,
        self,
        definition,
        params,
        kind,
        input,
        options,
        timeout,
    ]


ANY_NAMES: dict[str, Any] = {
    "key": "k",
    "version": 9,
    "name": "n",
    "wait": 0.5,
    "trail": "t",
    "delay": 1,
    "deadline": 2,
    "priority": "p",
    "labels": ["l"],
    "self": 3,
    "definition": "d",
    "params": {"p": 1},
    "kind": "service",
    "input": "i",
    "options": "o",
    "timeout": 4,
}


@action("refuse", retry=Retry(attempts=3, delay=0), catalogue=house)
def refuse(permanent: bool) -> None:
    raise Fail("Not allowed.") if permanent else OSError("Not now.")


class Phone:
    """Through which a handler calls a client."""

    client: Do


@action("compose", catalogue=house)
async def compose(ctx: AsyncContext) -> Any:
    return ctx.resource(Phone).client.action("who").invoke()


@action("compose-sync", catalogue=house)
def compose_sync(ctx: Context) -> Any:
    return ctx.resource(Phone).client.action("who").invoke()


@service("approval", catalogue=house)
async def approval(text: str) -> str:
    return f"{text}: {await wait_for_event('approved')}"


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Door:
    return request.param


@pytest.fixture
def client(door: Door, tmp_path: Path) -> Iterator[Do]:
    with open_sync(door, tmp_path / "dotdo.db", catalogue=house, actor="ada") as client:
        yield client


@pytest.fixture
def ada(door: Door) -> str | None:
    """The actor of what the client does."""
    return actor_through(door, "ada")


# -- calls ------------------------------------------------------------------------------------------------------------


def test_typed_calls_take_and_give_what_the_hints_say(client: Do):
    due = datetime.date(2031, 2, 3)
    assert client.run(bill, ["a", "b"], due=due) == Bill(Decimal("2.20"), due, ["a", "b"])
    handle = client.start(bill, lines=[])
    assert handle.result(timeout=PATIENCE) == Bill(Decimal("0.00"), datetime.date(2030, 1, 1), [])


def test_calls_by_name_take_and_give_plain_json(client: Do, ada: str):
    expected = {"total": "1.10", "due": "2031-02-03", "lines": ["a"]}
    assert client.action("bill").invoke(lines=["a"], due="2031-02-03") == expected
    assert client.action("bill@1").start(lines=["a"], due="2031-02-03").result(timeout=PATIENCE) == expected
    run = client.action.execute(name="bill", params={"lines": ["a"], "due": "2031-02-03"})
    assert (run.status, run.result, run.name, run.version, run.kind) == ("completed", expected, "bill", 1, "action")
    assert (run.actor, run.key, run.trail, run.labels, run.generation) == (ada, None, None, {}, 0)
    assert run.ended
    assert client.runs.get(run.id) == run, "the same record, whoever asks"


def test_options_never_collide_with_parameters(client: Do):
    expected = list(ANY_NAMES.values())
    assert client.run(any_names, **ANY_NAMES) == expected
    assert client.run(any_names.with_(key="1", version=1, trail="x"), **ANY_NAMES) == expected
    assert client.start(any_names, **ANY_NAMES).result(timeout=PATIENCE) == expected
    assert client.action("any-names", key="2", version=1, wait=PATIENCE).invoke(**ANY_NAMES) == expected
    assert client.action("any-names").start(**ANY_NAMES).result(timeout=PATIENCE) == expected
    run = client.action.execute(name="any-names", params=ANY_NAMES, version=1, key="3", wait=PATIENCE)
    assert (run.key, run.result) == ("3", expected)


def test_refused_input_leaves_no_run(client: Do):
    for call in (
        lambda: client.run(bill, lines="a"),  # type: ignore[arg-type]
        lambda: client.action("bill").invoke(lines=[1], colour="red"),
        lambda: client.action.execute(name="bill"),
        lambda: client.action.execute(name="bill", params={"lines": None}),
    ):
        with pytest.raises(InvalidInput, match="The input of action bill@1 is not valid"):
            call()
    for name in ("bil", "bill@7", "approval"):
        with pytest.raises(UnknownName):
            client.action(name).invoke(lines=[])
    assert client.runs.list() == []


def test_parameters_without_names_are_refused_where_a_name_is_all_that_is_known(client: Do):
    by_name: Any = client.action("who")
    for call in (by_name.invoke, by_name.start, by_name.preview):
        with pytest.raises(InputError, match=r"by name have names: write \w+\(name=value\), or \w+\(\*\*params"):
            call({"a": 1})
    assert client.runs.list() == []


@pytest.mark.parametrize("permanent, kind, attempts", [(True, "Fail", 1), (False, "OSError", 3)])
def test_failure_reaches_the_caller_with_its_attributes(client: Do, permanent: bool, kind: str, attempts: int):
    for call in (
        lambda: client.run(refuse, permanent),
        lambda: client.action("refuse").invoke(permanent=permanent),
        lambda: client.action.execute(name="refuse", params={"permanent": permanent}),
        lambda: client.start(refuse, permanent).result(timeout=PATIENCE),
    ):
        with pytest.raises(ActionFailed) as caught:
            call()
        error = caught.value
        assert (error.action, error.step, error.error_type, error.attempts) == ("refuse", "refuse", kind, attempts)
        assert error.error_message.startswith("Not ")
        run = client.runs.get(error.run_id or "")
        assert run.status == "failed"
        assert run.error is not None
        assert (run.error.type, run.error.attempts) == (kind, attempts)


def test_listing_says_what_can_be_called(client: Do):
    listed = {found.name: found for found in client.action.list()}
    assert set(listed) == {"bill", "who", "any-names", "refuse", "compose", "compose-sync"}
    assert listed["bill"].doc == "Adds up."
    assert listed["bill"].input_schema["required"] == ["lines"]


@pytest.mark.parametrize(
    "options",
    [
        {"key": 5},
        {"key": ""},
        {"key": "a\0"},
        {"trail": 5},
        {"trail": "\ud800"},
        {"labels": {"a": 1}},
        {"labels": {"\0": "a"}},
        {"deadline": "soon"},
        {"deadline": -1},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"priority": 11},
        {"priority": -11},
        {"priority": 1.0},
        {"priority": True},
        {"priority": "high"},
    ],
    ids=repr,
)
def test_options_that_no_store_could_keep_are_refused_before_anything_happens(client: Do, options: dict[str, Any]):
    for call in (
        lambda: client.action("bill", **options).invoke(lines=[]),
        lambda: client.action.execute(name="bill", params={"lines": []}, **options),
        lambda: client.run(bill.with_(**options), []),
    ):
        with pytest.raises(DefinitionError):
            call()
    assert client.runs.list() == []


# -- handles ----------------------------------------------------------------------------------------------------------


def test_a_handle_waits_steers_and_shows(client: Do, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.engine.parking.LINGER", PATIENCE)  # or the journal may tell of a claim as well
    handle = client.start(approval, text="Offer")
    assert handle.get().status in ("running", "waiting")
    with pytest.raises(StillRunning) as caught:
        handle.result(timeout=0.01)
    assert caught.value.run_id == handle.id
    handle.send_event("approved", {"by": "grace"}, key="mail:1")
    handle.send_event("approved", {"by": "grace"}, key="mail:1")
    assert handle.result(timeout=PATIENCE) == "Offer: {'by': 'grace'}"
    assert [entry.kind for entry in handle.journal()] == ["accepted", "event", "ended"]
    assert handle.get().result == "Offer: {'by': 'grace'}"


def test_a_handle_can_be_had_again_by_its_id(client: Do):
    started = client.service("approval").start(text="Offer")
    again = client.handle(started.id)
    again.cancel(actor="grace")
    for handle in (started, again):
        with pytest.raises(RunCancelled) as caught:
            handle.result(timeout=PATIENCE)
        assert caught.value.run_id == started.id
    with pytest.raises(UnknownName, match="There is no run 'run_nowhere'"):
        client.handle("run_nowhere").result(timeout=PATIENCE)


def test_the_first_call_of_a_key_wins_and_its_repeats_get_the_same_run(client: Do):
    ids = {client.start(bill.with_(key="signup:42"), ["a"]).id for _ in range(3)}
    ids.add(client.action.execute(name="bill", params={"lines": ["a"]}, key="signup:42").id)
    with ThreadPoolExecutor(8) as pool:
        ids |= {run.id for run in pool.map(lambda _: client.start(bill.with_(key="signup:42"), ["a"]), range(16))}
    assert len(ids) == 1
    assert len(client.runs.list()) == 1


# -- trails, labels, lists --------------------------------------------------------------------------------------------


def test_a_trail_ties_together_what_is_invoked_inside(client: Do, ada: str):
    with client.trail("signup:42"):
        assert client.run(who) == ["signup:42", ada]
        assert client.action("who").invoke() == ["signup:42", ada]
        assert client.action("who", trail="own").invoke() == ["own", ada]
        with client.trail("inner"):
            assert client.run(who) == ["inner", ada]
        prepared = client.action("who")
        assert client.run(who) == ["signup:42", ada]
    assert client.run(who) == [None, ada]
    assert prepared.invoke() == ["signup:42", ada], "options are fixed where they are said"
    assert len(client.runs.list(trail="signup:42")) == 4
    assert len(client.runs.list(trail="inner")) == 1


def test_a_trail_belongs_to_its_thread_and_ends_with_an_error(client: Do, ada: str):
    inside, outside = threading.Event(), threading.Event()

    def elsewhere() -> Any:
        assert inside.wait(PATIENCE)
        found = client.run(who)
        outside.set()
        return found

    def fail_inside() -> None:
        with client.trail("mine"):
            inside.set()
            assert outside.wait(PATIENCE)
            assert client.run(who)[0] == "mine"
            raise KeyError

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(elsewhere)
        with pytest.raises(KeyError):
            fail_inside()
        assert other.result(PATIENCE) == [None, ada]
        with client.trail("carried"):
            context = contextvars.copy_context()
            assert pool.submit(context.run, client.run, who).result(PATIENCE)[0] == "carried"
    assert client.run(who) == [None, ada]


def test_runs_are_listed_by_what_is_known_of_them(door: Door, tmp_path: Path):
    clock = ManualClock()
    with open_sync(door, tmp_path / "dotdo.db", catalogue=house, clock=clock) as client:
        ids: list[str] = []
        for number in range(5):
            run = client.action.execute(name="who", labels={"number": str(number), "größe": "5"})
            ids.insert(0, run.id)
            clock.advance(1)
        with pytest.raises(ActionFailed):
            client.run(refuse, True)
        assert [run.id for run in client.runs.list(name="who")] == ids, "newest first"
        assert client.runs.list(name="who")[0].labels == {"number": "4", "größe": "5"}
        assert [run.name for run in client.runs.list(status="failed")] == ["refuse"]
        page = client.runs.list(name="who", limit=2)
        rest = client.runs.list(name="who", before=page[-1])
        assert [run.id for run in [*page, *rest]] == ids
        since = client.runs.get(ids[1]).created_at
        assert [run.id for run in client.runs.list(name="who", since=since)] == ids[:2]


# -- opening, closing, threads ----------------------------------------------------------------------------------------


def test_many_threads_share_one_client(client: Do):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: client.run(bill, ["x"] * n).total, range(40)))
    assert found == [Decimal("1.10") * n for n in range(40)]


def test_first_calls_at_once_open_one_store(tmp_path: Path):
    client, barrier = Do(str(tmp_path / "dotdo.db"), catalogue=house), threading.Barrier(6)

    def first() -> Any:
        barrier.wait(timeout=PATIENCE)
        return client.run(who)

    with ThreadPoolExecutor(6) as pool:
        results = [future.result(PATIENCE) for future in [pool.submit(first) for _ in range(6)]]
    assert results == [[None, None]] * 6
    assert not list(tmp_path.glob("*.db-*journal"))
    client.close()


def test_closed_means_closed_and_may_be_said_twice(tmp_path: Path):
    path = str(tmp_path / "dotdo.db")
    client = Do(path, catalogue=house)
    handle = client.start(bill, [])
    client.close()
    client.close()
    for call in (lambda: client.run(bill, []), client.runs.list, handle.result, handle.get, client.__enter__):
        with pytest.raises(ClientClosed, match="The client is closed; open a new one"):
            call()
    with Do(path, catalogue=house) as again:
        assert again.runs.get(handle.id).name == "bill"


def test_store_may_be_a_path(tmp_path: Path):
    with Do(tmp_path / "some" / "dotdo.db", catalogue=house) as client:
        assert client.run(bill, []) is not None
    assert (tmp_path / "some" / "dotdo.db").is_file()
    with pytest.raises(DefinitionError, match="The store 5 is neither a path nor a URL: use sqlite:///path"):
        Do(5)  # type: ignore[arg-type]


def test_application_database_in_no_folder_says_what_it_needs(tmp_path: Path):
    client = Do(tmp_path / "dotdo.db", catalogue=house, sql=f"sqlite:///{tmp_path}/none/app.db")
    with pytest.raises(StoreUnusable, match=r"unable to open database file\. Its folder must exist, and"):
        client.run(bill, [])


def test_on_its_own_loop_it_refuses_and_the_attempt_is_not_repeated():
    phone = Phone()
    with (
        Do("sqlite://", catalogue=house, resources=[phone]) as client,
        Do("sqlite://", catalogue=house, actor="other") as other,
    ):
        phone.client = client
        with pytest.raises(ActionFailed, match="Do was called on its own event loop") as caught:
            client.run(compose)
        assert (caught.value.error_type, caught.value.attempts) == ("CalledOutside", 1)
        assert client.run(compose_sync) == [None, None], "a handler in a thread waits on no loop"
        phone.client = other
        assert client.run(compose) == [None, "other"], "nor does another client's loop wait for itself"


# -- the two clients --------------------------------------------------------------------------------------------------

PAIRS = [(Do, AsyncDo), (Handle, AsyncHandle), (Names, AsyncNames), (ByName, AsyncByName), (Runs, AsyncRuns)]
ONLY_ASYNC = {
    "accept",
    "enlisting",
    "enlisting_typed",
    "execute",
    "made",
    "options",
    "platform",
}  # what the other async classes use, and no caller


def parameters(method: Any) -> dict[str, Any]:
    """Names of parameters and their hints; those of `**options: Unpack[...]` are parameters like others."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(method).parameters.items():
        unpacked = get_args(parameter.annotation) if parameter.kind is parameter.VAR_KEYWORD else ()
        if unpacked:
            found |= get_type_hints(unpacked[0])
        elif name != "self":
            found[name] = parameter.annotation
    return found


@pytest.mark.parametrize("sync, asynchronous", PAIRS, ids=lambda kind: kind.__name__)
def test_both_clients_have_the_same_methods_with_the_same_parameters(sync: type, asynchronous: type):
    def methods(kind: type) -> dict[str, Any]:
        return {name: found for name, found in vars(kind).items() if callable(found) and not name.startswith("_")}

    one, other = methods(sync), methods(asynchronous)
    assert other.keys() - one.keys() <= ONLY_ASYNC
    assert one.keys() <= other.keys()
    special = {Do: ["__init__"], Names: ["__call__"]}
    for name in [*sorted(one.keys() & other.keys()), *special.get(sync, [])]:
        assert parameters(getattr(sync, name)) == parameters(getattr(asynchronous, name)), name
