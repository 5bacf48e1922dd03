"""Guarantee 6: the same key is the same run, also across a restart: one user, one mail, the same id and result."""

import subprocess
from pathlib import Path

import pytest

from dotdo import ActionFailed, KeyConflict
from examples.onboarding.app import customer_onboarding
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness, kill

EVA = {"user_name": "Eva", "user_email": "eva@example.com"}


@pytest.fixture
def key(tmp_path: Path) -> str:
    """Of this test alone: equal keys make equal runs, whose effects the servers would know from another test."""
    return f"signup:eva:{tmp_path.name}"


def outcome(process: "subprocess.Popen[str]") -> str:
    """What an onboarding process printed, once it has ended well."""
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return output.strip()


def assert_everything_once(onboarding: Onboarding, world: Witness) -> None:
    assert onboarding.users() == [("Eva", "eva@example.com")]
    assert [len(world.done(server)) for server in ("billing", "email", "slack")] == [1, 1, 1]


def test_same_key_twice_is_one_run(onboarding: Onboarding, world: Witness, key: str):
    client = onboarding.open()
    once = customer_onboarding.with_(key=key)

    first, second = client.start(once, **EVA), client.start(once, **EVA)  # the first has hardly begun
    results = [first.result(timeout=PATIENCE), second.result(timeout=PATIENCE)]
    late = client.start(once, **EVA)
    by_name = client.service.execute(name="customer-onboarding", params=EVA, key=key)

    assert {first.id, second.id, late.id, by_name.id} == {first.id}
    assert results == [late.result(timeout=PATIENCE), by_name.result]
    assert len(world.heard()) == 3
    assert_everything_once(onboarding, world)


def test_another_key_is_another_run(onboarding: Onboarding, world: Witness, key: str):
    client = onboarding.open()
    first = client.start(customer_onboarding.with_(key=f"{key}/a"), user_name="Eva", user_email="eva@example.com")
    second = client.start(customer_onboarding.with_(key=f"{key}/b"), user_name="Eva", user_email="eva2@example.com")
    first.result(timeout=PATIENCE)
    second.result(timeout=PATIENCE)
    assert first.id != second.id
    assert len(onboarding.users()) == len(world.done("email")) == 2


@pytest.mark.of_files("the example keeps its store in a file")
def test_same_key_after_a_kill_resumes_and_then_repeats_that_run(onboarding: Onboarding, world: Witness, key: str):
    world.tell("billing", fail=1, how="timeout")
    killed = onboarding.process(key, "Eva", "eva@example.com")
    world.wait_for("billing")
    kill(killed)

    resumed = outcome(onboarding.process(key, "Eva", "eva@example.com"))
    repeated = outcome(onboarding.process(key, "Eva", "eva@example.com"))
    client = onboarding.open()
    here = client.start(customer_onboarding.with_(key=key), **EVA)

    assert resumed == repeated == f"{here.id} completed: {here.result(timeout=PATIENCE)}"
    assert [len(world.heard(server)) for server in ("billing", "email", "slack")] == [2, 1, 1]
    assert len(world.keys("billing")) == 1
    assert_everything_once(onboarding, world)


@pytest.mark.of_files("the example keeps its store in a file")
def test_key_with_another_input_is_refused_also_across_a_restart(onboarding: Onboarding, world: Witness, key: str):
    first, _, _ = outcome(onboarding.process(key, "Eva", "eva@example.com")).partition(" ")
    before = len(world.heard())

    other = onboarding.process(key, "Eve", "eve@example.com")
    _, errors = other.communicate(timeout=PATIENCE)
    assert other.returncode != 0
    assert f"KeyConflict: The key '{key}' was already used for customer-onboarding" in errors
    assert first in errors

    client = onboarding.open()
    with pytest.raises(KeyConflict, match="with another input"):
        client.start(customer_onboarding.with_(key=key), user_name="Eva", user_email="other@example.com")
    assert [run.id for run in client.runs.list()] == [first]
    assert len(world.heard()) == before
    assert_everything_once(onboarding, world)


def test_same_key_after_a_failure_returns_the_failed_run(onboarding: Onboarding, world: Witness, key: str):
    world.tell("billing", fail=1, how="4xx")
    client = onboarding.open()
    once = customer_onboarding.with_(key=key)

    failures: list[ActionFailed] = []
    for _ in range(2):
        with pytest.raises(ActionFailed) as failure:
            client.run(once, **EVA)
        failures.append(failure.value)

    assert failures[0].run_id == failures[1].run_id
    assert failures[0].message == failures[1].message
    assert len(world.heard("billing")) == 1
    assert onboarding.users() == []
