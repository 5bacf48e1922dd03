"""Every action and service of the onboarding, killed at every commit and effect: it ends as if nothing had happened.

The outside systems are fakes that honour keys as the real ones do; for the real servers see test_onboarding.py.
"""

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from dotdo import ActionFailed, EffectCall, Fail
from dotdo.connectors import email
from dotdo.connectors.email import Mailer
from dotdo.testing import TestDo
from examples.onboarding import app, providers
from examples.onboarding.app import customer_onboarding
from examples.onboarding.signup import handle_signup
from examples.onboarding.users import users

pytestmark = pytest.mark.crash_everywhere(sample=6)  # `make nightly` kills at every point
ADA = {"user_name": "Ada", "user_email": "ada@example.com"}
ADMIN = "admin@example.com"


@pytest.fixture
def do_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The users' database, and a mailer that renders; nothing is reached over a network."""
    monkeypatch.setattr(app, "uuid4", lambda: uuid.UUID(int=7))  # else each repetition creates another user
    monkeypatch.setenv("ADMIN_EMAIL", ADMIN)
    templates = Path(app.__file__).parent / "templates"
    mailer = Mailer("smtp://localhost:1", sender="hello@example.com", templates=templates)
    return {"sql": f"sqlite:///{folder / 'app.db'}", "resources": [mailer]}


class Outside:
    """The fakes of all outside systems. customers: those who are there now."""

    def __init__(self, do: TestDo) -> None:
        self.customers: dict[str, str] = {}
        do.fake(providers.create_customer, self.create_customer)
        do.fake(providers.delete_customer, lambda customer_id: self.customers.pop(customer_id, None) and None)
        do.fake(providers.post_message, result="1700000000.000001")
        do.fake(providers.save_contact, result="101")
        do.fake(
            email.send_message,
            lambda call, to, subject: email.Sent(email.message_id(call.key, "x@example.com"), to, subject),
        )

    def create_customer(self, call: EffectCall, email: str) -> dict[str, Any]:
        id = f"cus_{email}"
        self.customers[id] = email
        return {"id": id}


@pytest.fixture
def outside(do: TestDo, monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Where the effects go."""
    return Outside(do)


def signed_up(folder: Path) -> list[str]:
    """The addresses in the users' database."""
    engine = create_engine(f"sqlite:///{folder / 'app.db'}")
    with engine.connect() as connection:
        found = [row.email for row in connection.execute(select(users))]
    engine.dispose()
    return found


def mailed(do: TestDo) -> set[tuple[str, str]]:
    """To whom what was mailed; twice the same after a kill is once, since mail servers know no keys."""
    return {(one.input["to"][0], one.input["subject"]) for one in do.sent(email.send_message)}


def test_onboarding(do: TestDo, outside: Outside, folder: Path):
    result = do.run(customer_onboarding, **ADA)
    assert result["customer_id"] == "cus_ada@example.com"
    assert signed_up(folder) == ["ada@example.com"]
    assert [to for to, _ in mailed(do)] == ["ada@example.com"]


def test_onboarding_whose_providers_fail_at_first(do: TestDo, outside: Outside, folder: Path):
    do.fake(providers.create_customer, outside.create_customer, raises=ConnectionRefusedError, times=2)
    do.fake(providers.post_message, raises=ConnectionRefusedError, times=2, result="1700000000.000001")
    do.run(customer_onboarding, **ADA)
    assert signed_up(folder) == ["ada@example.com"]


@pytest.mark.parametrize("refused", [providers.create_customer, providers.post_message])
def test_onboarding_that_is_refused_is_undone(do: TestDo, outside: Outside, folder: Path, refused: Any):
    do.fake(refused, raises=Fail("refused"))
    run = do.start(customer_onboarding, **ADA)
    with pytest.raises(ActionFailed, match="refused"):
        run.result()
    do.settle()
    assert (run.get().status, run.get().undo) == ("failed", "all")
    assert signed_up(folder) == []
    assert outside.customers == {}
    assert (ADMIN, "customer-onboarding failed") in mailed(do)


def test_onboarding_of_somebody_who_is_there(do: TestDo, outside: Outside, folder: Path):
    do.run(app.create_user_in_db, name="First", email="ada@example.com")
    with pytest.raises(ActionFailed, match="has signed up before"):
        do.run(customer_onboarding, **ADA)
    assert signed_up(folder) == ["ada@example.com"]
    assert outside.customers == {}


BODY = {"request_id": "1", "name": "Ada", "email": "ada@example.com"}


def test_signup(do: TestDo, outside: Outside, folder: Path):
    status, body = do.call(handle_signup, BODY)
    assert (status, body["message"]) == (201, "Welcome, Ada!")
    assert do.call(handle_signup, BODY) == (status, body)
    assert signed_up(folder) == ["ada@example.com"]
    assert {one.input["email"] for one in do.sent(providers.save_contact)} == {"ada@example.com"}


def test_signup_whose_crm_refuses(do: TestDo, outside: Outside, folder: Path):
    do.fake(providers.save_contact, raises=Fail("no such property"))
    status, body = do.call(handle_signup, BODY)
    assert (status, body["failed"]) == (500, "update-crm-contact")
    do.settle()
    assert signed_up(folder) == ["ada@example.com"]
