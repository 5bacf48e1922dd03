"""Large data apart from its row: puts together what stands elsewhere.

Entries and messages above journal.LARGE bytes are written in parts, each in a transaction of its own, before the row
that has them; so one run's large value holds up nobody else's commit. Readers of the store never see the difference.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dotdo.journal import PLACE

Read = Callable[[str, dict[str, Any]], Iterable[tuple[Any, ...]]]


class Blobs:
    """The blobs of a store. statement: the query for the parts of one. read: runs a query."""

    def __init__(self, statement: str, read: Read) -> None:
        self._statement, self._read = statement, read

    def whole(self, run: str, text: str) -> str:
        """A text, wherever it is; empty when its blob is not there (any more)."""
        if not is_elsewhere(text):
            return text
        owner, _, digest = text.removeprefix(PLACE).rpartition("/")  # a message may have come from another run's inbox
        parts = self._read(self._statement, {"run": owner or run, "digest": digest})
        return b"".join([part for (part,) in parts]).decode()

    def whole_rows(self, rows: Iterable[tuple[Any, ...]], column: int) -> Iterator[tuple[Any, ...]]:
        """Rows that begin with a run's id, with the text in a column wherever it is."""
        for row in rows:
            if is_elsewhere(row[column]):
                yield (*row[:column], self.whole(row[0], row[column]), *row[column + 1 :])
            else:
                yield row


def is_elsewhere(text: str | None) -> bool:
    """Whether a row's text only says where the data is."""
    return text is not None and text.startswith(PLACE)
