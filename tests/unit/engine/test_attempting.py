"""An attempt that is over can do nothing any more, whichever thread it is on."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from dotdo import Catalogue, effect
from dotdo.engine.attempting import Attempt
from dotdo.errors import AttemptOver

catalogue = Catalogue()


@effect("unit.ask", dedup="key", catalogue=catalogue)
def ask(text: str) -> str:
    return text


class Nobody:
    async def make_request(self, *_: object) -> Any:
        raise AssertionError("nothing is asked for an attempt that is over")

    def complete(self, *_: object) -> Any:
        raise AssertionError("nor is it committed")


@pytest.fixture
def stopped() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that stands still, as the one of a killed engine."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def attempt_on(loop: asyncio.AbstractEventLoop) -> Attempt:
    return Attempt(
        run_id="run_1", step="s", number=1, epoch=0, generation=1, actor=None, trail=None, resources={}, databases=None,
        owner=Nobody(), loop=loop, is_async=False, keeper=cast("Any", None),
    )  # fmt: skip


def test_thread_that_asks_too_late_does_not_wait_for_a_loop_that_stands_still(stopped: asyncio.AbstractEventLoop):
    attempt = attempt_on(stopped)
    assert attempt.end("was killed")
    with pytest.raises(AttemptOver, match="was killed"):
        attempt.request_and_wait(ask, ("a",), {})


def test_nor_one_whose_attempt_ends_while_it_asks(stopped: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch):
    attempt = attempt_on(stopped)
    submit = asyncio.run_coroutine_threadsafe

    def ends_meanwhile(coroutine: Any, loop: asyncio.AbstractEventLoop) -> Any:
        asking = submit(coroutine, loop)
        assert attempt.end("was killed")
        coroutine.close()  # or Python would warn that nobody awaits it
        return asking

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", ends_meanwhile)
    with pytest.raises(AttemptOver, match="was killed"):
        attempt.request_and_wait(ask, ("a",), {})
