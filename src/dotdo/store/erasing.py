"""Erasing the data of ended runs: first an entry in each journal that says so, then the data a few entries at a time,
and at last the file is written anew, because SQLite leaves copies of what it has moved in unused parts of its pages.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.errors import InvalidOperation, UnknownName
from dotdo.journal import Ended
from dotdo.store.protocol import Erasable, Sign

if TYPE_CHECKING:
    from dotdo.store.sql import Database


_ended = msgspec.json.Decoder(Ended)


class Erasing:
    """The part of `SqlStore` that erases."""

    _db: "Database"
    _sql: dict[str, str]
    _whole: Callable[[str, str], str]

    def begin_erasing(self, roots: list[str], sign: Sign) -> int:
        """From here on the data of these trees is gone for good; returns how many runs that are, without those that
        were erased before. Raises UnknownName, InvalidOperation; nothing was erased then."""
        with self._db.transaction():
            found = [run for root in dict.fromkeys(roots) for run in self._erasable(root)]
            signed = [sign(run) for run in found]
            heads = [(entry.run, entry.seq, entry.digest, anchor) for entry, anchor in signed]
            names = _rows([(run.id,) for run in found])
            self._db.write(self._sql["delete_labels"], {"rows": names})
            self._db.write(self._sql["clear_inbox"], {"rows": names})
            self._db.write(self._sql["add_erased_entries"], {"rows": _rows([entry for entry, _ in signed])})
            self._db.write(self._sql["erase_rows"], {"rows": _rows(heads)})
            self._db.write(self._sql["add_erasing"], {"rows": names})
        return len(found)

    def _erasable(self, root: str) -> list[Erasable]:
        tree = self._db.write(self._sql["heads_of_tree"], {"root": root})
        if not tree or tree[0][0] != root:
            raise UnknownName(f"There is no run {root!r}.")
        if tree[0][1] is not None:
            raise InvalidOperation(
                f"The run {root} is a child of {tree[0][1]}, whose journal has its input and result, too. Erase the "
                f"whole tree by its root: {root.partition('.')[0]}. Nothing was erased."
            )
        found: list[Erasable] = []
        for id, _, name, version, status, undo, generation, ended_at, seq, kind, at, digest, data in tree:
            if ended_at is None:
                whose = "The run" if id == root else "Its child"
                raise InvalidOperation(
                    f"{whose} {id} has not ended ({status}); only a run that has ended, with all its children, can be "
                    "erased. Wait for its end, or cancel it. Nothing was erased."
                )
            if kind == "ended":
                after = _ended.decode(self._whole(id, data)).continued_as
                found.append(Erasable(id, name, version, status, undo, generation, seq, at, digest, after))
            elif kind != "erased":
                raise InvalidOperation(
                    f"The journal of the run {id} does not end with its end; look at `dotdo audit verify` first. "
                    "Nothing was erased."
                )
        return found

    def is_erasing(self) -> bool:
        """Whether there are runs whose data is not wholly gone."""
        return bool(self._db.read(self._sql["any_erasing"])[0][0])

    def erase_some(self, entries: int, parts: int) -> bool:
        """Erases about so many entries and parts of large values; returns whether there may be more."""
        with self._db.transaction():
            self._db.write(self._sql["erase_entries"], {"limit": entries})
            changed = self._db.changes()
            if changed < entries:
                self._db.write(self._sql["erase_parts"], {"limit": parts})
                changed += self._db.changes()
        return changed > 0

    def end_erasing(self) -> None:
        """Writes the file anew, without what was erased. Raises StoreUnavailable when that cannot be done now."""
        self._db.rewrite()
        with self._db.transaction():
            self._db.write(self._sql["end_erasing"])


def _rows(items: list[Any]) -> str:
    return msgspec.json.encode(items).decode()
