"""I4 at every commit: each unfinished run has an owner, a time, a message, an event that it awaits, a living child, or
a place in the line of a limit. The rows are looked at by a connection of their own.
"""

from pathlib import Path

import apsw

# A run that is blocked waits for a person. What the others say they wait for must be there to come.
STRANDED = """
select id, status, waiting_for from runs
where ended_at is null and owner is null and due_at is null and status <> 'blocked'
    and not exists (select 1 from inbox where inbox.run = runs.id)
    and case waiting_for ->> 'kind'
        when 'event' then false
        when 'child' then not exists (
            select 1 from runs as child where child.parent = runs.id and child.ended_at is null
        )
        when 'limit' then not exists (select 1 from tickets where tickets.run = runs.id)
        else true
    end
"""


class Watch:
    """Looks at a store after each commit."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._reader: apsw.Connection | None = None
        self._found: dict[str, str] = {}
        self.looks = 0

    def look(self) -> None:
        """Something was committed."""
        if self._reader is None:
            self._reader = apsw.Connection(str(self._store), flags=apsw.SQLITE_OPEN_READONLY, vfs="unix")
        self.looks += 1
        for run, status, waiting_for in self._reader.execute(STRANDED):
            self._found.setdefault(str(run), f"I4: nothing can move {run}, which is {status}: {waiting_for}")

    def close(self) -> list[str]:
        """Looks no more; what was wrong, in words."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        return list(self._found.values())
