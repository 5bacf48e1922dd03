"""Callers who wait for a run: told once its end, or its blocking, is durable."""

import asyncio
from typing import TYPE_CHECKING, Any

from dotdo import codec
from dotdo.engine.publishing import progress_of
from dotdo.journal import Blocked, Ended
from dotdo.records import Run, WaitingFor

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


class Answers:
    """The futures of those who wait, by run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, list[asyncio.Future[Run]]] = {}
        self._over: BaseException | None = None

    def wait(self, run: str) -> "asyncio.Future[Run]":
        """A future of how the run ends."""
        future: asyncio.Future[Run] = self._loop.create_future()
        if self._over is None:
            self._waiting.setdefault(run, []).append(future)
        else:
            future.set_exception(self._over)
        return future

    def forget(self, run: str, future: "asyncio.Future[Run]") -> None:
        """Whoever waited has given up: one who asks again and again about a long run must not pile futures up."""
        waiting = self._waiting.get(run)
        if waiting and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiting[run]

    def awaited(self, run: str) -> bool:
        """Whether anybody waits for the run."""
        return run in self._waiting

    @property
    def any_awaited(self) -> bool:
        """Whether anybody waits for any run."""
        return bool(self._waiting)

    def awaited_runs(self) -> list[str]:
        """The runs that somebody waits for."""
        return list(self._waiting)

    def give(self, run: str, record: Run) -> None:
        """The run has ended or is blocked."""
        for future in self._waiting.pop(run, ()):
            if not future.done():
                future.set_result(record)

    def fail(self, run: str, error: BaseException) -> None:
        """It cannot be told how the run ends."""
        for future in self._waiting.pop(run, ()):
            if not future.done():
                future.set_exception(error)

    def fail_all(self, error: BaseException) -> None:
        """The engine stops: whoever waits is told, and whoever comes too late."""
        self._over = error
        for run in list(self._waiting):
            self.fail(run, error)


def run_record(run: "LiveRun", status: Any, ended: Ended | None, blocked: Blocked | None = None) -> Run:
    """A run in memory as callers see it."""
    accepted = run.accepted
    options = accepted.options
    waits = None
    if blocked is not None:
        text = f"{blocked.reason}: {blocked.error.message}"
        waits = WaitingFor("person", text, None, blocked.error.step, blocked.questions)
    return Run(
        id=run.id,
        kind=accepted.kind,
        name=accepted.name,
        version=accepted.version,
        status=status,
        undo=ended.undo if ended else "none",  # type: ignore[arg-type]
        generation=run.history.generation,
        result=codec.decode(ended.result) if ended else None,
        error=ended.error if ended else blocked.error if blocked else None,
        not_undone=ended.not_undone if ended else [],
        progress=progress_of(run.history.progress),
        waiting_for=waits,
        key=options.key,
        trail=options.trail,
        actor=options.actor,
        labels=options.labels,
        priority=options.priority or 0,
        parent=accepted.parent,
        root=run.id.partition(".")[0],
        continues=accepted.chain.previous if accepted.chain else None,
        continued_as=ended.continued_as if ended else None,
        created_at=run.history.accepted_at,
        ended_at=run.journal.at if ended else None,
    )
