"""Runs services in real processes that die by SIGKILL at a chosen point, and in others that take up what they left.

`python -m tests.guarantees.crashing` is a program that has imported everything once; for each order (a line of JSON) it
forks a process, which opens a store of its own and runs or resumes a service there. `Crasher` starts and asks it.
"""

import asyncio
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import apsw
import msgspec
import pytest

from dotdo import AsyncDo, AsyncHandle
from dotdo.engine.engine import Engine
from dotdo.engine.history import MAX_CRASHES, PROGRESS
from dotdo.errors import InvalidOperation, OutcomeError
from dotdo.records import Outcome, Run
from tests.guarantees import crash_points, crash_services
from tests.guarantees.commits import Commits
from tests.guarantees.crash_services import TABLES, World
from tests.guarantees.invariants import check_store
from tests.guarantees.ledger import ROOT, Arrival, Ledger, look
from tests.guarantees.replays import check_replays
from tests.patience import PATIENCE
from tests.stores import hurry, rows_of, settings, url_of

T = TypeVar("T")
R = TypeVar("R")

KEY = "the one"
PARDON = "one who knows that it was not to blame"
DIED_TOO_OFTEN = "when its process died, and never got any further"


@dataclass(frozen=True)
class Died:
    """How one process ended: the signal (0: by itself), the points that it passed, and what it says of the run."""

    signal: int
    points: list[str]
    run: dict[str, Any] | None


@dataclass(frozen=True)
class State:
    """All that a run has come to, by witnesses that do not know of each other: its store, the database, the ledger."""

    status: str
    undo: str
    result: Any
    error: str | None
    users: list[str]
    transactions: list[str]
    effects: set[tuple[str, str, str]]
    steps: list[tuple[str, str]]

    def untold(self) -> "State":
        """Without what on_failure tells the admin, who hears of a run once more when it is blocked before it fails."""
        return replace(
            self,
            effects={effect for effect in self.effects if not effect[1].endswith(" admin")},
            steps=[step for step in self.steps if not step[1].startswith("on_failure:")],
        )


class Crasher:
    """The program that forks, as a context manager. Safe to use from one thread at a time."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.guarantees.crashing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self, folder: Path, service: str, input: dict[str, Any], deadly: str = "", *, pardons: bool = False
    ) -> Died:
        """Runs or resumes the service in a process of its own, which dies at that point. pardons: see Scene."""
        order = {
            "folder": str(folder),
            "service": service,
            "input": input,
            "deadly": deadly,
            "pardons": pardons,
            "ledger": self.ledger.address,
            "environment": settings(),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Died(**json.loads(self._process.stdout.readline()))


@dataclass
class Scene:
    """One run of a service in a folder and a world of its own, through as many processes as it takes.

    pardons: what is blocked because it died too often without getting anywhere is retried, by one who knows better.
    """

    crasher: Crasher
    folder: Path
    service: str
    input: dict[str, Any]
    points: list[str] = field(default_factory=list)
    deaths: int = 0
    pardons: bool = False
    pardoned: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir()
        with closing(apsw.Connection(str(self.folder / "app.db"))) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute(TABLES)

    def live(self, deadly: str = "") -> Died:
        """One process more. With a deadly point it may or may not come there; `signal` says."""
        died = self.crasher.run(self.folder, self.service, self.input, deadly, pardons=self.pardons)
        assert died.signal in (0, signal.SIGKILL), died
        if died.signal:
            assert deadly in died.points  # other threads may pass points while the process dies
            self.deaths += 1
        else:
            assert died.run is not None, died
        self.points += died.points
        return died

    def end(self) -> State:
        """Resumes until the run has ended, checks all invariants, and says what it has come to."""
        died = self.live()
        assert died.run is not None
        check_store(self.folder / "dotdo.db")
        check_replays(self.folder / "dotdo.db", crash_services.catalogue)
        journals = rows_of(self.folder / "dotdo.db", "select run, kind, step, data from journal order by run, seq")
        self.pardoned = self._check_blocks(journals)
        entries = [(row["kind"], row["step"], row["data"]) for row in journals]
        arrivals = self.crasher.ledger.arrivals(str(self.folder))
        self._check_intents(entries, arrivals)
        transactions = [row[0] for row in self._rows("app.db", "select what from transactions")]
        self._check_transactions(entries, transactions)
        return State(
            status=died.run["status"],
            undo=died.run["undo"],
            result=died.run["result"],
            error=died.run["error"],
            users=sorted(row[0] for row in self._rows("app.db", "select name from users")),
            transactions=sorted(transactions),
            effects={(one.system, one.what, one.key) for one in arrivals},
            steps=sorted((kind, step) for kind, step, _ in entries if kind in ("committed", "completed", "undone")),
        )

    def _check_blocks(self, journals: list[dict[str, Any]]) -> int:
        """I13: who was blocked for it had died three times without getting anywhere. Returns how often one was."""
        crashes, claimed, blocked = Counter[str](), Counter[str](), 0
        for row in journals:
            run, kind, data = row["run"], row["kind"], msgspec.json.decode(row["data"])
            if kind in PROGRESS:
                crashes[run] = 0
            elif kind == "claimed":
                crashes[run] += data.get("crashed", False)
                claimed[run] = crashes[run]  # on_failure is told before it is blocked, and that gets somewhere
            elif kind == "blocked" and DIED_TOO_OFTEN in data["error"]["message"]:
                assert claimed[run] >= MAX_CRASHES, f"I13: {run} was blocked after {claimed[run]} deaths"
                blocked += 1
        assert blocked == 0 or self.deaths >= MAX_CRASHES, f"I13: {blocked} were blocked after {self.deaths} deaths"
        return blocked

    def _check_intents(self, entries: list[Any], arrivals: list[Arrival]) -> None:
        """I6 and I8: each effect was journaled before, under one key; who honours keys has done it once."""
        intents: set[str] = set()
        for kind, _, data in entries:
            found = msgspec.json.decode(data)
            if kind == "requested":
                intents |= {found["key"], found["key"] + ".undo"}
            elif kind in ("committed", "completed"):
                intents |= {effect["key"] for effect in found.get("effects", [])}
        assert {one.key for one in arrivals} <= intents, "I6: an effect without a journaled intent"
        for key in {one.key for one in arrivals}:
            told = [one for one in arrivals if one.key == key]
            assert len({(one.system, one.what) for one in told}) == 1, f"I8: one key for two effects: {told}"
            assert sum(one.happened for one in told) == 1 or told[0].system == "slack", told
            assert len(told) <= self.deaths + 1, f"I8: {told[0]} was sent {len(told)} times in {self.deaths} deaths"

    def _check_transactions(self, entries: list[Any], transactions: list[str]) -> None:
        """I7: as many applied transactions as committed steps with SQL."""
        committed = [
            step
            for kind, step, data in entries
            if kind in ("committed", "completed") and msgspec.json.decode(data).get("sql")
        ]
        assert len(transactions) == len(committed), f"I7: applied {transactions}, committed {committed}"

    def _rows(self, file: str, sql: str) -> list[Any]:
        with closing(apsw.Connection(str(self.folder / file), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            return connection.execute(sql).fetchall()


class Crashers:
    """Two crashers, because there are two cores, and one ledger for both."""

    def __init__(self, ledger: Ledger, pair: Sequence[Crasher]) -> None:
        self.ledger, self.one = ledger, pair[0]
        self._free: SimpleQueue[Crasher] = SimpleQueue()
        self._threads = ThreadPoolExecutor(len(pair))
        for crasher in pair:
            self._free.put(crasher)

    def map(self, scene: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Plays a scene for each item, two at a time."""
        return list(self._threads.map(scene, items))

    @contextmanager
    def scene(self, folder: Path, service: str, input: dict[str, Any]) -> Iterator[Scene]:
        """A scene with a crasher of its own."""
        crasher = self._free.get()
        try:
            yield Scene(crasher, folder, service, input)
        finally:
            self._free.put(crasher)


