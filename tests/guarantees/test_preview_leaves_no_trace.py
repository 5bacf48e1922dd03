"""A preview leaves no trace: the store and the application's databases are the same bytes afterwards, nothing is heard
outside, no file is made; beside real work, and when the process is killed in the middle of one."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from dotdo import AsyncContext, Context, Do, Preview, Retry, action
from dotdo.connectors.email import Mailer
from dotdo.connectors.http import HttpClient
from dotdo.engine import previewing
from examples.onboarding.app import customer_onboarding
from tests.connectors.servers import HttpServer, MailServer, http_server, mail_server
from tests.contract_sql.databases import Database, PostgresDatabase, SQLiteFile
from tests.guarantees.onboarding import Onboarding, Witness
from tests.guarantees.previewed import COUNT, INSERT, Application
from tests.workshop import PATIENCE, Workshop, kinds

# Another process does it: closing a file here would drop the locks that SQLite holds in this process.
DIGESTS = """
import apsw, hashlib, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
for path in folder.rglob("*.db"):
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    busy, *pages = connection.execute("pragma wal_checkpoint(truncate)").fetchone()
    assert not busy, f"{path} could not be checkpointed: {pages}"
files = {path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")}
found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
print(json.dumps(found))
"""


class World:
    """An application with something in it, its databases, and the servers that it would talk to."""

    def __init__(self, folder: Path, database: Database, mail: MailServer, web: HttpServer) -> None:
        self.folder, self.database, self.mail, self.web = folder, database, mail, web
        self.workshop = Workshop(folder, sql=database.url)
        workshop = self.workshop
        self.application = Application(workshop.catalogue, workshop.send, workshop.order, web.url)
        resources = [workshop.receiver, Mailer(mail.url, sender="a@example.com"), HttpClient()]
        self.client: Do = workshop.open(resources=resources, check_replay=False)
        self.client.action("sign-up").invoke(name="before")
        self.heard = self.outside()

    def outside(self) -> tuple[int, ...]:
        """How often anybody outside was talked to."""
        return self.mail.connections, self.web.connections, len(self.workshop.receiver.heard)

    def digests(self) -> dict[str, str]:
        """Every file by its digest, and the rows of the PostgreSQL database with what tells versions of a row."""
        program = [sys.executable, "-c", DIGESTS, str(self.folder)]
        done = subprocess.run(program, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        if isinstance(self.database, PostgresDatabase):
            found |= _postgres(self.database.url)
        return found


def _postgres(url: str) -> dict[str, str]:
    found: dict[str, str] = {}
    with psycopg.connect(url) as connection:
        listed = connection.execute(
            "select oid::regclass::text, relkind from pg_class where relnamespace = 'public'::regnamespace order by 1"
        ).fetchall()
        for name, kind in listed:
            rows = b""
            if kind == "r":
                query = f"copy (select ctid, xmin, * from {name} order by ctid) to stdout".encode()
                with connection.cursor().copy(query) as copy:
                    rows = b"".join(bytes(piece) for piece in copy)
            found[f"postgres:{name}"] = hashlib.sha256(rows).hexdigest()
    return found


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        (tmp_path / "files").mkdir()
        return SQLiteFile(tmp_path / "files" / "app.db")
    return PostgresDatabase(request.getfixturevalue("postgres_url"))


@pytest.fixture
def shop(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("dotdo.engine.forgetting.DELAY_SECONDS", 3600)  # what a real run left is not tidied meanwhile
    with mail_server() as mail, http_server() as web:
        made = World(tmp_path / "files", database, mail, web)
        yield made
        made.application.released.set()
        made.workshop.close()


def _told(preview: Preview[Any]) -> str:
    return " ".join([str(preview), *(note.text for note in preview.notes)])


def _after_its_statement(do: Do, name: str) -> Preview[Any]:
    """Of an action whose time is over when it hangs; on a slow machine that may be in its statement already."""
    while "transaction was lost" in _told(preview := do.action(name).preview()):
        assert preview.status == "incomplete"
    return preview


# What is previewed, how it ends, and what its page must say, so that each case is known to have got so far.
Case = tuple[Callable[[Do], Preview[Any]], str, str]
CASES: dict[str, Case] = {
    "action": (lambda do: do.action("sign-up").preview(name="Ada"), "completed", "Subject: Welcome"),
    "request": (lambda do: do.action("bill").preview(name="Ada"), "completed", "cus_of_Ada 2"),
    "no stand-in": (lambda do: do.action("order").preview(), "incomplete", "nothing stands in for its answer"),
    "http request": (lambda do: do.action("call").preview(), "incomplete", "POST http://127.0.0.1"),
    "failure": (lambda do: do.action("break").preview(), "failed", "on_failure:tell"),
    "service": (lambda do: do.service("onboard").preview(name="Ada"), "completed", '"cus_of_Ada 3", 259260.0]'),
    "undone service": (lambda do: do.service("onboard").preview(name="Ada", fails=True), "failed", "undo:sign-up"),
    "event": (lambda do: do.service("approve").preview(), "incomplete", "the event 'approved'"),
    "bug": (lambda do: do.service("bug").preview(), "blocked", "KeyError: 'oops'"),
    "commit": (lambda do: do.action("commit").preview(), "completed", "create table left_over"),
    "time-out": (lambda do: _after_its_statement(do, "hang"), "incomplete", "timed out and did not end"),
    "async time-out": (lambda do: _after_its_statement(do, "hang-async"), "failed", "did not end within 0.1 s"),
    "out of time": (lambda do: do.action("hang", wait=0.05).preview(), "incomplete", "0.05 s in all"),
    "exit": (lambda do: do.action("exit").preview(), "failed", "SystemExit: 3"),
    "too big": (lambda do: do.action("too-big").preview(), "failed", "InvalidValue"),
}


@pytest.mark.of_files("compares the bytes of files")
def test_every_kind_of_preview_leaves_the_same_bytes_and_a_silent_world(shop: World):
    before = shop.digests()
    assert len(before) >= 3, before  # the store, its audit key, and the application's data
    for name, (look, status, told) in CASES.items():
        preview = look(shop.client)
        assert preview.status == status, f"{name}: {preview}"
        assert told in _told(preview), f"{name}: {preview}"
        if name in ("time-out", "out of time"):
            shop.application.released.set()  # its thread goes on, with a connection that is closed
            shop.application.released.clear()
    assert shop.digests() == before
    assert shop.outside() == shop.heard
    assert [run.name for run in shop.client.runs.list()] == ["sign-up"]
    # The comparison would have found something.
    shop.client.action("sign-up").invoke(name="Ada")
    assert shop.digests() != before
    assert shop.outside() != shop.heard


def test_preview_of_the_onboarding_is_heard_by_nobody(onboarding: Onboarding, world: Witness):
    """The example's service with all its real providers, whose ledger another process keeps."""
    client = onboarding.open()
    preview = client.preview(customer_onboarding, user_name="Ada", user_email="ada@example.com")
    assert preview.status == "completed", str(preview)
    assert (preview.result or {})["customer_id"] == "cus_preview"
    assert [effect.name for effect in preview.effects] == [
        "billing.create-customer",
        "email.send-message",
        "slack.post-message",
    ]
    assert "To: ada@example.com" in str(preview)
    assert preview.statements[0].rows == 1
    assert world.heard() == []
    assert onboarding.users() == []
    client.run(customer_onboarding, user_name="Ada", user_email="ada@example.com")
    assert len(world.heard()) == 3  # they would have been heard
    twice = client.preview(customer_onboarding, user_name="Ada", user_email="ada@example.com")
    assert (twice.status, twice.error and twice.error.message) == ("failed", "ada@example.com has signed up before.")
    assert [effect.name for effect in twice.effects] == ["email.send-message"]  # to the admin
    assert len(world.heard()) == 3


def test_sequences_are_the_one_thing_that_moves_on(shop: World):
    first = shop.client.action("sign-up").preview(name="Ada").result
    second = shop.client.action("sign-up").preview(name="Ada").result
    third = shop.client.action("sign-up").invoke(name="Ada")
    # PostgreSQL never takes a number back; SQLite does.
    assert [first, second, third] == ([2, 3, 4] if isinstance(shop.database, PostgresDatabase) else [2, 2, 2])


def test_preview_that_is_killed_in_the_middle_leaves_nothing(tmp_path: Path):
    database = SQLiteFile(tmp_path / "app.db")
    command = [sys.executable, "-m", "tests.guarantees.previewed", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    assert database.notes() == []
    database.execute("insert into notes (text) values ('not locked')")


def test_command_line_makes_no_store_and_works_beside_a_live_engine(tmp_path: Path):
    database = SQLiteFile(tmp_path / "app.db")
    (tmp_path / "application.py").write_text(
        "from dotdo import Context, action\n"
        "from sqlalchemy import text\n"
        "@action('note')\n"
        "def note(ctx: Context, note: str) -> None:\n"
        "    ctx.sql.execute(text('insert into notes (text) values (:note)'), {'note': note})\n"
    )
    command = [sys.executable, "-m", "dotdo", "run", "note", "note=hello", "--preview", "--app", "application.py"]
    command += ["--sql", f"sqlite:///{tmp_path / 'app.db'}"]

    def look() -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_quiet())
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "insert into notes" in look()
    # Not even the table of applied rows, or another journal mode.
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert b"notes" in before["app.db"]
    with Do(f"sqlite:///{tmp_path / '.dotdo' / 'dotdo.db'}", sql=database.url) as client:
        assert client.runs.list() == []
        assert "insert into notes" in look()
    assert database.notes() == []


def test_command_line_makes_no_database(tmp_path: Path):
    (tmp_path / "application.py").write_text(
        "from dotdo import Context, action\n"
        "from sqlalchemy import text\n"
        "@action('note')\n"
        "def note(ctx: Context) -> None:\n"
        "    ctx.sql.execute(text('select 1'))\n"
    )
    command = [sys.executable, "-m", "dotdo", "run", "note", "--preview", "--app", "application.py"]
    command += ["--sql", "sqlite:///missing.db"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_quiet())
    assert (done.returncode, done.stderr) == (1, "")
    assert "There is no file missing.db" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["application.py"]


def _quiet() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def test_real_attempts_go_on_beside_previews_that_hold_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Previews without end, each of which would keep the file's write lock for as long as it may."""
    monkeypatch.setattr(previewing, "HOLD_SECONDS", 0.3)
    database = SQLiteFile(tmp_path / "app.db")
    workshop = Workshop(tmp_path, sql=database.url, clock=None)

    enough, held = threading.Event(), threading.Event()

    @action("hold", catalogue=workshop.catalogue)
    async def hold(ctx: AsyncContext) -> None:
        while True:
            await ctx.sql.execute(text("select 1"))
            held.set()

    @action("note", retry=Retry(attempts=1), catalogue=workshop.catalogue)
    def note(ctx: Context, note: str) -> int:
        ctx.sql.execute(INSERT, {"note": note})
        return ctx.sql.execute(COUNT).scalar_one()

    @action("note-async", retry=Retry(attempts=1), catalogue=workshop.catalogue)
    async def note_async(ctx: AsyncContext, note: str) -> int:
        await ctx.sql.execute(INSERT, {"note": note})
        return (await ctx.sql.execute(COUNT)).scalar_one()

    client = workshop.open()
    ended = list[str]()

    def preview_without_end() -> None:
        while not enough.is_set():
            preview = client.preview(hold)
            ended.append(_told(preview))

    previewers = [threading.Thread(target=preview_without_end) for _ in range(2)]
    for previewer in previewers:
        previewer.start()
    assert held.wait(PATIENCE)
    try:
        handles = [client.start(one, note=f"{one.name} {n}") for n in range(5) for one in (note, note_async)]
        for handle in handles:
            handle.result(timeout=PATIENCE)
    finally:
        enough.set()
        for previewer in previewers:
            previewer.join()
    assert len(database.notes()) == 10
    assert all(kinds(handle) == ["accepted", "completed", "ended"] for handle in handles)  # none failed and was retried
    assert any("had locked the database" in told for told in ended), ended
    workshop.close()
