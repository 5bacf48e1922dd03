"""A disk that fails: a VFS of SQLite which counts every input and output, and lets the n-th go wrong.

It works on real files, and remembers beside them what of each is durable, so that it can take the power away, too:
what was not synced is then kept, lost or torn, as a seed says. Shared memory stays SQLite's own: it is not a file.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

NAME = "dotdo-faulty"
SECTOR = 512
CHANGES = ("write", "truncate", "sync", "delete", "open")

# What can go wrong, and with which operations.
KINDS = {
    "error": ("open", "read", "write", "truncate", "sync", "delete", "access", "size"),
    "full": ("write",),  # no space left
    "torn": ("write",),  # half of it is written, then an error
    "fsync": ("sync",),  # it fails, and what was to be synced is lost at the end, though it can still be read
    "broken": ("open", "read", "write", "truncate", "sync", "delete", "access", "size"),  # and all after it, for a time
    "kill": CHANGES,  # the process dies
    "power": CHANGES,  # the machine loses its power
}


@dataclass(frozen=True)
class Fault:
    """What is to go wrong: at which operation, counted from 1, and how."""

    kind: str
    number: int


@dataclass
class Operation:
    """One input or output: what was done to which file (its suffix: "", "-wal", ...)."""

    name: str
    file: str


class Image:
    """What of a file is durable, and what has been written since. exists: whether its name is durable, too."""

    def __init__(self, content: bytes | None) -> None:
        self.durable, self.exists = bytearray(content or b""), content is not None
        self.pending: list[tuple[int, bytes | None]] = []  # offset and data; data None: cut off there

    def sync(self) -> None:
        """All is durable."""
        for offset, data in self.pending:
            _apply(self.durable, offset, data)
        self.pending.clear()
        self.exists = True

    def after_power_loss(self, chance: random.Random) -> bytes | None:
        """What is found afterwards; None: not even the file."""
        if not self.exists and chance.random() < 0.5:
            return None
        found = bytearray(self.durable)
        keep = chance.choice([0.0, 0.5, 1.0])
        for offset, data in self.pending:
            if chance.random() >= keep:
                continue
            if data is not None and len(data) > SECTOR and chance.random() < 0.3:
                data = data[: SECTOR * chance.randrange(1, -(-len(data) // SECTOR))]
            _apply(found, offset, data)
        return bytes(found)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Disk(apsw.VFS):
    """The VFS. As a context, it is the one that is used.

    fault: what is to go wrong. died, broke: called when the process or the machine dies by it, or the disk breaks.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        super().__init__(NAME, "unix")
        self.fault = fault
        self.died: Callable[[], object] = lambda: None
        self.broke: Callable[[], object] = lambda: None
        self.number = 0
        self.done: list[Operation] = []
        self.struck: Operation | None = None
        self.dead = self.broken = False
        self.images: dict[str, Image] = {}
        self.ghosts: dict[str, Image] = {}  # deleted, and the deletion is not durable
        self.seen: Counter[str] = Counter()

    def __enter__(self) -> "Disk":
        apsw.set_default_vfs(NAME)
        return self

    def __exit__(self, *error: object) -> None:
        apsw.set_default_vfs("unix")
        self.unregister()

    # -- what SQLite asks for -----------------------------------------------------------------------------------------

    def xOpen(self, name: Any, flags: list[int]) -> "File":
        """Opens a file."""
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.strike("open", path)
        existed = path is not None and os.path.exists(path)
        file = File(self, name, path, flags)
        if path is not None and not flags[0] & apsw.SQLITE_OPEN_DELETEONCLOSE and path not in self.images:
            self.images[path] = Image(Path(path).read_bytes() if existed else None)
        return file

    def xDelete(self, path: str, syncs: bool) -> None:
        """Deletes a file."""
        self.strike("delete", path)
        super().xDelete(path, syncs)
        image = self.images.pop(path, None)
        if image is not None and image.exists and not syncs:
            self.ghosts[path] = image

    def xAccess(self, path: str, flags: int) -> bool:
        """Whether a file is there."""
        self.strike("access", path)
        return super().xAccess(path, flags)

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def strike(self, name: str, path: str | None) -> str | None:
        """Counts an operation, and says which fault the caller has to see to. Raises what SQLite is to be told."""
        if self.dead:
            raise failure(name, "the process is dead")
        operation = Operation(name, suffix(path))
        self.number += 1
        self.done.append(operation)
        if self.broken:
            raise failure(name, "the disk is broken")
        if self.fault is None or self.struck is not None or self.number < self.fault.number:
            return None
        if name not in KINDS[self.fault.kind]:
            return None
        self.struck = operation
        match self.fault.kind:
            case "error":
                raise failure(name, "it failed")
            case "full":
                raise apsw.FullError("simulated: no space left")
            case "broken":
                self.broken = True
                self.broke()
                raise failure(name, "the disk is broken")
            case "kill" | "power":
                if name != "write":
                    self.die()
                    raise failure(name, "the process is dead")
            case _:
                pass
        return self.fault.kind

    def die(self) -> None:
        """From here on nothing is done any more."""
        self.dead = True
        self.died()

    def mend(self) -> None:
        """A broken disk works again."""
        self.broken = False

    def lose_power(self, seed: object) -> None:
        """Leaves of each file what would be found. All connections must be closed."""
        chance = random.Random(f"power {seed}")
        self.dead = True
        for path, image in self.ghosts.items():
            if path not in self.images and chance.random() < 0.5:
                self.images[path] = image
        for path, image in self.images.items():
            found = image.after_power_loss(chance)
            self.seen["lost"] += bool(image.pending)
            if found is None:
                Path(path).unlink(missing_ok=True)
            else:
                Path(path).write_bytes(found)
            Path(f"{path}-shm").unlink(missing_ok=True)


