"""`dotdo check`: what it says of runs in flight and new code is what happens when that code is started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dotdo
from dotdo import Catalogue, Fail, action, service
from dotdo.embedding import open_reader, vault_of
from dotdo.engine.foreseeing import Outlook, foresee
from tests.guarantees.lab import World, book, hold, in_loop, laboratory, note, unbook
from tests.stores import url_of


def application(*omitted: str, **changed: Callable[..., Any]) -> Catalogue:
    """The application, with some of its services left out or with other code."""
    catalogue = Catalogue()
    for given in (book, unbook, hold, note):
        if given.name not in omitted:
            catalogue.add("action", given.name, 1, given, given.handler)

    async def trip(place: str) -> str:
        await book(place)
        await dotdo.wait_for_event("go")
        return await note(f"been to {place}")

    async def buggy(place: str) -> None:
        await book(place)
        raise KeyError(place)

    async def sleeper(days: float) -> None:
        await dotdo.sleep(days * 86400)

    codes: dict[str, Any] = {"trip": trip, "buggy": buggy, "sleeper": sleeper, **changed}
    for name in codes.keys() - set(omitted):
        service(name, catalogue=catalogue)(codes[name])

    @action("later", catalogue=catalogue)
    async def later(text: str) -> str:
        return text

    if "later" in omitted:
        catalogue._found["action"].pop("later")
    return catalogue


async def in_flight(folder: Path) -> dict[str, str]:
    """A store with a run of each kind in flight; ids by name."""
    async with laboratory(folder, catalogue=application(), world=World()) as lab:
        handles = {
            "trip": await lab.client.service("trip").start(place="Rome"),
            "buggy": await lab.client.service("buggy").start(place="Oslo"),
            "sleeper": await lab.client.service("sleeper").start(days=3),
            "later": await lab.client.action("later", delay=3600).start(text="x"),
        }
        await lab.until_asleep(handles["trip"].id)
        await lab.until_asleep(handles["sleeper"].id)
        await lab.until_status(handles["buggy"].id, "blocked")
        return {name: handle.id for name, handle in handles.items()}


def outlooks(folder: Path, catalogue: Catalogue) -> dict[str, Outlook]:
    """What is foreseen, by the runs' names."""
    reader = open_reader(url_of(folder / "dotdo.db"))
    before = reader.count_by_status()
    found = {one.name: one for one in foresee(reader, catalogue, vault_of(None))}
    assert reader.count_by_status() == before
    reader.close()
    return found


@in_loop
async def test_same_code_goes_on_and_what_is_blocked_stays_so_until_it_is_mended(tmp_path: Path):
    await in_flight(tmp_path)
    same = outlooks(tmp_path, application())
    assert {name: one.reason for name, one in same.items()} == {"trip": "", "buggy": "bug", "sleeper": "", "later": ""}
    assert same["buggy"].blocked

    async def mended(place: str) -> None:
        await book(place)

    assert outlooks(tmp_path, application(buggy=mended))["buggy"].reason == ""


async def other_input(place: str) -> str:
    await book(place.upper())
    await dotdo.wait_for_event("go")
    return place


async def other_end(place: str) -> str:
    return place


async def with_a_bug(place: str) -> str:
    await book(place)
    return {}[place]


async def other_parameters(place: int) -> str:
    return str(place)


@pytest.mark.parametrize(
    "code, reason, text",
    [
        (other_input, "replay mismatch", "asked for the step book:"),
        (other_end, "replay mismatch", "ended without asking for the recorded step book:"),
        (with_a_bug, "bug", "KeyError: 'Rome'"),
        (other_parameters, "invalid input", "place"),
    ],
)
def test_what_is_foreseen_of_changed_code_happens(tmp_path: Path, code: Any, reason: str, text: str):
    @in_loop
    async def test() -> None:
        ids = await in_flight(tmp_path)
        changed = application(trip=code)
        one = outlooks(tmp_path, changed)["trip"]
        assert one.reason == reason
        assert text in one.text
        async with laboratory(tmp_path, catalogue=changed) as lab:
            await lab.client.runs.send_event(ids["trip"], "go")
            run = await lab.until_status(ids["trip"], "blocked")
            assert run.error is not None
            assert text in run.error.message

    test()


@in_loop
async def test_missing_definitions_are_named(tmp_path: Path):
    await in_flight(tmp_path)
    without = outlooks(tmp_path, application("sleeper", "later"))
    assert without["sleeper"].reason == "missing definition"
    assert "no service of that name is defined" in without["sleeper"].text
    assert "no action of that name is defined" in without["later"].text
    newer = application("sleeper")

    @service("sleeper", version=2, catalogue=newer)
    async def sleeper(days: float) -> None: ...

    assert "only version 2 of it is defined" in outlooks(tmp_path, newer)["sleeper"].text


@in_loop
async def test_failing_is_no_blocking(tmp_path: Path):
    async def gives_up(place: str) -> None:
        await book(place)
        raise Fail("no trips any more")

    await in_flight(tmp_path)
    assert outlooks(tmp_path, application(trip=gives_up))["trip"].reason == ""
