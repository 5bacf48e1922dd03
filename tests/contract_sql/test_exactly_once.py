"""SQL exactly once: whatever happens around the commit, the writes of a step are there once or not at all.

Where a crash is involved, a real process is killed with SIGKILL at that point (see dying.py).
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import IntegrityError
from sqlalchemy.util import await_only

from dotdo import (
    ActionFailed,
    AsyncContext,
    Context,
    Do,
    Fail,
    Retry,
    RunCancelled,
    action,
    service,
    wait_for_event,
)
from dotdo.engine.applying import Databases
from dotdo.journal import Completion
from tests.contract_sql import dying
from tests.contract_sql.databases import Database
from tests.workshop import PATIENCE, Workshop, kinds

INSERT = text("insert into notes (text) values ('hello')")
MOMENT = 0.1  # s: a timeout that is meant to pass at the commit; on a slow machine the first attempts do not get there
MANY = Retry(attempts=100, delay=0, jitter=False, never_on=IntegrityError)
ROOT = Path(__file__).resolve().parents[2]


# -- the process dies -------------------------------------------------------------------------------------------------


def kill_one(database: Database, folder: Path, shape: str, moment: str) -> None:
    """Runs dying.py until it has killed itself at that moment."""
    command = [sys.executable, "-m", "tests.contract_sql.dying", str(folder), database.url, shape, moment]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def survivor(tmp_path: Path, database: Database) -> Iterator[Callable[[], Do]]:
    """Opens the store that a killed process has left behind, with the same definitions."""
    opened: list[Do] = []

    def open_client() -> Do:
        opened.append(dying.open_client(tmp_path, database.url))
        return opened[-1].__enter__()

    yield open_client
    for client in opened:
        client.close()


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_commit_that_the_journal_never_saw_counts(
    database: Database, tmp_path: Path, survivor: Callable[[], Do], shape: str
):
    """Killed between the commit of the SQL and the entry: the applied row says how the attempt ended."""
    kill_one(database, tmp_path, shape, "after-commit")
    assert database.notes() == ["written by attempt 1"]
    ((step, generation, attempt, completion),) = database.applied()
    assert (step, generation, attempt) == (f"write-{shape}", 0, 1)

    client = survivor()
    run = client.runs.list()[0].id
    assert client.runs.wait(run, timeout=PATIENCE).result == "result of attempt 1"

    assert database.notes() == ["written by attempt 1"]
    (entry,) = [entry for entry in client.runs.journal(run) if entry.kind == "completed"]
    assert msgspec.json.decode(entry.data) == msgspec.json.decode(completion)
    assert [one.kind for one in client.runs.journal(run)] == ["accepted", "claimed", "completed", "ended"]


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_attempt_that_died_before_its_commit_is_void_and_made_again(
    database: Database, tmp_path: Path, survivor: Callable[[], Do], shape: str
):
    kill_one(database, tmp_path, shape, "before-commit")
    assert database.notes() == []
    assert database.applied() == []

    client = survivor()
    run = client.runs.list()[0].id
    assert client.runs.wait(run, timeout=PATIENCE).result == "result of attempt 2"

    assert database.notes() == ["written by attempt 2"]
    assert ("lost", 1) in [(one.kind, one.attempt) for one in client.runs.journal(run)]
    assert (f"write-{shape}", 0, 1, "void") in database.applied()


def test_commit_that_outlives_its_engine_counts(database: Database, tmp_path: Path, survivor: Callable[[], Do]):
    """The engine is closed in order, but a commit under way takes longer than its grace: the next one finds it."""
    kill_one(database, tmp_path, "sync", "after-close")
    assert database.notes() == ["written by attempt 1"]

    client = survivor()
    run = client.runs.list()[0].id
    assert client.runs.wait(run, timeout=PATIENCE).result == "result of attempt 1"
    assert database.notes() == ["written by attempt 1"]


def test_void_row_keeps_a_zombie_from_committing(database: Database):
    """Recovery concludes nothing from an absent row: it takes its place, so the old transaction can never commit."""
    databases = Databases(database.url)
    databases.prepare()
    key = ("run_1", "write", 0, 1)
    zombie = databases.begin(None, False, lambda: None)
    completion = Completion("write", 1, msgspec.Raw(b"{}"), msgspec.Raw(b"1"), 0, sql=["main"])

    if database.url.startswith("sqlite"):
        # One writer at a time: the zombie has not begun to write when it is settled.
        assert databases.settle("main", key) is None
        zombie.open().execute(INSERT)
    else:
        zombie.open().execute(INSERT)
        assert databases.settle("main", key) is None
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        zombie.commit(key, completion)

    assert database.notes() == []
    assert [row[3] for row in database.applied()] == ["void"]
    assert databases.settle("main", key) is None  # settled once is settled for ever
    asyncio.run(databases.close())


def test_row_that_is_there_counts_when_an_attempt_is_settled(database: Database):
    databases = Databases(database.url)
    databases.prepare()
    key = ("run_1", "write", 0, 1)
    completion = Completion("write", 1, msgspec.Raw(b"{}"), msgspec.Raw(b'"done"'), 7, sql=["main"])
    work = databases.begin(None, False, lambda: None)
    work.open().execute(INSERT)
    work.commit(key, completion)

    settled = databases.settle("main", key)

    assert settled is not None
    assert msgspec.json.encode(settled) == msgspec.json.encode(completion)
    databases.forget("main", [key])
    assert database.applied() == []
    assert database.notes() == ["hello"]
    asyncio.run(databases.close())


# -- the commit and its step part company in one process ---------------------------------------------------------------


class Gate:
    """Stands before the commit of an attempt: tells that it has begun, and holds it until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate in front of every commit of an attempt."""
    gate, commit = Gate(), RootTransaction.commit

    def commit_slowly(self: RootTransaction) -> None:
        if type(self.connection).__name__ != "AttemptConnection":
            commit(self)
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            gate.pass_through()
        else:
            await_only(loop.run_in_executor(None, gate.pass_through))
        commit(self)

    monkeypatch.setattr(RootTransaction, "commit", commit_slowly)
    return gate


def define_both(workshop: Workshop, **policies: Any) -> dict[str, Any]:
    @action("write-sync", catalogue=workshop.catalogue, **policies)
    def write_sync(ctx: Context) -> str:
        ctx.sql.execute(INSERT)
        ctx.stage(workshop.send, text="hello")
        return "done"

    @action("write-async", catalogue=workshop.catalogue, **policies)
    async def write_async(ctx: AsyncContext) -> str:
        await ctx.sql.execute(INSERT)
        ctx.stage(workshop.send, text="hello")
        return "done"

    return {"sync": write_sync, "async": write_async}


@pytest.mark.parametrize("shape", ["sync", "async"])
def test_cancellation_during_the_commit_comes_too_late(workshop: Workshop, database: Database, gate: Gate, shape: str):
    """What has committed is in the journal, and is undone like anything that the run did."""
    write = define_both(workshop)[shape]

    @write.undo
    def remove(ctx: Context, result: str) -> None:
        ctx.sql.execute(text("insert into notes (text) values ('undone')"))

    @service("write-once", catalogue=workshop.catalogue)
    async def write_once() -> None:
        await write()

    handle = workshop.open().start(write_once)
    assert gate.reached.wait(PATIENCE)
    handle.cancel()
    workshop.until(lambda: "stopping" in kinds(handle))
    gate.opened.set()
    with pytest.raises(RunCancelled):
        handle.result(timeout=PATIENCE)

    assert database.notes() == ["hello", "undone"]
    assert kinds(handle, f"write-{shape}") == ["committed", "effects_dropped"]
    assert workshop.receiver.heard == []
    assert handle.get().undo == "all"


@pytest.mark.parametrize("shape", ["sync", "async", "swallows it"])
def test_cancellation_that_came_too_late_for_a_step_does_not_end_its_undo(
    workshop: Workshop, database: Database, gate: Gate, shape: str
):
    """What the step has staged cannot be delivered, so it is undone, and the undo needs its retries."""

    @action("write-swallowing", catalogue=workshop.catalogue)
    async def write_swallowing(ctx: AsyncContext) -> str:
        await ctx.sql.execute(INSERT)
        ctx.stage(workshop.send, text="hello")
        gate.reached.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        return "done"

    write = (define_both(workshop) | {"swallows it": write_swallowing})[shape]

    @write.undo
    def remove(ctx: Context, result: str) -> None:
        workshop.receiver.wait_for("send")
        if ctx.attempt == 1:
            raise ConnectionError("not yet")
        ctx.sql.execute(text("insert into notes (text) values ('undone')"))

    @service("write-beside", catalogue=workshop.catalogue)
    async def write_beside() -> None:
        writing = asyncio.get_running_loop().create_task(write())
        await wait_for_event("enough")
        writing.cancel()
        await wait_for_event("go on")

    workshop.receiver.fail("send", Fail("no such address"))
    handle = workshop.open().start(write_beside)
    assert gate.reached.wait(PATIENCE)
    handle.send_event("enough")
    workshop.until(lambda: "event" in kinds(handle))
    gate.opened.set()
    workshop.until(lambda: "attempt_failed" in kinds(handle, "undo"))
    workshop.clock.advance_to_next()
    workshop.until(lambda: "failed" in kinds(handle, "write"))
    handle.send_event("go on")
    handle.result(timeout=PATIENCE)
    assert database.notes() == ["hello", "undone"]
    assert kinds(handle, "undo") == ["attempt_failed", "completed"]
    assert kinds(handle, "write") == ["committed", "delivery_failed", "failed"]


def test_timeout_during_the_commit_comes_too_late(workshop: Workshop, database: Database, gate: Gate):
    write = define_both(workshop, retry=MANY, timeout=MOMENT)["sync"]
    client = workshop.open()
    loop: Any = client._portal._loop
    handle = client.start(write)
    assert gate.reached.wait(PATIENCE)
    # The loop calls back in the order of times, and that of the attempt was set before.
    loop.call_soon_threadsafe(loop.call_later, MOMENT, gate.opened.set)
    assert handle.result(timeout=PATIENCE) == "done"
    assert database.notes() == ["hello"]


def test_timeout_that_meets_the_end_of_its_handler_does_not_repeat_it(workshop: Workshop, database: Database):
    """Both are noticed in one turn of the engine's loop, which was held up for that."""

    @action("write", retry=MANY, timeout=MOMENT, catalogue=workshop.catalogue)
    def write(ctx: Context) -> str:
        ctx.sql.execute(INSERT)
        loop.call_soon_threadsafe(hold_up)
        return "done"

    def hold_up() -> None:
        assert threading.Event().wait(2 * MOMENT) is False  # the handler ends and its timeout passes meanwhile

    client = workshop.open()
    loop: Any = client._portal._loop
    handle = client.start(write)
    assert handle.result(timeout=PATIENCE) == "done"
    assert database.notes() == ["hello"]


