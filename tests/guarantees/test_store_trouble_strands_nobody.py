"""When the store fails at something else than a run's own write, the run is brought on all the same."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dotdo import Fail, action, service, sleep
from dotdo.errors import StoreUnavailable
from tests.guarantees.lab import Lab, book, catalogue, in_loop, laboratory


@service("sleeper", catalogue=catalogue)
async def sleeper() -> str:
    await sleep(3600)
    return await book(item="bed")


@service("with-child", catalogue=catalogue)
async def with_child() -> str:
    await asyncio.gather(booking_child(), _late())
    return "never"


async def _late() -> None:
    await sleep(5)
    await give_up()


@service("booking-child", catalogue=catalogue)
async def booking_child() -> str:
    ticket = await book(item="seat")
    await sleep(1)
    return ticket


@action("give-up", catalogue=catalogue)
async def give_up() -> None:
    raise Fail("enough")


def failing(lab: Lab, name: str, *, after: bool, picks: Callable[..., bool] = lambda *_: True) -> list[str]:
    """Has an operation of the store fail once; what it has failed at is in the list."""
    fired: list[str] = []
    operation = getattr(lab.engine.store, name)

    def faulty(*args: Any) -> Any:
        fails = not fired and picks(*args)
        if fails and not after:
            fired.append(name)
            raise StoreUnavailable("the disk is on fire")
        result = operation(*args)
        if fails and result:
            fired.append(name)
            raise StoreUnavailable("the disk is on fire, after all was done")
        return result

    setattr(lab.engine.store, name, faulty)
    return fired


@pytest.mark.parametrize("operation", ["claim_due", "read_journals"])
@in_loop
async def test_run_whose_claim_had_no_answer_is_begun(tmp_path: Path, operation: str):
    """The store says that this node has the run; the node has not heard of it, or could not load it."""
    async with laboratory(tmp_path) as lab:
        handle = await lab.client.start(sleeper)
        await lab.until(lambda: not lab.engine.live)  # it is parked
        fired = failing(lab, operation, after=operation == "claim_due")
        lab.clock.advance(3600)
        assert await handle.result(timeout=60) == "ticket for bed"
        assert fired == [operation]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@in_loop
async def test_parent_whose_word_to_its_child_was_lost_goes_on(tmp_path: Path, after: bool):
    """The parent fails, and has its completed child undone; the message that says so fails once."""
    async with laboratory(tmp_path) as lab:
        fired = failing(lab, "post", after=after, picks=lambda message: message.kind == "undo")
        handle = await lab.client.start(with_child)

        async def child_sleeps() -> bool:
            found = await lab.client.runs.list(parent=handle.id)
            return [one.waiting_for is not None and one.waiting_for.kind == "timer" for one in found] == [True]

        await lab.until(child_sleeps)  # else its parent may give up before it has done anything
        async with lab.time_passing():
            with pytest.raises(Exception, match="enough"):
                await handle.result(timeout=60)
        assert lab.world.said == ["book seat", "unbook seat"]
        assert (await handle.get()).undo == "all"
        assert fired == ["post"] or after
