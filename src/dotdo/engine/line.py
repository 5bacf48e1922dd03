"""A line between processes on one store: messages as JSON over a Unix socket that lies beside the file.

It carries hints and questions, never what must not be lost: that is in the store, and every reader looks there by
itself from time to time. Where no socket can be had (its file system has none) all works as well, only later.
"""

import asyncio
import hashlib
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from dotdo.errors import DotdoError, InvalidInput, Problem

# A path in a socket's address has 108 bytes on Linux, 104 elsewhere.
LONGEST_PATH = 100
LONGEST_NAME = 50
LARGEST_FRAME = 128 * 1024 * 1024
# With so many bytes not taken the other side is frozen or slow; hints are dropped, because it will look by itself.
TOO_MUCH = 256 * 1024
_HEAD = struct.Struct(">I")


class Hint(msgspec.Struct, frozen=True, tag=True):
    """To the engine: something was left for a run."""

    run: str


class Watch(msgspec.Struct, frozen=True, tag=True):
    """To the engine: tell me when this run is over, or has news."""

    run: str


class Forget(msgspec.Struct, frozen=True, tag=True):
    """To the engine: no more of this run."""

    run: str


class News(msgspec.Struct, frozen=True, tag=True):
    """From the engine: look at this run."""

    run: str


class Ask(msgspec.Struct, frozen=True, tag=True):
    """To the engine: a question that only it can answer. data: what it is about, by the kind of question."""

    number: int
    question: str
    data: msgspec.Raw


class Refusal(msgspec.Struct, frozen=True):
    """An error on its way to another process: its code, and what it is made of."""

    code: str
    message: str
    subject: str = ""
    problems: tuple[Problem, ...] = ()


class Answer(msgspec.Struct, frozen=True, tag=True):
    """From the engine: the answer, or why there is none."""

    number: int
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: Refusal | None = None


Said = Hint | Watch | Forget | News | Ask | Answer


def refusal(error: DotdoError) -> Refusal:
    """An error as it is said."""
    if isinstance(error, InvalidInput):
        return Refusal(error.code, error.message, error.subject, error.problems)
    return Refusal(error.code, error.message)


def error_of(refusal: Refusal) -> DotdoError:
    """An error as it was meant."""
    if refusal.code == InvalidInput.code:
        return InvalidInput(refusal.subject, refusal.problems)
    found = _error_classes(DotdoError).get(refusal.code, DotdoError)
    return found(refusal.message)


def _error_classes(root: type[DotdoError]) -> dict[str, type[DotdoError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found |= _error_classes(kind)
    return found


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Said).decode


class Line(asyncio.Protocol):
    """One end of a line. heard: called with each message. lost: called once, when the other side is gone."""

    def __init__(self, heard: Callable[["Line", Any], None], lost: Callable[["Line"], None]) -> None:
        self._heard, self._lost = heard, lost
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._file = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """For asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        self._file = transport.get_extra_info("socket").fileno()
        _open.add(self._file)

    def data_received(self, data: bytes) -> None:
        """For asyncio."""
        self._received += data
        while len(self._received) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._received)
            if length > LARGEST_FRAME:
                self.close()
                return
            end = _HEAD.size + length
            if len(self._received) < end:
                return
            frame = bytes(self._received[_HEAD.size : end])
            del self._received[:end]
            try:
                message = _decode(frame)
            except msgspec.MsgspecError:
                continue  # of another version of dotdo, which means something that is not known here
            self._heard(self, message)

    def connection_lost(self, exc: Exception | None) -> None:
        """For asyncio."""
        _open.discard(self._file)
        self._transport = None
        self._lost(self)

    def say(self, message: Said) -> None:
        """Sends a message, if the other side is there and listens."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > TOO_MUCH:
            return
        data = _encode(message)
        transport.write(_HEAD.pack(len(data)) + data)

    def close(self) -> None:
        """Hangs up."""
        if self._transport is not None:
            self._transport.close()


def listen(store: str) -> int:
    """A socket that hears whoever wants to speak to the engine of a store; the caller holds the engine's lock. Raises
    OSError where there can be none.

    It is given as its number, because an engine may be left unclosed without a word.
    """
    path = socket_path(store)
    path.unlink(missing_ok=True)  # left by a process that was killed
    listener = _socket()
    try:
        with _short(path) as short:
            listener.bind(short)
        # Whoever may write the store may speak to its engine.
        path.chmod(os.stat(store).st_mode & 0o777)
        listener.listen(128)
    except BaseException:
        hang_up(listener.detach())
        raise
    return listener.detach()


def pick_up(listener: int) -> socket.socket:
    """A socket connected with who has called. Raises OSError when it has hung up again."""
    listening = socket.socket(fileno=listener)
    try:
        caller, _ = listening.accept()
    finally:
        listening.detach()
    caller.setblocking(False)
    return caller


def call(store: str) -> socket.socket:
    """A socket connected with the engine of a store. Raises OSError when there is none."""
    caller = _socket()
    try:
        with _short(socket_path(store)) as short:
            caller.connect(short)  # succeeds or fails at once
    except BaseException:
        hang_up(caller.detach())
        raise
    return caller


def hang_up(end: int) -> None:
    """Closes a socket of this module."""
    _open.discard(end)
    os.close(end)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    _open.add(made.fileno())
    return made


def _hang_up_in_child() -> None:
    # A forked process has every socket, too, and while it lives nobody would notice that the engine is gone. The
    # numbers stay taken, because objects here still mean to close them.
    if _open:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for file in _open:
            os.dup2(nowhere, file, inheritable=False)
        os.close(nowhere)
        _open.clear()


_open: set[int] = set()
os.register_at_fork(after_in_child=_hang_up_in_child)


def socket_path(store: str) -> Path:
    """Where the socket of a store is."""
    path = Path(store)
    if len(os.fsencode(path.name)) <= LONGEST_NAME:
        return path.with_name(path.name + ".socket")
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.socket")


@contextmanager
def _short(path: Path) -> Generator[str]:
    """The path, through a link if it is too long for a socket's address."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="dotdo-") as folder:
        link = Path(folder, "f")
        link.symlink_to(path.parent)
        yield str(link / path.name)
