"""Brings claimed runs back into memory: reads their journals, replays, and goes on.

A run that crashed its node several times without getting anywhere is blocked. Before that, a suspect runs alone: one at
a time, so that it takes no other with it, and only those that really ran are counted.
"""

from typing import TYPE_CHECKING, Any

from dotdo.catalogue import described
from dotdo.engine.elsewhere import is_left_to_others, missing
from dotdo.engine.failing import Block, error_record
from dotdo.engine.guarding import broke
from dotdo.engine.history import MAX_CRASHES, History
from dotdo.engine.running import LiveRun
from dotdo.engine.settling import Unsettled
from dotdo.errors import DotdoError
from dotdo.journal import Accepted, Claimed, Entry
from dotdo.policy import Retry
from dotdo.records import WaitingFor
from dotdo.store.protocol import Claim, Message

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine

# When to look again for a definition that this process does not have, in ms. A process that comes with it is noticed.
LOOK_AGAIN = 60_000


async def load_runs(engine: "Engine", claims: list[Claim], node: str) -> None:
    """Loads runs that a node claimed, each by itself: one that cannot be loaded hurts no other."""
    ids = [claim.run for claim in claims]
    journals = await engine.read(lambda: engine.store.read_journals(ids))
    inbox = await engine.read(lambda: engine.store.read_inbox(ids))
    histories: list[tuple[Claim, list[Entry], History]] = []
    for claim in claims:
        history = History()
        try:
            history.load(journals[claim.run])
        except Exception as error:  # whatever an entry says that no engine would have written
            engine.log.error("the journal of %s cannot be read; run `dotdo audit verify`: %r", claim.run, error)
            continue
        if history.accepted is not None:
            histories.append((claim, journals[claim.run], history))
    pins = {history.accepted.pins for _, _, history in histories if history.accepted and history.accepted.pins}
    await engine.pinned.load(pins)
    for claim, entries, history in histories:
        engine.claimer.coming += 1
        engine.loop.call_soon(_resume, engine, node, claim, entries, history, inbox[claim.run])


def _resume(
    engine: "Engine", node: str, claim: Claim, entries: list[Entry], history: History, messages: list[Message]
) -> None:
    engine.claimer.coming -= 1
    if engine.node != node or (engine.lease is not None and engine.lease.is_lost):
        return  # freed with all else that the node had: what the next one wrote for it, no claim of its own would cover
    accepted = history.accepted
    if accepted is None or claim.run in engine.live or engine.draining:
        return
    journal = engine.journal_of(claim.run, claim.claim, entries[-1], history.generation)
    definition = engine.catalogue.find(accepted.kind, accepted.name, accepted.version)
    if definition is None and _needs_none(engine, history, entries, messages):
        definition = _Gone()
    if definition is None or is_left_to_others(engine, definition):
        due, unsettled = engine.clock.now() + LOOK_AGAIN, claim.crashed or claim.unseen
        if definition is None:
            waits = WaitingFor("action", _missing(engine, accepted), due)
        else:
            waits, due = WaitingFor("turn", "a node that takes it"), engine.clock.now()
        journal.update("waiting", waiting_for=waits, due_at=due, unsettled=unsettled)
        return
    if engine.check_replay:
        journal.kept = list(entries)
    run = engine.live[claim.run] = LiveRun(engine, history, journal, definition)
    # One that was only read again after trouble with the store may still be what kills the process; not one that is
    # blocked, of which a person has just said something.
    suspected = claim.crashed or history.blocked is None
    if suspected and history.crashes + claim.crashed >= MAX_CRASHES - 1:
        engine.suspects.add(run, claim, messages)
    else:
        begin(engine, run, claim, messages)


def begin(engine: "Engine", run: LiveRun, claim: Claim, messages: list[Message]) -> None:
    """Lets a loaded run go on."""
    if run.over:
        return
    if claim.crashed or claim.unseen:
        run.crashed = run.journal.seq + 1
        run.unsettled = Unsettled(taken_over=True)
    run.append("claimed", Claimed(engine.node, claim.claim, claim.crashed))
    if run.history.is_poison or (claim.crashed and run.history.crashes >= MAX_CRASHES):
        run.began = True
        run.block(
            Block(
                "crashed",
                f"The run was in flight {MAX_CRASHES} times when its process died, and never got any further. "
                "Look at what "
                "its next step does, mend it, and retry the run.",
            )
        )
        # It tells of that first. What has come for its steps meanwhile would wake it whenever it waits, over and over.
        run.take(messages)
        return
    try:
        run.start(messages, fresh=False)
    except BaseException as error:  # one run's trouble must not keep others from being resumed
        record = error_record(error)
        engine.log.error("the run %s could not be resumed: %s: %s", run.id, record.type, record.message)
        what = record.message if isinstance(error, DotdoError) else f"{record.type}: {record.message}"
        broke(run, Block("cannot be resumed", f"The run could not be resumed: {what}", error=record))


def _needs_none(engine: "Engine", history: History, entries: list[Entry], messages: list[Message]) -> bool:
    """Whether a run can go on without its definition."""
    assert history.accepted is not None, "the caller looked"
    if history.ended is not None:
        # Its code has run: what takes it back is the undo of its actions. That of an action is with its definition.
        return engine.elsewhere is None or history.accepted.kind == "service"
    # One that was cancelled before it began has nothing to take back.
    return len(entries) == 1 and any(message.kind == "cancel" for message in messages)


def _missing(engine: "Engine", accepted: Accepted) -> str:
    what = described(accepted.kind, accepted.name, accepted.version)
    if engine.elsewhere is None:
        return (
            f"the {what}, which the process with the engine does not define; start it again with that, or another one"
        )
    return missing(engine, what, accepted.name, accepted.version)


class _Gone:
    """Stands for the definition of a run that was cancelled before it began, or that had ended and is to be undone,
    where that is not defined (any more)."""

    on_failure: tuple[Any, ...] = ()
    retry = Retry()
    undoes = True


class Suspects:
    """Runs that may be what killed their process: resumed one at a time."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._waiting: list[tuple[LiveRun, Claim, list[Message]]] = []
        self._current: LiveRun | None = None

    def add(self, run: LiveRun, claim: Claim, messages: list[Message]) -> None:
        """Resumes the run when it is alone among suspects."""
        self._waiting.append((run, claim, messages))
        self.next()

    def next(self) -> None:
        """Goes on with the next one when the current one has got somewhere, or has left."""
        while self._waiting and (self._current is None or self._current.over or self._current.history.crashes == 0):
            run, claim, messages = self._waiting.pop(0)
            self._current = run
            begin(self._engine, run, claim, messages)
            self._engine.hint(run.id)  # what has come while it waited for its turn
