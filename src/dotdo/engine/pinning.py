"""Snapshots of the newest versions: a run keeps the one that it was accepted under, for each action that it calls."""

from typing import TYPE_CHECKING

from dotdo.catalogue import Snapshot

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine


class Pins:
    """The snapshots that an engine knows. now: the one for runs that are accepted now; changes: what it is of."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._known: dict[str, Snapshot] = {}
        self.now, self.changes = Snapshot("", {}), -1

    async def take(self) -> None:
        """Takes a snapshot of the catalogue, because it has changed, and keeps it."""
        engine = self._engine
        changes, snapshot = engine.catalogue.changes, engine.catalogue.snapshot()
        save = engine.store.save_definitions
        await engine.committer.call(lambda: save(snapshot.id, snapshot.newest, engine.clock.now()))
        self._known[snapshot.id] = self.now = snapshot
        self.changes = changes

    def of(self, id: str | None) -> Snapshot:
        """The snapshot that a run keeps."""
        return self._known.get(id or "", Snapshot("", {}))

    async def load(self, ids: set[str]) -> None:
        """Reads the snapshots of runs that were started earlier."""
        engine = self._engine
        for id in ids - self._known.keys():
            newest = await engine.read(lambda id=id: engine.store.load_definitions(id))
            self._known[id] = Snapshot(id, newest)
