"""What workers have offered, kept so that it can be called while none of them is there."""

from typing import TYPE_CHECKING

import msgspec

from dotdo.store.protocol import Offer

if TYPE_CHECKING:
    from dotdo.store.sql import Database


class Offering:
    """The part of `SqlStore` for offers of workers."""

    _db: "Database"
    _sql: dict[str, str]

    def save_offers(self, offers: list[Offer]) -> None:
        """Keeps offers, each instead of an earlier one of that kind, name and version."""
        rows = [
            (o.kind, o.name, o.version, o.definition, msgspec.json.encode(o.databases).decode(), o.at) for o in offers
        ]
        with self._db.transaction():
            self._db.write(self._sql["save_offers"], {"rows": msgspec.json.encode(rows).decode()})

    def list_offers(self) -> list[Offer]:
        """All of them, by name."""
        return [
            Offer(kind, name, version, definition, msgspec.json.decode(databases), at)
            for kind, name, version, definition, databases, at in self._db.read(self._sql["list_offers"])
        ]

    def expect_workers(self, now: int) -> None:
        """A worker has come: runs that wait for one are due."""
        with self._db.transaction():
            self._db.write(self._sql["expect_workers"], {"now": now})
