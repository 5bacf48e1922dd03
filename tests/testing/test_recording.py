"""A run is recorded to a file, and replayed against the code of today."""

import asyncio
from pathlib import Path

import pytest

from dotdo import ActionFailed, Catalogue, action, service
from dotdo.errors import ReplayError, ReplayMismatch
from dotdo.testing import TestDo, record, replay
from tests.testing.shop import approval, catalogue, order, thank


def test_recorded_run_is_replayed_without_calling_anything(do: TestDo, tmp_path: Path):
    run = do.start(order, name="ada")
    run.result()
    record(do, run, tmp_path / "order.json")
    before = len(do.sent())
    assert replay(tmp_path / "order.json", catalogue=catalogue) == "payment of 100"
    assert len(do.sent()) == before


def test_failed_and_unfinished_runs_are_replayed_as_far_as_they_went(do: TestDo, tmp_path: Path):
    failed = do.start(order, name="ada", fine=False)
    with pytest.raises(ActionFailed):
        failed.result()
    record(do, failed, tmp_path / "failed.json")
    assert replay(tmp_path / "failed.json", catalogue=catalogue) is None
    waiting = do.start(approval)
    waiting.send_event("approved", "ben")
    do.advance("1 day")
    record(do, waiting, tmp_path / "waiting.json")
    assert replay(tmp_path / "waiting.json", catalogue=catalogue) is None


def changed(steps: str) -> Catalogue:
    """Today's code: the same service with other steps."""
    today = Catalogue()

    @action("reserve", catalogue=today)
    async def reserve(item: str) -> str:
        return "never called"

    @action("pay", catalogue=today)
    async def pay(card: str) -> str:
        return "never called"

    @action("thank", catalogue=today)
    async def thank(name: str) -> str:
        return "never called"

    @action("check", catalogue=today)
    async def check(fine: bool) -> None:
        return None

    @service("order", catalogue=today)
    async def order(name: str, fine: bool = True) -> str:
        await reserve(item="pen" if steps == "another item" else "book")
        paid, _ = await asyncio.gather(pay(card="visa"), thank(name=name))
        if steps != "sooner":
            await asyncio.sleep((7 if steps == "later" else 3) * 24 * 3600)
            await check(fine=fine)
        if steps == "once more":
            await thank(name="everybody")
        return "another result" if steps == "another result" else paid

    return today


@pytest.mark.parametrize(
    "steps, told",
    [
        (
            "another item",
            r'recorded step reserve:\w+ with input {"item":"book"}; it asks for reserve:\w+ with input {"item":"pen"} '
            r"instead\. Nor for what came later: pay:\w+, ",
        ),
        ("sooner", r'does not ask for its recorded step check:\w+ with input {"fine":true}\.'),
        ("later", r"does not ask for its recorded step check:\w+ .*; it waits for a timer of 7 d instead\."),
        ("once more", r'asks for steps that it did not have: thank:\w+ with input {"name":"everybody"}\.'),
        ("another result", r'comes to another end: "another result" instead of "payment of 100"'),
    ],
)
def test_code_that_has_changed_too_much_is_told(do: TestDo, tmp_path: Path, steps: str, told: str):
    run = do.start(order, name="ada")
    run.result()
    record(do, run, tmp_path / "order.json")
    assert replay(tmp_path / "order.json", catalogue=changed("as before")) == "payment of 100"
    with pytest.raises(ReplayMismatch, match=told):
        replay(tmp_path / "order.json", catalogue=changed(steps))


def test_only_runs_of_services_are_recorded(do: TestDo, tmp_path: Path):
    run = do.start(thank, name="ada")
    run.result()
    with pytest.raises(ReplayError, match="only services are replayed"):
        record(do, run, tmp_path / "thank.json")
