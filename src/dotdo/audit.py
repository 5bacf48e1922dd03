"""The audit: checks every run's journal against its hash chain, its anchored head, and its row.

A fast sweep over all entries only tells which runs are sound; each other run is then looked at by itself, in a moment
of its own, to say what is wrong where. Beside a live engine a run may move between the two; nothing is reported unless
the second look shows it. Memory is bounded: journals are streamed, in several snapshots, so that the store's log can
be started over meanwhile.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import msgspec

from dotdo.journal import GENESIS, KINDS, anchor, chain
from dotdo.records import ENDED
from dotdo.store.protocol import Head, Link, Store

_LAST = ("ended", "erased")

# Entries in one snapshot: about a tenth of a second.
CHUNK = 20_000
# Heads that are looked at to tell a wrong key from edited rows.
PROBE = 50
# Where an entry came from is found by trying every place, so only in journals of an ordinary size.
MAX_PLACES = 400
LAST_ID = "\U0010ffff"

_sha256 = hashlib.sha256


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong. entry: its number; 0 is the run's row. run: empty for the store as a whole."""

    run: str
    entry: int
    text: str


class Audit:
    """One verification of a store. `runs` and `entries` count what was looked at so far.

    key: the audit key. on_progress: called now and then, for a display.
    """

    def __init__(self, store: Store, key: bytes, on_progress: Callable[[], None] = lambda: None) -> None:
        self._store, self._on_progress = store, on_progress
        self._key = key
        self._anchors_count = True
        self.runs = self.entries = 0

    def verify(self, run: str | None = None) -> Iterator[Finding]:
        """Verifies one run, or all. Yields what is wrong, in order of runs. Raises StoreError."""
        if self._is_foreign_key():
            self._anchors_count = False
            yield Finding(
                "",
                0,
                "no run's head verifies under this audit key: it is another store's, or all heads were edited; "
                "without the right key, a journal that was truncated or rewritten as a whole cannot be told",
            )
        if run is None:
            yield from self._verify_registry()
        leftovers = self._store.leftover_runs()
        first: str | None = run or ""
        while first is not None:
            suspects, first = self._sweep(first, run or LAST_ID)
            for suspect in suspects:
                if suspect in leftovers:
                    continue  # deleted by retention, and not cleared yet
                yield from self._examine(suspect)
            self._on_progress()

    def _verify_registry(self) -> Iterator[Finding]:
        """What was deleted must be written down without a gap, and must be gone."""
        previous = GENESIS
        for number, entry in enumerate(self._store.read_registry(), 1):
            header = f"registry|{entry.number}|{entry.kind}|{entry.at}|{entry.actor}"
            follows = chain(previous, header, _sha256(entry.data.encode()).hexdigest()) == entry.digest
            signed = anchor(self._key, "registry", entry.number, entry.digest) == entry.anchor
            if entry.number != number or not follows or (self._anchors_count and not signed):
                yield Finding("", 0, f"the registry of deleted runs was changed at or before its entry {entry.number}")
                return
            previous = entry.digest
            for run, *_ in msgspec.json.decode(entry.data):
                if self._store.get_run(run) is not None and not self._came_again(run, entry.at):
                    yield Finding(run, 0, "was deleted by retention, and is there again")

    def _came_again(self, run: str, at: int) -> bool:
        found = self._store.get_run(run)
        return found is not None and found.created_at >= at  # its key was used again

    def _is_foreign_key(self) -> bool:
        with self._store.read_chains("", LAST_ID) as (heads, _):
            signed = [self._anchor(head) == head.anchor for head in islice(heads, PROBE)]
        return bool(signed) and not any(signed)

    # -- the fast sweep -----------------------------------------------------------------------------------------------

    def _sweep(self, first: str, last: str) -> tuple[list[str], str | None]:
        """The runs of one snapshot that need a second look, and where the next snapshot begins."""
        suspects: list[str] = []
        end = self.entries + CHUNK
        with self._store.read_chains(first, last) as (heads, links):
            head = next(heads, None)
            for run, group in groupby(links, key=itemgetter(0)):
                while head is not None and head.run < run:
                    suspects.append(head.run)  # a row without a journal
                    head = next(heads, None)
                if head is None or head.run != run:
                    suspects.append(run)  # a journal without a row
                    continue
                if not self._is_sound(head, group):
                    suspects.append(run)
                self.runs += 1
                if self.entries >= end:
                    return suspects, run + "\1"
                head = next(heads, None)
            while head is not None:
                suspects.append(head.run)
                head = next(heads, None)
        return suspects, None

    def _is_sound(self, head: Head, links: Iterable[Link]) -> bool:
        digest, count, at_head = GENESIS, 0, GENESIS
        seq, first, last, kind, blank = head.seq, "", "", "", False
        began = ended = ""
        for _, kind, header, data, data_digest, given in links:
            if data == "":
                blank = True
            elif _sha256(data.encode()).hexdigest() != data_digest:
                return False
            if (
                _sha256(f"{digest}|{header}|{data_digest}".encode()).hexdigest() != given
                or kind not in KINDS  # with which a header has one reading only
            ):
                return False
            digest = given
            count += 1
            if count == 1:
                first, began = data, header
            if kind == "ended":
                ended = header
            if count == seq:
                at_head, last = digest, data
        self.entries += count
        erased = kind == "erased" and count == seq
        if blank and not (erased and last):
            return False
        return (
            at_head == head.digest
            and (not self._anchors_count or self._anchor(head) == head.anchor)
            and (
                head.status not in ENDED
                or (count == seq and kind in _LAST and _ended_as(head, last) and _at(ended) == head.ended_at)
            )
            and _at(began) == head.created_at
            and (_began_as(head, last) if erased else _begins_whole(head, first))
        )

    # -- the second look ----------------------------------------------------------------------------------------------

    def _examine(self, run: str) -> list[Finding]:
        with self._store.read_chains(run, run) as (heads, links):
            head = next(heads, None)
            journal = _Journal(run, links, 0 if head is None else head.seq)
        if head is None:
            return [Finding(run, 0, f"the run's row is missing; its journal has {_entries(len(journal.links))}")]
        found = journal.findings(head.seq)
        told = {finding.entry for finding in found}
        digest = journal.digests.get(head.seq)
        if digest is not None and digest != head.digest and head.seq not in told:
            text = "is not what the run's row was anchored at: the row was edited, or the journal rewritten"
            found.append(Finding(run, head.seq, text))
        elif self._anchors_count and self._anchor(head) != head.anchor:
            text = "the anchor does not verify under the audit key: the row was edited, or the journal rewritten"
            found.append(Finding(run, 0, text))
        return found or self._compare_row(head, journal)

    def _anchor(self, head: Head) -> str:
        return anchor(self._key, head.run, head.seq, head.digest)

    def _compare_row(self, head: Head, journal: "_Journal") -> list[Finding]:
        found: list[Finding] = []
        if not _began_as(head, journal.last if journal.erased else journal.first):
            text = f"the row says {head.name}@{head.version}, but the journal begins with another name or version"
            found.append(Finding(head.run, 0, text))
        elif misstated := _misstated(head, "" if journal.erased else journal.first, journal.began_at):
            text = f"the row was edited: it differs from what the journal begins with in {', '.join(misstated)}"
            found.append(Finding(head.run, 0, text))
        if head.status in ENDED:
            if journal.last_seq > head.seq:
                text = f"{_span(head.seq + 1, journal.last_seq)} added after the end of the run"
                found.append(Finding(head.run, head.seq + 1, text))
            elif not _ended_as(head, journal.last):
                text = f"the row says {head.status} (undone: {head.undo}), but the journal does not end so"
                found.append(Finding(head.run, 0, text))
            elif head.ended_at != journal.ended_at:
                text = "the row was edited: it differs from the journal's end in ended_at"
                found.append(Finding(head.run, 0, text))
        return found


