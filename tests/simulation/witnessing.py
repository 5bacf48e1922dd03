"""Says whether at each moment one node wrote for a run, by what the witness has noted beside the journal."""

from contextlib import closing
from itertools import groupby
from pathlib import Path

import apsw
import msgspec


def owners(store: Path) -> list[str]:
    """What does not hold, in words: entries of two owners between each other, or of a node that had been expelled."""
    wrong: list[str] = []
    with closing(apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        rows = connection.execute(
            "select run, seq, kind, data, node, expelled from journal join witness using (run, seq) order by run, seq"
        ).fetchall()
    for run, entries in groupby(rows, key=lambda row: row[0]):
        owner, claim = "", 0
        for _, seq, kind, data, node, expelled in entries:
            if expelled:
                wrong.append(f"fence: {node} was expelled, and wrote {kind} {seq} of {run}")
            if kind == "claimed":
                taken = msgspec.json.decode(str(data))
                if taken["claim"] <= claim:
                    wrong.append(f"fence: {run} was claimed as {taken['claim']} after {claim}")
                owner, claim = taken["node"], taken["claim"]
            elif not owner:
                owner = str(node)
            if node != owner:
                wrong.append(f"fence: {node} wrote {kind} {seq} of {run}, which {owner} has")
    return wrong
