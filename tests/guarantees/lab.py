"""A laboratory for services: an engine on a file of its own, a hand-moved clock, and actions whose every move is seen.

Nothing waits for a length of time: a test waits for a commit that makes something true (`until`), for a handler to
reach a gate (`reached`), or moves the clock. When a lab closes, the invariants of every run in its store are checked.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dotdo import AsyncContext, AsyncDo, Catalogue, Fail, Retry, action
from dotdo.engine.engine import Engine
from dotdo.journal import Entry, read
from dotdo.records import Run
from dotdo.store.queries import translated
from dotdo.testing import ManualClock
from tests import doors
from tests.guarantees.commits import PATIENCE, Commits
from tests.guarantees.invariants import check_store
from tests.guarantees.replays import check_replays
from tests.stores import url_of

catalogue = Catalogue()


class World:
    """What the actions of a test do to the world: they say what they do, stop at gates, and fail as told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.failures: dict[str, int] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._reached: dict[str, asyncio.Event] = {}
        self._heard: dict[str, asyncio.Event] = {}

    def say(self, text: str) -> None:
        """Notes that something has happened."""
        self.said.append(text)
        self._event(self._heard, text).set()

    async def heard(self, text: str) -> None:
        """For tests: returns once that has been said."""
        async with asyncio.timeout(PATIENCE):
            await self._event(self._heard, text).wait()

    def fail(self, name: str, times: int) -> None:
        """Has `flaky(name)` fail so often."""
        self.failures[name] = times

    async def pass_gate(self, name: str) -> None:
        """For actions: tells that they are here, and waits until the test opens."""
        self._event(self._reached, name).set()
        await self._event(self._gates, name).wait()

    async def reached(self, name: str) -> None:
        """For tests: returns when an action stands at the gate."""
        async with asyncio.timeout(PATIENCE):
            await self._event(self._reached, name).wait()
        self._reached[name].clear()

    def open(self, name: str) -> None:
        """Lets whoever stands at the gate, or comes to it later, pass."""
        self._event(self._gates, name).set()

    @staticmethod
    def _event(events: dict[str, asyncio.Event], name: str) -> asyncio.Event:
        return events.setdefault(name, asyncio.Event())


# -- actions that the tests compose ------------------------------------------------------------------------------------


@action("note", catalogue=catalogue)
async def note(ctx: AsyncContext, text: str) -> str:
    """Does one thing, which nothing takes back."""
    ctx.resource(World).say(text)
    return text


@action("unbook", retry=Retry(attempts=3, delay=10, jitter=False), catalogue=catalogue)
async def unbook(ctx: AsyncContext, ticket: str) -> None:
    """Takes a booking back. Fails as told; stops at the gate `unbook ITEM` if a test has named that."""
    world, item = ctx.resource(World), ticket.removeprefix("ticket for ")
    _fail_as_told(world, f"unbook {item}")
    if f"unbook {item}" in world.failures:
        await world.pass_gate(f"unbook {item}")
    world.say(f"unbook {item}")


@action("book", retry=Retry(attempts=2, delay=10, jitter=False), undo=unbook, catalogue=catalogue)
async def book(ctx: AsyncContext, item: str) -> str:
    """Does what its undo takes back."""
    ctx.resource(World).say(f"book {item}")
    return f"ticket for {item}"


@action("refuse", catalogue=catalogue)
async def refuse(reason: str = "no") -> None:
    """Fails for good."""
    raise Fail(reason)


@action("hold", retry=1, catalogue=catalogue)
async def hold(ctx: AsyncContext, gate: str) -> str:
    """Stands at a gate until it is opened; says when it comes, passes, or is cancelled there."""
    world = ctx.resource(World)
    world.say(f"at {gate}")
    try:
        await world.pass_gate(gate)
    except asyncio.CancelledError:
        world.say(f"cancelled at {gate}")
        raise
    world.say(f"past {gate}")
    return gate


@action("flaky", retry=Retry(attempts=3, delay=10, jitter=False), catalogue=catalogue)
async def flaky(ctx: AsyncContext, name: str) -> str:
    """Fails as often as the test says."""
    world = ctx.resource(World)
    world.say(f"try {name}")
    _fail_as_told(world, name)
    return name


