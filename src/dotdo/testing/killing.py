"""Kills of an engine inside a test's process: at a commit or an effect, before or after it.

From the moment of the kill on, nothing of that engine reaches its store, begins an effect or commits SQL; its loop runs
none of its callbacks, and its store is closed as it is. What would vanish with a process stands still instead.
"""

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from dotdo.store.protocol import Message, Write
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine

Kind = Literal["commit", "effect", "sql commit"]
Side = Literal["before", "after"]
ANSWERER = "dotdo.testing"  # who answers the questions that only a kill has raised
CREATED = inspect.CORO_CREATED
PATIENCE = 20.0  # seconds that functions of users on threads are given to end after a kill


class Point(msgspec.Struct, frozen=True):
    """Where an engine is killed: before or after the n-th commit or effect, counted from 1; of all, or of those of one
    place: what is committed or called, and for whom. Branches that race pass the same places in another order."""

    kind: Kind
    number: int
    side: Side
    place: str = ""


class EngineKilled(BaseException):
    """The call was under way when its engine was killed; it is made again on the next one."""


class Dead(Exception):
    """Raised on the threads of a killed engine; nobody hears of it, because its loop stands."""


class Points:
    """The points that an engine passes, and the one where it is killed, if any."""

    def __init__(self) -> None:
        self.deadly: Point | None = None
        self.armed = False  # kills begin with the first run: not while the store is being made
        self.dead = False
        self.died_at = ""  # where that was, in words
        self.passed: list[Point] = []  # by their places, up to the kill
        self.killed: Callable[[], None] = lambda: None  # called once, on whatever thread
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def reach(self, kind: Kind, side: Side, what: str, place: str) -> None:
        """Says that the engine is here, and does not return if it is killed here, or was. what: for people. place: the
        same whenever the same is committed or called."""
        if self._dies(kind, side, what, place):
            raise Dead(f"killed {side} {kind}")

    async def reach_async(self, kind: Kind, side: Side, what: str, place: str) -> None:
        """The same on the engine's loop: an exception would have code of users run after the kill."""
        if self._dies(kind, side, what, place):
            await asyncio.get_running_loop().create_future()

    def check(self) -> None:
        """Does not return when the engine was killed."""
        if self.dead:
            raise Dead("killed")

    def revive(self) -> None:
        """The next engine may begin. It is not killed."""
        self.dead, self.deadly = False, None

    def _dies(self, kind: Kind, side: Side, what: str, place: str) -> bool:
        with self._lock:
            if self.dead:
                return True
            if not self.armed:
                return False
            here, in_all = (Point(kind, self._count((kind, of), side), side, of) for of in (place, ""))
            if not self.died_at:
                self.passed.append(here)
            if self.deadly is None or self.deadly not in (here, in_all):
                return False
            self.dead, self.died_at = True, f"{side} {kind} {in_all.number} ({what})"
        self.killed()
        return True

    def _count(self, of: tuple[str, str], side: Side) -> int:
        if side == "before":
            self._counts[of] = self._counts.get(of, 0) + 1
        return self._counts.get(of, 0)


class KillableDatabase(SQLiteDatabase):
    """A store's file that is not written any more after a kill."""

    def __init__(self, path: str, points: Points) -> None:
        super().__init__(path)
        self.points = points
        self.doing: tuple[str, str] = ("", "")  # what is being written, in words, and its place; if it is a point

    @contextmanager
    def transaction(self) -> Generator[None]:
        """One transaction, with a point before its commit and one after."""
        self.points.check()
        what, place = self.doing
        with super().transaction():
            yield
            if place:
                self.points.reach("commit", "before", what, place)
        if place:
            self.points.reach("commit", "after", what, place)


class KillableStore(SqlStore):
    """A store whose commits of runs and messages are points. posted: whether the last message was left for good."""

    def __init__(self, database: KillableDatabase) -> None:
        super().__init__(database)
        self._killable = database
        self.posted = False

    def write(self, writes: list[Write]) -> None:
        """Like any store's, one by one: which of them would share a transaction depends on how fast threads are."""
        for write in writes:
            with self._doing(described(write), place_of(write)):
                super().write([write])

    def post(self, message: Message) -> str | None:
        """Like any store's."""
        self.posted = False
        try:
            what = f"{message.kind} {message.name}".strip()
            with self._doing(what, f"{message.run} {what}"):
                owner = super().post(message)
        except Dead:
            deadly = self._killable.points.deadly
            # What runs tell each other is not what a call of the test is about, nor is what is answered for it.
            of_test = message.actor not in ("parent", ANSWERER)
            self.posted = of_test and deadly is not None and deadly.side == "after"
            raise
        return owner

    @contextmanager
    def _doing(self, what: str, place: str) -> Generator[None]:
        self._killable.doing = what, place
        try:
            yield
        finally:
            self._killable.doing = "", ""


def described(write: Write) -> str:
    """What a transaction holds, in words: `accepted sign-up; completed create-user`."""
    parts = [f"accepted {run.name}" for run, _ in write.accepts]
    parts += [f"{entry.kind} {entry.step.partition(':')[0]}".strip() for entry in write.entries]
    if write.update is not None and write.update.status not in ("completed", "failed", "cancelled"):
        parts.append(f"parked as {write.update.status}")
    return "; ".join(parts) or "messages"


