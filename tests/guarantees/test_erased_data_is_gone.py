"""Erased data is gone, from all answers and from the bytes of the store; the audit accepts it, and nothing else that is
missing; a process that is killed in the middle of it leaves nothing that the next one does not finish."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import dotdo
from dotdo import Catalogue, Context, Do, action, effect, journal, maintaining, service
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader
from dotdo.errors import InvalidOperation, KeyConflict, UnknownName
from dotdo.journal import LARGE, Erased, read
from dotdo.records import Run
from dotdo.timeline import Moment, timeline

catalogue = Catalogue()
CANARY = "canary-7f3a"


@effect("post", dedup="key", catalogue=catalogue)
def post(text: str) -> str:
    """Answers with what it was given."""
    return f"{text} answered"


@action("unwork", catalogue=catalogue)
def unwork(result: str) -> None:
    """Takes work back."""


@action("work", undo=unwork, catalogue=catalogue)
def work(ctx: Context, text: str) -> str:
    """Stages and requests effects."""
    ctx.stage(post, f"{text} staged")
    return ctx.request(post, f"{text} requested")


@action("refuse", catalogue=catalogue)
def refuse(text: str) -> None:
    """Fails with the text in its error and traceback."""
    raise dotdo.Fail(text)


@service("below", catalogue=catalogue)
async def below(text: str) -> str:
    """The child."""
    return await work(text)


@service("order", catalogue=catalogue)
async def order(text: str, fails: bool = False) -> str:
    """Everything that can hold a value."""
    dotdo.publish({"now": text[:1000]})
    said = await dotdo.wait_for_event("say")
    await below(f"{text} child")
    if fails:
        await refuse(f"{text} refused")
    return f"{text} {said}"


def client(path: Path, **options: object) -> Do:
    """On a store of its own."""
    return Do(str(path), catalogue=catalogue, **options)  # type: ignore[arg-type]


def run_order(shop: Do, text: str, *, fails: bool = False) -> Run:
    """A run with a canary wherever one can be; returns it as it ended."""
    labels = {"who": f"{text} label"}
    handle = shop.start(order.with_(key=f"{text} key", labels=labels, trail=f"{text} trail"), text, fails)
    handle.send_event("say", f"{text} event", key=f"{text} sender")
    try:
        handle.result()
    except dotdo.ActionFailed:
        assert fails
    return handle.get()


def is_in_file(path: Path, text: str = CANARY) -> bool:
    """Whether a text is anywhere in the bytes of a store."""
    files = [Path(f"{path}{end}") for end in ("", "-wal")]
    return any(text.encode() in file.read_bytes() for file in files if file.exists())


def findings(path: Path) -> list[str]:
    """What the audit says."""
    with closing(open_reader(str(path))) as reader:
        return [f"{one.run} {one.entry}: {one.text}" for one in Audit(reader, audit_key(str(path))).verify()]


def change(path: Path, statement: str, *values: object) -> None:
    """Somebody's hand in the file; something really changes."""
    with closing(apsw.Connection(str(path))) as database:
        database.execute(statement, values)
        assert database.changes() > 0


