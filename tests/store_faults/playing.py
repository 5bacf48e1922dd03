"""Plays a workload on a disk that fails at one operation, through all processes that it takes, and audits the end.

The engine is the real one, on the simulation's loop, so that the same operations come in the same order each time.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

import dotdo.store.sqlite as sqlite_module
from dotdo.audit import Audit
from dotdo.engine.engine import Engine
from dotdo.errors import StoreError
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.simulation.auditor import Told, audit
from tests.simulation.machine import (
    Chance,
    Deadlock,
    Died,
    SimulatedClock,
    SimulatedLoop,
    bury,
    no_threads,
    open_databases,
)
from tests.simulation.simulating import MEMORY, SeededDoubles
from tests.simulation.world import TABLES, World
from tests.store import previous
from tests.store_faults.disk import Disk, Fault, Operation
from tests.store_faults.stage import Stage, Stuck
from tests.store_faults.workloads import SCRIPTS, catalogue_of, prepare_old

KEY = bytes.fromhex(previous.AUDIT_KEY)
BROKEN_FOR = 60.0  # simulated seconds
START_AGAIN = 10.0
LIVES = 12


class SteadyDatabase(SQLiteDatabase):
    """A store's file whose log is copied by the writer in between, so that nothing happens at the same time."""

    def settle_log(self) -> None:
        """Does what the checkpointer would be woken for."""
        super().settle_log()
        if self._wake_checkpointer.is_set():
            self._wake_checkpointer.clear()
            self._copy_log()

    def _checkpoint(self) -> None:
        """The thread ends at once."""


@dataclass
class Played:
    """How it went. operations: what was done on the disk. struck: at which one it failed."""

    wrong: list[str]
    operations: list[Operation]
    struck: Operation | None
    said: list[str]
    lives: int
    seen: Counter[str] = field(default_factory=Counter)


