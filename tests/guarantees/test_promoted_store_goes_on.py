"""A store that is moved from SQLite to PostgreSQL goes on there with all that it had, whatever was in flight.

Processes are killed on the file, and go on at the server; the move itself is killed, too. At every moment the runs can
go on in one of the two places, and in no more than one.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest

from dotdo import Catalogue, Do, Retention, action, maintaining, service, wait_for_event
from dotdo.audit import Audit
from dotdo.embedding import open_reader
from dotdo.errors import StoreError, StoreUnusable
from dotdo.keys import new_key
from dotdo.promoting import promote
from dotdo.store.protocol import Limit, Message, SlotAsk
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from tests.guarantees.crashing import Crashers, Scene, crashers
from tests.guarantees.ledger import ROOT
from tests.guarantees.test_killed_anywhere_resumes import differences
from tests.stores import LASTING, url_of, use_postgres

__all__ = ["crashers"]

KEY = "00112233445566778899aabbccddeeff"
SOON = 2.0  # seconds: long enough for a client to be closed meanwhile
# Nodes of a file are gone when it is moved; those of the server are its own.
TABLES = (
    "runs", "journal", "inbox", "links", "labels", "blobs", "registry", "leftovers", "erasing", "api_keys", "offers",
    "tickets", "slots",
)  # fmt: skip


@pytest.fixture(autouse=True)
def audit_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key before and after."""
    monkeypatch.setenv("DOTDO_AUDIT_KEY", KEY)


