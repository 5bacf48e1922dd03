"""Guarantee 5: the CRM is down in the parallel part: the mail is recorded, a later retry runs the CRM step only."""

import asyncio
import json

import pytest

from dotdo import ActionFailed, AsyncDo, journal, service
from examples.onboarding.app import create_user_in_db, send_welcome_email, update_crm_contact
from examples.onboarding.providers import resources
from examples.onboarding.signup import handle_signup
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness, of_step

CRM_TRIES = 6
SENT = ["committed", "delivered", "effects_completed"]


@service("sign-up-in-parallel", undo=False)
async def sign_up_in_parallel(name: str, email: str) -> str:
    user = await create_user_in_db(name=name, email=email)
    async with asyncio.TaskGroup() as group:
        group.create_task(send_welcome_email(recipient_id=user.user_id))
        group.create_task(update_crm_contact(name=name, email=email))
    return user.user_id


def test_retry_of_the_run_calls_the_crm_only(onboarding: Onboarding, world: Witness):
    world.tell("crm", fail=-1, how="5xx")
    client = onboarding.open()

    handle = client.start(sign_up_in_parallel, name="Fay", email="fay@example.com")
    world.wait_for("email")
    for _ in range(CRM_TRIES - 1):
        onboarding.clock.advance_to_next()
    with pytest.raises(ActionFailed) as failure:
        handle.result(timeout=PATIENCE)

    assert (failure.value.action, failure.value.undo) == ("update-crm-contact", "none")
    entries = handle.journal()
    assert of_step(entries, "send-welcome-email") == SENT
    assert of_step(entries, "update-crm-contact") == ["committed", *["delivery_failed"] * CRM_TRIES, "failed"]
    assert len(world.done("email")) == 1
    assert onboarding.users() == [("Fay", "fay@example.com")]
    assert [one.happened for one in world.heard("crm")] == [False] * CRM_TRIES
    before = len(world.heard())

    world.tell("crm", fail=0)
    client.runs.retry(handle.id)
    user_id = client.runs.wait(handle.id, timeout=PATIENCE).result

    (again,) = world.heard()[before:]
    assert (again.server, again.happened) == ("crm", True)
    assert again.payload["properties"]["email"] == "fay@example.com"
    assert onboarding.users() == [("Fay", "fay@example.com")]
    (created,) = [entry for entry in entries if entry.step.startswith("create-user-in-db")]
    assert json.loads(bytes(journal.read(created).result))["user_id"] == user_id


def test_retry_is_a_new_generation_with_the_operator_in_the_journal(onboarding: Onboarding, world: Witness):
    world.tell("crm", fail=-1, how="5xx")
    client = onboarding.open()
    handle = client.start(sign_up_in_parallel, name="Gus", email="gus@example.com")
    world.wait_for("email")
    for _ in range(CRM_TRIES - 1):
        onboarding.clock.advance_to_next()
    with pytest.raises(ActionFailed):
        handle.result(timeout=PATIENCE)
    world.tell("crm", fail=0)
    first = handle.journal()

    client.runs.retry(handle.id, actor="operator:kim")
    client.runs.wait(handle.id, timeout=PATIENCE)

    entries = handle.journal()
    assert entries[: len(first)] == first  # what was written stays as it was
    new = entries[len(first) :]
    (reopened,) = [entry for entry in new if entry.kind == "reopened"]
    data = journal.read(reopened)
    assert (data.operation, data.actor, reopened.generation) == ("retry", "operator:kim", 1)
    assert {entry.generation for entry in new[new.index(reopened) :]} == {1}
    assert of_step(new, "create-user-in-db") == of_step(new, "send-welcome-email") == []
    assert of_step(new, "update-crm-contact") == SENT


def test_handler_that_composes_answers_500_and_its_repeat_sends_no_second_mail(onboarding: Onboarding, world: Witness):
    world.tell("crm", fail=1, how="4xx")
    body = {"request_id": "hal-1", "name": "Hal", "email": "hal@example.com"}

    async def sign_up() -> None:
        store, database = onboarding.folder / ".dotdo" / "dotdo.db", onboarding.folder / "app.db"
        async with AsyncDo(f"sqlite:///{store}", sql=f"sqlite:///{database}", resources=resources()) as client:
            status, answer = await handle_signup(client, body)
            assert (status, answer["failed"]) == (500, "update-crm-contact")
            runs = {run.name: run.id for run in await client.runs.list(trail="signup:hal-1")}
            # The handler answered at the first failure; the mail goes on by itself, and its outcome is recorded.
            await client.runs.wait(runs["send-welcome-email"], timeout=PATIENCE)
            assert len(world.done("email")) == 1

            await client.runs.retry(runs["update-crm-contact"])
            await client.runs.wait(runs["update-crm-contact"], timeout=PATIENCE)
            status, answer = await handle_signup(client, body)
            assert (status, answer["message"]) == (201, "Welcome, Hal!")

    asyncio.run(sign_up())

    assert len(world.heard("email")) == 1
    assert [one.happened for one in world.heard("crm")] == [False, True]
    assert onboarding.users() == [("Hal", "hal@example.com")]
