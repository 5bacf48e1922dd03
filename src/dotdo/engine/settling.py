"""Attempts whose end was not seen: decided through the application's databases before anything else happens to a step.

A run that was taken over, whoever it had before, begins with an `Unsettled`: what its earlier owners may have left. It
goes from owner to owner, through a mark in the run's row, until everything in it is settled.
"""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from dotdo.engine.attempting import Attempt
from dotdo.engine.doubts import keep_keys
from dotdo.engine.failing import message_of
from dotdo.engine.replaying import replay_history
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.step_call import OWN_STEPS
from dotdo.engine.step_record import CANCELLED, COMMITTED, OPEN, StepRecord
from dotdo.engine.threads import Threads
from dotdo.errors import (
    DefinitionError,
    DotdoError,
    InputError,
    ReplayError,
    StoreError,
    StoreUnavailable,
)
from dotdo.journal import Completion, Empty
from dotdo.offer import OfferedAction
from dotdo.records import WaitingFor
from dotdo.service import Service

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun
    from dotdo.engine.sql import Key

FIRST_WAIT, LONGEST_WAIT = 1_000, 60_000  # ms between questions to a database that does not answer
THREADS = 4  # for questions to databases: handlers that are stuck must not keep them from being asked

SETTLEMENT = "settlement"


class Unsettled:
    """The steps of a run that may have attempts whose end nobody saw. Only runs that may have some have one.

    steps: those that are known. unknown: there may be others, until the run's code was replayed. own: the first step of
    the engine's own (an undo, an on_failure action) may be one, too; they come one by one.
    """

    __slots__ = ("own", "steps", "unknown")

    def __init__(self, *, taken_over: bool = False) -> None:
        self.steps: set[str] = set()
        self.unknown = self.own = taken_over

    def replayed(self, steps: Iterable[str]) -> None:
        """The replay says which steps may have been under way."""
        self.unknown = False
        self.steps.update(steps)

    def forget(self) -> None:
        """The code that was replayed is not the one that ran: it does not say what was under way."""
        self.steps.clear()
        self.unknown = True


def open_calls(run: "LiveRun", code: ServiceCode) -> list[str]:
    """The actions (and undos) that a service's code has asked for and that have not come to their end."""
    steps, asked = run.history.steps, [call for call in code.calls.values() if call.begun]
    actions = [call.id for call in asked if not isinstance(call.definition, Service)]
    return [id for id in actions if _is_open(steps, id)]


def steps_in_flight(run: "LiveRun") -> set[str]:
    """The steps that have attempts under way, here or perhaps at an earlier owner, of a run that stops."""
    found = set(run.tasks)
    if run.unsettled is not None:
        if run.unsettled.unknown:
            run.unsettled.replayed(_ask_code(run))
        found |= run.unsettled.steps
    return {id for id in found if not _is_taken_back(run.history.steps, id)}


def _is_open(steps: dict[str, StepRecord], id: str) -> bool:
    """Whether a step may have an attempt under way."""
    record = steps.get(id)
    return (record is None or (record.state == OPEN and record.child is None)) and not _is_taken_back(steps, id)


def _is_taken_back(steps: dict[str, StepRecord], id: str) -> bool:
    """Whether this is an undo by hand that a retry only replays: what was taken back is not taken back again."""
    target = steps.get(id.removeprefix("undo:")) if id.startswith("undo:") else None
    return target is not None and target.undone


def _ask_code(run: "LiveRun") -> list[str]:
    """A run stops before its code was replayed: what an earlier owner may have had under way."""
    engine, steps = run.engine, run.history.steps
    asked = [id for id, record in steps.items() if record.child is None and not id.startswith(OWN_STEPS)]
    if run.accepted.kind == "action":
        asked.append(run.accepted.name)
    else:
        pins = engine.pinned.of(run.accepted.pins)
        try:
            asked += replay_history(
                run.definition, run.id, run.history, pins, engine.catalogue, engine.watch, run
            ).actions
        except (ReplayError, InputError) as error:
            # Then no more can be known than what has entries.
            engine.log.warning("the code of %s cannot say what was under way: %s", run.id, error)
    return [id for id in asked if _is_open(steps, id)]


def is_unsettled(run: "LiveRun", id: str) -> bool:
    """Whether an attempt of a step may have ended unseen."""
    unsettled = run.unsettled
    if unsettled is None:
        return False
    if id in unsettled.steps or not run.crashed or not id.startswith(OWN_STEPS):
        return id in unsettled.steps
    target = run.history.steps.get(id.removeprefix("undo:"))
    # The undo of what could not be delivered comes beside other steps.
    return unsettled.own or (target is not None and target.state == COMMITTED)


