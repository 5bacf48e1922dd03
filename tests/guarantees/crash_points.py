"""Points at which a process can be told to die or to stop: before and after each commit, handler and effect.

`install` is called once in the process that is to die; it wraps the store's transactions and the application's.
Handlers and effects of the crash tests name their own points.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from dotdo.engine.sql import SqlWork
from dotdo.store.postgres import PostgresDatabase
from dotdo.store.sqlite import SQLiteDatabase

_seen: Counter[str] = Counter()
_deadly, _stops = "", False
_tell = -1


def point(name: str) -> None:
    """Says that the process is here (`name#n`, counted by name), and dies or stops if that is where it is to."""
    _seen[name] += 1
    here = f"{name}#{_seen[name]}"
    os.write(_tell, f"{here}\n".encode())
    if here == _deadly and _stops:
        # To this thread: one that goes to the process lets the thread that sent it go on for a moment.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif here == _deadly:
        os.kill(os.getpid(), signal.SIGKILL)


def install(tell: int, deadly: str, *, stops: bool) -> None:
    """tell: a file descriptor for the names of the points passed. deadly: where to die; empty: nowhere. stops: it is
    not killed there (SIGKILL), but stopped (SIGSTOP)."""
    global _tell, _deadly, _stops
    _tell, _deadly, _stops = tell, deadly, stops
    SQLiteDatabase.transaction = _with_points(SQLiteDatabase.transaction)  # type: ignore[method-assign]
    PostgresDatabase.transaction = _with_points(PostgresDatabase.transaction)  # type: ignore[method-assign]
    PostgresDatabase.batch = _around(PostgresDatabase.batch)  # type: ignore[method-assign]
    commit = SqlWork.commit

    def commit_with_point(self: SqlWork, *args: Any) -> None:
        commit(self, *args)
        point("sql:after")

    SqlWork.commit = commit_with_point  # type: ignore[method-assign]
    event.listen(Engine, "commit", lambda connection: point("sql:before"))


def _around(batch: Any) -> Any:
    def batch_with_points(self: PostgresDatabase, steps: Any) -> None:
        point("commit:before")
        batch(self, steps)
        point("commit:after")

    return batch_with_points


def _with_points(transaction: Any) -> Any:
    @contextmanager
    def transaction_with_points(self: SQLiteDatabase) -> Iterator[None]:
        with transaction(self):
            yield
            point("commit:before")
        point("commit:after")

    return transaction_with_points
