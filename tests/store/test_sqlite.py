"""What is SQLite's own: readers beside a live engine, what a crash leaves, and the log that must not grow for ever."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from dotdo.errors import StoreUnavailable, StoreUnusable
from dotdo.store import sqlite
from dotdo.store.engine_lock import lock_holder
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.store.runs import Runs, message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dotdo.db"


@pytest.fixture
def engine(path: Path) -> Iterator[SqlStore]:
    """The store as an engine has it open."""
    store = SqlStore(SQLiteDatabase(str(path)))
    yield store
    store.close()


def reader(path: Path) -> SqlStore:
    return SqlStore(SQLiteDatabase(str(path), readonly=True))


# -- readers ----------------------------------------------------------------------------------------------------------


def test_reader_sees_what_the_engine_commits(engine: SqlStore, path: Path):
    runs = Runs(engine)
    with closing(reader(path)) as looking:
        assert looking.get_run("run_1") is None
        run = runs.accept("run_1")
        assert looking.count_by_status() == {"running": 1}
        runs.end(run)
        assert looking.count_by_status() == {"completed": 1}


def test_reader_takes_no_lock(path: Path):
    SqlStore(SQLiteDatabase(str(path))).close()
    with closing(reader(path)), closing(reader(path)), closing(SqlStore(SQLiteDatabase(str(path)))) as engine:
        Runs(engine).accept("run_1")


def test_reader_cannot_write(engine: SqlStore, path: Path):
    Runs(engine).accept("run_1")
    with closing(reader(path)) as looking, pytest.raises(StoreUnavailable, match="could not write"):
        looking.post(message("run_1"))
    assert engine.read_inbox(["run_1"])["run_1"] == []


def test_reader_that_closes_last_leaves_the_log_of_a_killed_engine_alone(tmp_path: Path):
    """A connection that may write copies the log into the file when it closes last; a reader must not."""
    path = tmp_path / "dotdo.db"
    accept_and_die(path)
    before = {name: (tmp_path / name).read_bytes() for name in ("dotdo.db", "dotdo.db-wal")}
    assert len(before["dotdo.db-wal"]) > 0
    with closing(reader(path)) as looking:
        assert looking.count_by_status() == {"running": 1}
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


AS_NOBODY = """
import os, sys
from dotdo.embedding import open_reader
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
SqlStore(SQLiteDatabase(None)).close()  # imports what is imported late, while that can be read
os.setgroups([]) if os.geteuid() == 0 else None
os.setgid(65534) if os.getegid() == 0 else None
os.setuid(65534) if os.geteuid() == 0 else None
print(open_reader(sys.argv[1]).count_by_status())
"""


def test_copy_in_a_folder_that_cannot_be_written_can_be_read(path: Path):
    with closing(SqlStore(SQLiteDatabase(str(path)))) as engine:
        Runs(engine).accept("run_1")
    folder = Path(tempfile.mkdtemp(prefix="dotdo-copy-"))
    try:
        shutil.copy(path, folder / "dotdo.db")
        folder.chmod(0o555)
        command = [sys.executable, "-c", AS_NOBODY, folder / "dotdo.db"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "{'running': 1}\n"), done.stderr
        assert [file.name for file in folder.iterdir()] == ["dotdo.db"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_reader_of_nothing_makes_nothing(path: Path):
    with pytest.raises(StoreUnusable, match="There is no store"):
        reader(path)
    assert list(path.parent.iterdir()) == []


def test_holder_of_the_lock_is_known_while_it_lives(path: Path):
    assert lock_holder(str(path)) is None
    with closing(SqlStore(SQLiteDatabase(str(path)))):
        holder = lock_holder(str(path))
        assert holder is not None
        assert holder.startswith(f"process {os.getpid()} on ")
    dead = accept_and_die(path)
    assert f"process {dead} on" in Path(f"{path}.lock").read_text()
    assert lock_holder(str(path)) is None
    Path(f"{path}.lock").write_text(f"process {os.getpid()} on {socket.gethostname()}")
    assert lock_holder(str(path)) is None, "the number may have gone to another process; the lock has not"


# -- durability -------------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.store.runs import Runs
store = SqlStore(SQLiteDatabase(sys.argv[1]))
Runs(store).accept("run_1")
os.kill(os.getpid(), signal.SIGKILL)
"""