class _Place(msgspec.Struct):
    """Where an entry stands, and all that its digest covers but that place. tail: its header behind the number."""

    seq: int
    tail: str
    data_digest: str
    digest: str


class _Journal:
    """One run's journal with what is wrong in it; keeps digests, never data but that of the first and last entry."""

    def __init__(self, run: str, links: Iterable[Link], head: int) -> None:
        self.run = run
        self.links: list[_Place] = []
        self.first = self.last = ""
        self.began_at = self.ended_at = 0
        self._found: list[Finding] = []
        self._strangers: list[_Place] = []
        self._computed: set[str] = {GENESIS}
        self.erased = False
        blank: list[int] = []
        previous, expected = GENESIS, 1
        for _, kind, header, data, data_digest, digest in links:
            number, _, tail = header[len(run) + 1 :].partition("|")
            place = _Place(int(number), tail, data_digest, digest)
            if expected == 1:
                self.first, self.began_at = data, _at(header)
            if kind == "ended":
                self.ended_at = _at(header)
            self.last = data
            if place.seq != expected:
                self._say(expected, f"{_span(expected, place.seq - 1)} missing")
            elif self._link(previous, place.seq, place) != digest:
                self._strangers.append(place)
            if kind not in KINDS:
                self._say(place.seq, f"its kind was changed: {kind!r} is none that dotdo writes")
            self.erased = kind == "erased" and place.seq == head
            if data == "":
                blank.append(place.seq)
            elif _sha256(data.encode()).hexdigest() != data_digest:
                self._say(place.seq, "its data was changed: it does not match its digest")
            self.links.append(place)
            previous, expected = digest, place.seq + 1
        self.last_seq = expected - 1
        for seq in blank:
            if not self.erased or seq == head:
                self._say(seq, "its data was taken out, and the journal does not end with an entry that says so")
        self.digests = {place.seq: place.digest for place in self.links}

    def findings(self, head: int) -> list[Finding]:
        """What is wrong, in order of entries. head: the number of the last entry that the run's row knows of."""
        told = {finding.entry for finding in self._found}
        for place in self._strangers:
            origin = self._origin(place)
            if origin not in (None, place.seq):
                self._say(place.seq, f"was moved here; it was entry {origin}")
            elif origin is None and place.seq not in told:
                text = "was changed, or put in: its digest does not follow from its header and the entry before it"
                self._say(place.seq, text)
        if head > self.last_seq:
            self._say(self.last_seq + 1, f"{_span(self.last_seq + 1, head)} missing: the journal was truncated")
        return sorted(self._found, key=lambda finding: finding.entry)

    def _origin(self, stranger: _Place) -> int | None:
        """The place at which an entry's digest is right: its own if only what stands before it was changed."""
        if len(self.links) * len(self._strangers) > MAX_PLACES * MAX_PLACES:
            return None
        before = self._computed | {place.digest for place in self.links}
        seqs = [stranger.seq, *(place.seq for place in self._strangers if place is not stranger)]
        for seq in seqs[:MAX_PLACES]:
            if any(self._link(previous, seq, stranger) == stranger.digest for previous in before):
                return seq
        return None

    def _link(self, previous: str, seq: int, place: _Place) -> str:
        digest = chain(previous, f"{self.run}|{seq}|{place.tail}", place.data_digest)
        self._computed.add(digest)
        return digest

    def _say(self, entry: int, text: str) -> None:
        self._found.append(Finding(self.run, entry, text))


