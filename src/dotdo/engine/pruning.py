"""Retention: deletes old runs in steps that are small enough not to hold up anybody's commit."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from dotdo.journal import register
from dotdo.policy import Retention
from dotdo.store.protocol import Store

WINDOW = 500  # runs looked at in one read
TREES = 50  # deleted in one transaction
ENTRIES = 500  # cleared in one transaction

log = logging.getLogger("dotdo.engine")


class Place(msgspec.Struct, frozen=True):
    """What is pruned: an engine's store, or one that a command has to itself. read, write: run a function where reads
    and writes of that store are made."""

    store: Store
    now: int
    key: bytes
    read: Callable[[Callable[[], Any]], Awaitable[Any]]
    write: Callable[[Callable[[], Any]], Awaitable[Any]]


async def prune(place: Place, policy: Retention, actor: str | None) -> int:
    """Deletes what the policy says; returns how many runs that were. Raises StoreError."""
    store, now = place.store, place.now
    before = now - round(policy.older_than * 1000)
    register_as = partial(_register, place.key, now, actor)
    after: tuple[int, str] | None = (0, "")
    count = 0
    while after is not None:
        window = partial(store.retention_window, before, policy.name, policy.status, after, WINDOW)
        roots, after = await place.read(window)
        for start in range(0, len(roots), TREES):
            chosen = roots[start : start + TREES]
            count += await place.write(partial(store.delete_trees, chosen, before, register_as))
            await clear(place)
    await clear(place)  # what an earlier process has left
    if count:
        log.info("retention: %s runs were deleted", count)
    return count


async def clear(place: Place) -> None:
    """Clears the journals of deleted runs."""
    while await place.write(partial(place.store.delete_leftovers, ENTRIES)):
        pass


def _register(key: bytes, now: int, actor: str | None, previous: Any, data: str) -> Any:
    return register(key, previous, "deleted", now, actor, data)