class File(apsw.VFSFile):
    """An open file on the disk."""

    def __init__(self, disk: Disk, name: Any, path: str | None, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk, self._path = disk, path

    def xRead(self, amount: int, offset: int) -> bytes:
        """Reads."""
        self._disk.strike("read", self._path)
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        """Writes; only half of it when that goes wrong."""
        fault = self._disk.strike("write", self._path)
        if fault is not None:
            data = data[: len(data) // 2]
        super().xWrite(data, offset)
        self._note(offset, bytes(data))
        if fault is not None:
            if fault != "torn":
                self._disk.die()
            raise failure("write", "half of it was written")

    def xTruncate(self, size: int) -> None:
        """Cuts off."""
        self._disk.strike("truncate", self._path)
        super().xTruncate(size)
        self._note(size, None)

    def xSync(self, flags: int) -> None:
        """Makes durable what was written. One that fails forgets what it had to do, as Linux does."""
        fault = self._disk.strike("sync", self._path)
        image = self._disk.images.get(self._path or "")
        if fault is not None:
            if image is not None:
                image.pending.clear()
            raise failure("sync", "it could not be synced")
        super().xSync(flags)
        if image is not None:
            image.sync()
            if self._path is not None and self._path.endswith(("-wal", "-journal")):
                self._disk.ghosts.clear()  # SQLite syncs the folder, too

    def xFileSize(self) -> int:
        """How long it is."""
        self._disk.strike("size", self._path)
        return super().xFileSize()

    def excepthook(self, *error: Any) -> None:
        """What SQLite does not ask about (a failure while it closes) is nobody's concern."""

    def _note(self, offset: int, data: bytes | None) -> None:
        image = self._disk.images.get(self._path or "")
        if image is not None:
            image.pending.append((offset, data))


CODES = {
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "delete": apsw.SQLITE_IOERR_DELETE,
    "access": apsw.SQLITE_IOERR_ACCESS,
    "size": apsw.SQLITE_IOERR_FSTAT,
}


def failure(name: str, why: str) -> apsw.Error:
    """What SQLite is told."""
    if name == "open":
        return apsw.CantOpenError(f"simulated: {why}")
    error = apsw.IOError(f"simulated: {name}: {why}")
    error.extendedresult = CODES[name]  # pyright: ignore[reportAttributeAccessIssue]
    return error


def suffix(path: str | None) -> str:
    """What kind of file it is."""
    if path is None:
        return "temporary"
    name = os.path.basename(path)
    return name if name.startswith("dotdo.db") else "other"


__all__ = ["KINDS", "NAME", "Disk", "Fault", "Operation"]
