"""Guarantee 8: version 2 takes another input; a pinned service keeps version 1; bad input never reaches a handler."""

from typing import Any

import pytest

import dotdo
from dotdo import Catalogue, Context, InvalidInput, UnknownName, action, service
from dotdo.connectors import email
from tests.guarantees.onboarding import PATIENCE, Onboarding, Witness

ADA = "ada@example.com"


def offer_first(catalogue: Catalogue) -> None:
    """What the application offers at first: a greeting to an address, and two services that send it."""

    @action("greet", catalogue=catalogue)
    def greet(ctx: Context, to: str) -> str:
        return email.send(to=to, subject="Welcome", text="Version 1 says hello.").id

    @service("greet-pinned", catalogue=catalogue)
    async def greet_pinned(to: str) -> Any:
        return await greet.with_(version=1)(to=to)

    @service("greet-later", catalogue=catalogue)
    async def greet_later(to: str) -> Any:
        await dotdo.sleep(3 * 24 * 3600)
        return await dotdo.call("greet", to=to)


def offer_second(catalogue: Catalogue) -> None:
    """What is added with the next release: version 2 takes names and addresses."""

    @action("greet", version=2, catalogue=catalogue)
    def greet(ctx: Context, people: dict[str, str]) -> list[str]:
        return [
            email.send(to=to, subject="Welcome", text=f"Version 2 says hello, {name}.").id
            for name, to in people.items()
        ]


def both() -> Catalogue:
    catalogue = Catalogue()
    offer_first(catalogue)
    offer_second(catalogue)
    return catalogue


def texts(world: Witness) -> list[str]:
    return [mail["text"].strip() for mail in world.done("email")]


def test_newest_version_is_taken_unless_one_is_named(onboarding: Onboarding, world: Witness):
    client = onboarding.open(catalogue=both())

    client.action("greet").invoke(people={"Ada": ADA})
    client.action("greet@1").invoke(to=ADA)
    client.action("greet", version=1).invoke(to=ADA)

    assert texts(world) == ["Version 2 says hello, Ada.", *["Version 1 says hello."] * 2]
    assert sorted(run.version for run in client.runs.list(name="greet")) == [1, 1, 2]


def test_pinned_service_keeps_version_1_beside_version_2(onboarding: Onboarding, world: Witness):
    client = onboarding.open(catalogue=both())
    client.service("greet-pinned").invoke(to=ADA)
    assert texts(world) == ["Version 1 says hello."]


def test_run_keeps_the_versions_that_were_newest_when_it_started(onboarding: Onboarding, world: Witness):
    """A run that sleeps through a release calls what it would have called before it."""
    first = Catalogue()
    offer_first(first)
    before = onboarding.open(catalogue=first)
    waiting = before.service("greet-later").start(to=ADA)
    before.close()

    after = onboarding.open(catalogue=both())
    onboarding.clock.advance("3 days")
    assert after.runs.wait(waiting.id, timeout=PATIENCE).status == "completed"

    assert texts(world) == ["Version 1 says hello."]


@pytest.mark.parametrize(
    "version, params, problem",
    [
        (2, {"to": ADA}, r"\$\.people"),
        (1, {"people": {"Ada": ADA}}, r"\$\.to"),
        (2, {"people": {"Ada": 7}}, r"\$\.people"),
        (1, {"to": ADA, "cc": ADA}, r"\$\.cc"),
        (1, {}, r"\$\.to"),
    ],
)
def test_bad_input_is_refused_before_the_handler(
    onboarding: Onboarding, world: Witness, version: int, params: dict[str, Any], problem: str
):
    client = onboarding.open(catalogue=both())

    with pytest.raises(InvalidInput, match=rf"(?s)action greet@{version} .*{problem}"):
        client.action("greet", version=version).invoke(**params)

    assert client.runs.list() == []
    assert world.heard() == []


def test_every_problem_of_an_input_is_reported(onboarding: Onboarding, world: Witness):
    client = onboarding.open(catalogue=both())
    with pytest.raises(InvalidInput) as refused:
        client.action("greet@1").invoke(too=ADA, cc=ADA)
    assert sorted(problem.path for problem in refused.value.problems) == ["$.cc", "$.to", "$.too"]


def test_unknown_version_is_refused_with_those_that_exist(onboarding: Onboarding, world: Witness):
    client = onboarding.open(catalogue=both())
    with pytest.raises(UnknownName, match=r"greet@3; known versions: 1, 2"):
        client.action("greet@3").invoke(to=ADA)
    assert client.runs.list() == []


def test_version_offered_by_no_process_makes_its_runs_wait(onboarding: Onboarding, world: Witness):
    """A release that drops a version does not lose the runs that need it; they go on where it is offered."""
    pinned = onboarding.open(catalogue=both())
    waiting = pinned.action("greet", version=1, delay=60).start(to=ADA)
    pinned.close()

    only_second = Catalogue()
    offer_second(only_second)
    without = onboarding.open(catalogue=only_second)
    onboarding.clock.advance_to_next()  # its start
    onboarding.clock.time_to_next()  # the engine has read in the store when to look again: what it found is written
    run = without.runs.get(waiting.id)
    assert run.status == "waiting"
    assert run.waiting_for is not None
    assert "greet@1" in run.waiting_for.text
    without.close()

    onboarding.clock.advance(60)
    assert onboarding.open(catalogue=both()).runs.wait(waiting.id, timeout=PATIENCE).status == "completed"
    assert texts(world) == ["Version 1 says hello."]
