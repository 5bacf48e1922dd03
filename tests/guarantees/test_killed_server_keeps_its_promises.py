"""The guarantees of the core over HTTP: `dotdo serve` is killed by SIGKILL, again and again, at points drawn by a seed,
while clients ask it; they repeat by key what they got no answer to. The ledger, which is outside, is the witness.

Each kill comes when the ledger has heard so many requests more, and must find runs under way; answers must be lost.
"""

import asyncio
import contextlib
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dotdo import ActionFailed, AsyncDo, InvalidInput, KeyConflict, RunBlocked, remote
from dotdo.errors import InvalidOperation, OutcomeUnknown, Unreachable
from dotdo.records import Run
from tests.guarantees import killed_server_app
from tests.guarantees.invariants import check_store
from tests.guarantees.ledger import ROOT, Arrival, Ledger
from tests.guarantees.replays import check_replays
from tests.patience import PATIENCE
from tests.ports import free_port
from tests.server.process import Serving
from tests.stores import rows_of

pytestmark = pytest.mark.of_files("the servers of the test share a file; test_many_nodes kills those of the others")

KILLS = 4
EACH = 12  # of each kind of caller
LIVE = ("pending", "running", "waiting", "stopping", "undoing")


class Killed:
    """A server that is killed and started again until enough kills were made; and what they have met."""

    def __init__(self, folder: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._ledger, self._random = folder, ledger, random.Random(8)
        self.store = folder / ".dotdo" / "dotdo.db"
        self.under_way: list[int] = []
        monkeypatch.setenv("LEDGER_PORT", str(ledger.address[1]))
        monkeypatch.setenv("LEDGER_WORLD", str(folder))
        with closing(sqlite3.connect(folder / "app.db")) as database:
            database.execute("pragma journal_mode = wal")
            database.execute("create table users (id integer primary key, name text not null)")
            database.execute("create table transactions (what text not null)")
        self._port, self._over = free_port(), threading.Event()
        self._serving = self._start()
        self.key = self._serving.key("*")
        self.url = self._serving.url()
        self._thread = threading.Thread(target=self._kill_again_and_again)
        self._thread.start()

    def _start(self) -> Serving:
        application = ["--app", "tests.guarantees.killed_server_app", "--sql", "sqlite:///app.db"]
        path = f"{ROOT / 'src'}:{ROOT}"
        serving = Serving(self.folder, "serve", *application, "--port", str(self._port), PYTHONPATH=path)
        serving.url()
        return serving

    def arrivals(self) -> list[Arrival]:
        """What the ledger has heard."""
        return self._ledger.arrivals(str(self.folder))

    def _kill_again_and_again(self) -> None:
        while len(self.under_way) < KILLS and not self._over.is_set():
            enough = len(self.arrivals()) + self._random.randint(5, 12)
            while len(self.arrivals()) < enough and not self._over.is_set():
                self._over.wait(self._random.uniform(0.0, 0.01))
            if self._over.is_set():
                return
            self._serving.process.kill()
            self._end()
            found = rows_of(self.store, "select status from runs")
            self.under_way.append(sum(row["status"] in LIVE for row in found))
            self._serving = self._start()

    def _end(self) -> None:
        self._serving.end()
        self._serving._output.close()

    def stop(self) -> None:
        """No more kills; the server ends in order."""
        self._over.set()
        self._thread.join(PATIENCE)
        self._serving.signal()
        assert self._serving.process.wait(PATIENCE) == 0
        self._end()


class Callers:
    """Clients over HTTP. lost: how often an answer was."""

    def __init__(self, killed: Killed) -> None:
        self._killed, self.lost = killed, 0

    async def insist(self, ask: Callable[[AsyncDo], Any]) -> Any:
        """Asks until there is an answer; what is asked goes by a key, so it happens once."""
        while True:
            async with AsyncDo(url=self._killed.url, api_key=self._killed.key) as client:
                try:
                    return await ask(client)
                except (OutcomeUnknown, Unreachable):
                    self.lost += 1

    async def end_of(self, kind: str, what: str, key: str, /, **params: Any) -> Run:
        """Runs it under a key, twice, and returns the run, however it ended."""
        ids: set[str] = set()

        async def ask(client: AsyncDo) -> Run:
            names: Any = client.action if kind == "action" else client.service
            handle = await names(what, key=key).start(**params)
            ids.add(handle.id)
            return await _ended(client, handle.id)

        first, again = await self.insist(ask), await self.insist(ask)
        assert len(ids) == 1, "one key is one run"
        assert again == first, "and one result"
        return again

    async def entries(self, run: Run, *kinds: str) -> list[Any]:
        """Of its journal, as the API tells it."""
        found = await self.insist(lambda client: client.runs.journal(run.id))
        return [entry for entry in found if entry.kind in kinds]


async def _ended(client: AsyncDo, id: str) -> Run:
    """The run once it has ended. One that was under way in three kills in a row is blocked; a person lets it go on."""
    while True:
        try:
            return await client.runs.wait(id, timeout=PATIENCE)
        except ActionFailed:
            return await client.runs.get(id)
        except RunBlocked as blocked:
            if "in flight 3 times when its process died" not in blocked.message:
                raise
            with contextlib.suppress(InvalidOperation):  # somebody else has said so
                await client.runs.retry(id)


def test_server_killed_at_random_keeps_every_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "TRIES", 2)  # sooner than a server can be there again: callers themselves must repeat
    with Ledger() as ledger:
        killed = Killed(tmp_path, ledger, monkeypatch)
        callers = Callers(killed)
        try:
            asyncio.run(asyncio.wait_for(_all(callers, tmp_path), PATIENCE))
        finally:
            killed.stop()
        arrivals = killed.arrivals()
    assert len(killed.under_way) == KILLS
    assert all(killed.under_way), f"each kill met runs under way: {killed.under_way}"
    assert callers.lost, "callers lost answers"
    check_store(killed.store)
    check_replays(killed.store, killed_server_app.catalogue)
    _check_world(arrivals, tmp_path, killed.store)


