"""Plays one case from its beginning to its end, through as many processes as die in it, and has it audited."""

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Coroutine, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from dotdo.engine.engine import CAPACITY, Engine
from dotdo.engine.failing import Block
from dotdo.errors import ClientClosed, InputError, InvalidOperation, KeyConflict, StoreError, UnknownName
from dotdo.records import Options, Run, RunFilter, keyed_run_id
from dotdo.store.protocol import Message
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.simulation.auditor import ENDED, Told, audit
from tests.simulation.cases import Case, Deed, Order, smaller
from tests.simulation.limits import catalogue_with_limits, limited
from tests.simulation.machine import (
    Chance,
    Deadlock,
    Died,
    FaultyStore,
    SimulatedClock,
    SimulatedLoop,
    bury,
    fail_commits,
    no_threads,
    open_databases,
)
from tests.simulation.ranks import RankedStore, ranked
from tests.simulation.watching import Watch
from tests.simulation.world import BUG, TABLES, World, catalogue
from tests.stores import rows_of

MEMORY = "/dev/shm"
FAULTS_END = 700.0  # simulated seconds from the beginning, after which nothing fails any more
LIVES = 60
PATIENCE = 24 * 3600.0  # simulated seconds that a case may take: its longest sleeps are of hours
STORE_FAILS = ("store.before", "store.after", "store.read")
SILENT = {"sql.silent": 0.9}
SILENCE = 2.0  # simulated seconds until it is noticed that an answer does not come: a cancellation arrives meanwhile
CLOCK_FAULTS = {"clock.forward": 0.15, "clock.back": 0.15}
KEY = b"simulation" * 4
# Notes which states runs pass through.
CHANGES = """
create table changes (was text, now text, count integer, primary key (was, now));
create trigger noted after update of status on runs when old.status <> new.status begin
    insert into changes values (old.status, new.status, 1) on conflict do update set count = count + 1;
end;
"""


class SeededDoubles:
    """Gives runs seeds that do not depend on anything else; see `dotdo.engine.doubles`."""

    def action(self, definition: Any) -> Any:
        """Itself."""
        return definition

    def effect(self, effect: Any) -> Any:
        """Itself."""
        return effect

    def companion(self, effect: Any, function: Any) -> Any:
        """Itself."""
        return function

    def seed(self, run: str) -> str:
        """From its id."""
        return hashlib.sha256(run.encode()).hexdigest()[:16]


@dataclass
class Played:
    """How a case went. wrong: what the auditor found; journal: what was done, to compare two replays of one seed."""

    case: Case
    wrong: list[str]
    chance: Chance
    journal: str = ""
    lives: int = 0
    ended: dict[str, str] = field(default_factory=dict)


