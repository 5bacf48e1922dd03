"""Deletes applied rows from the application's databases once their completions are durable in the journal.

In batches and some time later: a row that stays a while longer costs nothing, a commit of its own would.
"""

from typing import TYPE_CHECKING

from dotdo.engine.step_record import StepRecord
from dotdo.errors import StoreError

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun
    from dotdo.engine.sql import Key

BATCH = 100
DELAY_SECONDS = 1.0
LATER_SECONDS = 60.0  # when the database did not answer


class AppliedRows:
    """The applied rows that may be deleted, by database."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._keys: dict[str, list[Key]] = {}

    def forget(self, run: "LiveRun", database: str, record: StepRecord, attempt: int) -> None:
        """Has the row of an attempt deleted some time after what was appended last is durable."""
        key = (run.id, record.id, record.generation, attempt)

        def durable(error: BaseException | None) -> None:
            if error is None:
                self._add(database, key)

        run.journal.when_durable(durable)

    async def flush(self) -> None:
        """Deletes what is known of now."""
        for database in list(self._keys):
            await self._delete(database)

    def _add(self, database: str, key: "Key") -> None:
        keys = self._keys.setdefault(database, [])
        keys.append(key)
        if len(keys) == 1:
            self._engine.loop.call_later(DELAY_SECONDS, self._soon, database)
        elif len(keys) == BATCH:
            self._soon(database)

    def _soon(self, database: str) -> None:
        if not self._engine.draining and self._keys.get(database):
            self._engine.spawn(self._delete(database))

    async def _delete(self, database: str) -> None:
        keys, databases = self._keys.pop(database, []), self._engine.databases
        if not keys or databases is None:
            return
        try:
            await self._engine.threads.run(lambda: databases.forget(database, keys))
        except StoreError as error:
            self._engine.log.warning("applied rows are deleted later: %s", error)
            self._keys[database] = keys + self._keys.get(database, [])
            self._engine.loop.call_later(LATER_SECONDS, self._soon, database)
