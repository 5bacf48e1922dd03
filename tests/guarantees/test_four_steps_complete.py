"""Guarantee 1: the four-step service completes: a run id, four completed steps in the journal, each thing once."""

from dotdo import journal
from dotdo.connectors.email import message_id
from examples.onboarding.app import customer_onboarding
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness, of_step

FOUR = ["create-user-in-db", "setup-billing-account", "send-welcome-email", "notify-sales-on-slack"]


def test_four_steps_complete_and_everything_has_happened_once(onboarding: Onboarding, world: Witness):
    client = onboarding.open()

    handle = client.start(customer_onboarding, user_name="Ada", user_email="ada@example.com")
    result = handle.result(timeout=PATIENCE)

    assert handle.id.startswith("run_")
    assert onboarding.users() == [("Ada", "ada@example.com")]
    assert world.done("billing") == [{"email": "ada@example.com"}]
    (mail,) = world.done("email")
    assert mail["to"] == ["ada@example.com"]
    assert "Ada" in mail["text"]
    assert world.done("slack") == [{"channel": "#sales", "text": "Ada has signed up."}]
    assert len(world.heard()) == 3
    assert result["customer_id"] == world.heard("billing")[0].answer["id"]


def test_journal_tells_the_whole_run_in_order(onboarding: Onboarding, world: Witness):
    client = onboarding.open()
    handle = client.start(customer_onboarding, user_name="Ada", user_email="ada@example.com")
    result = handle.result(timeout=PATIENCE)

    entries = handle.journal()

    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert (entries[0].kind, entries[-1].kind) == ("accepted", "ended")
    finished = [entry for entry in entries if entry.kind in ("completed", "effects_completed")]
    assert [entry.step.partition(":")[0] for entry in finished] == FOUR
    assert of_step(entries, "create-user-in-db") == ["completed"]
    assert of_step(entries, "setup-billing-account") == ["requested", "answered", "completed"]
    for sender in ("send-welcome-email", "notify-sales-on-slack"):
        assert of_step(entries, sender) == ["committed", "delivered", "effects_completed"]
    ended = journal.read(entries[-1])
    assert (ended.status, ended.undo, ended.not_undone) == ("completed", "none", [])
    run = client.runs.get(handle.id)
    assert (run.status, run.result, run.error, run.waiting_for) == ("completed", result, None, None)


def test_mail_is_sent_under_the_key_that_the_commit_fixed(onboarding: Onboarding, world: Witness):
    client = onboarding.open()
    handle = client.start(customer_onboarding, user_name="Ada", user_email="ada@example.com")
    handle.result(timeout=PATIENCE)

    by_name = {
        entry.step.partition(":")[0]: journal.read(entry) for entry in handle.journal() if entry.kind == "committed"
    }
    (slack,) = by_name["notify-sales-on-slack"].effects
    (mail,) = by_name["send-welcome-email"].effects
    (request,) = [journal.read(entry) for entry in handle.journal() if entry.kind == "requested"]

    assert world.keys("slack") == {slack.key}
    assert world.keys("billing") == {request.key}
    assert world.keys("email") == {message_id(mail.key, world.environment["DOTDO_EMAIL_SENDER"])}
    assert len({slack.key, mail.key, request.key}) == 3
