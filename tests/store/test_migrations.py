"""Migrations: forward only, each as a whole, the same whether applied at once or one by one."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from dotdo.errors import StoreError, StoreUnusable
from dotdo.store import migrate
from dotdo.store.migrate import migrations
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import APPLICATION_ID, SQLiteDatabase

NEXT = (
    len(migrations("sqlite")) + 1,
    "alter table nodes add column zone text; create table zones (id text primary key);",
)


def schema(path: Path) -> tuple[int, list[tuple[str, str]]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        version = database.execute("pragma user_version").fetchone()[0]
        assert database.execute("pragma application_id").fetchone()[0] == APPLICATION_ID
        return version, database.execute("select name, sql from sqlite_schema order by name").fetchall()


def open_and_close(path: Path) -> None:
    SqlStore(SQLiteDatabase(str(path))).close()


def plan(monkeypatch: pytest.MonkeyPatch, *more: tuple[int, str]) -> None:
    """The known migrations are those of this version, and more."""
    known = [*migrations("sqlite"), *more]
    monkeypatch.setattr(migrate, "migrations", lambda _dialect: known)


def test_numbers_follow_each_other_in_every_dialect():
    numbers = [number for number, _ in migrations("sqlite")]
    assert numbers == list(range(1, len(numbers) + 1))
    since = [number for number, _ in migrations("postgres")]
    assert since == numbers[since[0] - 1 :]  # the same number is the same schema


def test_fresh_schema_is_the_migrated_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_and_close(tmp_path / "step by step.db")
    plan(monkeypatch, NEXT)
    open_and_close(tmp_path / "step by step.db")
    open_and_close(tmp_path / "at once.db")
    assert schema(tmp_path / "step by step.db") == schema(tmp_path / "at once.db")
    assert schema(tmp_path / "at once.db")[0] == NEXT[0]


def test_opening_again_changes_nothing(tmp_path: Path):
    open_and_close(tmp_path / "dotdo.db")
    before = (tmp_path / "dotdo.db").read_bytes()
    open_and_close(tmp_path / "dotdo.db")
    assert (tmp_path / "dotdo.db").read_bytes() == before


def test_migration_that_fails_leaves_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "dotdo.db"
    open_and_close(path)
    before = schema(path)
    plan(monkeypatch, (NEXT[0], NEXT[1] + "create table zones (again text);"))
    with pytest.raises(StoreError):
        open_and_close(path)
    assert schema(path) == before
    plan(monkeypatch, NEXT)
    open_and_close(path)  # the lock was given back, and the mended one applies
    assert schema(path)[0] == NEXT[0]


def test_first_start_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "dotdo.db"
    plan(monkeypatch, (NEXT[0], NEXT[1] + "create table zones (again text);"))
    with pytest.raises(StoreError):
        open_and_close(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("select name from sqlite_schema").fetchall() == []
    plan(monkeypatch, NEXT)
    open_and_close(path)
    assert schema(path)[0] == NEXT[0]


def test_newer_schema_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "dotdo.db"
    with monkeypatch.context() as newer:
        plan(newer, NEXT)
        open_and_close(path)
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="was written by a newer dotdo"):
        open_and_close(path)
    assert path.read_bytes() == before


def test_reader_migrates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "dotdo.db"
    open_and_close(path)
    before = path.read_bytes()
    plan(monkeypatch, NEXT)
    with pytest.raises(StoreUnusable, match=f"older schema .*this dotdo needs {NEXT[0]}.*start your application"):
        SqlStore(SQLiteDatabase(str(path), readonly=True))
    assert path.read_bytes() == before
