"""The onboarding's handlers and effects one by one through `.plain`, and the sign-up handler on a real engine."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

from dotdo import AsyncContext, Context, EffectCall, Fail, Failure, RetryLater, Secret, Staged
from dotdo.connectors.email import message_id
from dotdo.context import current
from dotdo.effect import Effect, find_resource
from dotdo.records import ErrorRecord
from examples.onboarding import app, providers
from examples.onboarding.signup import handle_signup
from examples.onboarding.standins import StandIns
from examples.onboarding.users import users


class Bench:
    """What a handler's context needs, without an engine: one transaction, and lists of what was staged."""

    run_id, step, number, idempotency_key = "run_1", "step#1", 1, "key"
    actor: str | None = None
    trail: str | None = None
    traceparent: str | None = None
    log = logging.LoggerAdapter(logging.getLogger("test"))

    def __init__(self, sql: Any = None) -> None:
        self.sql = sql
        self.staged: list[tuple[str, dict[str, Any]]] = []
        self.resources: dict[type, Any] = {type(one): one for one in providers.resources()}

    def connection(self, database: str | None) -> Any:
        return self.sql

    def session(self, database: str | None) -> Any:
        raise NotImplementedError

    def resource(self, kind: type[Any], default: Callable[[], Any] | None = None) -> Any:
        return find_resource(self.resources, kind, default)

    def heartbeat(self) -> None:
        pass

    def completion_statement(self, result: Any, database: str | None, style: Any) -> Any:
        raise NotImplementedError

    def secret(self, name: str) -> Secret[str]:
        return Secret(f"the secret {name}")

    def hide(self, text: str) -> None:
        pass

    def stage(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        effect.schema.check(effect.schema.pack(args, kwargs))
        self.staged.append((effect.name, kwargs))
        return Staged(f"key-{len(self.staged)}", effect.name)

    async def request(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await effect.plain(self.call(), *args, **kwargs)

    def request_and_wait(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def call(self, key: str = "") -> EffectCall:
        return EffectCall(key or uuid.uuid4().hex, "run_1", "step#1", 1, resources=self.resources)


@contextmanager
def inside(context: Context | AsyncContext) -> Iterator[None]:
    token = current.set(context)
    try:
        yield
    finally:
        current.reset(token)


@pytest.fixture
def connection(folder: Path) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{folder / 'app.db'}")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def bench(world: StandIns, connection: Connection) -> Bench:
    return Bench(connection)


# -- handlers ----------------------------------------------------------------------------------------------------------


def test_user_is_created_and_taken_back(bench: Bench, connection: Connection):
    user = app.create_user_in_db.plain(Context(bench), "Ada", "ada@example.com")
    assert connection.execute(select(users)).one() == (user.user_id, "Ada", "ada@example.com")
    app.delete_user.plain(Context(bench), user)
    assert connection.execute(select(users)).all() == []


def test_second_user_with_an_address_fails_for_good(bench: Bench):
    app.create_user_in_db.plain(Context(bench), "Ada", "ada@example.com")
    with pytest.raises(Fail, match=r"ada@example\.com has signed up before"):
        app.create_user_in_db.plain(Context(bench), "Other", "ada@example.com")


def test_billing_account_is_asked_for_and_closed(bench: Bench, world: StandIns):
    customer = asyncio.run(app.setup_billing_account.plain(AsyncContext(bench), "ada@example.com"))
    assert [arrival.answer["id"] for arrival in world.ledger("billing")] == [customer]
    app.close_billing_account.plain(Context(bench), customer)
    assert bench.staged == [("billing.delete-customer", {"customer_id": customer})]


async def send_welcome_email(folder: Path, recipient: str) -> tuple[str, Bench]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder / 'app.db'}")
    try:
        async with engine.connect() as connection:
            await connection.execute(users.insert().values(id="user_1", name="Ada", email="ada@example.com"))
            bench = Bench(connection)
            context = AsyncContext(bench)
            with inside(context):
                return await app.send_welcome_email.plain(context, recipient), bench
    finally:
        await engine.dispose()


def test_welcome_email_is_rendered_and_staged(world: StandIns, folder: Path):
    id, bench = asyncio.run(send_welcome_email(folder, "user_1"))
    [(effect, message)] = bench.staged
    assert (effect, message["to"], message["subject"]) == ("email.send-message", ["ada@example.com"], "Welcome, Ada!")
    assert message["text"].startswith("Hello Ada,")
    assert "<p>Hello Ada,</p>" in message["html"]
    assert id == message_id("key-1", message["sender"])
    assert world.ledger() == []


def test_welcome_email_to_nobody_fails_for_good(world: StandIns, folder: Path):
    with pytest.raises(Fail, match="User not found"):
        asyncio.run(send_welcome_email(folder, "user_unknown"))
    assert world.ledger() == []


def test_slack_and_crm_are_staged(bench: Bench):
    app.notify_sales_on_slack.plain(Context(bench), "Ada")
    app.update_crm_contact.plain(Context(bench), "Ada", "ada@example.com")
    assert bench.staged == [
        ("slack.post-message", {"channel": "#sales", "text": "Ada has signed up."}),
        ("crm.save-contact", {"email": "ada@example.com", "first_name": "Ada"}),
    ]


def test_admin_is_told_what_failed(bench: Bench, world: StandIns):
    with inside(Context(bench)):
        app.alert_admin.plain(Failure("run_1", "customer-onboarding", "billing#1", ErrorRecord("Fail", "declined")))
    [(_, message)] = bench.staged
    assert (message["to"], message["subject"]) == ([world.environment["ADMIN_EMAIL"]], "customer-onboarding failed")
    assert message["text"] == "Run run_1 failed at billing#1: declined\n"


# -- effects -----------------------------------------------------------------------------------------------------------


def ask(effect: Any, call: EffectCall, *args: Any, **kwargs: Any) -> Any:
    return asyncio.run(effect.plain(call, *args, **kwargs))


def test_customer_is_created_once_per_key_and_deleted_however_often(bench: Bench, world: StandIns):
    first = ask(providers.create_customer, bench.call("k"), "ada@example.com")
    again = ask(providers.create_customer, bench.call("k"), "ada@example.com")
    assert first == again
    for _ in range(2):
        asyncio.run(providers.take_back(bench.call(), first))
    assert [arrival.happened for arrival in world.ledger("billing")] == [True, False, True, False]


def test_refusal_of_slack_is_final_and_its_rate_limit_is_not(bench: Bench, world: StandIns):
    with pytest.raises(Fail, match="channel_not_found"):
        ask(providers.post_message, bench.call(), "#nowhere", "Hello")
    world.tell("slack", fail=1, how="429")
    with pytest.raises(RetryLater) as caught:
        ask(providers.post_message, bench.call(), "#sales", "Hello")
    assert caught.value.after == 1
    assert ask(providers.post_message, bench.call(), "#sales", "Hello")


def test_contact_is_created_or_updated(bench: Bench, world: StandIns):
    first = ask(providers.save_contact, bench.call(), "ada+x@example.com", "Ada")
    second = ask(providers.save_contact, bench.call(), "ada+x@example.com", "Ada L.")
    assert first == second
    assert world.ledger("crm")[-1].answer["properties"]["firstname"] == "Ada L."


# -- the sign-up handler -----------------------------------------------------------------------------------------------


def sign_up(folder: Path, *bodies: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    async def scenario() -> list[tuple[int, dict[str, Any]]]:
        async with app.open_client(folder) as client:
            return [await handle_signup(client, body) for body in bodies]

    return asyncio.run(scenario())


ADA = {"request_id": "1", "name": "Ada", "email": "ada@example.com"}


def test_signup_is_answered_with_201_and_the_same_again(world: StandIns, folder: Path):
    first, again = sign_up(folder, ADA, ADA)
    assert first == again
    assert first[0] == 201
    assert (len(world.done("email")), len(world.done("crm"))) == (1, 1)


def test_signup_with_an_address_that_is_taken_is_answered_with_500(world: StandIns, folder: Path):
    _, (status, body) = sign_up(folder, ADA, {**ADA, "request_id": "2"})
    assert (status, body["failed"]) == (500, "create-user-in-db")


def test_signup_whose_crm_is_down_is_answered_with_500_and_only_the_crm_is_tried_again(world: StandIns, folder: Path):
    async def scenario() -> tuple[int, dict[str, Any]]:
        async with app.open_client(folder) as client:
            answer = await handle_signup(client, ADA)
            runs = {run.name: run for run in await client.runs.list(trail="signup:1")}
            await client.runs.wait(runs["send-welcome-email"].id)
            world.tell("crm", fail=0)
            await client.runs.retry(runs["update-crm-contact"].id)
            await client.runs.wait(runs["update-crm-contact"].id)
            return answer

    world.tell("crm", fail=-1, how="4xx")
    status, body = asyncio.run(scenario())
    assert (status, body["failed"]) == (500, "update-crm-contact")
    assert (len(world.ledger("email")), len(world.done("crm"))) == (1, 1)


def test_signup_that_is_not_valid_is_answered_with_422(world: StandIns, folder: Path):
    [(status, body)] = sign_up(folder, {**ADA, "name": 5})
    assert status == 422
    assert "name" in body["message"]
    assert world.ledger() == []