class Play:
    """One workload and one fault, in a folder of its own."""

    def __init__(self, workload: str, fault: Fault | None, folder: Path, seed: int) -> None:
        self.workload, self.fault, self._seed = workload, fault, seed
        self.stage = Stage(folder)
        self.world = World(str(self.stage.store))
        self.catalogue = catalogue_of(workload)
        self._now, self._lives = 0.0, 0

    def to_end(self) -> Played:
        """Plays until the script is through, and then looks at what is there."""
        disk = Disk(self.fault)
        with disk:
            over = self._live(disk)
            operations, struck = list(disk.done), disk.struck
            # What was answered up to here must be there when now the power fails; a lost sync shows only then.
            if self.fault is not None and self.fault.kind in ("power", "fsync"):
                disk.lose_power(self._seed)
                over = False
        while not over and not self.stage.wrong and self._lives < LIVES:
            with Disk() as sound:
                over = self._live(sound)
        if not over:
            self.stage.wrong.append(f"I4: not through after {self._lives} processes: {self.stage.said[-3:]}")
        if not self.stage.wrong:
            self._audit()
        return Played(self.stage.wrong, operations, struck, self.stage.said, self._lives, disk.seen)

    def _live(self, disk: Disk) -> bool:
        """One process; returns whether it came to the end of the script."""
        self._lives += 1
        self._now += START_AGAIN
        loop = SimulatedLoop(Chance(self._seed, quiet=True), self._now)
        loop.set_exception_handler(self._unexpected)
        self._engine: Engine | None = None
        self.world.loop = loop
        disk.died = loop.die
        disk.broke = lambda: loop.call_later(BROKEN_FOR, disk.mend)
        asyncio.set_event_loop(None)
        try:
            return loop.run_until_complete(self._act(loop, disk))
        except Died:
            return False
        except (Stuck, Deadlock) as error:
            self.stage.wrong.append(f"{error}")
            return True
        except Exception as error:  # the caller is told in words of ours, or not at all
            self.stage.wrong.append(f"this comes through: {error!r} {traceback.format_exc()}")
            return True
        finally:
            self._now = loop.time()
            self.world.close()
            if self._ends_abruptly(disk):
                disk.dead = True
            bury(self._engine, loop)

    async def _act(self, loop: SimulatedLoop, disk: Disk) -> bool:
        try:
            engine = await self._open(loop)
        except StoreError as error:
            self.stage.said.append(error.message)
            if disk.dead:
                await loop.create_future()  # until it is noticed
            return False
        self.stage.engine = engine
        await SCRIPTS[self.workload](self.stage)
        if not self._ends_abruptly(disk):
            if not engine.closing:
                await engine.close()
            self._engine = None
        return not (self.workload == "checkpointing" and self._lives == 1)

    def _ends_abruptly(self, disk: Disk) -> bool:
        """Whether the machine stops as it is: to close the store in order would mend what a lost sync has spoilt."""
        return disk.struck is not None and disk.fault is not None and disk.fault.kind in ("power", "fsync")

    async def _open(self, loop: SimulatedLoop) -> Engine:
        store = SqlStore(SteadyDatabase(str(self.stage.store)))
        engine = Engine(
            store,
            catalogue=self.catalogue,
            clock=SimulatedClock(loop, 0),
            anchor_key=KEY,
            databases=open_databases(self.stage.app, loop),
            resources=[self.world],
        )
        engine.doubles = SeededDoubles()
        self._engine = engine
        await engine.start()
        return engine

    def _unexpected(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not loop.dead and not isinstance(error, Died):
            self.stage.wrong.append(f"nobody sees to this: {context['message']}: {error!r}")

    # -- the audit ----------------------------------------------------------------------------------------------------

    def _audit(self) -> None:
        wrong, store = self.stage.wrong, self.stage.store
        with closing(apsw.Connection(str(store))) as connection:
            found = [row[0] for row in connection.execute("pragma integrity_check").fetchall()]
            if found != ["ok"]:
                wrong.append(f"the file is damaged: {found[:3]}")
                return
            there = {row[0] for row in connection.execute("select id from runs").fetchall()}
            journal = connection.execute("select run, data from journal where kind in ('requested', 'committed')")
            intents = "\n".join(str(data) for _, data in journal.fetchall())
        told = Told(None, {} if self.stage.deleting else self.stage.ids)
        is_over = not wrong and self.workload != "migrating"
        wrong += audit(
            store, self.stage.app, self.world, told, KEY, over=is_over, catalogue=catalogue_of(self.workload)
        )
        wrong += [f"I3: {id} was refused, and is there" for id in self.stage.refused & there]
        if not self.stage.deleting:
            keys = {arrival.key.removesuffix(".undo") for arrival in self.world.arrivals}
            wrong += [f"I6: {key} was sent, and its intent is gone" for key in keys if key not in intents]
        reader = SqlStore(SQLiteDatabase(str(store), readonly=True))
        try:
            wrong += [f"the audit says: {found.run} {found.text}" for found in Audit(reader, KEY).verify()]
            for (id, generation), seen in self.stage.ends.items():
                run = reader.get_run(id)
                if run is not None and run.generation == generation and not self.stage.deleting:
                    now = (run.status, run.undo, run.result, run.error and run.error.message)
                    if now != seen:
                        wrong.append(f"I12: {id} was {seen}, and is {now}")
        finally:
            reader.close()
        copy = self.stage.folder / "copy.db"
        if copy.exists():
            with closing(apsw.Connection(str(copy))) as connection:
                if connection.execute("pragma integrity_check").fetchall() != [("ok",)]:
                    wrong.append("the backup is damaged")


_templates: Path | None = None


def play(workload: str, fault: Fault | None = None, seed: int = 0) -> Played:
    """Plays a workload with a fault, or none."""
    with _folder(workload) as folder, no_threads(), _quietly(), _often():
        return Play(workload, fault, folder, seed).to_end()


@contextlib.contextmanager
def _folder(workload: str) -> Generator[Path]:
    global _templates
    if _templates is None or not _templates.exists():
        _templates = Path(tempfile.mkdtemp(prefix="dotdo-disk-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
        with closing(apsw.Connection(str(_templates / "app.db"))) as connection:
            connection.execute("pragma journal_mode = wal").fetchall()
            connection.execute(TABLES).fetchall()
        prepare_old(_templates / "dotdo.db")
    folder = Path(tempfile.mkdtemp(dir=_templates))
    try:
        for name in ("app.db", "dotdo.db") if workload == "migrating" else ("app.db",):
            shutil.copyfile(_templates / name, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _often() -> Generator[None]:
    """The log is copied, and starts over, after a few pages."""
    before = sqlite_module.CHECKPOINT_PAGES, sqlite_module.RESTART_PAGES
    sqlite_module.CHECKPOINT_PAGES, sqlite_module.RESTART_PAGES = 40, 100
    try:
        yield
    finally:
        sqlite_module.CHECKPOINT_PAGES, sqlite_module.RESTART_PAGES = before


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """What fails here is meant to."""
    log = logging.getLogger("dotdo")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


__all__ = ["Played", "play"]