def test_entry_that_the_store_refuses_does_not_repeat_the_sql(workshop: Workshop, database: Database):
    """The store fails after the SQL has committed, and comes back: the attempt is settled, not made again."""
    workshop.expected += ["the store failed"]
    attempts: list[int] = []

    @action("write", retry=Retry(attempts=2, delay=0), catalogue=workshop.catalogue)
    def write(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        ctx.sql.execute(INSERT)
        store_refuses_completions(workshop, True)
        return "done"

    client = workshop.open()
    workshop.on_error(lambda: store_refuses_completions(workshop, False))
    handle = client.start(write)
    assert handle.result(timeout=PATIENCE) == "done"

    assert attempts == [1]
    assert database.notes() == ["hello"]


def store_refuses_completions(workshop: Workshop, refuses: bool) -> None:
    connection = apsw.Connection(str(workshop.store))
    connection.set_busy_timeout(5000)
    body = "select raise(abort, 'told to')"
    trigger = f"create trigger refuse before insert on journal when new.kind = 'completed' begin {body}; end"
    connection.execute(trigger if refuses else "drop trigger refuse")
    connection.close()


def test_failed_write_is_reported_with_the_databases_error(workshop: Workshop, database: Database):
    @action("write", retry=1, catalogue=workshop.catalogue)
    def write(ctx: Context) -> None:
        ctx.sql.execute(INSERT)
        ctx.sql.execute(INSERT)

    with pytest.raises(ActionFailed, match=r"(?i)unique") as failure:
        workshop.open().run(write)
    assert failure.value.error_type == "IntegrityError"
    assert database.notes() == []
