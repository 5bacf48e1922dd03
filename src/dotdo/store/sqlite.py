"""SQLite through apsw: connections, pragmas, the version gate.

Two connections: one writer, used on one thread at a time, and one reader. WAL with synchronous=FULL, so that what was
acknowledged survives a power cut; checkpoints are made by the engine's process only, by a thread of their own, out of
the writer's way.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (apsw's stubs name collections.abc.Buffer, which Python 3.11 does not have, so its rows are partly unknown.)

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import apsw

from dotdo.errors import FenceLost, StoreError, StoreUnavailable, StoreUnusable
from dotdo.store.engine_lock import EngineElsewhere, EngineLock, lock_holder
from dotdo.store.forked import keep_out_of_children, may_be_closed, refuse_inherited
from dotdo.store.moved import READ_MARK, Mark
from dotdo.store.turns import Turns

# 3.51.3 mends the WAL-reset corruption (sqlite.org/wal.html, "WAL-reset bug").
OLDEST = (3, 51, 3)
APPLICATION_ID = 0x646F646F  # "dodo" in the file's header: tells our files from others
CHECKPOINT_PAGES = 2_000
RESTART_PAGES = 16_000
BUSY_TIMEOUT, RESTART_PATIENCE = 5_000, 20  # ms
# With less than this left, in bytes, a disk counts as full when a write has failed.
SCARCE = 64 * 1024
# How long the writer sleeps before it tries again, in seconds: others hold the write lock for one short transaction.
BUSY_PAUSE = 0.0003

Row = tuple[Any, ...]

log = logging.getLogger("dotdo.store")


class SQLiteDatabase:
    """One store file, open in this process. `where` names it in messages."""

    dialect = "sqlite"
    shared = False

    def __init__(self, path: str | None, *, readonly: bool = False, beside: bool = False, moves: bool = False) -> None:
        """Opens or makes a store file.

        readonly: beside a live engine, without its lock. Nothing is changed; SQLite may leave its two files beside it.
        beside: the same, but requests may be written; nothing is made, migrated or checkpointed. Without either it is
        the engine's: raises EngineElsewhere when another one has it. moves: also when the store has moved elsewhere.
        """
        _check_library(apsw.sqlite_lib_version())
        self._temporary = tempfile.mkdtemp(prefix="dotdo-") if path is None else None
        self.path = Path(self._temporary, "dotdo.db") if self._temporary else Path(path or "").absolute()
        self.where, self.readonly = str(self.path), readonly
        self.migrates = not (readonly or beside)
        self._moves = moves
        self._lock: EngineLock | None = None
        self._turns: Turns | None = None
        self._checkpointer: threading.Thread | None = None
        self._opened: list[apsw.Connection] = []  # and to be closed
        self._copier: apsw.Connection | None = None  # the checkpointer's
        self._stop = threading.Event()
        self._restart = self._copying = False
        self._restart_pages = RESTART_PAGES
        self._wake_checkpointer = threading.Event()
        try:
            self._check_path()
            if self.migrates:
                self._prepare_folder()
                self._lock = self._take_lock()
            self.writer = self._connect(kept=True)
            self.reader = self.writer if readonly else self._connect(kept=True)
            self._read_lock = threading.Lock()
            if beside:
                self.take_turns(True)
        except BaseException:
            self._close_connections()
            self._release()
            raise
        keep_out_of_children(self.where, self.writer, self.reader)
        if self.migrates:
            self.writer.set_wal_hook(self._after_commit)
            self._checkpointer = threading.Thread(target=self._checkpoint, name="dotdo-checkpoint", daemon=True)
            self._checkpointer.start()

    # -- statements ---------------------------------------------------------------------------------------------------

    def read(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Row]:
        """Rows of a query, on the reader connection. Raises StoreUnavailable."""
        with self._read_lock, self._errors("read"):
            return self.reader.execute(sql, parameters).fetchall()

    def write(self, sql: str, parameters: dict[str, Any] | None = None) -> list[Row]:
        """Executes a statement on the writer connection and returns its rows."""
        return self.writer.execute(sql, parameters).fetchall()

    def stream(self, sql: str) -> Iterator[Row]:
        """The rows of a query one by one, within a transaction on the writer connection."""
        return self.writer.execute(sql)

    def changes(self) -> int:
        """How many rows the last statement changed."""
        return self.writer.changes()

    def batch(self, steps: list[tuple[str, dict[str, Any], int | None, str]]) -> None:
        """Executes statements in one durable transaction. Raises FenceLost, and then nothing is written, when one does
        not change as many rows as it must."""
        with self.transaction():
            for sql, parameters, expected, otherwise in steps:
                self.writer.execute(sql, parameters).fetchall()
                if expected is not None and self.writer.changes() != expected:
                    raise FenceLost(f"A run of this write {otherwise}; nothing was written.")

    @contextmanager
    def transaction(self) -> Generator[None]:
        """One durable transaction on the writer. Rolled back when the body raises; raises StoreUnavailable."""
        with self._errors("write"):
            if self._turns is None:
                self.writer.execute("begin immediate")
            else:
                with self._turns.queue():
                    self.writer.execute("begin immediate")
            try:
                yield
                self.writer.execute("commit")
            except BaseException:
                if self.writer.in_transaction:
                    self.writer.execute("rollback")
                raise

    @contextmanager
    def snapshot(self) -> Generator[Callable[[str, dict[str, Any]], Iterator[Any]]]:
        """Queries of one moment, on a connection of their own: gives a function that streams the rows of one. Raises
        StoreUnavailable."""
        connection = self._connect()
        try:
            with self._errors("read"):
                connection.execute("begin")
                yield connection.execute
        finally:
            connection.close(True)

    def take_turns(self, wanted: bool) -> None:
        """Whether other processes write, too: then each waits for its turn. Called on the writer's thread, or before it
        starts."""
        if wanted and self._turns is None:
            self._turns = Turns(self.where)
        elif not wanted and self._turns is not None:
            self._turns.close()
            self._turns = None

    def version(self) -> int:
        """The number of the last migration."""
        with self._errors("read"):
            return int(self.write("pragma user_version")[0][0])

    def apply(self, scripts: list[tuple[int, str]]) -> None:
        """Applies migrations in one transaction."""
        with self.transaction():
            for number, script in scripts:
                self.writer.execute(script)
                self.writer.execute(f"pragma user_version = {number}; pragma application_id = {APPLICATION_ID}")

    def integrity(self) -> list[str]:
        """What SQLite finds wrong in the file, in words; nothing when it is sound. Reads all of it."""
        with self._errors("check"):
            found = [f"{row[0]}" for row in self.reader.execute("pragma integrity_check").fetchall()]
        return [] if found == ["ok"] else found

    def copy_into(self, path: str) -> None:
        """Writes a whole and compact copy of one moment to a new file, also while others write."""
        with self._errors("copy"):
            self.reader.execute("vacuum into ?", (path,))

    def rewrite(self) -> None:
        """Writes the file anew, so that nothing deleted is left in it or its log. As long as that takes, nobody writes.
        Raises StoreUnavailable, also while somebody reads an old moment; what is deleted stays so."""
        with self._errors("be written anew"):
            with self._turns.queue() if self._turns is not None else nullcontext():
                self.writer.execute("vacuum")
            end = time.monotonic() + BUSY_TIMEOUT / 1000
            while not self._empty_log():
                if time.monotonic() >= end:
                    raise StoreUnavailable(
                        f"The store {self.where} still has an old moment of itself, because somebody reads that (a "
                        "backup, an audit). What was erased is gone from all queries, and goes from the file when this "
                        "is asked for again."
                    )
                time.sleep(BUSY_PAUSE * 20)

    def _empty_log(self) -> bool:
        try:
            self.writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return False
        return True

    def close(self) -> None:
        """Checkpoints, closes and gives the lock back."""
        self._stop.set()
        self._wake_checkpointer.set()
        if self._checkpointer is not None:
            self._checkpointer.join()
        may_be_closed(self.writer)
        self._close_connections()
        self._release()

    def _close_connections(self) -> None:
        # A disk that fails here, too, must not keep the store locked. What is durable is so already.
        while self._opened:
            try:
                self._opened.pop().close()
            except apsw.Error as error:
                log.warning("the store %s could not be closed in order: %s", self.where, error)

    # -- opening ------------------------------------------------------------------------------------------------------

    def _check_path(self) -> None:
        if os.path.isdir(self.where):
            raise StoreUnusable(f"{self.where} is a folder; name a file, such as {self.where}/dotdo.db.")
        refuse_inherited(self.where)
        if not self.migrates and not os.access(self.where, os.R_OK if self.readonly else os.R_OK | os.W_OK):
            raise StoreUnusable(
                f"The store {self.where} cannot be read by this user."
                if os.path.exists(self.where)
                else f"There is no store {self.where}. It is made when an application first runs; is the path right?"
            )

    def _prepare_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            is_file = isinstance(error, FileExistsError | NotADirectoryError)
            why = "a part of its path is a file" if is_file else error.strerror
            raise StoreUnusable(f"The folder of the store {self.where} cannot be made: {why}.") from None
        if not os.access(self.path.parent, os.W_OK) or (self.path.exists() and not os.access(self.path, os.W_OK)):
            raise StoreUnusable(
                f"The store {self.where} cannot be written: its folder and file must be writable by this user "
                "(SQLite keeps two files beside it)."
            )

    def _take_lock(self) -> EngineLock:
        lock = EngineLock.take(self.where)
        if lock is None:
            raise EngineElsewhere(
                f"Another engine already runs on the store {self.where} ({lock_holder(self.where)}). One engine per "
                "SQLite file: stop that process, or give this one another file."
            )
        return lock

    def _connect(self, *, kept: bool = False) -> apsw.Connection:
        """A new connection. kept: it is closed when the store is."""
        try:
            connection = self._open()
            try:
                self._set_up(connection)
            except BaseException:
                with suppress(apsw.Error):
                    connection.close()
                raise
            if kept:
                self._opened.append(connection)
            return connection
        except apsw.Error as error:
            raise _unusable(self.where, error) from None

    def _open(self) -> apsw.Connection:
        if self.migrates:
            return apsw.Connection(self.where)
        if not self.readonly:
            return apsw.Connection(self.where, flags=apsw.SQLITE_OPEN_READWRITE)  # and never makes one
        beside = (os.path.exists(self.where + "-wal"), os.access(self.path.parent, os.W_OK))
        if beside == (False, False):
            # A copy on read-only media: nobody writes it, and SQLite could not make its shared memory there.
            uri = f"{self.path.as_uri()}?immutable=1"
            return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        return apsw.Connection(self.where, flags=apsw.SQLITE_OPEN_READONLY)

    def _set_up(self, connection: apsw.Connection) -> None:
        _wait_patiently(connection)
        connection.execute("pragma mmap_size = 0; pragma cache_size = -16000")
        # First of all: a file of something else must stay as it is.
        connection.execute("begin")  # one snapshot: another connection of this process may just be making the tables
        application = connection.execute("pragma application_id").fetchall()[0][0]
        counting = "select count(*), total(name = 'moved') from sqlite_schema"
        tables, has_moved = connection.execute(counting).fetchall()[0]
        found: list[Any] = []
        if application == APPLICATION_ID and has_moved:
            found = connection.execute(READ_MARK).fetchall()
        connection.execute("rollback")
        if application != APPLICATION_ID and tables:
            raise StoreUnusable(
                f"{self.where} is a SQLite database of something else, not a dotdo store. An application's own "
                "database must be another file: give it as sql=, and the store a file of its own. Nothing was changed."
            )
        if found and not self._moves:
            raise StoreUnusable(Mark(*found[0]).told(self.where))
        if self.readonly:
            return
        if not self.migrates:
            if application != APPLICATION_ID:
                raise StoreUnusable(f"The store {self.where} has never been used: start your application on it once.")
            connection.execute("pragma synchronous = full; pragma wal_autocheckpoint = 0")
            return
        mode = connection.execute("pragma journal_mode = wal").fetchall()[0][0]
        if mode != "wal":
            raise StoreUnusable(f"The store {self.where} cannot use write-ahead logging (its file system gave {mode}).")
        connection.execute("pragma synchronous = full; pragma wal_autocheckpoint = 0")

    def _release(self) -> None:
        self.take_turns(False)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._temporary:
            shutil.rmtree(self._temporary)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _after_commit(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        # After each commit, until a copy ends between two of them and the log starts over. It costs two flushes beside
        # the writer's, but a commit into a log that grows takes a quarter longer than one into old pages (measured).
        if pages >= CHECKPOINT_PAGES and not self._wake_checkpointer.is_set():
            self._wake_checkpointer.set()
        if pages >= self._restart_pages:
            # Under an endless flood a passive checkpoint never meets a quiet moment; this one is short, because the
            # passive one has just copied all but the newest pages.
            self._restart = True
        return apsw.SQLITE_OK

    def settle_log(self) -> None:
        """Called by the writer between batches: starts the log over when it has grown large."""
        if not self._restart or self._copying:
            return
        self._restart = False
        # This timeout is for readers of an old moment, and clients that are writing a request. While one stays, the log
        # grows, and is tried again now and then.
        self.writer.set_busy_timeout(RESTART_PATIENCE)
        done = self._checkpoint_with(self.writer, apsw.SQLITE_CHECKPOINT_RESTART)
        _wait_patiently(self.writer)
        self._restart_pages = RESTART_PAGES if done else self._restart_pages + RESTART_PAGES // 8

    def _checkpoint(self) -> None:
        while not self._stop.is_set():
            self._wake_checkpointer.wait()
            self._wake_checkpointer.clear()
            if not self._stop.is_set() and not self._restart:
                self._copy_log()

    def _copy_log(self) -> None:
        self._copying = True
        try:
            if self._copier is None:
                self._copier = self._connect(kept=True)
            self._checkpoint_with(self._copier, apsw.SQLITE_CHECKPOINT_PASSIVE)
        except StoreError as error:  # the thread must live: the next commits ask again
            log.warning("the log of %s is copied into it later: %s", self.where, error)
        finally:
            self._copying = False

    def _checkpoint_with(self, connection: apsw.Connection, mode: int) -> bool:
        # An exception here would end the thread that it is on. Nothing is lost by a failure: later commits ask again.
        try:
            connection.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return False
        except apsw.Error as error:
            log.warning("the log of %s could not be copied into it: %s", self.where, error)
            return False
        return True

    @contextmanager
    def _errors(self, doing: str) -> Generator[None]:
        try:
            yield
        except (apsw.CorruptError, apsw.NotADBError) as error:
            raise _unusable(self.where, error) from error
        except apsw.ConstraintError as error:
            raise StoreError(f"The store {self.where} refused a write: {error}.") from error
        except apsw.Error as error:
            if _is_full(self.path.parent, error):
                raise StoreUnavailable(
                    f"The disk of the store {self.where} is full. Nothing was accepted; free some space and try again."
                ) from error
            raise StoreUnavailable(f"The store {self.where} could not {doing}: {error}.") from error


def _is_full(folder: Path, error: apsw.Error) -> bool:
    if isinstance(error, apsw.IOError):  # what SQLite says when the file beside it that it maps cannot grow
        with suppress(OSError):
            return shutil.disk_usage(folder).free < SCARCE
    return isinstance(error, apsw.FullError)


def _wait_patiently(connection: apsw.Connection) -> None:
    """Tries again often while another process writes. SQLite's own pauses grow to 100 ms, which would hold the engine's
    writer up far longer than any transaction takes."""
    began = 0.0

    def again(count: int) -> bool:
        nonlocal began
        if count == 0:
            began = time.monotonic()
        time.sleep(BUSY_PAUSE if count < 1_000 else 20 * BUSY_PAUSE)
        return time.monotonic() - began < BUSY_TIMEOUT / 1000

    connection.set_busy_handler(again)


def _check_library(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST:
        raise StoreUnusable(
            f"SQLite {version} can corrupt a database in write-ahead mode; {'.'.join(map(str, OLDEST))} or newer is "
            "needed. Install apsw from its wheel (pip install apsw), which brings its own."
        )


def _unusable(where: str, error: Exception) -> StoreUnusable:
    if isinstance(error, apsw.NotADBError | apsw.CorruptError):
        return StoreUnusable(
            f"The store {where} is not a readable SQLite database ({error}). It may be damaged: restore a backup, or "
            "move it away to begin with an empty one. Nothing was changed."
        )
    if isinstance(error, apsw.Error) and _is_full(Path(where).parent, error):
        return StoreUnusable(f"The store {where} cannot be opened: its disk is full. Free some space and try again.")
    return StoreUnusable(f"The store {where} cannot be opened: {error}.")
