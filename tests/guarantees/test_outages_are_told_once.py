"""What fails again and again while a store is away is said once in the log, and once in a storm of such outages."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from dotdo import AsyncDo
from dotdo.engine import claiming
from dotdo.engine.following import Follower
from dotdo.errors import StoreUnavailable
from tests.guarantees.lab import catalogue, in_loop, laboratory, note
from tests.patience import PATIENCE
from tests.stores import url_of


def told(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """How often that was said."""
    return sum(text in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@in_loop
async def test_engine_says_once_that_it_cannot_claim(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claiming, "RETRY_SECONDS", 0.01)
    async with laboratory(tmp_path) as lab:
        store, failures, enough = lab.engine.store, list[str](), asyncio.Event()
        loop = asyncio.get_running_loop()

        def away(*_: Any) -> Any:
            failures.append("once more")
            if len(failures) == 5:
                loop.call_soon_threadsafe(enough.set)
            raise StoreUnavailable("it is away")

        with monkeypatch.context() as patch:
            for name in ("next_due", "own_runs", "claim_due"):
                patch.setattr(store, name, away)
            lab.engine.claimer.hint()
            await asyncio.wait_for(enough.wait(), PATIENCE)
        assert await lab.client.run(note, text="well again") == "well again"
    assert told(caplog, "claiming failed") == 1


@in_loop
async def test_client_of_another_process_says_once_that_it_cannot_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    async with laboratory(tmp_path), AsyncDo(url_of(tmp_path / "dotdo.db"), catalogue=catalogue, engine=False) as other:
        follower = await other.platform()
        assert isinstance(follower, Follower)
        runs_over, is_away = follower.store.runs_over, True

        def at_times(runs: list[str]) -> list[str]:
            if is_away:
                raise StoreUnavailable("it is away")
            return runs_over(runs)

        monkeypatch.setattr(follower.store, "runs_over", at_times)
        with follower._watching("run_of_somebody"):
            for _ in range(3):
                is_away = True
                await follower._look()
                await follower._look()
                is_away = False
                await follower._look()
    assert told(caplog, "could not be looked at") == 1
