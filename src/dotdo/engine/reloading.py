"""When a write of a run failed: what is in memory may be ahead of the store, so it is dropped and read again."""

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from dotdo.errors import FenceLost, NodeExpelled, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.journaling import RunJournal


def lost(engine: "Engine", journal: "RunJournal", error: BaseException) -> None:
    """A write of a run failed."""
    engine.dropped[journal.run] = str(error)
    if engine.lease is not None and isinstance(error, NodeExpelled | StoreUnavailable):
        engine.lease.lost(error)  # so did everybody's
        return
    read_again(engine, journal, error)


def read_again(engine: "Engine", journal: "RunJournal", error: BaseException) -> None:
    """Drops a run from memory and reads it from the store."""
    id = journal.run
    run = engine.live.pop(id, None)
    engine.dropped[id] = str(error)
    if run is not None:
        run.release()
    # That another node was first with a key, or has the run by now, is nothing to worry about.
    level = logging.INFO if engine.lease is not None and isinstance(error, FenceLost) else logging.ERROR
    engine.log.log(level, "the store failed %s, reading it again: %s", id, error)
    engine.spawn(_reload(engine, id, journal.claim, error))


async def _reload(engine: "Engine", id: str, lost: int, error: BaseException) -> None:
    wait = 0.05
    while not engine.closing:
        try:
            # A commit whose outcome was not known may have been the run's first, or its last.
            record = await engine.read(lambda: engine.store.get_run(id))
            if record is None:
                engine.answers.fail(id, error)
            elif record.status in ("blocked", "pending") and await _has(engine, id):
                await take_up(engine, id)  # what it was claimed for, a person's word, was in the write that failed
            elif record.rests:
                engine.answers.give(id, record)
                if record.parent is not None:
                    engine.hint(record.parent)  # the message that tells it so was in the write, too
            elif record.status == "pending":
                engine.claimer.hint()  # it is nobody's until its time has come
            else:
                await take_up(engine, id)
            engine.dropped.pop(id, None)
            await _take_up_strays(engine, id)
            engine.committer.forgive(id, lost)
            return
        except StoreError as again:
            engine.log.error("reading %s again failed: %s", id, again)
            await asyncio.sleep(wait)
            wait = min(wait * 2, 5.0)


async def _has(engine: "Engine", id: str) -> bool:
    """Whether the store thinks that this node has the run in memory."""
    return id in await engine.read(lambda: engine.store.own_runs(engine.node))


async def take_up(engine: "Engine", id: str) -> None:
    """Claims a run anew that is this node's own, or nobody's. Its attempts may have ended unseen, but nobody died."""
    node = engine.node
    claim = await engine.committer.call(partial(engine.store.claim_one, node, id))
    if claim is not None:
        await engine.resume([msgspec.structs.replace(claim, crashed=False, unseen=True)], node)


async def _take_up_strays(engine: "Engine", id: str) -> None:
    """Runs that were accepted with a write of this one, and whose start was lost with the answer to that write. One
    that had begun may be among them: it is not in memory because a write of its own has failed, too."""
    for stray in await engine.read(lambda: engine.store.stray_runs(engine.node, id)):
        if stray not in engine.live:
            await take_up(engine, stray)
