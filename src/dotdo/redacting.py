"""Hides secrets in texts: each text that was revealed is replaced by `***`, also where it stands encoded.

A `Redactor` knows the secrets of one run. While it lives, what the loggers of dotdo write is cleaned, too. Texts of
fewer than 4 characters are not looked for, and those of fewer than 8 as whole words only: they would be found
everywhere.
"""

import base64
import html
import json
import logging
import re
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import quote, quote_plus

from dotdo.secret import HIDDEN

SHORTEST, ANYWHERE = 4, 8
# Of a longer text, pieces are found, too: where a message was cut in the middle of it. Only its ends are looked for.
LONG, PIECE, ENDS = 24, 12, 2_000

LOGGERS = ("dotdo.access", "dotdo.action", "dotdo.engine", "dotdo.server", "dotdo.service", "dotdo.store", "asyncio")

# Those that somebody holds. A dict and no WeakSet: that could not be gone through while other threads add to it.
_active: "dict[int, weakref.ref[Redactor]]" = {}


class Hidden:
    """Texts to hide in others. Safe to use from any thread."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._forms: list[str] = []
        self._words: list[re.Pattern[str]] = []
        self._pieces: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def add(self, text: str) -> None:
        """Hides this text from now on."""
        if text in self._known or len(text) < SHORTEST:
            return
        with self._lock:
            # New lists: others may be going through the old ones.
            if len(text) < ANYWHERE:
                self._words = [*self._words, re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")]
            else:
                self._forms = sorted({*self._forms, *forms(text)}, key=len, reverse=True)
            if len(text) > LONG:
                self._pieces |= {
                    end[n : n + PIECE] for end in (text[:ENDS], text[-ENDS:]) for n in range(len(end) - PIECE + 1)
                }
            self._known = {*self._known, text}

    def found(self, text: str) -> bool:
        """Whether a hidden text stands in this one, in any form."""
        return any(form in text for form in self._forms) or any(word.search(text) for word in self._words)

    def clean(self, text: str) -> str:
        """The text with `***` for what is to be hidden."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, HIDDEN)
        for word in self._words:
            text = word.sub(HIDDEN, text)
        return _without_pieces(text, self._pieces) if self._pieces else text


class Redactor(Hidden):
    """The texts to hide in what belongs to one run, and in what is logged while this lives."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run, key = run, id(self)
        if not _active:
            _watch_loggers()
        _active[key] = weakref.ref(self, lambda _: _active.pop(key, None))


def clean_all(text: str) -> str:
    """The text without the secrets of every run that is in memory; for where it is not known whose it is."""
    return _clean(text, _redactors())


def _redactors() -> "list[Redactor]":
    found = [reference() for reference in list(_active.values())]
    return [redactor for redactor in found if redactor is not None]


def _clean(text: str, redactors: "list[Redactor]") -> str:
    for redactor in redactors:
        text = redactor.clean(text)
    return text


def forms(text: str) -> Iterator[str]:
    """How a text may stand in another one: as it is, escaped for JSON, Python, URLs or HTML, in hexadecimal or Base64
    (in each of the three positions that it may have in there); and each line of it."""
    raw = text.encode("utf-8", "surrogatepass")
    yield text
    yield from (line for line in text.splitlines() if len(line.strip()) >= ANYWHERE)
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield repr(text)[1:-1]
    yield repr(raw)[2:-1]
    yield html.escape(text)
    for quoted in (quote(raw), quote(raw, safe=""), quote_plus(raw)):
        yield quoted
        yield re.sub("%..", lambda found: found[0].lower(), quoted)
    yield raw.hex()
    yield raw.hex().upper()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw).decode()
        # Without the characters that also hold bits of what stands around it.
        core = encoded[(0, 2, 3)[before] : (before + len(raw)) * 8 // 6]
        yield core
        yield core.translate(str.maketrans("+/", "-_"))


def _without_pieces(text: str, pieces: frozenset[str]) -> str:
    """The text with `***` for each stretch of it in which every PIECE characters stand so in the secret, too."""
    kept: list[str] = []
    start = end = 0  # of what is left of the text, and of the stretch to hide that was found last
    for place in range(len(text) - PIECE + 1):
        if text[place : place + PIECE] in pieces:
            if place > end or not end:
                kept += [text[start:place], HIDDEN]
            start = end = place + PIECE
    return "".join(kept) + text[start:]


class _Hide(logging.Filter):
    """Cleans log records while any run in memory has secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass, cleaned."""
        if _active:
            found, run = _redactors(), getattr(record, "run", None)
            own = [redactor for redactor in found if redactor.run == run]
            _clean_record(record, partial(_clean, redactors=own or found))
        return True


_hide = _Hide()


def _watch_loggers() -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_hide)  # once: a logger takes the same filter one time only


def _clean_record(record: logging.LogRecord, clean: Callable[[str], str]) -> None:
    try:
        message = record.getMessage()
    except Exception:  # logging would print the arguments to stderr
        message = "(a log message that could not be put together)"
        record.msg, record.args = message, ()
    cleaned = clean(message)
    if cleaned != message:
        record.msg, record.args = cleaned, ()
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        cleaned = clean(text)
        if cleaned != text:
            record.exc_text, record.exc_info = cleaned, None
