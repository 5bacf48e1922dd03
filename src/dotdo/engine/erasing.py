"""Erases the data of ended runs, in steps; what a crash has cut short is taken up when an engine starts, or at the next
erasing.
"""

import logging
from functools import partial

from dotdo.engine.pruning import Place
from dotdo.errors import DotdoError
from dotdo.journal import Entry, Erased, anchor, encode_data, link
from dotdo.store.protocol import Erasable

ENTRIES, PARTS = 500, 20  # erased in one transaction

log = logging.getLogger("dotdo.engine")


async def erase(place: Place, roots: list[str], actor: str | None) -> int:
    """Erases these trees; returns how many runs that were. Raises UnknownName, InvalidOperation, StoreError."""

    def sign(run: Erasable) -> tuple[Entry, str]:
        now = max(place.now, run.at)
        data = Erased(run.name, run.version, run.status, run.undo, now, actor, run.continued_as)
        entry = link(run.digest, run.id, run.seq + 1, "erased", "", run.generation, 0, now, encode_data(data))
        return entry, anchor(place.key, run.id, entry.seq, entry.digest)

    count = await place.write(partial(place.store.begin_erasing, roots, sign))
    await finish(place)
    if count:
        log.info("the data of %s runs was erased", count)
    return count


async def finish(place: Place) -> None:
    """Erases what is marked for it. Does nothing when nothing is."""
    if not await place.read(place.store.is_erasing):
        return
    while await place.write(partial(place.store.erase_some, ENTRIES, PARTS)):
        pass
    await place.write(place.store.end_erasing)


async def take_up(place: Place) -> None:
    """Finishes what an earlier process had begun."""
    try:
        await finish(place)
    except DotdoError as error:
        log.error("runs are still to be erased, which is tried again at the next start or erasing: %s", error)
