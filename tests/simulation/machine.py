"""A machine for the real engine on which all is decided by a seed: time, order, faults, and when the process dies.

One event loop whose time is simulated; what the engine gives to threads (its writer, its reader, handlers) is run in
between, on that loop, after a time that the seed says. Nothing else of the engine is replaced.
"""

import asyncio
import contextlib
import os
import random
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy
from sqlalchemy import event

import dotdo.engine.claiming as claiming_module
import dotdo.engine.engine as engine_module
import dotdo.engine.settling as settling_module
from dotdo.engine.applying import Databases
from dotdo.engine.committing import GroupCommit
from dotdo.engine.engine import Engine
from dotdo.errors import StoreUnavailable
from dotdo.records import Run
from dotdo.store.protocol import Claim, Message, Settled, SlotAsk, Store, Write
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.simulation.durations import skewed

START = 1_893_456_000_000
STUCK_AFTER = 400.0 * 24 * 3600  # simulated seconds
EARLY = 0.1  # how likely a run that idles is parked in a turn of the loop in which something else happens
MOST_TURNS = 60_000  # of the loop in one case; those that end take less than 15,000


class Died(SystemExit):
    """The process is dead: thrown out of the loop."""


class Deadlock(AssertionError):
    """Nothing is ready, and nothing will be."""


@dataclass
class Chance:
    """What happens next, drawn from a seed. Each decision has a number; a shrunk case allows some numbers only.

    fired: the numbers of the faults that were injected. seen: what occurred, counted. quiet: no more faults. kills: how
    much more often than in most cases processes die by chance. turns: of the loops of all its processes. hasty: runs
    that idle may be parked in any turn of the loop, not only when they have idled for long enough.
    """

    seed: int
    allowed: frozenset[int] | None = None
    fired: list[int] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    quiet: bool = False
    kills: float = 1.0
    decided: int = 0
    turns: int = 0

    def __post_init__(self) -> None:
        self._draws: dict[str, random.Random] = {}
        self.hasty = random.Random(f"hasty {self.seed}").random() < 0.2
        self._times = random.Random(f"times {self.seed}")

    def fault(self, kinds: dict[str, float], draws: str = "faults") -> str | None:
        """The fault that occurs here, if any. kinds: how likely each is. draws: those of another name change none of
        these, so what is added under a name of its own leaves the other seeds as they were."""
        self.decided += 1
        if draws not in self._draws:
            self._draws[draws] = random.Random(f"{draws} {self.seed}")
        drawn = self._draws[draws].random()
        if self.quiet:
            return None
        for kind, usual in kinds.items():
            likely = usual * self.kills if "kill" in kind else usual
            if drawn < likely:
                if self.allowed is not None and self.decided not in self.allowed:
                    return None
                self.fired.append(self.decided)
                self.seen[kind] += 1
                return kind
            drawn -= likely
        return None

    def seconds(self, most: float) -> float:
        """A length of time: mostly short, sometimes long."""
        return skewed(self._times, most)


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop that waits for nothing: its time moves on to what is next."""

    def __init__(self, chance: Chance, now: float) -> None:
        super().__init__()
        self._selector = self  # the only thing that the base class asks of it is to wait
        self._now, self.chance = now, chance
        self.dead = False
        self.connections: list[sqlite3.Connection] = []  # to the application's database
        self.silence = 0.0  # seconds for which what a thread does now will have waited for an answer
        self._rings = random.Random(f"rings {chance.seed} {now}") if chance.hasty else None

    def time(self) -> float:
        """Simulated seconds."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """The base class would sleep here."""
        if timeout is None:
            raise Deadlock("Nothing is ready, and nothing will be.")
        self.chance.turns += 1
        if self.chance.turns > MOST_TURNS:
            raise Deadlock("It turns round and round, and gets nowhere.")
        self._now += timeout
        if self._now > STUCK_AFTER:
            raise Deadlock("It goes on for ever.")
        if self._rings is not None and not timeout and not self.chance.quiet and self._rings.random() < EARLY:
            self._ring_early()
        return []

    def _ring_early(self) -> None:
        """Has one of the timers that park runs ring at the end of this turn, after what is ready now."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        parking = [one for one in timers if not one.cancelled() and getattr(one._callback, "__name__", "") == "_park"]
        if parking:
            self.chance.seen["parked.early"] += 1
            timer = min(parking)
            self.call_soon(timer._callback, context=timer._context)
            timer.cancel()

    def close(self) -> None:
        """Closes the loop."""
        super().close()

    def die(self) -> None:
        """Ends the process before anything else happens in it."""
        self.dead = True
        self._ready.appendleft(asyncio.Handle(_die, (), self, Context()))  # type: ignore[attr-defined]

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        """There are no threads."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Runs the function some time later, and brings the result some time after that."""
        future = self.create_future()
        self.later(lambda: self._execute(func, args, future), 0.002)
        return future

    def before_commit(self) -> None:
        """Something is about to be written."""

    def later(self, function: Callable[[], Any], most: float, after: float = 0.0) -> None:
        """Calls back after a time of at most so many seconds. after: seconds that go by before."""
        self.call_later(after + self.chance.seconds(most), function)

    def _execute(self, function: Callable[..., Any], args: tuple[Any, ...], future: "asyncio.Future[Any]") -> None:
        try:
            result, error = function(*args), None
        except Exception as failure:
            result, error = None, failure
        self.later(lambda: _resolve(future, result, error), 0.002)

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...


