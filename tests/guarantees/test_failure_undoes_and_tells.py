"""Guarantee 3: a step fails for good: no later step runs, what was done is undone newest first, the admin is told."""

import pytest

from dotdo import ActionFailed, RunBlocked, journal
from examples.onboarding.app import customer_onboarding
from examples.onboarding.providers import create_customer
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness, of_step


def test_billing_refused_undoes_the_user_and_tells_the_admin(onboarding: Onboarding, world: Witness):
    world.tell("billing", fail=1, how="4xx")
    client = onboarding.open()

    handle = client.start(customer_onboarding, user_name="Cleo", user_email="cleo@example.com")
    with pytest.raises(ActionFailed, match=r"setup-billing-account failed: .*card_declined") as failure:
        handle.result(timeout=PATIENCE)

    assert failure.value.action == "setup-billing-account"
    assert (failure.value.run_id, failure.value.undo, failure.value.attempts) == (handle.id, "all", 1)
    assert onboarding.users() == []
    assert world.heard("slack") == []
    (mail,) = world.heard("email")
    assert mail.payload["to"] == [world.environment["ADMIN_EMAIL"]]
    assert "setup-billing-account" in mail.payload["text"]
    assert handle.id in mail.payload["text"]

    entries = handle.journal()
    created = [entry for entry in entries if entry.step.startswith("create-user-in-db:")]
    assert [entry.kind for entry in created] == ["completed"]
    assert [entry.kind for entry in entries if entry.step == f"undo:{created[0].step}"] == ["completed"]
    assert of_step(entries, "send-welcome-email") == of_step(entries, "notify-sales-on-slack") == []
    run = client.runs.get(handle.id)
    assert (run.status, run.undo, run.not_undone) == ("failed", "all", [])
    assert run.error is not None
    assert run.error.action == "setup-billing-account"


def test_billing_that_breaks_down_is_tried_under_one_key_and_fails_once_a_person_says_what_happened(
    onboarding: Onboarding, world: Witness
):
    world.tell("billing", fail=-1, how="5xx")  # nobody knows what a server did that answers so
    client = onboarding.open()

    handle = client.start(customer_onboarding, user_name="Cleo", user_email="cleo@example.com")
    attempts, settling = 5, create_customer.retry.attempts
    assert settling is not None
    for _ in range(attempts + settling - 2):
        onboarding.clock.advance_to_next()
    with pytest.raises(RunBlocked, match=r"Nobody knows whether billing.create-customer happened"):
        handle.result(timeout=PATIENCE)
    assert onboarding.users() == [("Cleo", "cleo@example.com")], "nothing is undone while nobody knows"
    assert [one.status for one in world.heard("billing")] == [500] * (attempts + settling)
    assert len(world.keys("billing")) == 1

    client.runs.resolve(handle.id, outcome="did_not_happen")
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)

    assert (failure.value.action, failure.value.attempts) == ("setup-billing-account", 5)
    failed = [journal.read(entry) for entry in handle.journal() if entry.kind == "attempt_failed"]
    assert [one.error.attempts for one in failed] == [1, 2, 3, 4, 5]
    assert [one.next_at is not None for one in failed] == [True, True, True, True, False]
    assert onboarding.users() == []


def test_slack_refusing_takes_back_the_customer_then_the_user_and_names_the_mail(
    onboarding: Onboarding, world: Witness
):
    world.tell("slack", fail=1, how="4xx")
    client = onboarding.open()

    handle = client.start(customer_onboarding, user_name="Cleo", user_email="cleo@example.com")
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)

    assert (failure.value.action, failure.value.undo) == ("notify-sales-on-slack", "all")
    created, deleted = world.heard("billing")
    assert deleted.request == f"DELETE /v1/customers/{created.answer['id']}"
    assert deleted.happened
    assert onboarding.users() == []
    welcome, alert = world.done("email")
    assert welcome["to"] == ["cleo@example.com"]
    assert alert["to"] == [world.environment["ADMIN_EMAIL"]]

    undone = [journal.read(entry).step.partition(":")[0] for entry in handle.journal() if entry.kind == "undone"]
    assert undone == ["setup-billing-account", "create-user-in-db"]
    (not_undone,) = client.runs.get(handle.id).not_undone  # a mail that has left cannot be taken back
    assert not_undone.startswith("send-welcome-email")


def test_undo_is_sent_until_the_provider_has_taken_it(onboarding: Onboarding, world: Witness):
    world.tell("slack", fail=1, how="4xx")
    world.tell("billing", fail=2, how="5xx", match="DELETE")
    client = onboarding.open()

    handle = client.start(customer_onboarding, user_name="Cleo", user_email="cleo@example.com")
    onboarding.clock.advance_to_next()
    onboarding.clock.advance_to_next()
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)

    deletions = [one for one in world.heard("billing") if one.request.startswith("DELETE")]
    assert [one.happened for one in deletions] == [False, False, True]
    assert len({one.key for one in deletions}) == 1
    assert failure.value.undo == "all"
    assert onboarding.users() == []