def _fail_as_told(world: World, name: str) -> None:
    left = world.failures.get(name, 0)
    if left:
        world.failures[name] = left - 1
        raise ConnectionError(f"{name} is down")


# -- the laboratory ----------------------------------------------------------------------------------------------------


class Lab:
    """A client, its engine, clock and world. `until(condition)` waits for the commit that makes it true."""

    def __init__(self, path: Path, clock: ManualClock, world: World, client: AsyncDo, engine: Engine) -> None:
        self.path, self.clock, self.world, self.client, self.engine = path, clock, world, client, engine
        self.until = Commits(engine).until

    async def until_status(self, id: str, *statuses: str) -> Run:
        """Returns the run when it is in one of these states, and has left memory or not as that state says."""

        async def is_so() -> bool:
            return (await self.client.runs.get(id)).status in statuses

        await self.until(is_so)
        return await self.client.runs.get(id)

    async def until_asleep(self, id: str) -> Run:
        """Returns the run when it has left memory, waiting, with no message for it."""
        found: list[Run] = []

        async def is_asleep() -> bool:
            run = await self.client.runs.get(id)
            inbox = await self.engine.read(lambda: self.engine.store.read_inbox([id]))
            found.append(run)
            return run.status == "waiting" and not inbox[id] and id not in self.engine.live

        await self.until(is_asleep)
        return found[-1]

    async def until_journal_has(self, id: str, kind: str, count: int = 1) -> None:
        """Returns when the journal has so many entries of a kind."""

        async def has() -> bool:
            return len(await self.entries(id, kind)) >= count

        await self.until(has)

    async def entries(self, id: str, *kinds: str) -> list[Entry]:
        """The journal's entries of some kinds."""
        return [entry for entry in await self.client.runs.journal(id) if entry.kind in kinds]

    async def data(self, id: str, kind: str) -> list[Any]:
        """What the entries of a kind hold."""
        return [read(entry) for entry in await self.entries(id, kind)]

    async def sweep(self) -> None:
        """Has the engine look now for runs that are due, or whose node is gone."""
        await self.engine.claimer._sweep()

    async def sql(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """Looks at, or tampers with, the store behind the engine's back."""
        database = self.engine.store._db  # type: ignore[attr-defined]
        statement = translated(statement, database.dialect)
        return await self.engine.committer.call(lambda: database.write(statement, values))

    async def advance_to_next(self) -> None:
        """Moves the clock to the next time that something waits for, once something does."""
        await asyncio.to_thread(self.clock.advance_to_next)

    @asynccontextmanager
    async def time_passing(self) -> AsyncIterator[None]:
        """Meanwhile the clock moves on whenever something waits for a time."""
        over = False

        def pass_time() -> None:
            while not over:
                with contextlib.suppress(TimeoutError):
                    self.clock.advance_to_next(timeout=0.02)

        passing = asyncio.get_running_loop().run_in_executor(None, pass_time)
        try:
            yield
        finally:
            over = True
            await passing


@asynccontextmanager
async def laboratory(folder: Path, **options: Any) -> AsyncIterator[Lab]:
    """Opens a lab on `folder`; the same folder again is the same store. When it closes, checks the invariants of all
    runs, and replays those that have ended. Its client goes through the door that was chosen (tests/doors.py)."""
    path = folder / "dotdo.db"
    clock: ManualClock = options.pop("clock", None) or ManualClock()
    world: World = options.pop("world", None) or World()
    given = {
        "catalogue": catalogue,
        "resources": [world],
        "clock": clock,
        "check_replay": True,
        "grace": 5.0,
        **options,
    }
    client = AsyncDo(url_of(path), **given)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOTDO_LEASE", "30")  # a node of its own on PostgreSQL keeps it, however busy this machine is
            engine = await client.platform()
        assert isinstance(engine, Engine)
        async with doors.through(doors.chosen, client) as found:
            yield Lab(path, clock, world, found, engine)
    finally:
        await client.close()
    check_store(path)
    check_replays(path, given["catalogue"])


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an `async def` test on an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