def is_left(run: "LiveRun", id: str) -> bool:
    """Whether an earlier owner may have left a step without its end: unsettled, or committed and not delivered."""
    record = run.history.steps.get(id)
    return is_unsettled(run, id) or (record is not None and record.state == COMMITTED)


def leaves_unsettled(run: "LiveRun") -> bool:
    """Whether the run's next owner must settle attempts, should it leave memory now."""
    unsettled, history = run.unsettled, run.history
    if any(attempt.in_doubt for attempt in run.attempts):
        return True
    if unsettled is None:
        return False
    own = unsettled.own and (history.stopping is not None or history.ended is not None)
    return bool(unsettled.unknown or unsettled.steps or own)


async def settle_step(run: "LiveRun", record: StepRecord) -> None:
    """Settles the attempt that an earlier owner may have had under way, and journals what became of it."""
    number, completion = record.attempt + 1, None
    # A step that the journal does not know was begun in a generation that it does not tell, if at all.
    oldest = 0 if record.is_unheard_of else record.generation
    for generation in range(oldest, record.generation + 1):
        completion = completion or await settle(run, record.id, generation, number)
    if completion is None:
        run.append("lost", Empty(), record.id, number)
    else:
        journal_commit(run, record, completion, number)
    if record.id.startswith(OWN_STEPS) and run.unsettled is not None:
        run.unsettled.own = False


async def settle_in_flight(run: "LiveRun", in_flight: dict[str, int]) -> None:
    """Settles the steps of a run that has stopped. in_flight: attempts that were under way then, by step."""
    if run.unsettled is None:
        return
    known = {id: run.history.step(id).attempt + 1 for id in run.unsettled.steps}
    for id, number in {**known, **in_flight}.items():
        record = run.history.step(id)
        if record.state in (OPEN, CANCELLED) and record.child is None and record.attempt < number:
            await settle_step(run, record)
        run.unsettled.steps.discard(id)
    run.unsettled.unknown = False


async def settle(
    run: "LiveRun", step: str, generation: int, attempt: int, database: str | None = None
) -> Completion | None:
    """The completion of an attempt that committed unseen; None when it did not, and now never will.

    database: the only one that the attempt can have used, if that is known. Waits while one cannot be asked.
    """
    databases = run.engine.databases
    elsewhere = _settled_elsewhere(run, step)
    if databases is None and not elsewhere:
        return None
    if run.unsettled is None:
        run.unsettled = Unsettled()
    run.unsettled.steps.add(step)
    if elsewhere:
        found = await _settle_elsewhere(run, elsewhere, step, generation, attempt)
        run.unsettled.steps.discard(step)
        return found
    assert databases is not None, "looked above"
    waited = False
    for name in [database] if database else databases.names:
        while True:
            try:
                found = await run.engine.settler.ask(name, (run.id, step, generation, attempt))
                break
            except _NoAnswer as trouble:
                text = f"to learn how attempt {attempt} of {step} ended: {trouble.error}"
                if not waited:
                    waited = True
                    _show(run, WaitingFor(SETTLEMENT, text, trouble.due, step))
                await run.waiting.until(step, trouble.due, SETTLEMENT, text)
        if found is not None:
            break
    else:
        found = None
    run.unsettled.steps.discard(step)
    if waited:
        _show(run, None)
    return found


def _settled_elsewhere(run: "LiveRun", step: str) -> list[str]:
    """The actions, by name, whose workers have the databases in which a step's attempts commit."""
    catalogue = run.engine.workers.catalogue
    if not catalogue.has_databases:
        return []
    name = step.removeprefix("undo:").removeprefix("on_failure:").partition(":")[0]
    offered = [each for each in catalogue.versions("action", name) if isinstance(each, OfferedAction)]
    others = [each.fallback for each in offered]
    found = [each for each in (*offered, *others) if isinstance(each, OfferedAction) and each.databases]
    return sorted({each.name for each in found})


async def _settle_elsewhere(
    run: "LiveRun", names: list[str], step: str, generation: int, attempt: int
) -> Completion | None:
    from dotdo.engine.working import settle_elsewhere

    wait = FIRST_WAIT
    for name in names:
        while True:
            try:
                found = await settle_elsewhere(run, name, step, generation, attempt, SETTLEMENT)
                break
            except DotdoError as trouble:
                text = f"to learn how attempt {attempt} of {step} ended: {trouble.message}"
                await run.waiting.until(step, run.engine.clock.now() + wait, SETTLEMENT, text)
                wait = min(wait * 2, LONGEST_WAIT)
        if found is not None:
            return found
    return None