async def _all(callers: Callers, folder: Path) -> None:
    scenes = [_completes, _is_refused_twice, _is_undone, _finds_nobody, _repeats_the_crm_only, _is_two_versions]
    async with asyncio.TaskGroup() as group:
        for number in range(EACH):
            for scene in scenes:
                group.create_task(scene(callers, number, folder))


async def _completes(callers: Callers, number: int, folder: Path) -> None:
    """1, 6, 7: four steps completed; the key is one run, and refuses another input."""
    run = await callers.end_of("service", "onboard", f"clean-{number}", name=f"clean-{number}")
    assert (run.status, run.undo) == ("completed", "none")
    steps = {entry.step.partition(":")[0] for entry in await callers.entries(run, "completed", "effects_completed")}
    assert steps - {"on_failure"} == {"create-user", "set-up-billing", "send-welcome", "add-to-crm"}
    with pytest.raises(KeyConflict):
        await callers.insist(lambda client: client.service("onboard", key=f"clean-{number}").start(name="other"))


async def _is_refused_twice(callers: Callers, number: int, folder: Path) -> None:
    """2: the mail server refuses twice, then takes it; the handler runs once."""
    run = await callers.end_of("service", "sign-up", f"twice-{number}", name=f"twice-{number}")
    assert run.status == "completed"
    assert len(await callers.entries(run, "delivery_failed")) >= 2


async def _is_undone(callers: Callers, number: int, folder: Path) -> None:
    """3: billing fails for good; what was done is undone, the admin is told, later steps never run."""
    run = await callers.end_of("service", "onboard", f"refused-{number}", name=f"refused-{number}")
    assert (run.status, run.undo) == ("failed", "all")
    assert run.error is not None
    assert (run.error.action, run.error.message) == ("set-up-billing", "The card was refused.")


