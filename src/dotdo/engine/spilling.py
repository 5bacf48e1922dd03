"""Large data on its way into the store: encoded and hashed on a thread, written in parts between others' commits.

Meanwhile its run's journal goes on: entries are numbered as they come, and are chained, in that order, once the digests
of the large ones are known and all their parts are durable. So a large value delays its own run, and no other.
"""

import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from dotdo.journal import GENESIS, LARGE, Accepted, Data, Entry, anchor, chain, encode_data, input_digest, place_of
from dotdo.store.protocol import Message, Store

if TYPE_CHECKING:
    from dotdo.engine.accepting import AcceptedRun

PART_BYTES = 1024 * 1024


class BlobWriter(Protocol):
    """Who writes blobs: the engine's group commit, or the client of an engine in another process."""

    @property
    def store(self) -> Store:
        """Where to."""
        ...

    def apart(self, function: Callable[[], Any], /) -> Awaitable[Any]:
        """Runs what is long on a thread."""
        ...

    def call(self, function: Callable[[], Any], /) -> Awaitable[Any]:
        """Runs a write of the store."""
        ...


class Large:
    """Something large of a run: its source, and, once it was hashed, its digest and the pieces of its bytes."""

    __slots__ = ("digest", "input_digest", "pieces", "run", "source")

    def __init__(self, run: str, source: Data | str) -> None:
        self.run, self.source = run, source
        self.pieces: list[memoryview] = []
        self.digest = self.input_digest = ""

    def hash(self) -> None:
        """Encodes and hashes it, which takes a tenth of a second for 64 MiB."""
        source = self.source
        self.pieces = [memoryview(source.encode())] if isinstance(source, str) else pieces_of(source)
        sha = hashlib.sha256()
        for piece in self.pieces:
            sha.update(piece)  # lets other threads run meanwhile
        self.digest = sha.hexdigest()
        if isinstance(source, Accepted):
            self.input_digest = input_digest(source.input)

    def whole(self) -> str:
        """All of it."""
        return b"".join(self.pieces).decode()

    def parts(self) -> Iterator[bytes]:
        """All of it, in the parts that are written."""
        part = bytearray()
        for piece in self.pieces:
            start = 0
            while start < len(piece):
                end = start + PART_BYTES - len(part)
                part += piece[start:end]
                start = end
                if len(part) >= PART_BYTES:
                    yield bytes(part)
                    part.clear()
        if part:
            yield bytes(part)


def pieces_of(data: Data) -> list[memoryview]:
    """Data as JSON, in pieces: large values are taken as they are, because copying one stops every other thread."""
    large = {
        name: value
        for name, value in msgspec.structs.asdict(data).items()
        if isinstance(value, msgspec.Raw) and len(value) > LARGE
    }
    marks = {name: b'"' + os.urandom(16).hex().encode() + b'"' for name in large}
    small = msgspec.structs.replace(data, **{name: msgspec.Raw(mark) for name, mark in marks.items()})
    rest, pieces = encode_data(small), list[memoryview]()
    for name, value in large.items():  # in the order of the fields, and so of the JSON
        before, _, rest = rest.partition(marks[name])
        pieces += [memoryview(before), memoryview(value)]
    return [*pieces, memoryview(rest)]


class Late:
    """What a journal has taken in since something large of it is on its way. update: writes the run's row, later."""

    def __init__(self) -> None:
        self.larges: list[Large] = []
        self.update: Callable[[], None] | None = None
        self._entries: list[tuple[Entry, Data, Large | None]] = []
        self._accepts: list[tuple[AcceptedRun, Large]] = []
        self._messages: list[tuple[Message, Large | None]] = []

    def append(self, entry: Entry, data: Data, *, large: bool) -> None:
        """An entry that is numbered, and neither hashed nor chained yet."""
        self._entries.append((entry, data, self._large(entry.run, data) if large else None))

    def accept(self, accepted: "AcceptedRun") -> None:
        """A run whose input is large."""
        self._accepts.append((accepted, self._large(accepted.id, accepted.data)))

    def send(self, message: Message) -> None:
        """A message; one that is small, too, keeps its place behind those that are large."""
        is_large = len(message.value) > LARGE
        self._messages.append((message, self._large(message.run, message.value) if is_large else None))

    def _large(self, run: str, source: Data | str) -> Large:
        self.larges.append(Large(run, source))
        return self.larges[-1]

    async def bring(self, committer: BlobWriter) -> None:
        """Brings all that is large into the store, also what comes meanwhile. Raises StoreError."""
        done = 0
        while done < len(self.larges):
            large = self.larges[done]
            await committer.apart(large.hash)
            await write_blob(committer, large)
            done += 1

    def accepted(self, key: bytes) -> list["AcceptedRun"]:
        """The runs with their digests, which their rows and first entries did not have."""
        for run, large in self._accepts:
            run.entry = _chained(run.entry, GENESIS, large, b"")
            signature = anchor(key, run.id, 1, run.entry.digest)
            run.row = msgspec.structs.replace(
                run.row,
                input_digest=run.row.input_digest or large.input_digest,
                digest=run.entry.digest,
                anchor=signature,
            )
        return [run for run, _ in self._accepts]

    def entries(self, previous: str) -> list[tuple[Entry, Large | None]]:
        """The entries, chained to the digest before them; those that are large as they stand in their rows."""
        found: list[tuple[Entry, Large | None]] = []
        for entry, data, large in self._entries:
            chained = _chained(entry, previous, large, encode_data(data) if large is None else b"")
            previous = chained.digest
            found.append((chained, large))
        return found

    def messages(self) -> list[Message]:
        """The messages as they stand in their rows."""
        return [
            one if large is None else msgspec.structs.replace(one, value=place_of(large.digest, one.run))
            for one, large in self._messages
        ]


def _chained(entry: Entry, previous: str, large: Large | None, data: bytes) -> Entry:
    digest = hashlib.sha256(data).hexdigest() if large is None else large.digest
    text = data.decode() if large is None else place_of(digest)
    header = f"{entry.run}|{entry.seq}|{entry.kind}|{entry.step}|{entry.generation}|{entry.attempt}|{entry.at}"
    return msgspec.structs.replace(entry, data=text, data_digest=digest, digest=chain(previous, header, digest))


async def write_blob(committer: BlobWriter, large: Large) -> None:
    """Writes a blob; returns when it is durable. Each part is a turn of the writer, so others' batches come between."""
    for number, part in enumerate(large.parts()):
        await committer.call(partial(committer.store.write_blob, large.run, large.digest, number, part))


async def spilled(committer: BlobWriter, message: Message) -> Message:
    """A message as it stands in its row: a large value is written first. Raises StoreError."""
    if len(message.value) <= LARGE:
        return message
    large = Large(message.run, message.value)
    await committer.apart(large.hash)
    await write_blob(committer, large)
    return msgspec.structs.replace(message, value=place_of(large.digest, message.run))
