"""Guarantee 4: for an unknown user the e-mail action fails, is not retried, and the mail server hears nothing."""

import pytest

from dotdo import ActionFailed, journal
from examples.onboarding.app import create_user_in_db, send_welcome_email
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness, of_step


def test_unknown_user_fails_at_once_and_sends_nothing(onboarding: Onboarding, world: Witness):
    client = onboarding.open()

    handle = client.action("send-welcome-email").start(recipient_id="user_nobody")
    with pytest.raises(ActionFailed, match="User not found") as failure:
        handle.result(timeout=PATIENCE)

    assert (failure.value.action, failure.value.error_type) == ("send-welcome-email", "Fail")
    assert failure.value.attempts == 1
    assert world.heard() == []
    entries = handle.journal()
    assert of_step(entries, "send-welcome-email") == ["attempt_failed", "failed"]
    (attempt,) = [journal.read(entry) for entry in entries if entry.kind == "attempt_failed"]
    assert attempt.next_at is None
    assert attempt.error.message == "User not found."
    assert "send_welcome_email" in attempt.error.traceback


def test_a_known_user_beside_it_gets_the_mail(onboarding: Onboarding, world: Witness):
    client = onboarding.open()
    user = client.run(create_user_in_db, name="Ada", email="ada@example.com")

    unknown = client.start(send_welcome_email, recipient_id="user_nobody")
    sent = client.run(send_welcome_email, recipient_id=user.user_id)
    with pytest.raises(ActionFailed):
        unknown.result(timeout=PATIENCE)

    (mail,) = world.heard("email")
    assert (mail.key, mail.payload["to"]) == (sent, ["ada@example.com"])
