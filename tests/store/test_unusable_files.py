"""Files and folders that cannot be a store are refused, each with what to do, and are left as they are."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import apsw
import pytest

from dotdo import Catalogue, DefinitionError, Do, StoreError, action
from dotdo.embedding import audit_key, open_reader
from dotdo.errors import StoreUnusable
from dotdo.store import migrate

catalogue = Catalogue()


@action("greet", catalogue=catalogue)
async def greet(name: str) -> str:
    return f"Hello {name}"


# -- files that are no stores -----------------------------------------------------------------------------------------


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A store with runs in it, closed."""
    path = tmp_path / "dotdo.db"
    with Do(str(path), catalogue=catalogue) as client:
        for number in range(200):
            client.run(greet, name=f"Ada {number}")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but SQLite's shared memory and our lock, which hold nothing that lasts."""
    passing = (".lock", "-shm", "-wal")
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.endswith(passing)]
    return {path.name: path.read_bytes() for path in files}


def opening(path: Path) -> str:
    """What is said when an engine and when a reader opens a file; it must not be changed by that."""
    before = contents(path.parent)
    said: list[str] = []
    for attempt in (lambda: Do(str(path), catalogue=catalogue).__enter__(), lambda: open_reader(str(path))):
        with pytest.raises(StoreUnusable) as caught:
            attempt()
        said.append(caught.value.message)
    assert contents(path.parent) == before
    assert str(path) in said[0]
    assert said[0] == said[1]
    return said[0]


def test_garbage_is_not_opened(tmp_path: Path):
    path = tmp_path / "dotdo.db"
    path.write_bytes(os.urandom(20_000))
    said = opening(path)
    assert "is not a readable SQLite database" in said
    assert "restore a backup, or move it away" in said


def test_store_with_a_broken_header_is_not_opened(used: Path):
    with used.open("r+b") as file:
        file.write(b"\0" * 100)
    assert "is not a readable SQLite database" in opening(used)


def test_truncated_store_is_told_as_damaged_and_not_made_worse(used: Path):
    whole = used.read_bytes()
    used.write_bytes(whole[: len(whole) // 2])
    before = contents(used.parent)
    with pytest.raises(StoreError, match="may be damaged: restore a backup"):
        read_everything(used)
    assert contents(used.parent) == before
    with pytest.raises(StoreUnusable, match="may be damaged"):
        run_on(used)


def run_on(path: Path) -> None:
    with Do(str(path), catalogue=catalogue) as client:
        for run in client.runs.list(limit=1_000):
            client.runs.journal(run.id)


def read_everything(path: Path) -> None:
    reader = open_reader(str(path))
    try:
        with reader.read_chains("", "~") as (heads, links):
            assert (len(list(heads)), len(list(links))) != (200, 400)
    finally:
        reader.close()


def test_database_of_something_else_is_left_alone(tmp_path: Path):
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("create table users (id integer)")
    said = opening(path)
    assert "is a SQLite database of something else, not a dotdo store" in said
    assert "give it as sql=" in said
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma journal_mode").fetchone() == ("delete",), (
            "not even its journal mode was changed"
        )


def test_store_of_a_newer_dotdo_is_left_alone(used: Path):
    newest = migrate.migrations("sqlite")[-1][0]
    with contextlib.closing(sqlite3.connect(used)) as database:
        database.execute(f"pragma user_version = {newest + 1}")
    said = opening(used)
    assert f"was written by a newer dotdo (schema {newest + 1}; this one knows {newest})" in said
    assert "Upgrade dotdo, or use another file. Nothing was changed." in said


def test_folder_is_no_store(tmp_path: Path):
    assert f"{tmp_path} is a folder; name a file, such as {tmp_path}/dotdo.db." in opening(tmp_path)


def test_path_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match=r"The folder of the store .* cannot be made: a part of its path is a file"):
        Do(str(tmp_path / "file" / "dotdo.db"), catalogue=catalogue).__enter__()


def test_empty_file_is_a_store_that_begins(tmp_path: Path):
    path = tmp_path / "dotdo.db"
    path.write_bytes(b"")
    with pytest.raises(StoreUnusable, match="has never been used"):
        open_reader(str(path))
    with Do(str(path), catalogue=catalogue) as client:
        assert client.run(greet, name="Ada") == "Hello Ada"


@pytest.mark.parametrize("url", ["oracle://host/db", "mysql://x", "sqlite:/x.db", "sqlite:relative.db"])
def test_store_of_an_unknown_kind_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DefinitionError, match=r"use sqlite:///path/to/dotdo\.db, a path, or"):
        Do(url, catalogue=catalogue).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_sqlite_that_corrupts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.40.1")
    with pytest.raises(StoreUnusable, match=r"SQLite 3.40.1 can corrupt .*; 3.51.3 or newer is needed. Install apsw"):
        Do(str(tmp_path / "dotdo.db"), catalogue=catalogue).__enter__()
    assert list(tmp_path.iterdir()) == []


# -- folders, processes, keys -----------------------------------------------------------------------------------------

AS_NOBODY = """
import os, sys
from dotdo import Do, DotdoError, action
@action("noop")
def noop() -> None: ...
with Do("sqlite://") as client:
    client.run(noop)  # everything that is imported late, while that can be read
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        with Do(path) as client:
            client.run(noop)
        print("opened", path)
    except DotdoError as error:
        print(type(error).__name__, error.message)
"""


def test_folder_or_file_that_cannot_be_written_is_refused():
    """As a user without rights: for root nothing is read-only."""
    folder = Path(tempfile.mkdtemp(prefix="dotdo-readonly-"))
    try:
        with Do(str(folder / "used.db"), catalogue=catalogue) as client:
            client.run(greet, name="Ada")
        folder.chmod(0o555)
        before = contents(folder)
        paths = [folder / "new.db", folder / "used.db", folder / "below" / "new.db"]
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *paths], cwd="/", capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout.splitlines()
        for line, path in zip(said[:2], paths, strict=False):
            assert line.startswith(f"StoreUnusable The store {path} cannot be written: its folder and file must be")
        assert said[2] == f"StoreUnusable The folder of the store {paths[2]} cannot be made: Permission denied."
        folder.chmod(0o755)
        assert contents(folder) == before
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "given, text",
    [("xyz", "DOTDO_AUDIT_KEY is not hexadecimal"), ("abcd", "DOTDO_AUDIT_KEY is too short: at least 32")],
)
def test_wrong_audit_key_is_refused(used: Path, given: str, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_AUDIT_KEY", given)
    with pytest.raises(StoreUnusable, match=text):
        Do(str(used), catalogue=catalogue).__enter__()
    monkeypatch.delenv("DOTDO_AUDIT_KEY")
    Do(str(used), catalogue=catalogue).close()  # and nothing holds the store


def test_damaged_audit_key_is_refused(used: Path):
    Path(f"{used}.audit-key").write_text("")
    with pytest.raises(StoreUnusable, match="audit-key is no audit key: 64 hexadecimal digits are"):
        audit_key(str(used))
