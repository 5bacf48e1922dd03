"""Cancellation of tasks that have something under way which cannot be cut short."""

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def whatever_happens(work: "asyncio.Future[T]", *, is_commit: bool = True) -> T:
    """Waits for a commit or rollback that has begun; the connection is in its hands until it ends.

    A cancellation meanwhile comes too late for a commit, so it does not count; after a rollback it does.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            if is_commit:
                uncancel()
            else:
                cancelled = error
    if cancelled is not None and work.exception() is None:
        raise cancelled
    return work.result()


def uncancel() -> None:
    """Whoever cancelled this task came too late, however many did: it does not count."""
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        continue


def is_cancelled() -> bool:
    """Whether this task itself is being cancelled; a handler may also raise CancelledError of its own accord."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