class _Asked(msgspec.Struct, frozen=True):
    """What the row repeats of a caller's options."""

    key: str | None = None
    trail: str | None = None
    actor: str | None = None
    labels: dict[str, str] = {}
    priority: int | None = None


class _Beginning(msgspec.Struct):
    """What the row must agree with, out of a first entry. Of an erased run only name and version are left."""

    name: str
    version: int
    kind: str = ""
    options: _Asked = _Asked()
    parent: str | None = None
    parent_step: str | None = None


class _Ending(msgspec.Struct):
    """What the row must agree with, out of a terminal entry."""

    status: str
    undo: str = "none"


_beginning, _ending = msgspec.json.Decoder(_Beginning), msgspec.json.Decoder(_Ending)
_labels = msgspec.json.Decoder(dict[str, str])


def _began_as(head: Head, data: str) -> bool:
    try:
        beginning = _beginning.decode(data)
    except msgspec.MsgspecError:
        return False
    return beginning.name == head.name and beginning.version == head.version


# Columns of a row that repeat what the first entry says, beside its name and version.
_REPEATED = ("kind", "key", "trail", "actor", "priority", "parent", "parent_step", "root", "labels")


def _said(run: str, beginning: _Beginning) -> tuple[Any, ...]:
    asked = beginning.options
    return (
        *(beginning.kind, asked.key, asked.trail, asked.actor, asked.priority or 0),
        *(beginning.parent, beginning.parent_step, run.partition(".")[0], asked.labels),
    )


def _kept(head: Head) -> tuple[Any, ...]:
    """The same of a row. None for labels that cannot be read."""
    try:
        labels = _labels.decode(head.labels) if head.labels != "{}" else {}
    except msgspec.MsgspecError:
        labels = None
    return (
        *(head.kind, head.key, head.trail, head.actor, head.priority),
        *(head.parent, head.parent_step, head.root, labels),
    )


def _begins_whole(head: Head, data: str) -> bool:
    """Whether a row is what its first entry says, in all columns; decoded once, because this is asked of every run."""
    try:
        beginning = _beginning.decode(data)
    except msgspec.MsgspecError:
        return False
    is_same = beginning.name == head.name and beginning.version == head.version
    return is_same and _said(head.run, beginning) == _kept(head)


def _misstated(head: Head, data: str, at: int) -> list[str]:
    """The columns of a row that its first entry contradicts."""
    wrong = [] if head.created_at == at else ["created_at"]
    try:
        beginning = _beginning.decode(data)
    except msgspec.MsgspecError:
        return wrong  # erased, or no entry of ours, which is told by itself
    columns = zip(_REPEATED, _said(head.run, beginning), _kept(head), strict=True)
    return wrong + [name for name, said, kept in columns if said != kept]


def _at(header: str) -> int:
    """The time at the end of an entry's header."""
    return int(header[header.rfind("|") + 1 :] or 0)


def _ended_as(head: Head, data: str) -> bool:
    try:
        ending = _ending.decode(data)
    except msgspec.MsgspecError:
        return False
    return ending.status == head.status and ending.undo == head.undo


def _span(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"