def place_of(write: Write) -> str:
    """A name of a transaction: whose it is, and what it begins with. What else shares it may differ each time."""
    if write.entries:
        return f"{write.run} {write.entries[0].kind} {write.entries[0].step}".rstrip()
    return f"{write.run} {described(write)}"


def killable_databases(sql: Any, points: Points) -> Any:
    """The application's databases, whose commits of attempts are points, too."""
    from dotdo.engine.applying import Databases  # SQLAlchemy, which not everybody has
    from dotdo.engine.sql import SqlWork

    class KillableWork(SqlWork):
        def commit(self, key: Any, completion: Any) -> None:
            used, what, place = self.opened is not None, key[1].partition(":")[0], f"{key[0]} {key[1]}"
            if used:
                points.reach("sql commit", "before", what, place)
            super().commit(key, completion)
            if used:
                points.reach("sql commit", "after", what, place)

    return Databases(sql, work=KillableWork)


class Remains:
    """A killed engine: its suspended code is kept as it is until the test is over, and then ended."""

    def __init__(self, engine: "Engine", tasks: set["asyncio.Task[Any]"]) -> None:
        self._engine, self._tasks = engine, tasks

    def end(self) -> None:
        """Ends the suspended code; whatever it does then is of no consequence."""
        with _loop_of_the_dead():
            for run in self._engine.live.values():
                if run.code is not None:
                    run.code.end()
            for task in self._tasks:
                _close(task.get_coro())


@contextmanager
def _loop_of_the_dead() -> Generator[None]:
    """What code begins while it is ended never runs. Without a loop of its own asyncio would refuse, or make one."""
    loop = _dead_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        _forget_callbacks(loop)
        for task in asyncio.all_tasks(loop):
            _bury_task(task)
            _close(task.get_coro())
        asyncio.set_event_loop(None)


@functools.cache
def _dead_loop() -> asyncio.AbstractEventLoop:
    """Never runs, and is never closed: threads of drivers still hand their answers to it."""
    return asyncio.new_event_loop()


def bury(engine: "Engine", loop: asyncio.AbstractEventLoop) -> Remains:
    """On the loop's thread, while the loop stands: frees all that a dead process would not hold any more."""
    tasks = asyncio.all_tasks(loop)
    for run in engine.live.values():
        run.over = True
        for attempt in run.attempts:
            attempt.end("was killed")
    if engine.databases is not None:
        engine.databases.end_turns()
    if not engine.threads.drain(PATIENCE):
        raise RuntimeError(
            f"A function on a thread did not end within {PATIENCE:g} s of the kill. Functions that wait for something "
            "else of the same test cannot be killed in the middle; make them `async def`, or wait for less long."
        )
    _end_threads(engine)
    _forget_callbacks(loop)
    for attempt in [attempt for run in engine.live.values() for attempt in run.attempts]:
        # Taken away, so that the suspended code does not roll it back once more when it is ended.
        work, attempt.work = attempt.work, None
        if work is not None:
            loop.run_until_complete(work.bury_async())
    loop.run_until_complete(engine.processes.close())
    loop.run_until_complete(_leave_resources(engine))
    if engine.databases is not None:
        loop.run_until_complete(engine.databases.close())
    _forget_callbacks(loop)
    tasks |= asyncio.all_tasks(loop)  # those, too, that have been begun meanwhile
    for task in tasks:
        _bury_task(task)
    return Remains(engine, tasks)


def _bury_task(task: "asyncio.Task[Any]") -> None:
    asyncio.tasks._unregister_task(task)  # or whoever ends the loop would wake it
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio does for what it ends itself


async def _leave_resources(engine: "Engine") -> None:
    """The next engine opens them again; the connections of a dead process are closed, too."""
    try:
        async with asyncio.timeout(PATIENCE):
            await engine._stack.aclose()  # pyright: ignore[reportPrivateUsage]
    except Exception as error:
        raise RuntimeError(
            f"After a kill, a resource could not be closed ({error!r}). A resource must be able to be closed while its "
            "users stand still, and to be opened again; give the client a function that makes it, if it cannot."
        ) from error


def _end_threads(engine: "Engine") -> None:
    engine.committer.abandon()
    engine._reader.shutdown()  # pyright: ignore[reportPrivateUsage]  # nothing else ends an engine out of order
    engine._watchdog.close()  # pyright: ignore[reportPrivateUsage]
    engine.alarm.close()
    engine.store.close()


def _forget_callbacks(loop: Any) -> None:
    """What the loop was about to call belongs to the dead."""
    for timer in list(loop._scheduled):
        timer.cancel()
    for handle in loop._ready:
        for cell in getattr(handle._callback, "__closure__", None) or ():
            if inspect.iscoroutine(cell.cell_contents) and inspect.getcoroutinestate(cell.cell_contents) == CREATED:
                cell.cell_contents.close()  # a thread has asked for it; or Python would warn that nobody awaits it
    loop._ready.clear()  # not cancelled: the loop's own handles are among them, and are used again


def _close(coroutine: Any) -> None:
    try:
        coroutine.close()
    except BaseException:
        # It caught its end, or failed at it: there is nobody to whom that matters.
        return
