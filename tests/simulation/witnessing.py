"""Says whether at each moment one node wrote for a run, by what the witness has noted beside the journal."""

from itertools import groupby
from pathlib import Path

import msgspec

from tests.stores import rows_of

NOTED = "select run, seq, kind, data, node, expelled from journal join witness using (run, seq) order by run, seq"


def owners(store: Path) -> list[str]:
    """What does not hold, in words: entries of two owners between each other, or of a node that had been expelled."""
    wrong: list[str] = []
    for run, entries in groupby(rows_of(store, NOTED), key=lambda row: row["run"]):
        owner, claim = "", 0
        for _, seq, kind, data, node, expelled in (entry.values() for entry in entries):
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
