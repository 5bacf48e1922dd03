"""Moves a store from a SQLite file to PostgreSQL, with everything in it: runs in flight, too, go on there.

Nothing here needs the application. Whatever ends it early, the store is in one of the two places: the file is as it was
until the other side has everything, verified; and from then on the file says so to whoever opens it.
"""

import os
import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.audit import Audit, Finding
from dotdo.clock import SystemClock
from dotdo.embedding import audit_key, check_audit_key, key_path, open_shared, postgres_url, store_path
from dotdo.errors import DefinitionError, StoreUnusable
from dotdo.journal import anchor
from dotdo.secret_keys import SUFFIX, VARIABLE
from dotdo.store import moving
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase

if TYPE_CHECKING:
    from dotdo.store.postgres import PostgresDatabase

# The environment that has a key, and how the file is called that has it otherwise.
KEYS = (("DOTDO_AUDIT_KEY", ".audit-key"), (VARIABLE, SUFFIX))


class Promoted(msgspec.Struct, frozen=True):
    """A store that has moved. unfinished: runs that go on there. rows: by table. keys: files that were made, which each
    process needs. findings: what was wrong with the journals before, and still is. before: it had moved already."""

    source: str
    target: str
    runs: int
    unfinished: int
    rows: dict[str, int]
    keys: list[str]
    findings: int = 0
    before: bool = False


def promote(
    source: str,
    target: str,
    progress: moving.Progress = lambda table, done, count: None,
    verifying: Callable[[Audit], None] = lambda audit: None,
) -> Promoted:
    """Moves the store of a file into an empty one on PostgreSQL. Raises StoreUnusable, also when an engine holds the
    file, or the target is not empty; StoreUnavailable; DefinitionError. After an error, ask again.

    progress, verifying: called now and then, for a display.
    """
    path, url = _file(source), postgres_url(target)
    if url is None:
        raise DefinitionError(f"The target {target!r} is not on PostgreSQL: name it like postgresql://host/database.")
    SQLiteDatabase(path, readonly=True, moves=True).close()  # raises when there is no store
    open_shared(url).close()  # makes the tables
    from dotdo.store.postgres import PostgresDatabase

    with closing(PostgresDatabase(url, migrates=False)) as there:
        with closing(SqlStore(file := SQLiteDatabase(path, moves=True))) as opened:
            if _has_arrived(file, there):
                return _told(file, there, {}, [], before=True)
            key = audit_key(path, make=not opened.find_runs("run_", 1))
            check_audit_key(opened, key)
            done = _Moving(path, target, file, there, key).move(progress, verifying)
        there.write("analyze")  # without what is in the tables known, the first claims would be slow
    return done


class _Moving:
    """One move, between two stores that are open."""

    def __init__(self, source: str, target: str, file: SQLiteDatabase, there: "PostgresDatabase", key: bytes) -> None:
        self._source, self._target, self._file, self._there, self._key = source, target, file, there, key

    def move(self, progress: moving.Progress, verifying: Callable[[Audit], None]) -> Promoted:
        """Copies, verifies and marks; commits there, and then is sure here."""
        from dotdo.store.connecting import CommitUnknown

        known_by, now = anchor(self._key, "", 0, ""), SystemClock().now()
        marked = False
        try:
            with moving.receiving(self._there):
                moving.refuse_used(self._there, known_by)
                with self._file.transaction():
                    rows = moving.move(self._file, self._there, known_by, now, progress)
                    findings = self._verify(verifying)
                    keys = _carry_keys(self._source, self._target)
                    moving.mark(self._file, self._there, now)
                marked = True
        except CommitUnknown as error:
            if marked:
                mark = moving.read_mark(self._file)
                assert mark is not None, "it was just written"
                raise StoreUnusable(f"{error.message} {mark.told(self._file.where)}") from error
            raise
        except BaseException:
            if marked:
                moving.unmark(self._file)
            raise
        moving.be_sure(self._file)
        return _told(self._file, self._there, rows, keys, findings=len(findings))

    def _verify(self, verifying: Callable[[Audit], None]) -> list[Finding]:
        """Goes through all chains that have arrived. Raises StoreUnusable when one is not as it was in the file."""
        arriving: Any = moving.Arriving(self._there)
        audit = Audit(SqlStore(arriving), self._key, lambda: verifying(audit))
        found = list(audit.verify())
        if found:
            with closing(SqlStore(SQLiteDatabase(self._file.where, readonly=True))) as before:
                if found != list(Audit(before, self._key).verify()):
                    raise StoreUnusable(
                        f"What arrived in {self._there.where} is not what {self._file.where} has (run "
                        f"{found[0].run}: {found[0].text}). Nothing was changed."
                    )
        return found


def _has_arrived(file: SQLiteDatabase, there: "PostgresDatabase") -> bool:
    """Whether an earlier move to this target, of which the file is not sure, was done; if not, the file is as it was
    before. Raises StoreUnusable when it has moved for good, or perhaps to another target."""
    mark = moving.read_mark(file)
    if mark is None:
        return False
    if mark.sure or mark.target != there.where:
        raise StoreUnusable(mark.told(file.where))
    with moving.receiving(there):  # the transaction of that move has ended, whatever became of it
        arrived = moving.has_arrived(there, mark.id)
    (moving.be_sure if arrived else moving.unmark)(file)
    return arrived


def _told(
    file: SQLiteDatabase,
    there: "PostgresDatabase",
    rows: dict[str, int],
    keys: list[str],
    *,
    findings: int = 0,
    before: bool = False,
) -> Promoted:
    [(runs, unfinished)] = file.read("select count(*), count(*) - count(ended_at) from runs")
    return Promoted(file.where, there.where, runs, unfinished, rows, keys, findings, before)


def _carry_keys(source: str, target: str) -> list[str]:
    """Puts the keys that are in files where processes with the target look for them; returns which were made. Raises
    StoreUnusable when other keys are there."""
    there = key_path(target)
    assert there is not None, "a server has a name"
    made: list[str] = []
    for variable, suffix in KEYS:
        old, new = Path(source + suffix), Path(there + suffix)
        if os.environ.get(variable) or not old.exists() or (new.exists() and old.samefile(new)):
            continue
        text = old.read_text(encoding="ascii")
        if not new.exists():
            _write_key(new, text)
            made.append(str(new))
        elif new.read_text(encoding="ascii").strip() != text.strip():
            target_name = os.path.basename(there)
            raise StoreUnusable(
                f"{new} has another key than {old}, and processes that open {target_name} here would take it: move "
                f"it away, or give the right one to every process as {variable}. Nothing was changed."
            )
    return made


def _write_key(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)


def _file(source: str) -> str:
    if postgres_url(source) is not None:
        raise DefinitionError("The source is on PostgreSQL already; name a SQLite store, such as sqlite:dotdo.db.")
    short = source.startswith("sqlite:") and not source.startswith("sqlite://")
    path = store_path(source.removeprefix("sqlite:") if short else source)
    if path is None:
        raise DefinitionError("A temporary store (sqlite://) is gone when its client closes; name a file.")
    return os.path.abspath(path)