def _die() -> None:
    raise Died


def _resolve(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class SimulatedClock:
    """The loop's time as the store's clock. offset: how far the machine's clock is off, in seconds."""

    def __init__(self, loop: SimulatedLoop, offset: float) -> None:
        self._loop, self._offset, self._latest = loop, offset, 0

    def now(self) -> int:
        """Milliseconds; never back, as long as the process lives."""
        self._latest = max(self._latest, START + int((self._loop.time() + self._offset) * 1000))
        return self._latest

    def until(self, due: int) -> float | None:
        """Seconds."""
        return max(0.0, (due - self.now()) / 1000)

    def on_change(self, callback: Callable[[], None]) -> None:
        """It is not moved by hand."""


class SimulatedCommit(GroupCommit):
    """The engine's group commit; its writer works on the loop, a piece at a time."""

    def __init__(self, store: Store, loop: SimulatedLoop) -> None:
        self.store, self._loop = store, loop
        self._dirty, self._guilty, self._bringing = [], set(), set()
        self._closed, self._apart = False, None
        self.commits = 0
        self.watched = {}
        self._queue: Any = WriterQueue(loop, self._turn)
        self._thread: Any = NoThread()

    def _turn(self) -> None:
        """What the thread does between two looks at its queue."""
        item = self._queue.items.popleft()
        if isinstance(item, tuple):
            self._call(*item)
        elif isinstance(item, list):
            writes = item
            while self._queue.items and isinstance(self._queue.items[0], list):
                writes = writes + self._queue.items.popleft()
            self._commit(writes)


class WriterQueue:
    """The writer's queue: whatever is in it is taken up after a time, sometimes a long one."""

    def __init__(self, loop: SimulatedLoop, turn: Callable[[], None]) -> None:
        self.items: deque[Any] = deque()
        self._loop, self._take = loop, turn
        self._busy = False

    def put(self, item: Any) -> None:
        """Has something done."""
        self.items.append(item)
        self._next()

    def empty(self) -> bool:
        """Whether all was taken up."""
        return not self.items

    def _next(self) -> None:
        if self.items and not self._busy:
            self._busy = True
            slow = self._loop.chance.fault({"store.slow": 0.01})
            self._loop.later(self._turn, 60.0 if slow else 0.005)
            self._loop.before_commit()

    def _turn(self) -> None:
        self._busy = False
        self._take()
        self._next()


class NoThread:
    """Stands for a thread that there is not."""

    def join(self) -> None:
        """It has ended."""


class NoWatchdog:
    """Nobody watches a loop whose time is not real."""

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def close(self) -> None:
        """It has ended."""


class NoExecutor:
    """Stands for the reader's thread; see `SimulatedLoop.run_in_executor`."""

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def shutdown(self, wait: bool = True) -> None:
        """It has ended."""


class SimulatedThreads:
    """`def` handlers, one after the other, each at a time of its own."""

    def __init__(self, loop: SimulatedLoop, limit: int = 0) -> None:
        self._loop = loop

    def run(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Starts the function in an empty context."""
        future = self._loop.create_future()
        self._loop.later(lambda: self._execute(function, future), 0.05)
        return future

    def _execute(self, function: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        if self._loop.dead:
            return
        try:
            result, error = Context().run(function), None
        except BaseException as failure:
            result, error = None, failure
        silence, self._loop.silence = self._loop.silence, 0.0
        if not self._loop.dead:
            self._loop.later(lambda: _resolve(future, result, error), 0.01, after=silence)

    def lend(self) -> None:
        """There are as many as needed."""

    def take_back(self) -> None:
        """There are as many as needed."""


@contextlib.contextmanager
def no_threads() -> Generator[None]:
    """Engines that are made meanwhile have none."""
    replaced = {
        "GroupCommit": SimulatedCommit,
        "Threads": SimulatedThreads,
        "Watchdog": NoWatchdog,
        "ThreadPoolExecutor": NoExecutor,
        "tune_interpreter": lambda: None,
    }
    before = {name: getattr(engine_module, name) for name in replaced}
    settling, poll = settling_module.Threads, claiming_module.POLL_SECONDS
    try:
        claiming_module.POLL_SECONDS = 60.0  # hours pass in a case
        for name, part in replaced.items():
            setattr(engine_module, name, part)
        settling_module.Threads = SimulatedThreads  # type: ignore[assignment,misc]
        yield
    finally:
        for name, part in before.items():
            setattr(engine_module, name, part)
        settling_module.Threads = settling  # type: ignore[misc]
        claiming_module.POLL_SECONDS = poll


class FaultyStore(SqlStore):
    """A store that fails before or after it has written, and at whose commits the process may die. committed: called
    after each."""

    def __init__(
        self, database: SQLiteDatabase, loop: SimulatedLoop, committed: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(database)
        self._loop, self._chance, self._committed = loop, loop.chance, committed

    def write(self, writes: list[Write]) -> None:
        """Like any store's, or not."""
        self._strike(lambda: super(FaultyStore, self).write(writes), FAULTS)

    def post(self, message: Message) -> str | None:
        """Like any store's, or not."""
        return self._strike(lambda: super(FaultyStore, self).post(message), FAULTS)

    def claim_due(self, node: str, now: int, limit: int) -> list[Claim]:
        """Like any store's, or not."""
        return self._strike(lambda: super(FaultyStore, self).claim_due(node, now, limit), SOME_FAULTS)

    def claim_one(self, node: str, run: str) -> Claim | None:
        """Like any store's, or not."""
        return self._strike(lambda: super(FaultyStore, self).claim_one(node, run), SOME_FAULTS)

    def settle_slots(self, asks: Sequence[SlotAsk], gone: Sequence[tuple[str, str, str]], now: int) -> Settled:
        """Like any store's, or not."""
        settled = self._strike(lambda: super(FaultyStore, self).settle_slots(asks, gone, now), SOME_FAULTS)
        self._chance.seen["slot.handed_on"] += len(settled.woken)
        return settled

    def sweep_slots(self, now: int, before: int) -> Settled:
        """Like any store's, or not."""
        return self._strike(lambda: super(FaultyStore, self).sweep_slots(now, before), SOME_FAULTS)

    def get_run(self, run: str) -> Run | None:
        """Like any store's, or not."""
        return self._strike(lambda: super(FaultyStore, self).get_run(run), {"store.read": 0.01})

    def _strike(self, operation: Callable[[], Any], kinds: dict[str, float]) -> Any:
        if self._loop.dead:
            raise StoreUnavailable("the process is dead")
        fault = self._chance.fault(kinds)
        if fault in ("store.before", "store.read"):
            raise StoreUnavailable("simulated: it was not done")
        if fault == "kill.before":
            self._loop.die()
            raise StoreUnavailable("the process is dead")
        result = operation()
        self._committed()
        if fault == "store.after":
            raise StoreUnavailable("simulated: it was done, and the answer lost")
        if fault == "kill.after":
            self._loop.die()
            raise StoreUnavailable("the process is dead")
        return result


def open_databases(app: str | os.PathLike[str], loop: SimulatedLoop) -> Databases:
    """The application's database, whose connections are closed when the process is buried."""
    databases = Databases(f"sqlite:///{app}")

    def opened(connection: Any, _: object) -> None:
        loop.connections.append(connection)

    event.listen(databases.engines("main", is_async=False)[0], "connect", opened)
    return databases


def fail_commits(engine: sqlalchemy.Engine, loop: SimulatedLoop, unanswered: Callable[[], float]) -> None:
    """Has commits of the application's database fail before or after they have happened, or the process die there.

    unanswered: called when one has failed; after how many seconds that is noticed, as on a connection that was cut
    without a word.
    """
    commit: Callable[[Any], None] = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        if loop.dead:
            raise sqlite3.OperationalError("the process is dead")
        fault = loop.chance.fault(SQL_FAULTS, "sql")
        if fault == "sql.before":
            loop.silence = unanswered()
            raise sqlite3.OperationalError("simulated: it was not committed")
        commit(connection)
        if fault == "sql.after":
            loop.silence = unanswered()
            raise sqlite3.OperationalError("simulated: it was committed, and the answer lost")
        if fault == "sql.kill":
            loop.die()
            raise sqlite3.OperationalError("the process is dead")

    engine.dialect.do_commit = do_commit  # type: ignore[method-assign]


SQL_FAULTS = {"sql.before": 0.08, "sql.after": 0.16, "sql.kill": 0.02}
FAULTS = {"store.before": 0.03, "store.after": 0.03, "kill.before": 0.012, "kill.after": 0.02}
SOME_FAULTS = {"store.before": 0.02, "store.after": 0.02, "kill.after": 0.005}


def bury(engine: Engine | None, loop: SimulatedLoop) -> None:
    """After a death: closes the files, and ends the coroutines that would have vanished."""
    loop.dead = True
    tasks = asyncio.all_tasks(loop)
    for run in engine.live.values() if engine is not None else ():
        run.over = True
        if run.code is not None:
            run.code.end()
    for task in tasks:
        asyncio.tasks._unregister_task(task)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            task.get_coro().close()  # type: ignore[union-attr]
    loop._ready.clear()  # type: ignore[attr-defined]
    loop._scheduled.clear()  # type: ignore[attr-defined]
    if engine is not None:
        engine.store.close()
    for connection in loop.connections:
        connection.close()
    loop.close()
