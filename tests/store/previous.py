"""The application whose runs are in store_0001.sql, a store as the first schema had it.

Its definitions must stay as they are: the test lets those runs go on.
"""

import dotdo
from dotdo import Catalogue, Fail, Retry, action, service

catalogue = Catalogue()

# Under which the heads in store_0001.sql are anchored.
AUDIT_KEY = "00112233445566778899aabbccddeeff"


@action("cancel-seat", catalogue=catalogue)
async def cancel_seat(seat: str) -> None:
    """Takes a seat back."""


@action("take-seat", undo=cancel_seat, catalogue=catalogue)
async def take_seat(row: int) -> str:
    """Takes a seat."""
    return f"seat in row {row}"


@action("refuse", catalogue=catalogue)
async def refuse(why: str) -> None:
    """Fails for good."""
    raise Fail(why)


@action("call-later", retry=Retry(attempts=3, delay=86_400, jitter=False), catalogue=catalogue)
async def call_later(number: str) -> str:
    """Fails once, then works; its retry comes a day later."""
    if dotdo.current_context().attempt == 1:
        raise ConnectionError("busy")
    return f"called {number}"


@service("trip", catalogue=catalogue)
async def trip(row: int) -> str:
    """Waits for an event with a step done."""
    seat = await take_seat(row)
    paid = await dotdo.wait_for_event("paid")
    return f"{seat}, paid {paid}"


@service("reminder", catalogue=catalogue)
async def reminder(days: float) -> str:
    """Waits for a time."""
    await dotdo.sleep(days * 86_400)
    return "reminded"


@service("group-trip", catalogue=catalogue)
async def group_trip(rows: list[int]) -> list[str]:
    """Has a child that waits."""
    return [await trip(row) for row in rows]


@service("broken", catalogue=catalogue)
async def broken(row: int) -> str:
    """Had a bug when its run was started, which blocked it; it has been mended since."""
    return await take_seat(row)


@service("hopeless", catalogue=catalogue)
async def hopeless() -> None:
    """Fails and is undone."""
    await take_seat(9)
    await refuse("no trains today")