class Play:
    """One case under way. look: after how many simulated seconds to see whether it has come to rest."""

    look = 3600.0

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.chance = case, Chance(case.seed, case.faults)
        self.store, self.app = folder / "dotdo.db", folder / "app.db"
        self.world = World(str(self.store))
        self._catalogue = catalogue_with_limits() if case.limits else catalogue
        self.told = Told({order.key: order for order in case.orders})
        # Where a run kills its process, nothing else does, so that it is known whose fault that was.
        self.chance.kills = 0.0 if any(order.service == "hostile" for order in case.orders) else case.kills
        self.results: dict[tuple[str, int], Any] = {}
        self.wrong: list[str] = []
        self._watch = Watch(self.store)
        self._impatient: set[str] = set()  # runs that somebody cancels as soon as he is told of them
        self._errands: set[asyncio.Task[None]] = set()
        self.world.alarmed = self._alarmed  # type: ignore[method-assign]
        self._tried: set[Deed] = set()
        self._left: list[Order | Deed] = sorted([*case.orders, *case.deeds], key=lambda one: one.at)
        self._now, self._offset, self._lives, self._retried = 0.0, 0.0, 0, 0

    def to_end(self) -> Played:
        """Plays until nothing is left to do."""
        over = False
        while not over:
            self._lives += 1
            if self._lives > 3 * LIVES:
                self.wrong.append("I13: its process dies again and again")
                break
            self.chance.quiet = self.chance.quiet or self._lives > LIVES
            over = self._live()
        self.world.close()
        self.wrong += self._watch.close()
        self.told.failures = sum(self.chance.seen[kind] for kind in STORE_FAILS)
        self.told.jumps = self.chance.seen["clock.forward"]
        self.wrong += audit(
            self.store, self.app, self.world, self.told, KEY, over=not self.wrong, catalogue=self._catalogue
        )
        return Played(self.case, self.wrong, self.chance, self._journal(), self._lives)

    def _live(self) -> bool:
        """One process; returns whether it came to the end."""
        loop = SimulatedLoop(self.chance, self._now)
        self.world.loop, self._engine = loop, None
        asyncio.set_event_loop(None)
        try:
            loop.run_until_complete(self._act(loop))
        except Died:
            self._now = loop.time() + self.chance.seconds(30)
            fault = self.chance.fault(CLOCK_FAULTS)
            self._offset += {"clock.forward": 3600.0, "clock.back": -3600.0}.get(fault or "", 0.0)
            return False
        except Deadlock as error:
            self.wrong.append(f"I4: {error}")
            return True
        finally:
            bury(self._engine, loop)
            self._engine = None
        return True

    async def _act(self, loop: SimulatedLoop) -> None:
        store = self._open_store(loop)
        databases = open_databases(self.app, loop)
        engine = Engine(
            store,
            catalogue=self._catalogue,
            clock=SimulatedClock(loop, self._offset),
            anchor_key=KEY,
            databases=databases,
            resources=[self.world],
            capacity=self.case.room or CAPACITY,
        )
        engine.doubles = SeededDoubles()
        await engine.start()
        if self.case.sql_fails:
            fail_commits(databases.engines("main", is_async=False)[0], loop, self._unanswered)
        self._engine = engine
        loop.call_at(FAULTS_END, lambda: setattr(self.chance, "quiet", True))
        while self._left:
            item = self._left[0]
            if item.at > loop.time():
                await asyncio.sleep(item.at - loop.time())
            if isinstance(item, Order):
                await self._insist(self._start(engine, item, item.plan))
            else:
                await self._do(engine, item)
            self._left.remove(item)
        await self._come_to_rest(engine, loop)
        await engine.close()
        self._engine = None

    def _open_store(self, loop: SimulatedLoop) -> FaultyStore:
        database = SQLiteDatabase(str(self.store))
        if self.case.room is None:
            return FaultyStore(database, loop, self._watch.look)
        store = RankedStore(database, loop, self._watch.look)
        store.wrong, store.seen = self.wrong, self.chance.seen
        return store

    async def _insist(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await work
        except StoreError:
            return None  # refused, or not known: the caller comes again with the same key

    # -- callers and operators ----------------------------------------------------------------------------------------

    async def _start(self, engine: Engine, order: Order, plan: list[Any]) -> None:
        options = Options(key=order.key, deadline=order.deadline, delay=order.delay, priority=order.priority)
        for _ in range(20):
            try:
                id = await engine.accept("service", order.service, {"plan": plan}, options)
            except StoreError:
                await asyncio.sleep(1)
                continue
            if self.told.answered.setdefault(order.key, id) != id:
                self.wrong.append(f"I2: {order.key} was answered with {id} and {self.told.answered[order.key]}")
            return

    async def _do(self, engine: Engine, deed: Deed) -> None:
        order = next(one for one in self.case.orders if one.key == deed.key)
        id = keyed_run_id("sim", deed.key)
        self.chance.seen[f"deed.{deed.kind}"] += 1
        first = deed not in self._tried
        self._tried.add(deed)
        try:
            if deed.kind == "again":
                await self._start(engine, order, order.plan)
            elif deed.kind == "conflict":
                await self._conflict(engine, order)
            elif deed.kind == "refused":
                await self._refused(engine, deed)
            elif deed.kind == "event":
                await engine.send_event(id, deed.name, b'"news"', deed.sender, None)
            elif deed.kind == "cancel":
                await engine.cancel(id, None)
            elif deed.kind == "cancel when told":
                self._impatient.add(id)
            elif deed.kind == "undo":
                await engine.undo(id, None)
            elif deed.kind == "retry":
                # To say "try again" to what a run asks may have it happen twice: this one says so to nothing.
                if not (await engine.get(id)).questions:
                    await engine.post(Message(id, "retry", "", "[]", None, None, engine.clock.now()))
            else:
                self._compare(await engine.get(id))
        except (StoreError, InvalidOperation, UnknownName) as error:
            self.chance.seen[f"deed.{deed.kind}.refused"] += 1
            if deed.kind == "event" and first and isinstance(error, InvalidOperation):
                self.told.refused.add(str(deed.sender))

    @property
    def _asked(self) -> Engine | None:
        """The engine that an operator reaches."""
        return self._engine

    def _alarmed(self, run: str) -> None:
        """Operators are told of a run; it is not blocked yet, or has not ended."""
        if run in self._impatient and self._asked is not None:
            self._send_to_cancel(self._asked, run, "told")

    def _unanswered(self) -> float:
        """A commit of the application's database has failed: for how many seconds whoever waits for its answer waits
        on. His run is cancelled meanwhile: hardly any attempt would be else, while nobody knows whether it has
        committed."""
        engine = self._engine
        if engine is None or not self.case.sql_silent:
            return 0.0
        going = [run for run in engine.live.values() if not run.is_stopping]
        doubtful = [run.id for run in going if any(attempt.in_doubt for attempt in run.attempts)]
        if not doubtful or not self.chance.fault(SILENT, "silent"):
            return 0.0
        for run in doubtful:
            self._send_to_cancel(engine, run, "in doubt")
        return SILENCE

    def _send_to_cancel(self, engine: Engine, run: str, when: str) -> None:
        task = asyncio.get_running_loop().create_task(self._cancel(engine, run, when))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _cancel(self, engine: Engine, run: str, when: str) -> None:
        with contextlib.suppress(StoreError, InvalidOperation, ClientClosed):
            await engine.cancel(run, None)
            self.chance.seen[f"deed.cancel.{when}"] += 1

    async def _refused(self, engine: Engine, deed: Deed) -> None:
        """I3: what cannot be run is refused; that it leaves nothing is for the auditor to see."""
        params = {"bad input": {"plan": 7}, "too much input": {"plan": [], "more": 1}}.get(deed.name, {"plan": []})
        service = "nobody" if deed.name == "no such service" else "sim"
        with contextlib.suppress(InputError, UnknownName):
            await engine.accept("service", service, params, Options(key=f"{deed.key} refused"))
            self.wrong.append(f"I3: {deed.name} is accepted")

    async def _conflict(self, engine: Engine, order: Order) -> None:
        """The same key with another input: refused, whatever happens."""
        if order.key not in self.told.answered:
            return
        with contextlib.suppress(KeyConflict):
            await engine.accept("service", "sim", {"plan": ["another"]}, Options(key=order.key))
            self.wrong.append(f"I2: {order.key} was accepted with another input")

    def _compare(self, run: Run) -> None:
        """I12: an ended generation reads alike each time."""
        if run.ended:
            seen = (run.status, run.result, run.error and run.error.message)
            if self.results.setdefault((run.id, run.generation), seen) != seen:
                self.wrong.append(f"I12: {run.id} was {self.results[run.id, run.generation]}, and is {seen} now")

    async def _come_to_rest(self, engine: Engine, loop: SimulatedLoop) -> None:
        """Waits until no run moves, answering what is asked, and letting go of what waits for ever."""
        await asyncio.sleep(max(0.0, FAULTS_END - loop.time()))
        end = loop.time() + PATIENCE
        while loop.time() < end:
            runs = await engine.list_runs(RunFilter(limit=1000))
            for run in runs:
                self._compare(run)
            moving = [run for run in runs if not run.ended]
            if not moving:
                if self.case.limits:
                    await asyncio.sleep(200)  # what slots are left is found out, and given back
                return
            for run in moving:
                await self._help(engine, run)
            await asyncio.sleep(61 if any(run.status == "blocked" for run in moving) else self.look)
        self.wrong += [f"I4: {run.id} ({run.name}) does not end: {run.status}, {run.waiting_for}" for run in moving]

    async def _help(self, engine: Engine, run: Run) -> None:
        waits = run.waiting_for
        with contextlib.suppress(InvalidOperation):
            if run.status == "blocked":
                self.chance.seen["blocked"] += 1
                for question in run.questions:
                    await self._answer(engine, run, question)
                if run.error is not None and "when its process died" in run.error.message:
                    self.world.mended.add(run.id)
                    await engine.retry(run.id, None)
                elif run.name == "hostile" or (run.error is not None and BUG in run.error.message):
                    await engine.cancel(run.id, None)
                elif not run.questions:
                    self.wrong.append(f"{run.id} is blocked, and asks nothing: {run.error}")
            elif waits is not None and waits.kind == "event":
                await engine.cancel(run.id, None)

    async def _answer(self, engine: Engine, run: Run, question: Any) -> None:
        """As it really was."""
        self.chance.seen[f"asked.{question.about}"] += 1
        if question.about in ("undo", "request_undo"):
            outcome, answer = "try_again", None
            self._retried += 1
            if self._retried > 5:
                outcome = "did_not_happen"
        else:
            known = self.world.look_anywhere(question.key)
            outcome = "did_not_happen" if known is None else "happened"
            answer = None if known is None else f'"{known}"'.encode()
        await engine.resolve(run.id, question.key, outcome, answer, None)  # type: ignore[arg-type]

    def _journal(self) -> str:
        entries = rows_of(self.store, "select run, seq, kind, step, at, attempt from journal order by run, seq")
        seen = self.chance.seen
        seen.update(f"entry.{entry['kind']}" for entry in entries)
        seen.update(
            f"run.{run['status']}.{run['undo']}" for run in rows_of(self.store, "select status, undo from runs")
        )
        for change in rows_of(self.store, "select * from changes"):
            seen[f"change.{change['was']}.{change['now']}"] += change["count"]
        told = [*(tuple(entry.values()) for entry in entries), *self.world.arrivals]
        return "\n".join(map(str, told))


_template: Path | None = None


def play(case: Case) -> Played:
    """Plays a case in a folder of its own."""
    with folder_of() as folder, no_threads(), silent():
        return Play(limited(ranked(case)), folder).to_end()


@contextlib.contextmanager
def folder_of() -> Generator[Path]:
    """A folder with an empty store and an application's database."""
    global _template
    if _template is None or not _template.exists():
        _template = Path(
            tempfile.mkdtemp(prefix="dotdo-simulation-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
        )
        SqlStore(SQLiteDatabase(str(_template / "dotdo.db"))).close()
        with closing(apsw.Connection(str(_template / "dotdo.db"))) as connection:
            connection.execute(CHANGES)
        with closing(apsw.Connection(str(_template / "app.db"))) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute(TABLES)
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=_template))
    try:
        for name in ("dotdo.db", "app.db"):
            shutil.copyfile(_template / name, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def silent() -> Generator[None]:
    """What fails here is meant to."""
    log = logging.getLogger("dotdo")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def shrink(played: Played, patience: int = 300) -> Played:
    """A smaller case in which something is wrong, too."""
    left = patience
    found = True
    while found and left > 0:
        found = False
        for case in smaller(played.case, played.chance.fired):
            left -= 1
            again = play(case)
            if again.wrong:
                played, found = again, True
                break
            if left <= 0:
                break
    return played


__all__ = ["ENDED", "Block", "Played", "play", "shrink"]
