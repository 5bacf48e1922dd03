"""One engine per file: the lock dies with its process, and no process that is forked from it keeps it alive."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dotdo.errors import StoreUnusable
from dotdo.store.engine_lock import EngineLock, lock_holder
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.guarantees.ledger import ROOT


def test_lock_is_one_persons_at_a_time(tmp_path: Path):
    store = str(tmp_path / "dotdo.db")
    lock = EngineLock.take(store)
    assert lock is not None
    assert EngineLock.take(store) is None
    with pytest.raises(StoreUnusable, match=f"Another engine already runs on the store {store} .process {os.getpid()}"):
        SQLiteDatabase(store)
    lock.release()
    lock.release()
    with closing(SqlStore(SQLiteDatabase(store))):
        assert EngineLock.take(store) is None
    assert lock_holder(store) is None


FORKING = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tried here
from dotdo.errors import StoreUnusable
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
path, other = sys.argv[1:]
store = SqlStore(SQLiteDatabase(path))
child = os.fork()
if child:
    os.read(0, 1)
else:
    for attempt in (dict(), dict(beside=True), dict(readonly=True)):
        try:
            SQLiteDatabase(path, **attempt)
        except StoreUnusable as error:
            print(error.message[:36])
    SqlStore(SQLiteDatabase(other)).close()
    print(os.getpid(), flush=True)
    os.read(0, 1)
"""


def test_forked_child_keeps_no_lock_and_is_refused_the_file(tmp_path: Path):
    """SQLite would work without locks there: it remembers having those that only its parent has."""
    path = tmp_path / "dotdo.db"
    command = [sys.executable, "-c", FORKING, path, tmp_path / "other.db"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "This process was forked from one tha\n"
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # the child lives on
        with closing(SqlStore(SQLiteDatabase(str(path)))) as store:
            assert store.count_by_status() == {}
        assert process.stdin is not None
        process.stdin.close()  # ends the child
        assert process.stdout.read() == ""
