"""The disk fails at one operation, in one way, under the real engine: nothing is lost, guessed or left half done.

`make nightly` fails every operation of every workload in every way; here it is a sample, and what has found a bug.
"""

import random
from collections import Counter
from pathlib import Path

import apsw
import pytest

from dotdo.errors import StoreError, StoreUnavailable
from dotdo.store.engine_lock import lock_holder
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.store_faults.__main__ import faults_of
from tests.store_faults.disk import KINDS, Disk, Fault
from tests.store_faults.playing import Played, play
from tests.store_faults.workloads import SCRIPTS

SEED = 20_260
EACH = 2  # faults of each kind in each workload


def explained(workload: str, fault: Fault, played: Played) -> str:
    """What is wrong, and how to see it again."""
    lines = "\n  ".join(played.wrong[:5])
    return f"python -m tests.store_faults {workload} {fault.kind} {fault.number}: {played.struck}\n  {lines}"


@pytest.mark.parametrize("workload", SCRIPTS)
def test_nothing_is_lost_whichever_operation_fails(workload: str):
    chance, fired = random.Random(f"{SEED} {workload}"), Counter[str]()
    possible = faults_of(play(workload))
    for kind in KINDS:
        for fault in chance.sample([fault for fault in possible if fault.kind == kind], EACH):
            played = play(workload, fault)
            assert played.struck is not None, fault
            assert not played.wrong, explained(workload, fault, played)
            fired[kind] += 1
            fired["told"] += len(played.said)
            fired["started again"] += played.lives > 1
    assert all(fired[kind] == EACH for kind in KINDS)
    assert fired["told"]
    assert fired["started again"]


def test_workload_is_the_same_each_time():
    first, again = play("checkpointing"), play("checkpointing")
    assert first.operations == again.operations
    assert not first.wrong
    assert set(KINDS["error"]) == {operation.name for operation in first.operations}


def test_store_that_fails_while_it_opens_says_so_and_is_not_locked(tmp_path: Path):
    """Whatever fails: an error of ours, and the same process can open it when the disk works again."""
    path, number, told = str(tmp_path / "dotdo.db"), 0, list[StoreError]()
    SqlStore(SQLiteDatabase(path)).close()
    struck = True
    while struck:
        number += 1
        with Disk(Fault("broken", number)) as disk:
            try:
                SqlStore(SQLiteDatabase(path)).close()
            except StoreError as error:
                told.append(error)
            assert lock_holder(path) is None
            struck = disk.struck is not None
    assert {type(error).__name__ for error in told} == {"StoreUnusable", "StoreUnavailable"}
    assert all("simulated" in error.message for error in told)
    SqlStore(SQLiteDatabase(path)).close()


def test_log_is_copied_when_the_disk_works_again(tmp_path: Path):
    """The checkpointer's thread lives through a disk that fails, also when it had no connection yet."""
    with Disk() as disk:
        database = SQLiteDatabase(str(tmp_path / "dotdo.db"))
        store = SqlStore(database)
        assert database._checkpointer is not None
        disk.broken = True
        database._copy_log()
        disk.broken = False
        assert database._checkpointer.is_alive()
        before = len(disk.done)
        database._copy_log()
        assert [one for one in disk.done[before:] if one.name == "write" and one.file == "dotdo.db"]
        store.close()


def test_rewriting_says_what_the_disk_said(tmp_path: Path):
    """Wherever it fails; and at once, instead of waiting for readers that there are none of."""
    path, number, told, struck = str(tmp_path / "dotdo.db"), 0, list[str](), True
    SqlStore(SQLiteDatabase(path)).close()
    while struck:
        number += 1
        with Disk() as disk:
            database = SQLiteDatabase(path)
            disk.fault = Fault("broken", disk.number + number)
            try:
                database.rewrite()
            except StoreUnavailable as error:
                told.append(error.message)
            struck, disk.broken = disk.struck is not None, False
            database.close()
    assert len(told) > 20
    assert all("simulated" in message for message in told)
    SqlStore(SQLiteDatabase(path)).close()


def test_the_disk_that_forgets_what_it_did_not_sync_is_found_out(tmp_path: Path):
    """The proof of the proof: with a store that does not sync its commits, a power loss takes what was answered."""
    lost = 0
    for seed in range(10):
        path = tmp_path / f"{seed}.db"
        with Disk(Fault("power", 10**9)) as disk:
            connection = apsw.Connection(str(path))
            connection.execute("pragma journal_mode = wal; pragma synchronous = off; create table t (a)").fetchall()
            connection.execute("insert into t values (1)").fetchall()
            disk.dead = True
            with pytest.raises(apsw.Error):
                connection.close()
            disk.lose_power(seed)
        connection = apsw.Connection(str(path))
        lost += not connection.execute("select 1 from sqlite_schema").fetchall()
        connection.close()
    assert lost