def accept_and_die(path: Path) -> int:
    """A process accepts a run, and is killed as soon as the write has returned. Returns its id."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    process = subprocess.Popen([sys.executable, "-c", DYING, path], cwd=root, env=environment)
    assert process.wait(timeout=60) == -signal.SIGKILL
    return process.pid


def test_write_that_has_returned_survives_a_kill(path: Path):
    accept_and_die(path)
    with closing(SqlStore(SQLiteDatabase(str(path)))) as store:
        assert store.count_by_status() == {"running": 1}
        assert [entry.kind for entry in store.read_journal("run_1")] == ["accepted"]


def test_every_commit_is_flushed(engine: SqlStore, path: Path):
    """Under a simulated power cut synchronous=NORMAL lost what was acknowledged; FULL (2) lost nothing."""
    database: SQLiteDatabase = engine._db  # type: ignore[assignment]
    assert database.writer.execute("pragma synchronous").fetchall() == [(2,)]
    assert database.writer.execute("pragma journal_mode").fetchall() == [("wal",)]


def test_temporary_store_is_gone_when_it_is_closed():
    database = SQLiteDatabase(None)
    store = SqlStore(database)
    Runs(store).accept("run_1")
    folder = database.path.parent
    assert folder.is_dir()
    store.close()
    assert not folder.exists()


# -- the log ----------------------------------------------------------------------------------------------------------


def write_much(store: SqlStore, runs: Runs, count: int) -> None:
    for number in range(count):
        runs.accept(f"run_{number:06}", trail="x" * 2_000)
        store.settle()


@pytest.fixture
def short_log(engine: SqlStore, monkeypatch: pytest.MonkeyPatch) -> SQLiteDatabase:
    """The engine's database, whose log starts over after 100 pages instead of 16,000."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(sqlite, "RESTART_PAGES", 100)
    database: SQLiteDatabase = engine._db  # type: ignore[assignment]
    database._restart_pages = 100
    return database


def test_log_starts_over_under_an_endless_flood(engine: SqlStore, path: Path, short_log: SQLiteDatabase):
    write_much(engine, Runs(engine), 500)
    assert Path(f"{path}-wal").stat().st_size < 5_000_000, "it is 23 MB when it never starts over"
    assert engine.count_by_status() == {"running": 500}


def test_log_that_cannot_start_over_stops_nobody(engine: SqlStore, path: Path, short_log: SQLiteDatabase):
    """A reader that stays in an old moment stands in the way of the log; the writer goes on all the same."""
    runs = Runs(engine)
    runs.accept("run_first")
    with closing(reader(path)) as looking, looking.read_chains("", "~") as (heads, links):
        assert len(list(heads)) == 1
        write_much(engine, runs, 150)
        assert [link[0] for link in links] == ["run_first"], "it still sees its own moment"
    assert engine.count_by_status() == {"running": 151}
    assert short_log._restart_pages > 100, "it was tried in vain"
    grown = Path(f"{path}-wal").stat().st_size
    for number in range(200):
        runs.accept(f"run_later_{number:06}", trail="x" * 2_000)
        engine.settle()
    assert Path(f"{path}-wal").stat().st_size < 2 * grown, "it started over once the reader had gone"


def test_read_error_is_a_store_error(engine: SqlStore):
    database: SQLiteDatabase = engine._db  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable, match="could not read: no such table: nowhere"):
        database.read("select * from nowhere")


def test_library_is_new_enough_for_a_log_that_cannot_corrupt():
    assert tuple(map(int, apsw.sqlite_lib_version().split("."))) >= sqlite.OLDEST
