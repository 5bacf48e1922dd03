"""I11: whoever edits, deletes, moves, adds or truncates entries of a journal, or a run's row, is found out.

Each test tampers with a copy of one store, as somebody with a SQLite shell would, and then reads what the audit says.
"""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dotdo import ActionFailed, AsyncDo, Catalogue, Do, Retry, action, service
from dotdo import audit as auditing
from dotdo.audit import Audit, Finding
from dotdo.embedding import audit_key, open_reader
from dotdo.journal import Entry, chain, link

pytestmark = pytest.mark.of_files("rows are changed in a copy of the file")

catalogue = Catalogue()
COLUMNS = ["kind", "step", "generation", "attempt", "at", "data", "data_digest", "digest"]


@action("reserve", catalogue=catalogue)
async def reserve(item: str) -> str:
    return f"reserved {item}"


@reserve.undo
async def release(reserved: str) -> None:
    """Takes the reservation back."""


@action("charge", retry=Retry(attempts=2, delay=0), catalogue=catalogue)
async def charge(cents: int) -> int:
    if cents < 0:
        raise ValueError("a charge is positive")
    return cents


@service("order", catalogue=catalogue)
async def order(item: str, cents: int) -> int:
    await reserve(item=item)
    return await charge(cents=cents)


class Ledger:
    """A copy of the store, to tamper with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sql(self, statement: str, *parameters: object) -> list[tuple]:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
            return database.execute(statement, parameters).fetchall()

    def entries(self, run: str) -> list[Entry]:
        return [Entry(*row) for row in self.sql("select * from journal where run = ? order by seq", run)]

    def replace(self, entries: list[Entry]) -> None:
        """Writes one run's journal anew."""
        self.sql("delete from journal where run = ?", entries[0].run)
        for entry in entries:
            values = [getattr(entry, name) for name in Entry.__struct_fields__]
            self.sql("insert into journal values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *values)

    def verify(self, run: str | None = None) -> list[Finding]:
        reader = open_reader(str(self.path))
        try:
            return list(Audit(reader, audit_key(str(self.path), make=False)).verify(run))
        finally:
            reader.close()

    def found(self) -> list[tuple[str, int]]:
        return [(finding.run, finding.entry) for finding in self.verify()]


def relink(previous: str, entry: Entry, data: str) -> Entry:
    """An entry with other data and digests that are right for it, as a forger without the key can make it."""
    header = (entry.kind, entry.step, entry.generation, entry.attempt, entry.at)
    return link(previous, entry.run, entry.seq, *header, data.encode())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with completed, failed and waiting runs; closed, so that all of it is in one file."""
    folder = tmp_path_factory.mktemp("audit")
    with Do(str(folder / "dotdo.db"), catalogue=catalogue, actor="Ada") as client:
        for number in range(5):
            client.run(order, item=f"book {number}", cents=number)
        client.run(order.with_(key="of:5", trail="t", labels={"of": "5"}, priority=2), item="book 5", cents=5)
        with pytest.raises(ActionFailed):
            client.run(order, item="pen", cents=-1)
        client.start(order.with_(delay=3600), item="later", cents=1)
    return folder


@pytest.fixture
def ledger(original: Path, tmp_path: Path) -> Ledger:
    shutil.copytree(original, tmp_path / "copy")
    return Ledger(tmp_path / "copy" / "dotdo.db")


@pytest.fixture
def run(ledger: Ledger) -> str:
    """A completed run with runs before and after it: accepted, reserve, charge, ended."""
    runs = ledger.sql("select id from runs where status = 'completed' order by id")
    id = runs[2][0]
    assert [entry.kind for entry in ledger.entries(id)] == ["accepted", "completed", "completed", "ended"]
    return id


@pytest.fixture
def failed(ledger: Ledger) -> str:
    """The failed run, whose journal has many kinds of entries."""
    return ledger.sql("select id from runs where status = 'failed'")[0][0]


def test_sound_store_has_no_findings(ledger: Ledger):
    assert ledger.verify() == []


@pytest.mark.parametrize("chunk", [0, 1, 5, 7])
def test_every_run_is_looked_at_however_the_snapshots_fall(
    ledger: Ledger, run: str, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(auditing, "CHUNK", chunk)
    reader = open_reader(str(ledger.path))
    audit = Audit(reader, audit_key(str(ledger.path)))
    assert list(audit.verify()) == []
    reader.close()
    assert audit.runs == ledger.sql("select count(*) from runs")[0][0]
    assert audit.entries == ledger.sql("select count(*) from journal")[0][0]
    ledger.sql("update journal set data = '{}' where run = ? and seq = 2", run)
    assert ledger.found() == [(run, 2)]


# -- edited entries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", COLUMNS)
def test_edit_of_any_column_of_any_entry_is_found_where_it_is(ledger: Ledger, failed: str, column: str):
    entries = ledger.entries(failed)
    assert len(entries) > 6
    for entry in entries:
        value = getattr(entry, column)
        other = value + 1 if isinstance(value, int) else value[:-1] + "?"
        if column == "kind":
            other = "fired" if value == "undone" else "undone"
        ledger.sql(f"update journal set {column} = ? where run = ? and seq = ?", other, failed, entry.seq)
        found = ledger.found()
        assert (failed, entry.seq) in found, f"{column} of entry {entry.seq}: {found}"
        assert {where for where, _ in found} == {failed}, "only the guilty run"
        ledger.sql(f"update journal set {column} = ? where run = ? and seq = ?", value, failed, entry.seq)
    assert ledger.verify() == []


def test_edit_is_told_with_run_and_entry_and_what_is_wrong(ledger: Ledger, run: str):
    ledger.sql("update journal set data = json_set(data, '$.result', 1) where run = ? and seq = 3", run)
    assert ledger.verify() == [Finding(run, 3, "its data was changed: it does not match its digest")]


def test_edit_with_its_digest_made_right_is_found(ledger: Ledger, run: str):
    entries = ledger.entries(run)
    forged = relink(entries[1].digest, entries[2], entries[2].data.replace("charge", "gift"))
    assert forged.data != entries[2].data
    ledger.replace([*entries[:2], forged, entries[3]])
    found = ledger.verify()
    assert [(finding.run, finding.entry) for finding in found] == [(run, 4)]
    assert "does not follow" in found[0].text


def test_journal_rewritten_from_an_entry_on_is_found_by_its_anchor(ledger: Ledger, run: str):
    entries = ledger.entries(run)
    forged, previous = entries[:2], entries[1].digest
    for entry in entries[2:]:
        data = entry.data.replace(":2", ":2000")
        forged.append(relink(previous, entry, data))
        previous = forged[-1].digest
    ledger.replace(forged)
    assert [(f.entry, "anchored" in f.text) for f in ledger.verify()] == [(4, True)]
    ledger.sql("update runs set digest = ? where id = ?", previous, run)  # the row, too; but not the key
    assert [(f.entry, "audit key" in f.text) for f in ledger.verify()] == [(0, True)]


def test_text_moved_from_one_column_to_the_next_is_found(ledger: Ledger, run: str):
    """The header is `...|kind|step|...`: it reads the same when a part of it changes columns."""
    entry = ledger.entries(run)[1]
    kind, step = f"{entry.kind}|{entry.step[:4]}", entry.step[4:]
    ledger.sql("update journal set kind = ?, step = ? where run = ? and seq = 2", kind, step, run)
    assert (run, 2) in ledger.found()
    with pytest.raises(sqlite3.IntegrityError):  # numbers take no text, so nothing can move there
        ledger.sql("update journal set attempt = '0|1' where run = ? and seq = 2", run)


# -- deleted, moved, added entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gone, entry, text",
    [
        ([1], 1, "entry 1 is missing"),
        ([2], 2, "entry 2 is missing"),
        ([2, 3], 2, "entries 2 to 3 are missing"),
        ([4], 4, "entry 4 is missing: the journal was truncated"),
        ([3, 4], 3, "entries 3 to 4 are missing: the journal was truncated"),
        ([1, 2, 3, 4], 1, "entries 1 to 4 are missing: the journal was truncated"),
    ],
)
def test_deleted_entries_are_found(ledger: Ledger, run: str, gone: list[int], entry: int, text: str):
    for seq in gone:
        ledger.sql("delete from journal where run = ? and seq = ?", run, seq)
    assert ledger.verify() == [Finding(run, entry, text)]


def test_deleted_entry_is_found_when_the_others_move_up(ledger: Ledger, run: str):
    ledger.sql("delete from journal where run = ? and seq = 2", run)
    ledger.sql("update journal set seq = 2 where run = ? and seq = 3", run)
    ledger.sql("update journal set seq = 3 where run = ? and seq = 4", run)
    assert {where for where, _ in ledger.found()} == {run}


def test_truncation_is_found_when_the_row_is_truncated_with_it(ledger: Ledger, run: str):
    ledger.sql("delete from journal where run = ? and seq = 4", run)
    digest = ledger.entries(run)[-1].digest
    ledger.sql("update runs set seq = 3, digest = ?, status = 'running' where id = ?", digest, run)
    assert [(f.entry, "audit key" in f.text) for f in ledger.verify()] == [(0, True)]


def test_reordered_entries_are_found_and_told_apart_from_edited_ones(ledger: Ledger, run: str):
    for old, new in ((2, 99), (3, 2), (99, 3)):
        ledger.sql("update journal set seq = ? where run = ? and seq = ?", new, run, old)
    assert ledger.verify() == [
        Finding(run, 2, "was moved here; it was entry 3"),
        Finding(run, 3, "was moved here; it was entry 2"),
    ]


def test_entry_of_another_run_is_found(ledger: Ledger, run: str):
    other = ledger.sql("select id from runs where status = 'completed' and id <> ? limit 1", run)[0][0]
    stolen = ledger.entries(other)[2]
    values = (stolen.data, stolen.data_digest, stolen.digest)
    ledger.sql("update journal set data = ?, data_digest = ?, digest = ? where run = ? and seq = 3", *values, run)
    assert {where for where, _ in ledger.found()} == {run}
    assert (run, 3) in ledger.found()


def test_entry_added_after_the_end_is_found(ledger: Ledger, run: str):
    entries = ledger.entries(run)
    ledger.replace([*entries, link(entries[-1].digest, run, 5, "cancel_requested", "", 0, 0, entries[-1].at, b"{}")])
    assert ledger.verify() == [Finding(run, 5, "entry 5 is added after the end of the run")]


# -- the run's row ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        *("seq = 3", "digest = ''", "anchor = ''", "status = 'failed'", "undo = 'all'", "name = 'gift'", "version = 2"),
        *("kind = 'action'", "key = 'k'", "trail = 't'", "actor = 'Eve'", 'labels = \'{"a":"b"}\'', "labels = ''"),
        *("priority = 1", "root = ''", "parent = ''", "parent_step = ''", "created_at = 1", "ended_at = 1"),
    ],
)
def test_edited_row_is_found(ledger: Ledger, run: str, change: str):
    ledger.sql(f"update runs set {change} where id = ?", run)
    assert {where for where, _ in ledger.found()} == {run}


def test_row_that_names_another_caller_is_told_by_its_columns(ledger: Ledger, run: str):
    ledger.sql("update runs set actor = 'Eve', labels = '{\"for\":\"Eve\"}' where id = ?", run)
    text = "the row was edited: it differs from what the journal begins with in actor, labels"
    assert ledger.verify() == [Finding(run, 0, text)]


def test_deleted_row_is_found(ledger: Ledger, run: str):
    ledger.sql("delete from runs where id = ?", run)
    assert ledger.verify() == [Finding(run, 0, "the run's row is missing; its journal has 4 entries")]


@pytest.mark.parametrize("where", ["first", "last"])
def test_deleted_journal_or_row_is_found_at_either_end_of_the_store(ledger: Ledger, where: str):
    order_by = "id" if where == "first" else "id desc"
    id = ledger.sql(f"select id from runs order by {order_by} limit 1")[0][0]
    ledger.sql("delete from journal where run = ?", id)
    assert ledger.found() == [(id, 1)]
    ledger.sql("update journal set run = ? where run = (select id from runs where id <> ? limit 1)", id, id)
    ledger.sql("delete from runs where id = ?", id)
    assert (id, 0) in ledger.found()


# -- the key ----------------------------------------------------------------------------------------------------------


def test_key_of_another_store_is_told_once(ledger: Ledger, run: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOTDO_AUDIT_KEY", "ab" * 32)
    found = ledger.verify()
    assert [(finding.run, finding.entry) for finding in found] == [("", 0)]
    assert "audit key" in found[0].text
    ledger.sql("update journal set data = '{}' where run = ? and seq = 2", run)
    assert ledger.found() == [("", 0), (run, 2)], "edits are found all the same"


# -- one run, a live store, the command -------------------------------------------------------------------------------


def test_one_run_is_verified_by_itself(ledger: Ledger, run: str, failed: str):
    ledger.sql("update journal set data = '{}' where seq = 2")
    assert {finding.run for finding in ledger.verify(run)} == {run}
    assert {finding.run for finding in ledger.verify(failed)} == {failed}


def test_audit_beside_a_busy_engine_reports_nothing(tmp_path: Path):
    """Runs begin, move and end while the audit reads; what it has seen half done is not called tampered with."""
    store = str(tmp_path / "dotdo.db")

    async def main() -> int:
        async with AsyncDo(store, catalogue=catalogue) as client:
            await client.run(order, item="first", cents=1)
            audits = asyncio.create_task(asyncio.to_thread(audit_until, done.__contains__))
            async with asyncio.TaskGroup() as group:
                for number in range(400):
                    group.create_task(client.run(order, item=f"book {number}", cents=number))
            done.add(True)
            return await audits

    def audit_until(is_done: object) -> int:
        reader, seen = open_reader(store), 0
        try:
            while True:
                last = True in done
                audit = Audit(reader, audit_key(store))
                assert list(audit.verify()) == []
                seen = audit.runs
                if last:
                    return seen
        finally:
            reader.close()

    done: set[bool] = set()
    assert asyncio.run(main()) == 401


@pytest.fixture
def command(ledger: Ledger) -> list[str]:
    return [sys.executable, "-m", "dotdo", "audit", "verify", "--store", str(ledger.path)]


def verify(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOTDO_")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_command_names_run_and_entry_and_fails(ledger: Ledger, run: str, command: list[str]):
    sound = verify(*command)
    assert (sound.returncode, sound.stdout) == (0, "")
    assert "Nothing was tampered with" in sound.stderr
    ledger.sql("update journal set at = at - 1 where run = ? and seq = 3", run)
    for arguments in ([], [run[:30]]):
        tampered = verify(*command, *arguments)
        assert tampered.returncode == 1
        assert tampered.stdout.startswith(f"{run}, entry 3: was changed")
    told = json.loads(verify(*command, "--json").stdout)
    assert (told["sound"], told["count"], told["findings"][0]["run"]) == (False, 1, run)


def test_command_without_the_key_says_where_it_is_looked_for_and_makes_none(ledger: Ledger, command: list[str]):
    key = Path(f"{ledger.path}.audit-key")
    key.unlink()
    told = verify(*command)
    assert told.returncode == 1
    assert f"There is no audit key {key}" in told.stderr
    assert "DOTDO_AUDIT_KEY" in told.stderr
    assert not key.exists()


def test_chain_is_what_the_audit_recomputes(ledger: Ledger, run: str):
    """The audit has its own, faster way to the digests; it must be the journal's."""
    previous = "0" * 64
    for entry in ledger.entries(run):
        header = "|".join(str(getattr(entry, name)) for name in Entry.__struct_fields__[:7])
        previous = chain(previous, header, entry.data_digest)
        assert entry.digest == previous
