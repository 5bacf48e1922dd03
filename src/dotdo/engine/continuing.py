"""A service that continues as new: its run ends, and another one goes on for it with an empty journal.

One commit ends the one, accepts the other and moves the messages that were not taken, so that there is exactly one
successor, whenever the process dies. Whoever waits for the one, cancels it or sends it an event reaches the other.
"""

import hashlib
from typing import TYPE_CHECKING

import msgspec

from dotdo.engine.accepting import new_run
from dotdo.engine.failing import ContinueAsNew, leaves
from dotdo.engine.replaying import check_replay
from dotdo.journal import Chain, Ended
from dotdo.records import Options
from dotdo.store.protocol import Message, Succession

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun

# Keys of events that a run knows from those before it: so long are senders recognised that send again.
MAX_SENDERS = 500


def continuation(error: BaseException | None) -> ContinueAsNew | None:
    """Whether the service's code has ended to continue as new, be it out of a TaskGroup."""
    if error is None:
        return None
    found = leaves(error)
    first = found[0]
    return first if isinstance(first, ContinueAsNew) and len(found) == 1 else None


def continue_run(run: "LiveRun", again: ContinueAsNew) -> None:
    """Ends a run and starts the one that goes on for it, in one commit. What is in flight is settled before."""
    run.is_stopping = run.continuing = True  # its code is done with; messages from here on are for the successor
    run.conduct(_continue(run, again))


async def _continue(run: "LiveRun", again: ContinueAsNew) -> None:
    await run.settle_in_flight()
    pins = await run.engine.newest_versions()
    mismatch = check_replay(run)
    if mismatch is not None:
        run.is_stopping = run.continuing = False
        run.block_for(mismatch)
    if run.over or run.status == "blocked":
        return
    _succeed(run, again, pins)


def _succeed(run: "LiveRun", again: ContinueAsNew, pins: str) -> None:
    code, accepted = run.code, run.accepted
    assert code is not None, "it has just ended"
    before = accepted.chain
    left = code.left_events()
    known = [sender for sender in run.history.senders if sender not in {event.sender for event in left}]
    chain = Chain(
        first=before.first if before else run.id,
        previous=run.id,
        number=before.number + 1 if before else 1,
        senders=known[-MAX_SENDERS:],
    )
    id = _successor_id(run)
    options = _options(run)
    input, identity = run.engine.vault.at_rest(again.definition.schema, again.input, id, options)
    successor = new_run(
        run.engine,
        id,
        again.definition,
        "service",
        input,
        options,
        parent=accepted.parent,
        parent_step=accepted.parent_step,
        pins=pins,
        identity=identity,
        chain=chain,
    )
    now = run.engine.clock.now()
    journal = run.journal
    journal.accept(successor)
    for event in left:
        journal.send(Message(id, "event", event.name, bytes(event.value).decode(), event.sender, event.actor, now))
    journal.succeed(Succession(id, chain.first, run.id, chain.number))
    run.end(Ended("completed", continued_as=id))
    # Only now: before the end was appended, "durable" meant what came before, which says nothing of the successor.
    journal.when_durable(lambda error: None if error else run.engine.intake.start_successor(successor))


def _successor_id(run: "LiveRun") -> str:
    """A root's successor is a root with a tree of its own; a child's stays in the tree of its parent. Derived from the
    run, so that the primary key allows one only."""
    digest = hashlib.sha256(f"{run.id}|continued|{run.history.generation}".encode()).hexdigest()
    root, dot, _ = run.id.partition(".")
    return f"{root}.{digest[:16]}" if dot else f"run_{digest[:32]}"


def _options(run: "LiveRun") -> Options:
    """The key stays with the first run, which leads on to this one; the deadline is the whole chain's."""
    due = run.history.deadline_at
    left = None if due is None else max(due - run.engine.clock.now(), 0) / 1000
    return msgspec.structs.replace(run.accepted.options, key=None, delay=None, version=None, deadline=left)
