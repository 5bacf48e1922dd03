"""Deletes rows of the application's databases that nothing needs any more: void ones, and what a kill has left.

A row is deleted only if its run is in this store (others may share the database) and its attempt's end is durable in
the journal. A void row stays longer: it is what a process that was taken for dead, and wakes up, collides with.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from dotdo.engine.history import History
from dotdo.errors import ClientClosed, StoreError

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.sql import Key

FIRST_SWEEP, EVERY = 60.0, 3_600.0  # seconds after the start, and from one to the next
BATCH = 200
KEEP, KEEP_VOID = 3_600, 7 * 24 * 3_600  # seconds; the first only spares the engine's own deleting (forgetting.py)


class Leftover(msgspec.Struct, frozen=True):
    """A row of an attempt, without what it holds. at: when it was written, in ms since 1970 by its writer's clock."""

    key: "tuple[str, str, int, int]"
    is_void: bool
    at: int


class Sweeper:
    """The engine's sweep through the application's databases, from time to time."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._timer = engine.loop.call_later(FIRST_SWEEP, self._start)

    def close(self) -> None:
        """Sweeps no more."""
        self._timer.cancel()

    def _start(self) -> None:
        self._timer = self._engine.loop.call_later(EVERY, self._start)
        if self._engine.databases is not None and not self._engine.draining:
            self._engine.spawn(self.sweep())

    async def sweep(self, now: float | None = None) -> int:
        """Goes through all databases once, in batches; returns how many rows were deleted. now: in seconds."""
        databases, deleted = self._engine.databases, 0
        before = round(((time.time() if now is None else now) - KEEP) * 1000)
        for database in databases.names if databases is not None else []:
            try:
                deleted += await self._sweep_one(database, before)
            except ClientClosed:
                break
            except StoreError as error:
                self._engine.log.warning("rows of dotdo_applied are swept later: %s", error)
        return deleted

    async def _sweep_one(self, database: str, before: int) -> int:
        engine, databases = self._engine, self._engine.databases
        assert databases is not None, "the caller looked"
        deleted, after = 0, ("", "", 0, 0)
        while True:
            rows = await engine.threads.run(lambda after=after: databases.leftovers(database, after, before, BATCH))
            if not rows:
                return deleted
            after = rows[-1].key
            old_enough = before - (KEEP_VOID - KEEP) * 1000
            keys = await self._unneeded([row for row in rows if not row.is_void or row.at < old_enough])
            if keys:
                await engine.threads.run(lambda keys=keys: databases.forget(database, keys))
                deleted += len(keys)

    async def _unneeded(self, rows: Sequence[Leftover]) -> "list[Key]":
        """Those whose attempts the journal knows to have ended."""
        engine = self._engine
        by_run: dict[str, list[Leftover]] = defaultdict(list)
        for row in rows:
            by_run[row.key[0]].append(row)
        found: list[Key] = []
        for run, its in by_run.items():
            if run in engine.live:
                continue  # later: it may be settling one of them just now
            entries = (await engine.read(lambda run=run: engine.store.read_journals([run])))[run]
            if not entries:
                continue  # another store's, or of a run that was deleted
            if entries[-1].kind == "erased":
                found += [row.key for row in its]
                continue
            history = History()
            history.load(entries)
            found += [row.key for row in its if _has_ended(history, row)]
        return found


def _has_ended(history: History, row: Leftover) -> bool:
    """Whether the journal has an attempt's end, or one of a later attempt or generation of its step."""
    _, step, generation, attempt = row.key
    record = history.steps.get(step)
    if record is None:
        return False
    return record.generation > generation or (record.generation == generation and record.attempt >= attempt)
