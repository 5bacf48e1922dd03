"""Who is taken for dead and is not commits nothing: a process that was stopped, a thread of an earlier claim.

The processes and threads are real. Each wakes up after its run was taken over, and goes on to its COMMIT.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dotdo import Context, action, service
from dotdo.errors import AttemptOver, StoreUnavailable
from dotdo.store.protocol import Write
from tests.contract_sql.databases import Database, PostgresDatabase, SQLiteFile
from tests.guarantees.unseen import ROOT, store_of
from tests.guarantees.zombie import catalogue
from tests.stores import url_of
from tests.workshop import PATIENCE, Workshop, kinds


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """The process that takes over."""
    workshop = Workshop(tmp_path)
    yield workshop
    workshop.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """The application's database."""
    if request.param == "sqlite":
        return SQLiteFile(tmp_path / "app.db")
    return PostgresDatabase(request.getfixturevalue("postgres_url"))


@pytest.mark.parametrize("name", ["before-its-sql", "after-its-sql", "in-its-own"])
def test_process_that_was_stopped_and_taken_for_dead(workshop: Workshop, database: Database, tmp_path: Path, name: str):
    command = [sys.executable, "-m", "tests.guarantees.zombie", str(tmp_path), database.url, name]
    zombie = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        _, status = os.waitpid(zombie.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), zombie.communicate()
        # A stopped process keeps its lock on a file, and so nobody takes over; unless the lock is lost.
        store_of(tmp_path).with_name("dotdo.db.lock").unlink(missing_ok=not url_of(tmp_path).startswith("sqlite"))
        holds_the_file = name == "after-its-sql" and isinstance(database, SQLiteFile)
        client = workshop.open(sql=database.url, catalogue=catalogue)
        (run,) = client.runs.list(name=name)
        if holds_the_file:
            # It has SQLite's only write lock: nothing can be settled before it wakes up or dies, and nothing is.
            workshop.until(lambda: client.runs.get(run.id).status == "waiting")
            waiting_for = client.runs.get(run.id).waiting_for
            assert waiting_for is not None
            assert waiting_for.kind == "settlement"
            assert "database is locked" in waiting_for.text
        else:
            assert client.runs.wait(run.id, timeout=PATIENCE).result == "attempt 2"
            assert database.notes() == ["attempt 2"]
        zombie.send_signal(signal.SIGCONT)
        if holds_the_file:
            workshop.clock.advance_to_next()
            assert client.runs.wait(run.id, timeout=PATIENCE).result == "attempt 1"
            assert database.notes() == ["attempt 1"]  # its COMMIT came first, so it counts
            return
        output, errors = zombie.communicate(timeout=PATIENCE)
    finally:
        zombie.kill()
        zombie.communicate()

    assert "commit: " in output, errors
    assert "told: attempt 2" in output, errors  # whoever waits there is told how the run did end
    assert database.notes() == ["attempt 2"]
    assert next(row[3] for row in database.applied()) == "void"


class Zombie:
    """A handler's thread that hangs, and what became of its late SQL."""

    def __init__(self) -> None:
        self.reached, self.released, self.over = threading.Event(), threading.Event(), threading.Event()
        self.came_to: list[str] = []


@pytest.mark.of_files("an error of one write, which a server does not give")
def test_thread_of_an_earlier_claim_of_the_same_node(workshop: Workshop, tmp_path: Path):
    """A write of the run fails, so the node reads it again and claims it anew, while handlers of the old claim hang."""
    database = SQLiteFile(tmp_path / "app.db")
    zombies = {"ctx": Zombie(), "own": Zombie()}
    workshop.expected += ["the store failed"]

    def hang(zombie: Zombie, attempt: int) -> None:
        if attempt == 1:
            zombie.reached.set()
            assert zombie.released.wait(PATIENCE)

    @action("write-by-ctx", catalogue=workshop.catalogue)
    def write_by_ctx(ctx: Context) -> int:
        hang(zombies["ctx"], ctx.attempt)
        try:
            ctx.sql.exec_driver_sql(f"insert into notes (text) values ('ctx {ctx.attempt}')")
        except AttemptOver:
            zombies["ctx"].came_to.append("AttemptOver")
            zombies["ctx"].over.set()
            raise
        return ctx.attempt

    @action("write-by-own", catalogue=workshop.catalogue)
    def write_by_own(ctx: Context) -> int:
        statement = ctx.completion_statement(ctx.attempt, style="?")
        hang(zombies["own"], ctx.attempt)
        with closing(sqlite3.connect(database.path, timeout=PATIENCE)) as connection:
            connection.execute("insert into notes (text) values (?)", (f"own {ctx.attempt}",))
            try:
                connection.execute(statement.sql, statement.parameters)
            except sqlite3.IntegrityError:
                zombies["own"].came_to.append("IntegrityError")
                zombies["own"].over.set()
            connection.commit()  # careless
        return ctx.attempt

    @action("note", catalogue=workshop.catalogue)
    async def note() -> str:
        return "noted"

    @service("writes", catalogue=workshop.catalogue)
    async def writes() -> list[int]:
        by_ctx, by_own, _ = await asyncio.gather(write_by_ctx(), write_by_own(), note())
        return [by_ctx, by_own]

    client = workshop.open(sql=database.url, check_replay=False)
    engine = client._portal.call(client._inner.platform)
    write, failed = engine.store.write, list[str]()  # type: ignore[attr-defined]

    def fail_in_a_batch_and_alone(writes: list[Write]) -> None:
        for each in writes:
            if len(failed) < 2 and any(entry.step.startswith("note") for entry in each.entries):
                for zombie in zombies.values():
                    assert zombie.reached.wait(PATIENCE)
                failed.append(each.run)
                raise StoreUnavailable("the disk is on fire")
        write(writes)

    engine.store.write = fail_in_a_batch_and_alone  # type: ignore[attr-defined]
    handle = client.start(writes)
    assert handle.result(timeout=PATIENCE) == [2, 2]
    assert len(failed) == 2
    for zombie in zombies.values():
        zombie.released.set()
        assert zombie.over.wait(PATIENCE)
    assert [zombie.came_to for zombie in zombies.values()] == [["AttemptOver"], ["IntegrityError"]]
    assert sorted(database.notes()) == ["ctx 2", "own 2"]
    assert kinds(handle, "write-by").count("lost") == 2
