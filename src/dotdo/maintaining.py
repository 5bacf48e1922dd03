"""What an operator does with a store as a whole: check it, migrate it, back it up beside a live engine, restore it.

Nothing here needs the application. A restored store cannot know what its unfinished runs did after the backup was
made; so each of them is blocked with that question, and none is repeated unasked.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from dotdo.clock import SystemClock
from dotdo.embedding import audit_key, engine_on, key_path, open_shared, postgres_url, store_path
from dotdo.engine import erasing, pruning
from dotdo.errors import StoreUnusable
from dotdo.journal import Blocked, anchor, encode_data, link
from dotdo.policy import Retention
from dotdo.records import ErrorRecord, WaitingFor
from dotdo.store.migrate import migrations
from dotdo.store.protocol import RunUpdate, Store, Write
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase

FILES = ("", "-wal", "-shm")
# Runs that are blocked in one transaction after a restore.
BATCH = 100


class Condition(msgspec.Struct, frozen=True):
    """What `check` found. problems: what is wrong, in words. schema, newest: the store's, and the one of this dotdo.
    bytes: of the file and of its write-ahead log. runs: by status."""

    where: str
    schema: int
    newest: int
    bytes: int
    log_bytes: int
    engine: str | None
    runs: dict[str, int]
    problems: list[str]


class Copy(msgspec.Struct, frozen=True):
    """A backup that was made: where, how large, and how many runs are in it."""

    file: str
    bytes: int
    runs: int


class Restored(msgspec.Struct, frozen=True):
    """A store that was restored: up to which time (ms), how many unfinished runs were blocked, and where the store is
    that was there before."""

    store: str
    until: int
    runs: int
    blocked: int
    before: str | None


def check(store: str | None) -> Condition:
    """Looks whether a store is sound and has the schema of this dotdo. Changes nothing. Raises StoreUnusable."""
    url = postgres_url(store)
    if url is not None:
        return _check_shared(url)
    path = _path(store)
    with closing(SQLiteDatabase(path, readonly=True)) as database:
        schema, problems = database.version(), database.integrity()
    newest = migrations("sqlite")[-1][0]
    runs: dict[str, int] = {}
    if schema != newest:
        problems.append(_other_schema(schema, newest))
    elif not problems:
        with closing(SqlStore(SQLiteDatabase(path, readonly=True))) as opened:
            runs = opened.count_by_status()
    return Condition(path, schema, newest, _size(path), _size(path + "-wal"), engine_on(store), runs, problems)


def _check_shared(url: str) -> Condition:
    from dotdo.store.postgres import PostgresDatabase

    newest = migrations("postgres")[-1][0]
    with closing(PostgresDatabase(url, migrates=False)) as database:
        schema = database.version()
        problems = [_other_schema(schema, newest)] if schema != newest else database.missing_rights()
        size, where = database.size(), database.where
    if problems:
        return Condition(where, schema, newest, size, 0, None, {}, problems)
    with closing(open_shared(url, migrates=False)) as opened:
        return Condition(where, schema, newest, size, 0, engine_on(url), opened.count_by_status(), problems)


def _other_schema(schema: int, newest: int) -> str:
    if schema < newest:
        return f"its schema is {schema}, and this dotdo needs {newest}: dotdo db migrate"
    return f"its schema is {schema}, and this dotdo knows {newest} at most: upgrade dotdo"


def migrate(store: str | None) -> tuple[int, int]:
    """Brings a store to the schema of this dotdo; returns the old number and the new one. Raises StoreUnusable, also
    when an engine holds the store's file or there is none. On PostgreSQL it is made where there is none, and nodes go
    on meanwhile."""
    url = postgres_url(store)
    if url is not None:
        from dotdo.store.postgres import PostgresDatabase

        with closing(PostgresDatabase(url, migrates=False)) as database:
            before = database.version()
        open_shared(url).close()
        return before, migrations("postgres")[-1][0]
    path = _path(store)
    with closing(SQLiteDatabase(path, readonly=True)) as database:
        before = database.version()
    with closing(SqlStore(SQLiteDatabase(path))):
        return before, migrations("sqlite")[-1][0]


def back_up(store: str | None, file: str) -> Copy:
    """Copies one moment of a store to a new file, also beside a live engine, and verifies the copy. Raises StoreError.

    The engine goes on meanwhile; only its write-ahead log cannot start over until the copy is made.
    """
    path, target = _path(store), Path(file).absolute()
    if target.exists():
        raise StoreUnusable(f"{target} exists already; a backup is written to a new file.")
    if not target.parent.is_dir():
        raise StoreUnusable(f"There is no folder {target.parent}.")
    # Under another name first: what has the name of a backup is one.
    draft = target.with_name(target.name + ".part")
    draft.unlink(missing_ok=True)
    try:
        with closing(SQLiteDatabase(path, readonly=True)) as database:
            database.copy_into(str(draft))
        runs = _verified(draft)
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        draft.rename(target)
        _sync_folder(target.parent)
    finally:
        draft.unlink(missing_ok=True)
    return Copy(str(target), _size(str(target)), runs)


def prune(store: str | None, policy: Retention, actor: str | None) -> int:
    """Deletes ended runs of a store; returns how many. Raises StoreUnusable, also when an engine holds its file."""
    with _to_change(store) as place:
        return asyncio.run(pruning.prune(place, policy, actor))


def erase(store: str | None, ids: list[str], actor: str | None) -> int:
    """Erases the data of ended runs of a store; returns of how many. Raises StoreUnusable, also when an engine holds
    its file, UnknownName, InvalidOperation."""
    with _to_change(store) as place:
        return asyncio.run(erasing.erase(place, ids, actor))


@contextmanager
def _to_change(store: str | None) -> Generator[pruning.Place]:
    """The store, to change what has ended."""

    async def here(function: Callable[[], Any]) -> Any:
        return function()

    url = postgres_url(store)
    if url is None:
        path = _path(store)
        SQLiteDatabase(path, readonly=True).close()  # raises when there is no store
        opened = SqlStore(SQLiteDatabase(path))
    else:
        opened = open_shared(url, migrates=False)
    with closing(opened):
        key = audit_key(key_path(store), make=False)
        yield pruning.Place(opened, SystemClock().now(), key, here, here)


def restore(store: str | None, file: str, *, go_on: bool = False) -> Restored:
    """Puts a backup in a store's place; the store that was there is kept beside it. Raises StoreUnusable, also when an
    engine holds the store, or the audit key is not that of the backup.

    go_on: unfinished runs go on by themselves. Only right if nothing has run since the backup was made; otherwise what
    they did in the meantime would be done again, so without it each is blocked until a person has looked.
    """
    path = _path(store)
    draft = path + ".restoring"
    _remove(draft)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with _without_engine(path):
        try:
            with closing(SQLiteDatabase(file, readonly=True)) as database:
                database.copy_into(draft)
            runs = _verified(Path(draft))
            key = audit_key(path, make=False) if runs else b""
            with closing(SqlStore(SQLiteDatabase(draft))) as opened:
                _check_key(opened, key, path)
                until = opened.latest_time()
                blocked = 0 if go_on else _block_unfinished(opened, key, until)
            before = _move_aside(path)
            os.rename(draft, path)
            _sync_folder(Path(path).parent)
        finally:
            _remove(draft)
    return Restored(path, until, runs, blocked, before)


def _block_unfinished(store: SqlStore, key: bytes, until: int) -> int:
    now, blocked = int(time.time() * 1000), 0
    moment = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(until / 1000))
    text = (
        f"The store was restored from a backup that knows nothing after {moment}, and what this run did after that is "
        "not known here. Look at what it may have sent or called since; then retry it (it goes on from there, and "
        "settles its SQL with the application's database first), or cancel it."
    )
    error = ErrorRecord("Restored", text)
    waiting = msgspec.json.encode(WaitingFor("person", f"restored: {text}")).decode()
    while found := store.unfinished_runs(BATCH):
        writes: list[Write] = []
        journals = store.read_journals([run for run, _ in found])
        for run, claim in found:
            head = journals[run][-1]
            data = encode_data(Blocked("restored", error))
            entry = link(head.digest, run, head.seq + 1, "blocked", "", head.generation, 0, max(now, head.at), data)
            signed = anchor(key, run, entry.seq, entry.digest)
            row = (run, claim, "blocked", "none", head.generation, waiting, None, None)
            writes.append(Write(run, claim, [entry], [], RunUpdate(*row, entry.seq, entry.digest, signed, None, now)))
        store.write(writes)
        # Attempts may have ended unseen: their SQL is settled when the run goes on.
        store.mark_crashed([run for run, _ in found])
        blocked += len(found)
    return blocked


def _check_key(store: Store, key: bytes, path: str) -> None:
    newest = store.find_runs("run_", 1)
    if not newest:
        return
    with store.read_chains(newest[0], newest[0]) as (heads, _):
        if any(anchor(key, head.run, head.seq, head.digest) != head.anchor for head in heads):
            raise StoreUnusable(
                f"The audit key of {path} is not the one that the backup was written under. Put the right one into "
                f"{path}.audit-key, or give it as DOTDO_AUDIT_KEY. Nothing was changed."
            )


@contextmanager
def _without_engine(path: str) -> Generator[None]:
    """Holds the store's engine lock, so that none starts in the middle. Raises StoreUnusable when one runs."""
    with open(path + ".lock", "a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = engine_on(path) or "another process"
            raise StoreUnusable(
                f"An engine runs on the store {path} ({holder}): stop it before the store is replaced."
            ) from None
        yield


def _verified(file: Path) -> int:
    """How many runs are in a copy. Raises StoreUnusable when it is not sound."""
    with closing(SQLiteDatabase(str(file), readonly=True)) as database:
        problems = database.integrity()
        if problems:
            raise StoreUnusable(f"The copy {file} is not sound: {'; '.join(problems[:3])}.")
        schema = database.version()
        found = database.read("select count(*) from runs") if schema else [(0,)]
    if not schema:
        raise StoreUnusable(f"{file} is not a store of dotdo.")
    return int(found[0][0])


def _move_aside(path: str) -> str | None:
    if not os.path.exists(path):
        _remove(path)
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    before = f"{path}.before-restore-{stamp}"
    for end in FILES:  # a log that was left by a crash belongs to its file
        if os.path.exists(path + end):
            os.rename(path + end, before + end)
    return before


def _remove(path: str) -> None:
    for end in (*FILES, ".lock"):
        if not (end == ".lock" and not path.endswith(".restoring")):
            Path(path + end).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _path(store: str | None) -> str:
    if postgres_url(store) is not None:
        raise StoreUnusable(
            "Copies of a file are made and restored so. For PostgreSQL use pg_dump and pg_restore, or the server's own "
            "means (docs/postgres.md)."
        )
    path = store_path(store)
    if path is None:
        raise StoreUnusable("A temporary store (sqlite://) is gone when its client closes; name a file.")
    return os.path.abspath(path)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0
