"""The outside systems of the onboarding, as effects: how each is called, kept from doubles, and taken back.

Each is a few lines over the http connector's `call`, which sends the effect's key, and tells refusals for good from
those that may go better next time. Addresses and access tokens come from the environment, so no journal holds them.
"""

import os
from typing import Any
from urllib.parse import quote

from dotdo import EffectCall, Fail, effect
from dotdo.connectors import http
from dotdo.connectors.email import Mailer


@effect("billing.delete-customer", dedup="key")
async def delete_customer(call: EffectCall, customer_id: str) -> None:
    """Deletes a customer; one who is gone already is fine."""
    url = f"{os.environ['BILLING_URL']}/v1/customers/{customer_id}"
    await http.call.plain(call, "DELETE", url, expect=[200, 404])


async def take_back(call: EffectCall, answer: dict[str, Any]) -> None:
    """Undoes `create_customer` when the step that asked for it fails for good."""
    await delete_customer.plain(call, answer["id"])


def made_up(call: EffectCall, input: dict[str, Any]) -> dict[str, Any]:
    """The customer that a preview goes on with."""
    return {"id": "cus_preview", "email": input["email"]}


# For 24 hours a repeat under the same key gives the first answer again, so a lost answer makes no second customer.
@effect("billing.create-customer", dedup="key", key_window=24 * 3600, undo=take_back, preview=made_up)
async def create_customer(call: EffectCall, email: str) -> dict[str, Any]:
    """Creates a customer and answers with it."""
    answer = await http.call.plain(call, "POST", f"{os.environ['BILLING_URL']}/v1/customers", form={"email": email})
    return answer.body


# Slack knows no keys. A message shown twice does less harm than one that waits for a person to decide.
@effect("slack.post-message", on_unknown="resend")
async def post_message(call: EffectCall, channel: str, text: str) -> str:
    """Posts to a channel and answers with the message's timestamp, which is its id."""
    url = f"{os.environ['SLACK_URL']}/api/chat.postMessage"
    answer = await http.call.plain(call, "POST", url, json={"channel": channel, "text": text})
    if not answer.body["ok"]:  # a refusal comes with status 200
        raise Fail(f"Slack refused the message to {channel}: {answer.body['error']}")
    return answer.body["ts"]


# An address is in the CRM once, however often it is written, so writing again is always safe.
@effect("crm.save-contact", on_unknown="resend")
async def save_contact(call: EffectCall, email: str, first_name: str) -> str:
    """Creates the contact with that address, or updates it, and answers with its id."""
    contacts = f"{os.environ['CRM_URL']}/crm/v3/objects/contacts"
    contact = {"properties": {"email": email, "firstname": first_name, "lifecyclestage": "lead"}}
    answer = await http.call.plain(call, "POST", contacts, json=contact, expect=[201, 409])
    if answer.status == 409:
        answer = await http.call.plain(call, "PATCH", f"{contacts}/{quote(email)}?idProperty=email", json=contact)
    return answer.body["id"]


def resources() -> list[Any]:
    """What a client needs to reach them: the mail server, and an access token for each address."""
    systems = [(os.environ[f"{name}_URL"], os.environ[f"{name}_TOKEN"]) for name in ("BILLING", "CRM", "SLACK")]
    tokens = {url: {"Authorization": f"Bearer {token}"} for url, token in systems}
    return [Mailer.from_environment(), http.HttpClient(headers=tokens)]
