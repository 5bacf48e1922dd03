"""The audit: checks every run's journal against its hash chain, its anchored head, and its row.

A fast sweep over all entries only tells which runs are sound; each other run is then looked at by itself, in a moment of
its own, to say what is wrong where. Beside a live engine a run may move between the two; nothing is reported unless the
second look shows it. Memory is bounded: journals are streamed, in several snapshots, so that the store's log can be
started over meanwhile.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter

import msgspec

from dotdo.journal import GENESIS, KINDS, anchor, chain
from dotdo.records import ENDED
from dotdo.store.protocol import Head, Link, Store

# Entries in one snapshot: about a tenth of a second.
CHUNK = 20_000
PROBE = 50
LAST = "\U0010ffff"
# Finding out from where an entry was moved tries every place, so it is for journals of a sensible size only.
MAX_PLACES = 400

_sha256 = hashlib.sha256


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong. entry: its number; 0 is the run's row, or all of the run. run: empty for the store."""

    run: str
    entry: int
    text: str


class _Outcome(msgspec.Struct):
    """What the row must agree with, out of a terminal entry."""

    status: str
    undo: str = "none"


class _Origin(msgspec.Struct):
    """The same, out of a first entry."""

    name: str
    version: int


_outcome = msgspec.json.Decoder(_Outcome)
_origin = msgspec.json.Decoder(_Origin)


class Audit:
    """One verification of a store. `runs` and `entries` count what was looked at so far.

    key: the audit key. on_progress: called now and then, for a display.
    """

    def __init__(self, store: Store, key: bytes, on_progress: Callable[[], None] = lambda: None) -> None:
        self._store, self._on_progress = store, on_progress
        self._key: bytes | None = key
        self._mac = _keyed(key)
        self.runs = self.entries = 0

    def verify(self, run: str | None = None) -> Iterator[Finding]:
        """Verifies one run, or all. Yields what is wrong, in order of runs. Raises StoreError."""
        if self._key_is_foreign():
            self._key = None
            yield Finding(
                "",
                0,
                "No run's head verifies under the audit key. It is not the key of this store, or all heads were "
                "rewritten; without the right key a truncated or rewritten journal cannot be told. Look for the right one.",
            )
        first, last = ("", LAST) if run is None else (run, run)
        while first:
            suspects, first = self._sweep(first if first != "" else "", last) if first or run is None else ([], "")
            for suspect in suspects:
                yield from self._examine(suspect)
            self._on_progress()