async def _finds_nobody(callers: Callers, number: int, folder: Path) -> None:
    """4: an unknown user fails the action at once; no mail."""
    run = await callers.end_of("action", "send-welcome", f"nobody-{number}", name=f"nobody-{number}")
    assert run.status == "failed"
    assert run.error is not None
    assert (run.error.message, run.error.attempts) == ("User not found.", 1)


async def _repeats_the_crm_only(callers: Callers, number: int, folder: Path) -> None:
    """5: the CRM is down; the mail's outcome stands; a retry runs the CRM's step only."""
    name = f"no-crm-{number}"
    run = await callers.end_of("service", "sign-up", name, name=name)
    assert (run.status, run.undo) == ("failed", "none")
    (folder / f"mended-{name}").touch()

    async def retry(client: AsyncDo) -> Run:
        with contextlib.suppress(InvalidOperation):  # the retry whose answer was lost has been heard
            await client.runs.retry(run.id)
        return await _ended(client, run.id)

    again = await callers.insist(retry)
    assert again.status == "completed"
    assert again.generation >= 1
    made = [entry.step for entry in await callers.entries(again, "attempt_failed", "committed", "completed")]
    assert [step.partition(":")[0] for step in made].count("create-user") == 1


async def _is_two_versions(callers: Callers, number: int, folder: Path) -> None:
    """8: versions side by side, by their own inputs; a bad input is refused before the handler."""
    name = f"v2-{number}"
    run = await callers.end_of("action", "create-user", name, name=name, team="blue")
    assert (run.status, run.version, run.result) == ("completed", 2, {"name": f"blue/{name}"})
    with pytest.raises(InvalidInput):
        await callers.insist(lambda client: client.action("create-user", key=f"bad-{number}").start(name=7))


def _check_world(arrivals: list[Arrival], folder: Path, store: Path) -> None:
    """I6-I8, by the witnesses: each effect under one key, done once; each transaction applied once."""
    by_key: dict[str, set[tuple[str, str]]] = {}
    for one in arrivals:
        by_key.setdefault(one.key, set()).add((one.system, one.what))
    assert all(len(told) == 1 for told in by_key.values()), "one key, one effect"
    # The admin is told of each block, too: of a run that was under way in three kills in a row.
    done = Counter((one.system, one.what) for one in arrivals if one.happened and one.system != "admin")
    assert set(done.values()) == {1}, f"nothing was done twice: {done}"

    def those(system: str) -> set[str]:
        return {what for found, what in done if found == system}

    def named(*kinds: str) -> set[str]:
        return {f"{kind}-{number}" for kind in kinds for number in range(EACH)}

    assert those("billing") == named("clean")
    assert those("mail") == named("clean", "twice", "no-crm")
    assert those("crm") == named("clean", "twice", "no-crm")
    assert len({one.what for one in arrivals if one.system == "admin"}) >= EACH
    with closing(sqlite3.connect(folder / "app.db")) as database:
        users = [row[0] for row in database.execute("select name from users")]
        applied = Counter(row[0] for row in database.execute("select what from transactions"))
    assert sorted(users) == sorted(named("clean", "twice", "no-crm") | {f"blue/v2-{n}" for n in range(EACH)})
    # A mail that was not sent yet when its run stopped was dropped, and the retry makes that step again: in both
    # generations it is committed. All else is applied once, and all of it as often as it was committed.
    twice = {what for what, times in applied.items() if times > 1}
    assert twice <= {f"welcome {name}" for name in named("no-crm")}, f"each transaction once: {applied}"
    committed = rows_of(store, "select data from journal where kind in ('committed', 'completed')")
    assert sum(bool(msgspec.json.decode(row["data"]).get("sql")) for row in committed) == applied.total()
    assert {what for what in applied if what.startswith("delete")} == {f"delete {name}" for name in named("refused")}