@pytest.fixture(scope="module")
def crashers() -> Iterator[Crashers]:
    """For the tests that kill."""
    with Ledger() as ledger, Crasher(ledger) as first, Crasher(ledger) as second:
        yield Crashers(ledger, [first, second])


# -- the program -------------------------------------------------------------------------------------------------------

# What an engine imports only when it needs it: each of a thousand processes would do so again.
NEEDED_LATER = [
    "dotdo.engine.aio_sqlite",
    "dotdo.engine.applying",
    "dotdo.engine.completing",
    "encodings.idna",
    "sqlalchemy.dialects.sqlite.aiosqlite",
]


def main() -> None:
    """Forks for each order, one at a time, and prints how that process ended."""
    for name in NEEDED_LATER:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        heard, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(heard)
            _be_killed(order, tell)
        os.close(tell)
        with open(heard, "rb") as stream:
            *points, last = stream.read().decode().split("\n")
        _, status = os.waitpid(pid, 0)
        report = json.loads(last) if last else None
        ended = {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "points": points, "run": report}
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            ended["run"] = None
        print(json.dumps(ended), flush=True)


def _be_killed(order: dict[str, Any], tell: int) -> None:
    """In the forked process: never returns."""
    code = 1
    try:
        os.environ.update(order["environment"])
        hurry()
        crash_points.install(tell, order["deadly"])
        report = asyncio.run(LIVES.get(order["service"], _live)(order))
        os.write(tell, json.dumps(report).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of the program that it was forked from may run


@asynccontextmanager
async def _opened(order: dict[str, Any]) -> AsyncIterator["Life"]:
    """With the service started, or found by its key."""
    folder = Path(order["folder"])
    world = World(tuple(order["ledger"]), folder)
    sql, store = f"sqlite:///{folder / 'app.db'}", url_of(folder / "dotdo.db")
    async with AsyncDo(store, sql=sql, resources=[world], catalogue=crash_services.catalogue) as client:
        handle = await client.service(order["service"], key=KEY).start(**order["input"])
        if not order["pardons"]:
            yield Life(client, handle, world)
            return
        pardons = Pardons(client)
        going_on = asyncio.create_task(pardons.go_on())
        yield Life(client, handle, world, pardons)
        going_on.cancel()
        await asyncio.wait([going_on])


class Pardons:
    """Retries what is blocked because it died too often, children, too."""

    def __init__(self, client: AsyncDo) -> None:
        self._client, self._granted, self._granting = client, set[tuple[str, int]](), asyncio.Lock()

    async def go_on(self) -> None:
        """Whenever there is such a run."""
        engine = await self._client.platform()
        assert isinstance(engine, Engine)
        await Commits(engine).until(self.grant)

    async def grant(self) -> bool:
        """Each run once; it is a generation older afterwards. Not over with that: never true."""
        async with self._granting:
            for run in await self._client.runs.list(status="blocked"):
                if _died_too_often(run) and (run.id, run.generation) not in self._granted:
                    self._granted.add((run.id, run.generation))
                    await self._client.runs.retry(run.id, actor=PARDON)
        return False


def _died_too_often(run: Run) -> bool:
    return run.status == "blocked" and run.error is not None and DIED_TOO_OFTEN in run.error.message


@dataclass
class Life:
    """One process of a run."""

    client: AsyncDo
    handle: AsyncHandle[Any]
    world: World
    pardons: Pardons | None = None

    async def end(self, handle: AsyncHandle[Any] | None = None) -> Run:
        """How the run ends, or another one."""
        handle = handle or self.handle
        while True:
            try:
                await handle.result(timeout=PATIENCE)
            except OutcomeError as outcome:
                if outcome.code == "still_running":
                    raise
            run = await handle.get()
            if self.pardons is None:
                return run
            if _died_too_often(run):
                await self.pardons.grant()
            elif run.rests:  # or it was pardoned just now
                return run


async def _live(order: dict[str, Any]) -> dict[str, Any]:
    """Waits for the end of the run."""
    async with _opened(order) as life:
        return _report(await life.end())


async def _live_operated(order: dict[str, Any]) -> dict[str, Any]:
    """What failed is mended and retried; what then completes is undone."""
    async with _opened(order) as life:
        run = await life.end()
        if await _generation(life.handle) == 0:
            life.world.mend()
            await life.client.runs.retry(run.id)
            run = await life.end()
        if await _generation(life.handle) == 1:
            await life.client.runs.undo(run.id)
            run = await life.end()
        return _report(run)


async def _generation(handle: AsyncHandle[Any]) -> int:
    """How often the run was reopened, other than by a pardon."""
    reopened = [entry.data for entry in await handle.journal() if entry.kind == "reopened"]
    return sum(msgspec.json.decode(data).get("actor") != PARDON for data in reopened)


async def _live_steered(order: dict[str, Any]) -> dict[str, Any]:
    """The run is sent an event, and once it has done what that says, it is cancelled."""
    async with _opened(order) as life:
        engine, handle = await life.client.platform(), life.handle
        assert isinstance(engine, Engine)

        async def has_done_it() -> bool:
            ends = [entry for entry in await handle.journal() if entry.kind in ("completed", "effects_completed")]
            return {"open-billing", "tell-sales"} <= {entry.step.partition(":")[0] for entry in ends}

        with contextlib.suppress(InvalidOperation):  # it has ended: an earlier process has done all this
            await handle.send_event("next", order["input"]["name"], key="first")
            await Commits(engine).until(has_done_it)
            await handle.cancel()
        return _report(await life.end())


async def _live_beside(order: dict[str, Any]) -> dict[str, Any]:
    """A poison, and innocent runs in flight beside it."""
    async with _opened(order) as life:
        innocents = [
            await life.client.service("beside", key=f"{number}").start(number=number)
            for number in range(order["input"]["innocents"])
        ]
        if life.world.is_mended:
            await life.client.runs.retry(life.handle.id)
        poison, *beside = await asyncio.gather(*map(life.end, [life.handle, *innocents]))
        return {**_report(poison), "beside": [run.status for run in beside]}


async def _live_resolved(order: dict[str, Any]) -> dict[str, Any]:
    """A person answers what the run asks, as the ledger knows it."""
    async with _opened(order) as life:
        asked = 0
        while (run := await life.end()).status == "blocked":
            assert run.questions, run.error
            for question in run.questions:
                happened = look(tuple(order["ledger"]), order["folder"], "forms", question.key)
                outcome: Outcome = "did_not_happen" if happened is None else "happened"
                await life.client.runs.resolve(run.id, outcome, key=question.key, answer=happened)
                asked += 1
        return {**_report(run), "asked": asked}


LIVES = {
    "files-forms": _live_resolved,
    "files-in-vain": _live_resolved,
    "poisoned": _live_beside,
    "mendable": _live_operated,
    "steered": _live_steered,
}


def _report(run: Run) -> dict[str, Any]:
    error = f"{run.error.type}: {run.error.message}" if run.error else None
    return {"status": run.status, "undo": run.undo, "result": run.result, "error": error}


if __name__ == "__main__":
    main()
