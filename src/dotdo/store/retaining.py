"""Deleting runs for good, in small steps: first the rows of whole trees, written down in the registry in the same
transaction; then their journals, a bounded number of entries at a time. What a crash leaves is cleared the next time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.journal import RegistryEntry
from dotdo.store.protocol import ALL

if TYPE_CHECKING:
    from dotdo.store.sql import Database

# Makes the registry's next entry of the one before and of data.
Register = Callable[[RegistryEntry | None, str], RegistryEntry]


class Retaining:
    """The part of `SqlStore` that deletes."""

    _db: "Database"
    _sql: dict[str, str]

    def retention_window(
        self, before: int, name: str | None, status: str | None, after: tuple[int, str], limit: int
    ) -> tuple[list[str], tuple[int, str] | None]:
        """Of the next `limit` runs by age: roots of trees that ended before, and where to go on (None: at the end)."""
        wanted = {"before": before, "name": name, "status": status, "limit": limit}
        found = self._db.read(self._sql["retention_window"], {**wanted, "after_at": after[0], "after_id": after[1]})
        return [row[1] for row in found if row[2]], (found[-1][0], found[-1][1]) if len(found) == limit else None

    def delete_trees(self, roots: list[str], before: int, register: Register) -> int:
        """Deletes the rows of trees that have still ended before; returns how many runs that were."""
        gone: list[tuple[str, int, str]] = []
        with self._db.transaction():
            for root in roots:
                tree = self._db.write(self._sql["tree"], {"root": root})
                if all(ended_at is not None and ended_at <= before for *_, ended_at in tree):
                    gone += [(id, seq, digest) for id, seq, digest, _ in tree]
            if not gone:
                return 0
            if self._db.shared:
                self._db.write(self._sql["lock_registry"])
            last = self._db.write(self._sql["last_registry_entry"])
            entry = register(RegistryEntry(*last[0]) if last else None, msgspec.json.encode(gone).decode())
            self._db.write(self._sql["add_registry_entry"], msgspec.structs.asdict(entry))
            given: dict[str, Any] = {"rows": msgspec.json.encode([(id,) for id, *_ in gone]).decode()}
            for statement in ("delete_labels", "delete_links", "add_leftovers", "delete_runs"):
                self._db.write(self._sql[statement], given)
        return len(gone)

    def delete_leftovers(self, limit: int) -> bool:
        """Clears about so many entries of deleted runs; returns whether there may be more."""
        with self._db.transaction():
            for (run,) in self._db.write(self._sql["runs_to_clear"], {"limit": limit}):
                self._db.write(self._sql["clear_entries"], {"run": run, "limit": limit})
                cleared = self._db.changes()
                if cleared == limit:
                    return True
                self._db.write(self._sql["clear_parts"], {"run": run})
                self._db.write(self._sql["forget_leftover"], {"run": run})
                limit -= max(cleared, 1)
                if limit <= 0:
                    return True
        return False

    def leftover_runs(self) -> set[str]:
        """Deleted runs whose journals are not cleared yet."""
        return {row[0] for row in self._db.read(self._sql["leftover_runs"], {"limit": ALL})}

    def read_registry(self) -> list[RegistryEntry]:
        """The registry, in order."""
        return [RegistryEntry(*row) for row in self._db.read(self._sql["read_registry"])]
