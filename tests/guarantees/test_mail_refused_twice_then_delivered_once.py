"""Guarantee 2: the mail server refuses twice, then works: each try journaled, one mail, handler run once, one user."""

from datetime import timedelta

import pytest

from dotdo import journal
from examples.onboarding.app import customer_onboarding
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness, of_step


@pytest.mark.parametrize("how", ["4xx", "drop"])
def test_mail_refused_twice_is_delivered_once(onboarding: Onboarding, world: Witness, how: str):
    world.tell("email", fail=2, how=how)
    client = onboarding.open()

    handle = client.start(customer_onboarding, user_name="Ben", user_email="ben@example.com")
    waits = [onboarding.clock.advance_to_next() for _ in range(2)]
    handle.result(timeout=PATIENCE)

    assert [mail.happened for mail in world.heard("email")] == [False, False, True]
    assert len(world.keys("email")) == 1
    assert onboarding.users() == [("Ben", "ben@example.com")]
    assert len(world.heard("billing")) == len(world.heard("slack")) == 1
    assert all(timedelta(0) <= wait <= timedelta(seconds=5) for wait in waits)

    entries = handle.journal()
    assert of_step(entries, "send-welcome-email") == [
        "committed",
        "delivery_failed",
        "delivery_failed",
        "delivered",
        "effects_completed",
    ]
    tries = [journal.read(entry) for entry in entries if entry.kind in ("delivery_failed", "delivered")][:3]
    assert [one.tries for one in tries] == [1, 2, 3]
    assert all(failed.error.message and failed.next_at for failed in tries[:2])
    if how == "4xx":
        assert all("451" in failed.error.message for failed in tries[:2])


def test_step_is_committed_but_not_completed_while_the_mail_server_refuses(onboarding: Onboarding, world: Witness):
    world.tell("email", fail=-1, how="4xx")
    client = onboarding.open()

    handle = client.start(customer_onboarding, user_name="Ben", user_email="ben@example.com")
    onboarding.clock.advance_to_next()
    onboarding.clock.advance_to_next()

    kinds = of_step(handle.journal(), "send-welcome-email")
    assert kinds[:2] == ["committed", "delivery_failed"]
    assert "effects_completed" not in kinds
    assert world.done("email") == []
    assert world.heard("slack") == []  # the step after it waits for the mail
    assert handle.get().status in ("running", "waiting")
