"""Runs services in real processes that die by SIGKILL at a chosen point, or stop there, and in others that take up what
they left.

`Crasher` starts and asks the program that makes these processes (crash_lives.py). A `Scene` is one run in as many of
them as it takes; what has become of it is read from the store, the application's database and the ledger.
"""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import apsw
import msgspec
import pytest

from dotdo.engine.history import MAX_CRASHES, PROGRESS
from tests.guarantees import crash_services
from tests.guarantees.crash_lives import DIED_TOO_OFTEN
from tests.guarantees.crash_services import TABLES
from tests.guarantees.invariants import check_store
from tests.guarantees.ledger import ROOT, Arrival, Ledger
from tests.guarantees.replays import check_replays
from tests.stores import rows_of, settings

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Died:
    """How one process ended: the signal (0: by itself), the points that it passed, and what it says of the run. woken:
    the same of the one that had been stopped before."""

    signal: int
    points: list[str]
    run: dict[str, Any] | None
    woken: dict[str, Any] | None = None


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
            [sys.executable, "-m", "tests.guarantees.crash_lives"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self,
        folder: Path,
        service: str,
        input: dict[str, Any],
        deadly: str = "",
        *,
        stops: bool = False,
        wakes_at: int = 0,
        pardons: bool = False,
    ) -> Died:
        """Runs or resumes the service in a process of its own, which dies at that point, or stops there. wakes_at: how
        many points it passes until the one that was stopped before goes on. pardons: see Scene."""
        order = {
            "folder": str(folder),
            "service": service,
            "input": input,
            "deadly": deadly,
            "stops": stops,
            "wakes_at": wakes_at,
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
    stops: int = 0
    pardons: bool = False
    pardoned: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir()
        with closing(apsw.Connection(str(self.folder / "app.db"))) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute(TABLES)

    def live(self, deadly: str = "", *, wakes_at: int = 0) -> Died:
        """One process more. With a deadly point it may or may not come there; `signal` says. wakes_at: see Crasher."""
        died = self.crasher.run(self.folder, self.service, self.input, deadly, wakes_at=wakes_at, pardons=self.pardons)
        assert died.signal in (0, signal.SIGKILL), died
        if died.signal:
            assert deadly in died.points  # other threads may pass points while the process dies
            self.deaths += 1
        else:
            assert died.run is not None, died
        if died.woken is not None:
            # It learns that it is a node no more, comes back as another one, and hears how the run has ended.
            assert (died.woken["signal"], died.woken["run"]) == (0, died.run or died.woken["run"]), died
            assert died.woken["run"] is not None, died
            self.points += died.woken["points"]
        self.points += died.points
        return died

    def stop(self, point: str) -> bool:
        """One process more, which is stopped at a point (SIGSTOP), if it comes there, and goes on beside the next."""
        died = self.crasher.run(self.folder, self.service, self.input, point, stops=True, pardons=self.pardons)
        is_stopped = died.signal == signal.SIGSTOP
        assert is_stopped or died.run is not None, died
        self.points += died.points
        self.stops += is_stopped
        return is_stopped

    def end(self, *, wakes_at: int = 0) -> State:
        """Resumes until the run has ended, checks all invariants, and says what it has come to."""
        died = self.live(wakes_at=wakes_at)
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
        ends = self.deaths + self.stops
        assert blocked == 0 or ends >= MAX_CRASHES, f"I13: {blocked} were blocked after {ends} deaths"
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
            lives = self.deaths + self.stops + 1
            assert len(told) <= lives, f"I8: {told[0]} was sent {len(told)} times in {lives} lives"

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
