"""The seam between clients and whatever executes runs: an embedded engine, a server over HTTP, or another engine.

Names and JSON pass here, never definitions; nothing of an engine shows through.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from dotdo.journal import Entry
from dotdo.policy import Retention
from dotdo.preview import Preview
from dotdo.records import Definition, Options, Outcome, Progress, Run, RunFilter, RunKind


class Platform(Protocol):
    """What clients need of a platform. Methods raise the errors of errors.py."""

    async def accept(self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options) -> str:
        """Accepts a run; its id is durable when this returns."""
        ...

    async def execute(self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options) -> Run:
        """Accepts a run and waits until it has ended or is blocked."""
        ...

    async def preview(
        self,
        kind: RunKind,
        name: str,
        params: Mapping[str, Any] | bytes,
        options: Options,
        seconds: float | None = None,
    ) -> Preview[Any]:
        """What a run would do; nothing happens. seconds: how long the preview may take, 30 at most."""
        ...

    async def result(self, id: str) -> Run:
        """Waits until the run, and whatever goes on for it, has ended or is blocked."""
        ...

    async def get(self, id: str) -> Run:
        """A run as it stands."""
        ...

    async def newest(self, id: str) -> str:
        """The run that goes on for this one, when its service has continued as new; else the same."""
        ...

    async def list_runs(self, filter: RunFilter) -> list[Run]:
        """Runs, newest first."""
        ...

    async def journal(self, id: str, after: int = 0) -> list[Entry]:
        """A run's journal after an entry's number."""
        ...

    async def progress(self, id: str, after: int) -> Progress:
        """What a run has published after an entry's number; returns once there is something, or it has ended."""
        ...

    async def prune(self, policy: Retention, actor: str | None) -> int:
        """Deletes ended runs as the policy says; returns how many."""
        ...

    async def erase(self, ids: list[str], actor: str | None) -> int:
        """Erases the data of ended trees of runs; returns of how many runs."""
        ...

    async def cancel(self, id: str, actor: str | None) -> None:
        """Asks for a run to be cancelled."""
        ...

    async def retry(self, id: str, actor: str | None) -> None:
        """Reopens a failed, cancelled or blocked run."""
        ...

    async def undo(self, id: str, actor: str | None) -> None:
        """Takes back what an ended run did."""
        ...

    async def resolve(self, id: str, key: str, outcome: Outcome, answer: bytes | None, actor: str | None) -> None:
        """Answers the question of a blocked run that goes by this key."""
        ...

    async def send_event(self, id: str, name: str, value: bytes, key: str | None, actor: str | None) -> None:
        """Sends an event to a run; the same key twice is one event."""
        ...

    async def definitions(self, kind: str) -> list[Definition]:
        """What can be called."""
        ...

    async def close(self) -> None:
        """Ends the connection to the platform; an embedded engine drains."""
        ...
