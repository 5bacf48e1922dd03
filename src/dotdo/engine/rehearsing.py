"""A preview in progress: what it has found so far, the run's own time, its one transaction, and its limits."""

import asyncio
from typing import TYPE_CHECKING, Any

from dotdo.engine.failing import Block
from dotdo.engine.secrets import Unkept
from dotdo.preview import PreviewedEffect, PreviewedStatement, PreviewedStep, PreviewNote, StepKind
from dotdo.records import Options

if TYPE_CHECKING:
    from dotdo.engine.preview_sql import PreviewTransaction
    from dotdo.engine.previewing import Previewer

MAX_STEPS = 1000


class Rehearsal:
    """A preview in progress: what it has found so far, the run's own time, and the one transaction of its steps.

    mixed: `def` and `async def` handlers may come to share the transaction.
    """

    def __init__(self, previewer: "Previewer", id: str, options: Options, *, mixed: bool) -> None:
        self.previewer, self.id, self.options, self.mixed = previewer, id, options, mixed
        self.keeper = Unkept(previewer.vault, id)
        self.began = self.now = previewer.clock.now() + round((options.delay or 0) * 1000)
        self.children = 0
        self.steps: list[PreviewedStep] = []
        self.effects: list[PreviewedEffect] = []
        self.statements: list[PreviewedStatement] = []
        self.notes: list[PreviewNote] = []
        self.transaction: PreviewTransaction | None = None
        self.limit: asyncio.Timeout | None = None
        self._turn: asyncio.Lock | None = None
        self._locked_at: float | None = None
        self._holds = False

    def note(self, text: str, step: str | None = None) -> None:
        """Tells the reader something."""
        self.notes.append(PreviewNote(text, step))

    def add(self, step: PreviewedStep) -> None:
        """One more step. Raises Block when there are too many."""
        self.steps.append(step)
        if len(self.steps) >= MAX_STEPS:
            raise Block("too long", f"A preview ends after {MAX_STEPS} steps.", step=step.id)

    def step_at(self, id: str, kind: StepKind, name: str, version: int | None, status: Any, **more: Any) -> None:
        """One more step, at this point of the run's own time."""
        self.add(PreviewedStep(id=id, kind=kind, name=name, version=version, status=status, at=self._at, **more))

    @property
    def _at(self) -> int:
        return self.now - self.began

    # -- its limits ---------------------------------------------------------------------------------------------------

    async def take_turn(self, turn: asyncio.Lock) -> None:
        """Waits until no other preview may lock a SQLite file; none may until this one is closed."""
        await turn.acquire()
        self._turn = turn

    def begun(self) -> None:
        """The transaction has begun; from any thread."""
        if self.transaction is not None and self.transaction.is_sqlite:
            self.previewer.loop.call_soon_threadsafe(self._hold)

    def _hold(self) -> None:
        self._locked_at = self.previewer.loop.time()
        end = self._locked_at + self.previewer.hold_seconds
        limit = self.limit
        if limit is not None and not limit.expired() and (limit.when() or end) > end:
            self._holds = True
            limit.reschedule(end)

    def out_of_time(self, seconds: float) -> str:
        """Why the preview ended, in words."""
        if self._holds and self.transaction is not None:
            return (
                f"The preview ended here: it had locked the database {self.transaction.database!r} for "
                f"{self.previewer.hold_seconds:g} s, and others wait to write. Look for what is slow in its handlers."
            )
        return f"The preview ended here: it may take {seconds:g} s in all."

    async def close(self) -> None:
        """Rolls back."""
        transaction = self.transaction
        try:
            if transaction is not None:
                self.statements += transaction.take(kept=False)
                if transaction.left_out:
                    self.note(f"{transaction.left_out} more statements were executed, and are not listed.")
                await transaction.close(self.previewer.cleaners.run)
        finally:
            if self._turn is not None:
                loop = self.previewer.loop
                # The file is free for as long as it was locked: whoever waits to write, polling it, gets in.
                held = 0.0 if self._locked_at is None else loop.time() - self._locked_at
                loop.call_later(min(held, self.previewer.pause_seconds), self._turn.release)
