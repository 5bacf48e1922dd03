"""Guarantee 6: the same key is the same run, also across a restart: one user, one mail, the same id and result."""

import json
import subprocess

import pytest

from dotdo import ActionFailed, KeyConflict
from examples.onboarding.app import customer_onboarding
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness, kill

EVA = {"user_name": "Eva", "user_email": "eva@example.com"}
KEY = "signup:eva"


def outcome(process: "subprocess.Popen[str]") -> dict[str, object]:
    """What an onboarding process printed, once it has ended well."""
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return json.loads(output)


def assert_everything_once(onboarding: Onboarding, world: Witness) -> None:
    assert onboarding.users() == [("Eva", "eva@example.com")]
    assert [len(world.done(server)) for server in ("billing", "email", "slack")] == [1, 1, 1]


def test_same_key_twice_is_one_run(onboarding: Onboarding, world: Witness):
    client = onboarding.open()
    once = customer_onboarding.with_(key=KEY)

    first, second = client.start(once, **EVA), client.start(once, **EVA)  # the first has hardly begun
    results = [first.result(timeout=PATIENCE), second.result(timeout=PATIENCE)]
    late = client.start(once, **EVA)
    by_name = client.service.execute(name="customer-onboarding", params=EVA, key=KEY)

    assert {first.id, second.id, late.id, by_name.id} == {first.id}
    assert results == [late.result(timeout=PATIENCE), by_name.result]
    assert len(world.heard()) == 3
    assert_everything_once(onboarding, world)


def test_another_key_is_another_run(onboarding: Onboarding, world: Witness):
    client = onboarding.open()
    first = client.start(customer_onboarding.with_(key="a"), user_name="Eva", user_email="eva@example.com")
    second = client.start(customer_onboarding.with_(key="b"), user_name="Eva", user_email="eva2@example.com")
    first.result(timeout=PATIENCE)
    second.result(timeout=PATIENCE)
    assert first.id != second.id
    assert len(onboarding.users()) == len(world.done("email")) == 2


def test_same_key_after_a_kill_resumes_and_then_repeats_that_run(onboarding: Onboarding, world: Witness):
    world.tell("billing", fail=1, how="timeout")
    killed = onboarding.process(KEY, "Eva", "eva@example.com")
    world.wait_for("billing")
    kill(killed)

    resumed = outcome(onboarding.process(KEY, "Eva", "eva@example.com"))
    repeated = outcome(onboarding.process(KEY, "Eva", "eva@example.com"))
    client = onboarding.open()
    here = client.start(customer_onboarding.with_(key=KEY), **EVA)

    assert resumed == repeated == {"id": here.id, "result": here.result(timeout=PATIENCE)}
    assert [len(world.heard(server)) for server in ("billing", "email", "slack")] == [2, 1, 1]
    assert len(world.keys("billing")) == 1
    assert_everything_once(onboarding, world)


def test_key_with_another_input_is_refused_also_across_a_restart(onboarding: Onboarding, world: Witness):
    first = outcome(onboarding.process(KEY, "Eva", "eva@example.com"))
    before = len(world.heard())

    other = onboarding.process(KEY, "Eve", "eve@example.com")
    _, errors = other.communicate(timeout=PATIENCE)
    assert other.returncode != 0
    assert f"KeyConflict: The key '{KEY}' was already used for customer-onboarding" in errors
    assert str(first["id"]) in errors

    client = onboarding.open()
    with pytest.raises(KeyConflict, match="with another input"):
        client.start(customer_onboarding.with_(key=KEY), user_name="Eva", user_email="other@example.com")
    assert [run.id for run in client.runs.list()] == [first["id"]]
    assert len(world.heard()) == before
    assert_everything_once(onboarding, world)


def test_same_key_after_a_failure_returns_the_failed_run(onboarding: Onboarding, world: Witness):
    world.tell("billing", fail=1, how="4xx")
    client = onboarding.open()
    once = customer_onboarding.with_(key=KEY)

    failures: list[ActionFailed] = []
    for _ in range(2):
        with pytest.raises(ActionFailed) as failure:
            client.run(once, **EVA)
        failures.append(failure.value)

    assert failures[0].run_id == failures[1].run_id
    assert failures[0].message == failures[1].message
    assert len(world.heard("billing")) == 1
    assert onboarding.users() == []