def dotdo(*arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, which must end like that."""
    command = [sys.executable, "-W", "error", "-m", "dotdo", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.of_files("it begins on a file, also where the store is a server otherwise")
@pytest.mark.parametrize(
    "service, input, every",
    [("onboard-refused", {"name": "ada"}, 23), ("family", {"refused": False}, 41)],
)
def test_killed_on_the_file_it_ends_on_the_server_as_if_nothing_had_happened(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    crashers: Crashers,
    tmp_path: Path,
    service: str,
    input: dict[str, object],
    every: int,
):
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", service, input)
    expected = undisturbed.end()
    scenes: list[Scene] = []
    for number, point in enumerate(undisturbed.points[5::every]):
        scene = Scene(crashers.one, tmp_path / f"{number}", service, input)
        scene.live(point)
        scenes.append(scene)
    assert sum(scene.deaths for scene in scenes) >= 2
    files = [f"sqlite:{scene.folder / 'dotdo.db'}" for scene in scenes]
    use_postgres(request, monkeypatch)
    monkeypatch.setenv("DOTDO_LEASE", LASTING)
    for scene, file in zip(scenes, files, strict=True):
        target = url_of(scene.folder / "dotdo.db")
        promote(file, target)
        state = scene.end()
        assert state == expected, f"{scene.points[-1]}: {differences(expected, state)}"
        with closing(open_reader(target)) as opened:
            assert list(Audit(opened, bytes.fromhex(KEY)).verify()) == []


# -- what arrives ------------------------------------------------------------------------------------------------------


def definitions() -> Catalogue:
    """Actions and services of an application that moves."""
    catalogue = Catalogue()

    @action("shout", catalogue=catalogue)
    def shout(text: str) -> str:
        return text.upper()

    @action("mutter", catalogue=catalogue)
    def mutter(text: str) -> str:
        return text

    @service("approval", catalogue=catalogue)
    async def approval(what: str) -> str:
        before = await shout(what)
        word = await wait_for_event("approved")
        return f"{before} {word}"

    @service("later", catalogue=catalogue)
    async def later(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return await shout("later")

    return catalogue


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store with something of everything: ended, waiting and erased runs, an event that came early, large values."""
    path = tmp_path / "dotdo.db"
    with Do(f"sqlite:///{path}", catalogue=definitions()) as client:
        client.action("shout", key="one", labels={"team": "rail"}).invoke(text="a")
        client.action("shout", trail="t").invoke(text="ä \U0001f600 " + "x" * 300_000)
        client.service("later", key="never").start(seconds=30 * 86_400)
        approval = client.service("approval", key="first").start(what="leave")
        client.action("mutter").invoke(text="pruned")
        gone = client.action("shout").start(text="gone")
        gone.result(timeout=60)
        client.runs.erase(gone.id)
        client.service("later", key="soon").start(seconds=SOON)  # the last one, so that it is not over here
    with closing(SqlStore(SQLiteDatabase(str(path)))) as opened:
        asks = [SlotAsk("call", approval.id, f"{n}", 1, 0, (Limit("concurrency call", 1),)) for n in range(2)]
        opened.settle_slots(asks, [], 1)
        opened.post(Message(approval.id, "event", "approved", '"yes"', "sender", "me", 1))
        opened.save_api_key(new_key("deploy", ["runs:read"], now=1, rate="5/s")[1])
    maintaining.prune(str(path), Retention(older_than=0.001, name="mutter"), "me")
    return path


def everything(url: str) -> dict[str, list[Any]]:
    """Every row of every table that is moved, in order."""
    found: dict[str, list[Any]] = {}
    for table in TABLES:
        if url.startswith("postgres"):
            with psycopg.connect(url, options="-c search_path=dotdo") as reader:
                cursor = reader.execute(f"select * from {table}".encode())
                names = [column.name for column in cursor.description or ()]
                rows = cursor.fetchall()
        else:
            with closing(apsw.Connection(url, flags=apsw.SQLITE_OPEN_READONLY)) as connection:
                names = [row[1] for row in connection.execute(f"pragma table_info({table})")]
                rows = list(connection.execute(f"select * from {table}"))
        found[table] = sorted((sorted(zip(names, row, strict=True)) for row in rows), key=repr)
    return found


def test_everything_arrives_and_the_file_tells_where_it_is(file: Path, postgres_store: str):
    before = everything(str(file))
    told = dotdo("db", "promote", f"sqlite:{file}", postgres_store).stderr
    assert "every journal verified there" in told
    assert "3 unfinished runs go on when a node opens it." in told
    after = everything(postgres_store)
    assert all(
        before[table] for table in ("runs", "journal", "inbox", "labels", "blobs", "registry", "api_keys", "slots")
    )
    assert after == before == everything(str(file))
    assert json.loads(dotdo("audit", "verify", "--json", "--store", postgres_store).stdout)["sound"]
    for arguments in (["runs", "ls"], ["db", "check"], ["db", "migrate"]):
        assert "has moved to postgresql://postgres@127.0.0.1" in dotdo(*arguments, "--store", str(file), code=1).stderr
    again = dotdo("db", "promote", f"sqlite:{file}", postgres_store, code=1).stderr
    assert "open that instead" in again
    with pytest.raises(StoreUnusable, match="has moved to"), Do(f"sqlite:///{file}", catalogue=definitions()) as client:
        client.action("shout").invoke(text="b")
    with Do(postgres_store, catalogue=definitions()) as client:
        assert client.service("approval", key="first").start(what="leave").result(timeout=60) == "LEAVE yes"
        assert client.service("later", key="soon").start(seconds=SOON).result(timeout=60) == "LATER"
        assert client.action("shout", key="one").invoke(text="a") == "A"
        assert client.runs.list(labels={"team": "rail"})[0].result == "A"
        assert client.service("later", key="never").start(seconds=30 * 86_400).get().ended_at is None
        client.action("shout").invoke(text="new")  # and numbers go on where they were
    assert json.loads(dotdo("audit", "verify", "--json", "--store", postgres_store).stdout)["sound"]


def test_clients_that_have_the_file_open_lose_nothing_in_it(file: Path, postgres_store: str):
    with closing(SqlStore(SQLiteDatabase(str(file), beside=True))) as client:
        [(run,)] = sqlite(file, "select id from runs where name = 'approval'")
        promote(str(file), postgres_store)
        with pytest.raises(StoreError, match="it has moved to postgresql://"):
            client.file([Message(run, "event", "approved", '"lost"', None, None, 1)])


def test_refuses_while_an_engine_is_on_either_side_or_something_is_there(file: Path, postgres_store: str):
    with Do(f"sqlite:///{file}", catalogue=Catalogue()) as client:
        client.runs.list()
        refused = dotdo("db", "promote", str(file), postgres_store, code=1).stderr
        assert f"Another engine already runs on the store {file} (process {os.getpid()} on" in refused
    before = everything(str(file))
    with Do(postgres_store, catalogue=definitions()) as client:
        client.runs.list()
        with pytest.raises(StoreUnusable, match=f"A node runs on .* \\(process {os.getpid()} on .* stop all nodes"):
            promote(str(file), postgres_store)
        client.action("shout").invoke(text="there")
    with pytest.raises(StoreUnusable, match=r"is not empty \(1 in dotdo.runs\)"):
        promote(str(file), postgres_store)
    assert everything(str(file)) == before
    assert len(everything(postgres_store)["runs"]) == 1
    for source, target in (("nothing.db", postgres_store), (str(file), "sqlite:other.db"), (postgres_store, "x")):
        assert dotdo("db", "promote", source, target, code=1 if source == "nothing.db" else 2).stderr


# -- the move is killed ------------------------------------------------------------------------------------------------

PROGRAM = """
import contextlib, os, signal, sys
from dotdo import promoting
from dotdo.store import moving

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def dies_before_its_commit(target, receiving=moving.receiving):
    @contextlib.contextmanager
    def dying():
        with receiving(target):
            yield
            die()
    return dying()

when, source, target = sys.argv[1:]
if when == "marked":
    moving.receiving = dies_before_its_commit
if when == "committed":
    moving.be_sure = die
copying = (lambda table, done, count: die() if table == "journal" else None) if when == "copying" else lambda *_: None
promoting.promote(source, target, copying, die if when == "verifying" else lambda audit: None)
"""


@pytest.mark.parametrize("when", ["copying", "verifying", "marked", "committed"])
def test_killed_move_leaves_the_store_in_one_place_and_is_completed(file: Path, postgres_store: str, when: str):
    killed = subprocess.run([sys.executable, "-c", PROGRAM, when, str(file), postgres_store], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    if when in ("copying", "verifying"):
        with Do(f"sqlite:///{file}", catalogue=definitions()) as client:  # usable as ever
            assert client.action("shout").invoke(text="on") == "ON"
    else:
        with pytest.raises(StoreUnusable, match=r"cut short in its last moment.*dotdo db promote"):
            Do(f"sqlite:///{file}", catalogue=definitions()).runs.list()
        with pytest.raises(StoreUnusable, match="cut short"):  # the word for another target is not taken
            promote(str(file), postgres_store.replace("127.0.0.1", "localhost"))
    done = promote(str(file), postgres_store)
    assert done.before == (when == "committed")
    runs = [row[0] for row in sqlite(file, "select id from runs order by id")]
    with psycopg.connect(postgres_store) as reader:
        assert [row[0] for row in reader.execute("select id from dotdo.runs order by id")] == runs
    with Do(postgres_store, catalogue=definitions()) as client:
        assert client.service("approval", key="first").start(what="leave").result(timeout=60) == "LEAVE yes"
    with pytest.raises(StoreUnusable, match="has moved to"):
        promote(str(file), postgres_store)


def sqlite(path: Path, statement: str) -> list[Any]:
    """Rows of a file."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return list(connection.execute(statement))
