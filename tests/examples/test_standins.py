"""The stand-in servers keep to the wire shapes, and obey the orders to fail, that the demo relies on."""

import smtplib
import urllib.error
from email.message import EmailMessage
from typing import Any

import httpx2
import pytest

from examples.onboarding.standins import StandIns
from examples.onboarding.standins.world import FAULTS
from tests.patience import PATIENCE

REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "billing": ("POST", "/v1/customers", {"data": {"email": "ada@example.com"}}),
    "crm": ("POST", "/crm/v3/objects/contacts", {"json": {"properties": {"email": "ada@example.com"}}}),
    "slack": ("POST", "/api/chat.postMessage", {"json": {"channel": "#sales", "text": "ada@example.com"}}),
}


def patience_with(how: str) -> float:
    """Seconds to wait for an answer that does not come only if that is the fault."""
    return 1.0 if how == "timeout" else PATIENCE


def ask(world: StandIns, server: str, *, key: str = "key-1", **changes: Any) -> httpx2.Response:
    method, path, body = REQUESTS[server]
    method, path = changes.pop("method", method), changes.pop("path", path)
    headers = {"Authorization": f"Bearer {world.environment[f'{server.upper()}_TOKEN']}", "Idempotency-Key": key}
    address = world.environment[f"{server.upper()}_URL"] + path
    timeout = changes.pop("timeout", PATIENCE)
    return httpx2.request(method, address, headers=headers, timeout=timeout, **(changes or body))


def mail(world: StandIns, to: str = "ada@example.com", *, timeout: float = PATIENCE) -> None:
    host, port = world.environment["DOTDO_EMAIL_URL"].removeprefix("smtp://").split(":")
    with smtplib.SMTP(host, int(port), timeout=timeout) as client:
        client.sendmail("shop@example.com", to, "Subject: Hello\r\nMessage-ID: <1@shop>\r\n\r\nText\r\n")


def test_billing_gives_the_first_answer_again_for_a_repeated_key(world: StandIns):
    first, again, other = ask(world, "billing"), ask(world, "billing"), ask(world, "billing", key="key-2")
    assert first.json()["object"] == "customer"
    assert again.json() == first.json() != other.json()
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert [arrival.happened for arrival in world.ledger("billing")] == [True, False, True]


def test_billing_refuses_a_key_with_other_parameters(world: StandIns):
    ask(world, "billing")
    refused = ask(world, "billing", data={"email": "bob@example.com"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "idempotency_error")


def test_billing_deletes_a_customer_once(world: StandIns):
    path = f"/v1/customers/{ask(world, 'billing').json()['id']}"
    deleted, missing = (ask(world, "billing", method="DELETE", path=path, data={}) for _ in range(2))
    assert (deleted.status_code, deleted.json()["deleted"]) == (200, True)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "resource_missing")


def test_crm_refuses_a_second_contact_with_an_address_and_updates_it_by_address(world: StandIns):
    created, refused = ask(world, "crm"), ask(world, "crm")
    assert (created.status_code, refused.status_code) == (201, 409)
    assert refused.json()["message"] == f"Contact already exists. Existing ID: {created.json()['id']}"
    path = "/crm/v3/objects/contacts/ada%40example.com?idProperty=email"
    changed = ask(world, "crm", method="PATCH", path=path, json={"properties": {"firstname": "Ada"}})
    assert changed.json()["properties"] == {"email": "ada@example.com", "firstname": "Ada"}
    assert ask(world, "crm", method="PATCH", path=path.replace("ada", "bob"), json={}).status_code == 404


def test_slack_refuses_with_status_200(world: StandIns):
    assert ask(world, "slack").json()["ok"] is True
    assert ask(world, "slack", json={"channel": "#no", "text": ""}).json() == {
        "ok": False,
        "error": "channel_not_found",
    }
    assert [arrival.happened for arrival in world.ledger("slack")] == [True, False]


def test_mail_is_in_the_ledger_with_its_message_id(world: StandIns):
    mail(world)
    [arrival] = world.ledger("email")
    assert (arrival.key, arrival.status, arrival.happened) == ("<1@shop>", 250, True)
    assert arrival.payload == {
        "from": "shop@example.com",
        "to": ["ada@example.com"],
        "subject": "Hello",
        "text": "Text\n",
    }


def test_mail_beyond_ascii_with_html_is_in_the_ledger_as_it_is_read(world: StandIns):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.com", "ada@example.com", "Grüße, 世界"
    message.set_content("Zurück, 世界\n")
    message.add_alternative("<p>Zurück</p>", subtype="html")
    host, port = world.environment["DOTDO_EMAIL_URL"].removeprefix("smtp://").split(":")
    with smtplib.SMTP(host, int(port), timeout=PATIENCE) as client:
        client.send_message(message)
        message.clear_content()
        message.set_content("<p>Zurück</p>", subtype="html")
        client.send_message(message)
    arrived = [(arrival.payload["subject"], arrival.payload["text"]) for arrival in world.ledger("email")]
    assert arrived == [("Grüße, 世界", "Zurück, 世界\n"), ("Grüße, 世界", "<p>Zurück</p>\n")]


@pytest.mark.parametrize("server", REQUESTS)
def test_request_without_a_token_is_refused(server: str, world: StandIns):
    method, path, body = REQUESTS[server]
    assert httpx2.request(method, world.environment[f"{server.upper()}_URL"] + path, **body).status_code == 401


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("server", REQUESTS)
def test_api_fails_as_often_and_as_it_was_told(server: str, how: str, world: StandIns):
    world.tell(server, fail=1, how=how)
    if how in ("drop", "lost", "timeout"):
        with pytest.raises(httpx2.TransportError):
            ask(world, server, timeout=patience_with(how))
    else:
        answer = ask(world, server)
        assert answer.status_code == {"429": 429}.get(how, answer.status_code)
        assert (answer.headers.get("retry-after") == "1") == (how == "429")
    [arrival] = world.ledger(server)
    assert arrival.happened == (how in ("lost", "timeout"))
    assert (arrival.status is None) == (how in ("drop", "lost", "timeout"))
    assert ask(world, server, key="key-2").status_code in (200, 201, 409)


@pytest.mark.parametrize("how", FAULTS)
def test_mail_server_fails_as_often_and_as_it_was_told(how: str, world: StandIns):
    world.tell("email", fail=1, how=how)
    with pytest.raises((smtplib.SMTPException, TimeoutError)) as caught:
        mail(world, timeout=patience_with(how))
    if isinstance(caught.value, smtplib.SMTPDataError):
        assert caught.value.smtp_code == (550 if how == "5xx" else 451)
    [arrival] = world.ledger("email")
    assert arrival.happened == (how in ("lost", "timeout"))
    mail(world)
    assert world.ledger("email")[-1].status == 250


def test_order_holds_for_what_it_matches_and_until_it_is_taken_back(world: StandIns):
    world.tell("email", fail=-1, how="5xx", match="eve@")
    mail(world)
    for _ in range(2):
        with pytest.raises(smtplib.SMTPDataError):
            mail(world, "eve@example.com")
    world.tell("email", fail=0)
    mail(world, "eve@example.com")
    assert [arrival.status for arrival in world.ledger("email")] == [250, 550, 550, 250]


def test_order_that_makes_no_sense_is_refused(world: StandIns):
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        world.tell("email", fail=1, how="sometimes")
    refused.value.close()
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        world.tell("fax", fail=1)
    refused.value.close()
