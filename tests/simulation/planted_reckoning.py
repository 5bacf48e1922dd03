"""More bugs that are planted by hand: times and tries that are reckoned wrongly, and believed by all that comes after.

The journal is in order with them, and says what the engine took to be right; so the auditor reckons for itself.
"""

from typing import Any

import pytest

from dotdo.engine import limiting, run_timers, undoing
from dotdo.engine.history import History
from dotdo.engine.journaling import RunJournal
from dotdo.engine.running import LiveRun
from dotdo.engine.stepping import StepRun
from dotdo.store.fairness import Shares
from dotdo.store.protocol import SlotAsk
from tests.simulation.planted import PLANTED, nothing, planted

LONG = 30_000  # ms


@planted
def fires_half_way(patch: pytest.MonkeyPatch) -> None:
    """What is durable of a timer, when it is due, is too early already."""
    add = run_timers.RunTimers.add

    def early(self: Any, delay: int, now: int, handle: Any) -> None:
        add(self, delay, now - (delay // 2 if delay >= LONG else 0), handle)

    patch.setattr(run_timers.RunTimers, "add", early)


@planted
def overlooks_the_deadline_of_what_is_parked(patch: pytest.MonkeyPatch) -> None:
    update = RunJournal.update

    def without(self: Any, status: str, **options: Any) -> None:
        waits = options.get("waiting_for")
        if status == "waiting" and waits is not None:
            options["due_at"] = waits.until
        update(self, status, **options)

    patch.setattr(RunJournal, "update", without)


@planted
def counts_attempts_anew_after_a_restart(patch: pytest.MonkeyPatch) -> None:
    load = History.load

    def forgetful(self: Any, entries: Any) -> None:
        load(self, entries)
        for record in self.steps.values():
            if record.next_at is not None:
                record.failures = 0

    patch.setattr(History, "load", forgetful)


@planted
def plans_before_what_is_in_flight_has_ended(patch: pytest.MonkeyPatch) -> None:
    """What commits while the run stops is in no plan."""
    stop, plan = LiveRun.stop, undoing._plan
    planned: dict[str, list[str]] = {}

    def early(self: Any, stopping: Any) -> None:
        if not (self.over or self.is_stopping):
            planned[self.id] = plan(self)
        stop(self, stopping)

    patch.setattr(LiveRun, "stop", early)
    patch.setattr(undoing, "_plan", lambda run: planned.pop(run.id, None) or plan(run))


@planted
def takes_a_commit_that_failed_for_none(patch: pytest.MonkeyPatch) -> None:
    """Its answer was lost; the database is not asked."""
    patch.setattr(StepRun, "_settle_doubt", nothing)


@planted
def takes_a_cancelled_commit_for_none(patch: pytest.MonkeyPatch) -> None:
    """The same, only if the attempt was cancelled before it was known: the cancellation came too late for it."""
    settle_doubt = StepRun._settle_doubt

    async def careless(self: Any, attempt: Any) -> Any:
        return None if attempt.is_cancelled else await settle_doubt(self, attempt)

    patch.setattr(StepRun, "_settle_doubt", careless)


@planted
def forgets_who_has_waited(patch: pytest.MonkeyPatch) -> None:
    """All turns go by priority."""
    patch.setattr(Shares, "is_patient", lambda self, queue="": False)


@planted
def serves_the_lowest_first(patch: pytest.MonkeyPatch) -> None:
    """Who waits for a slot stands in the line as if priorities were ranks, of which 1 is the first."""

    def upside_down(pool: str, run: str, step: str, claim: int, priority: int, limits: Any) -> SlotAsk:
        return SlotAsk(pool, run, step, claim, -priority, limits)

    patch.setattr(limiting, "SlotAsk", upside_down)


__all__ = ["PLANTED"]