@pytest.mark.parametrize("fails", [False, True])
def test_no_byte_of_it_is_left_beside_a_live_engine(tmp_path: Path, fails: bool):
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        run = run_order(shop, CANARY, fails=fails)
        large = shop.start(order, CANARY * (LARGE // 10))
        large.send_event("say", CANARY * (LARGE // 10))
        large.result()
        kept = run_order(shop, "kept-by-us")
        assert is_in_file(path)
        assert shop.runs.erase(run.id, large.id, run.id, actor="ada") == 4  # each with its child, and once
        assert not is_in_file(path)
        assert is_in_file(path, "kept-by-us event")
        assert shop.runs.get(kept.id) == kept
        assert shop.runs.erase(run.id) == 0  # again is no harm, and no second entry
        assert [entry.kind for entry in shop.runs.journal(run.id)].count("erased") == 1
        with closing(apsw.Connection(str(path))) as database:
            assert database.execute("select count(*) from blobs").fetchall() == [(0,)]
            assert database.execute("select count(*) from erasing").fetchall() == [(0,)]
    assert not is_in_file(path)
    assert findings(path) == []


def test_copies_that_moving_entries_left_behind_are_gone_too(tmp_path: Path):
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        handles = [shop.start(order, f"{CANARY if number % 4 == 0 else 'other'} {number}" * 20) for number in range(60)]
        for handle in handles:
            handle.send_event("say", f"{CANARY} event" * 20)
        for handle in handles:
            handle.result()
        assert shop.runs.erase(*(handle.id for handle in handles)) == 120
        assert not is_in_file(path)
    assert findings(path) == []


@pytest.mark.parametrize("fails", [False, True])
def test_everything_that_reads_it_works_and_says_so(tmp_path: Path, fails: bool):
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        run = run_order(shop, CANARY, fails=fails)
        assert shop.runs.list(labels={"who": f"{CANARY} label"}) == [run]
        shop.runs.erase(run.id, actor="ada")
        erased = shop.runs.get(run.id)
        assert (erased.status, erased.undo, erased.ended_at) == (run.status, run.undo, run.ended_at)
        assert (erased.erased_by, erased.result, erased.progress) == ("ada", None, None)
        assert (erased.key, erased.trail, erased.labels, erased.not_undone) == (None, None, {}, [])
        assert erased.erased_at is not None
        assert shop.runs.list(labels={"who": f"{CANARY} label"}) == []
        assert erased in shop.runs.list(name="order")
        assert list(shop.runs.progress(run.id)) == []
        entries = shop.runs.journal(run.id)
        assert {entry.data for entry in entries[:-1]} == {""}
        assert (read(entries[-1]).actor, read(entries[-1]).status) == ("ada", run.status)
        with pytest.raises(InvalidOperation, match=r"The data of entry 1 of the run .* was erased"):
            read(entries[0])
        shown = timeline(entries).items
        assert all(isinstance(item, Moment) for item in shown)
        assert [item.text for item in shown if isinstance(item, Moment)][-1] == "all data was erased by ada"
        for verb, ask in (("undo", shop.runs.undo), ("retry", shop.runs.retry)):
            with pytest.raises(InvalidOperation, match=f"was erased; there is nothing left to {verb} it from"):
                ask(run.id)
        with pytest.raises(InvalidOperation, match="has ended"):
            shop.runs.send_event(run.id, "say", "again", key=f"{CANARY} sender")
        if fails:
            with pytest.raises(dotdo.ActionFailed, match=r"its data was erased on .* by ada"):
                shop.runs.wait(run.id)
        else:
            assert shop.runs.wait(run.id) == erased


def test_key_still_belongs_to_it(tmp_path: Path):
    with client(tmp_path / "dotdo.db") as shop:
        run = run_order(shop, CANARY)
        shop.runs.erase(run.id)
        again = order.with_(key=f"{CANARY} key")
        assert shop.start(again, CANARY, False).id == run.id
        params = {"text": CANARY, "fails": False}
        assert shop.service.execute(name="order", key=f"{CANARY} key", params=params) == shop.runs.get(run.id)
        with pytest.raises(InvalidOperation, match="there is no result to give"):
            shop.run(again, CANARY, False)
        with pytest.raises(KeyConflict):
            shop.run(again, "something else")


def test_only_whole_trees_that_have_ended(tmp_path: Path):
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        ended = run_order(shop, CANARY)
        waiting = shop.start(order, "waits")
        [child] = shop.runs.list(parent=ended.id)
        with pytest.raises(InvalidOperation, match=r"has not ended .* Nothing was erased"):
            shop.runs.erase(ended.id, waiting.id)
        with pytest.raises(InvalidOperation, match=f"is a child of {ended.id}"):
            shop.runs.erase(child.id)
        with pytest.raises(UnknownName, match="There is no run 'run_nothing'"):
            shop.runs.erase(ended.id, "run_nothing")
        assert shop.runs.get(ended.id) == ended
        beside = client(path, engine=False)
        with beside, pytest.raises(InvalidOperation, match="only that one erases"):
            beside.runs.erase(ended.id)
        with pytest.raises(dotdo.StoreError, match="Another engine already runs"):
            maintaining.erase(str(path), [ended.id], "ada")
    assert maintaining.erase(str(path), [ended.id], "ada") == 2
    with pytest.raises(InvalidOperation, match="has not ended"):
        maintaining.erase(str(path), [waiting.id], "ada")
    assert not is_in_file(path)
    assert findings(path) == []


TAMPERING = {
    "blank without an entry that says so": ("update journal set data = '' where run = ? and seq = 2", "kept", 2),
    "the entry that says so taken out": ("delete from journal where run = ? and kind = 'erased'", "erased", None),
    "its actor changed": (
        "update journal set data = replace(data, 'ada', 'eve') where run = ? and kind = 'erased'",
        "erased",
        None,
    ),
    "it is blank, too": ("update journal set data = '' where run = ? and kind = 'erased'", "erased", None),
    "a digest of erased data changed": (
        "update journal set data_digest = digest where run = ? and seq = 2",
        "erased",
        2,
    ),
    "an erased entry taken out": ("delete from journal where run = ? and seq = 2", "erased", 2),
    "other data put in": ("update journal set data = '{}' where run = ? and seq = 2", "erased", 2),
    "the row says another end": ("update runs set status = 'cancelled' where id = ?", "erased", 0),
    "the row says another name": ("update runs set name = 'other' where id = ?", "erased", 0),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_other_tampering_is_still_found(tmp_path: Path, how: str):
    statement, which, entry = TAMPERING[how]
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        runs = {"kept": run_order(shop, "kept"), "erased": run_order(shop, CANARY)}
        shop.runs.erase(runs["erased"].id, actor="ada")
    assert findings(path) == []
    change(path, statement, runs[which].id)
    found = findings(path)
    assert found
    assert all(one.startswith(runs[which].id) for one in found)
    if entry is not None:
        assert found[0].startswith(f"{runs[which].id} {entry}: ")


def test_erased_entry_that_somebody_else_appended_is_found(tmp_path: Path):
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        run = run_order(shop, "kept")
    with closing(open_reader(str(path))) as reader:
        head = reader.read_journal(run.id)[-1]
    forged = journal.encode_data(Erased("order", 1, "completed", "none", head.at, "ada"))
    entry = journal.link(head.digest, run.id, head.seq + 1, "erased", "", 0, 0, head.at, forged)
    values = [getattr(entry, name) for name in entry.__struct_fields__]
    change(path, f"insert into journal values ({', '.join('?' * len(values))})", *values)
    change(path, "update journal set data = '' where run = ? and seq = 2", run.id)
    assert any(f"{run.id} 2: its data was taken out" in one for one in findings(path))
    change(path, "update runs set seq = ?, digest = ? where id = ?", entry.seq, entry.digest, run.id)
    assert any("the anchor does not verify" in one for one in findings(path))


DYING = """
import os, signal, sys
from dotdo import maintaining
from dotdo.engine import erasing
from dotdo.store.sql import SqlStore

path, id, method, times = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
erasing.ENTRIES = 3
inner, calls = getattr(SqlStore, method), []

def dying(*args):
    calls.append(args)
    found = inner(*args)
    if len(calls) == times:
        os.kill(os.getpid(), signal.SIGKILL)
    return found

setattr(SqlStore, method, dying)
if method == "end_erasing":  # in its middle: the file is not written anew
    from dotdo.store.sqlite import SQLiteDatabase
    SQLiteDatabase.rewrite = lambda self: os.kill(os.getpid(), signal.SIGKILL)
maintaining.erase(path, [id], "ada")
"""


@pytest.mark.parametrize("by_engine", [False, True])
@pytest.mark.parametrize(
    "method, times", [("begin_erasing", 1), ("erase_some", 1), ("erase_some", 3), ("end_erasing", 1)]
)
def test_killed_in_the_middle_it_is_finished(tmp_path: Path, method: str, times: int, by_engine: bool):
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        run = run_order(shop, CANARY)
    died = subprocess.run([sys.executable, "-c", DYING, path, run.id, method, str(times)], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    with closing(open_reader(str(path))) as reader:
        assert reader.is_erasing()
    assert findings(path) == []
    if by_engine:
        client(path).__enter__().close()
    else:
        assert maintaining.erase(str(path), [run.id], "ben") == 0
    with closing(open_reader(str(path))) as reader:
        assert not reader.is_erasing()
        found = reader.get_run(run.id)
        assert found is not None
        assert found.erased_by == "ada"
    assert not is_in_file(path)
    assert findings(path) == []


def test_reader_of_an_old_moment_is_told_of_and_repeating_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.store.sqlite.BUSY_TIMEOUT", 200)
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        run = run_order(shop, CANARY)
        with closing(apsw.Connection(str(path))) as database:
            database.execute("begin")
            assert database.execute("select count(*) from runs").fetchall() == [(2,)]
            with pytest.raises(dotdo.StoreError, match="somebody reads that"):
                shop.runs.erase(run.id)
            assert shop.runs.get(run.id).erased_at is not None
            assert is_in_file(path)
            database.execute("rollback")
        assert shop.runs.erase(run.id) == 0
        assert not is_in_file(path)


@service("endless", catalogue=catalogue)
async def endless(text: str, number: int = 0) -> str:
    """Continues as new once."""
    if number == 0:
        dotdo.continue_as_new(text=text, number=1)
    return text


def test_erased_run_still_leads_to_the_one_that_went_on(tmp_path: Path):
    path = tmp_path / "dotdo.db"
    with client(path) as shop:
        handle = shop.start(endless, CANARY)
        assert handle.result() == CANARY
        last = handle.get().id
        assert shop.runs.erase(handle.id) == 1
        assert shop.runs.get(handle.id).continued_as == last
        assert handle.result() == CANARY  # the other one is a run of its own
        assert shop.runs.erase(last) == 1
        assert not is_in_file(path)
    assert findings(path) == []
