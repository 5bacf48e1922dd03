"""What operators do with a store on PostgreSQL, also beside live nodes: look, audit, migrate, prune, erase.

And the application's SQL in the same database, which is the default: applied once for each committed step.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from dotdo import ActionFailed, Catalogue, Context, Do, Fail, action, service
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader
from tests.guarantees.invariants import check_store
from tests.guarantees.ledger import ROOT
from tests.patience import PATIENCE
from tests.stores import LASTING, url_of

CANARY = "canary-7f3a"


@pytest.fixture
def path(on_postgres: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the store goes by; the application has a table of notes in the same database."""
    monkeypatch.setenv("DOTDO_LEASE", LASTING)
    path = tmp_path / "dotdo.db"
    execute(path, "create table notes (text text unique not null)")
    yield path
    check_store(path)


def execute(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Runs a statement behind everybody's back."""
    with psycopg.connect(url_of(path), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def definitions() -> Catalogue:
    """What the tests run."""
    catalogue = Catalogue()

    @action("write", catalogue=catalogue)
    def write(ctx: Context, note: str) -> str:
        ctx.sql.execute(text("insert into notes (text) values (:text)"), {"text": note})
        return note

    @write.undo
    def unwrite(ctx: Context, note: str) -> None:
        ctx.sql.execute(text("delete from notes where text = :text"), {"text": note})

    @action("refuse", catalogue=catalogue)
    def refuse(ctx: Context, note: str) -> None:
        ctx.sql.execute(text("insert into notes (text) values (:text)"), {"text": note})
        raise Fail("no")

    @service("writes", catalogue=catalogue)
    async def writes(notes: list[str], refused: str = "") -> list[str]:
        written = await asyncio.gather(*[write(note=note) for note in notes])
        if refused:
            await refuse(note=refused)
        return list(written)

    return catalogue


def findings(path: Path) -> list[str]:
    """What the audit says."""
    with closing(open_reader(url_of(path))) as reader:
        return [f"{one.entry}: {one.text}" for one in Audit(reader, audit_key("")).verify()]


def dotdo(path: Path, *arguments: str, code: int = 0) -> str:
    """A command's output."""
    command = [sys.executable, "-m", "dotdo", *arguments, "--store", url_of(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_sql_of_the_application_is_in_the_same_database_by_default(path: Path):
    with Do(url_of(path), catalogue=definitions()) as client:
        assert client.service("writes").invoke(notes=["a", "b"]) == ["a", "b"]
        with pytest.raises(ActionFailed):
            client.service("writes").invoke(notes=["c"], refused="d")
    assert sorted(execute(path, "select text from notes")) == [("a",), ("b",)]  # what failed is undone or rolled back
    assert execute(path, "select count(*) from dotdo_applied where completion <> 'void'") == [(0,)]


@pytest.mark.parametrize(
    "tampering, told",
    [
        ("update dotdo.journal set data = replace(data, 'b', 'x') where kind = 'completed'", "data"),
        ("delete from dotdo.journal where seq = 2", "entr"),
        ("delete from dotdo.journal where kind = 'ended'", "entr"),
        ("update dotdo.journal set seq = 5 - seq where seq in (2, 3) and false", ""),
        ("update dotdo.runs set status = 'failed'", "row"),
    ],
    ids=["edited", "deleted", "truncated", "nothing", "row"],
)
def test_audit_finds_tampering(path: Path, tmp_path: Path, tampering: str, told: str):
    with Do(url_of(path), catalogue=definitions()) as client:
        client.service("writes").invoke(notes=["b"])
    kept = execute(path, "select * from dotdo.journal order by run, seq")
    assert findings(path) == []
    execute(path, tampering)
    found = findings(path)
    assert bool(found) == bool(told)
    assert all(told in one or "head" in one for one in found), found
    execute(path, "truncate dotdo.journal")
    with psycopg.connect(url_of(path)) as connection:
        connection.cursor().executemany(f"insert into dotdo.journal values ({', '.join(['%s'] * 10)})".encode(), kept)
    execute(path, "update dotdo.runs set status = 'completed'")
    assert findings(path) == []


def test_deleted_runs_are_in_the_registry_and_their_journals_go_beside_live_nodes(path: Path):
    with Do(url_of(path), catalogue=definitions()) as one, Do(url_of(path), catalogue=definitions()) as other:
        for number in range(6):
            one.service("writes").invoke(notes=[f"{number}"])
        assert other.runs.prune(older_than=3600) == 0
        deleted, end = 0, time.monotonic() + PATIENCE
        while deleted < 6:  # its clock may be some milliseconds behind that of the node that ran them
            assert time.monotonic() < end
            deleted += other.runs.prune(older_than=0)
        assert deleted == 6
        one.service("writes").invoke(notes=["kept"])
        assert "deleted" in dotdo(path, "db", "prune", "--older-than", "1h")
        assert [run.status for run in one.runs.list()] == ["completed"]
    assert execute(path, "select count(distinct run) from dotdo.journal") == [(1,)]
    assert findings(path) == []
    execute(path, "update dotdo.registry set actor = 'somebody else' where number = 1")
    assert "registry" in findings(path)[0]


def test_erased_data_is_in_no_table_and_on_no_page(path: Path):
    with Do(url_of(path), catalogue=definitions()) as client:
        handle = client.service("writes", key="k", trail=CANARY, labels={"who": CANARY}).start(notes=[CANARY])
        assert handle.result(timeout=60) == [CANARY]
        client.service("writes").invoke(notes=["other"])
        assert CANARY in pages(path)
        assert client.runs.erase(handle.id) == 1
        assert client.runs.get(handle.id).erased_at is not None
        assert CANARY not in pages(path)
        tables = execute(
            path, "select relname from pg_class where relnamespace = 'dotdo'::regnamespace and relkind = 'r'"
        )
        assert len(tables) > 10
        for (table,) in tables:
            assert execute(path, f"select 1 from dotdo.{table} as one where one::text like '%{CANARY}%'") == []
    assert findings(path) == []
    execute(path, "truncate dotdo.journal, dotdo.runs")  # the invariants are those of runs that have their data


def pages(path: Path) -> str:
    """Every page of the store's tables and indexes, as it is on the disk."""
    execute(path, "checkpoint")
    found = execute(
        path,
        "select pg_read_binary_file(pg_relation_filepath(oid)) from pg_class where relkind in ('r', 'i') "
        "and relnamespace = 'dotdo'::regnamespace and pg_relation_size(oid) > 0",
    )
    return "".join(bytes(page).decode("latin-1") for (page,) in found)


def test_commands_look_at_the_store(path: Path):
    assert "No process runs an engine" in dotdo(path, "nodes", code=1)
    with Do(url_of(path), catalogue=definitions()) as client:
        run = client.service("writes").start(notes=["a"])
        run.result(timeout=60)
        (node,) = json.loads(dotdo(path, "nodes", "--json"))
        assert (node["pid"], node["runs"]) == (os.getpid(), 0)
        assert "service writes@1" in node["offers"]
        assert f"process {os.getpid()}" in dotdo(path, "db", "check")
        assert "completed" in dotdo(path, "runs", "show", run.id)
        assert "Nothing was tampered with" in dotdo(path, "audit", "verify")
        assert "already" in dotdo(path, "db", "migrate")
    assert "pg_dump" in dotdo(path, "db", "backup", "copy.db", code=1)
    execute(path, "delete from dotdo.schema_version")
    execute(path, "insert into dotdo.schema_version values (8)")
    assert "dotdo db migrate" in dotdo(path, "db", "check", code=1)
    execute(path, "insert into dotdo.schema_version values (1000)")
    assert "upgrade dotdo" in dotdo(path, "db", "check", code=1)


def test_nodes_must_have_the_same_audit_key(path: Path, monkeypatch: pytest.MonkeyPatch):
    from dotdo.errors import StoreUnusable

    with Do(url_of(path), catalogue=definitions()):
        monkeypatch.setenv("DOTDO_AUDIT_KEY", "ff" * 32)
        with pytest.raises(StoreUnusable, match="every process the same DOTDO_AUDIT_KEY"):
            Do(url_of(path), catalogue=definitions()).__enter__()