def _show(run: "LiveRun", waiting_for: WaitingFor | None) -> None:
    """Has the run's row say what it waits for, or that it goes on. The run stays in memory meanwhile: a claim for each
    question would fill its journal."""
    history = run.history
    status = "waiting" if waiting_for else "running" if history.stopping is None else "stopping"
    if history.plan is not None and not waiting_for:
        status = "undoing"
    run.journal.update(status, waiting_for=waiting_for, owner=run.engine.node, unsettled=leaves_unsettled(run))


def journal_commit(run: "LiveRun", record: StepRecord, completion: Completion, number: int) -> None:
    """Journals the commit of an attempt."""
    if record.doubts:
        completion = keep_keys(record, completion)
    kind = "committed" if completion.effects else "completed"
    run.append(kind, completion, record.id, number)
    if completion.sql and not _is_elsewhere(run, completion):
        run.engine.applied.forget(run, completion.sql[0], record, number)


def _is_elsewhere(run: "LiveRun", completion: Completion) -> bool:
    """Whether the row is in a database of the workers, who delete it themselves."""
    return isinstance(run.engine.catalogue.find("action", completion.action, completion.version), OfferedAction)


# -- handlers that commit by themselves --------------------------------------------------------------------------------


def not_executed(attempt: Attempt) -> DefinitionError:
    """What is wrong when a handler has returned and its completion statement is not committed."""
    return DefinitionError(
        f"The handler of {attempt.step} has asked for its completion_statement() and returned, but nothing of it is "
        f"committed in the database {attempt.promised!r}. Execute it as the last statement of your transaction there, "
        "commit, then return. This attempt can commit no more."
    )


def tell_of_difference(
    run: "LiveRun", attempt: Attempt, found: Completion, error: BaseException, returned: Completion | None
) -> None:
    """An attempt that had committed counts, whatever its handler did then; its developer should know."""
    if attempt.promised is None:
        return
    what = None
    if returned is None:
        what = f"it then raised {type(error).__name__}: {message_of(error)[:500]}"
    elif returned.result != found.result:
        what = "it then returned another result than it had given to completion_statement()"
    if what is not None:
        run.engine.log.warning(
            "attempt %s of %s in %s had committed, and counts; %s", attempt.number, attempt.step, run.id, what
        )


# -- asking the databases ----------------------------------------------------------------------------------------------


class Undecided(StoreUnavailable):
    """The transaction of the attempt is still open in the database."""


class _NoAnswer(Exception):
    """A database could not say how an attempt ended. due: when to ask again (ms)."""

    def __init__(self, error: StoreError, due: int) -> None:
        super().__init__(error.message)
        self.error, self.due = error, due


class _Outage:
    """A database that does not answer. due: when it is asked again; wait: after how long. asking: it is being asked."""

    def __init__(self, error: StoreError, due: int, wait: int) -> None:
        self.error, self.due, self.wait, self.asking = error, due, wait, False


class Settler:
    """Asks the application's databases, for all runs of an engine. One that does not answer is asked for one run at a
    time, however many wait for it."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._threads = Threads(engine.loop, THREADS)
        self._outages: dict[str, _Outage] = {}

    async def ask(self, database: str, key: "Key") -> Completion | None:
        """Settles an attempt in one database. Raises _NoAnswer."""
        databases, clock = self._engine.databases, self._engine.clock
        assert databases is not None, "the caller looked"
        outage = self._outages.get(database)
        if outage is not None:
            if outage.asking or clock.now() < outage.due:
                raise _NoAnswer(outage.error, max(outage.due, clock.now() + FIRST_WAIT))
            outage.asking = True
        try:
            found = await self._threads.run(partial(databases.settle, database, key))
        except Undecided as error:
            self._outages.pop(database, None)
            raise _NoAnswer(error, clock.now() + FIRST_WAIT) from error
        except StoreError as error:
            wait = FIRST_WAIT if outage is None else min(outage.wait * 2, LONGEST_WAIT)
            due = clock.now() + wait
            self._outages[database] = _Outage(error, due, wait)
            raise _NoAnswer(error, due) from error
        finally:
            if outage is not None:
                outage.asking = False
        self._outages.pop(database, None)
        return found
