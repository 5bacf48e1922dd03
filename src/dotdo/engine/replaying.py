"""Replays a finished run from its journal and compares: the same steps asked for, the same end.

In development every run is replayed at once, so that a service that reads the clock, draws random numbers or keeps
state outside its run is found when it is written, and not when a process restarts.
"""

from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.catalogue import Catalogue, Snapshot
from dotdo.clock import duration
from dotdo.engine.failing import message_of
from dotdo.engine.fitting import told_step
from dotdo.engine.history import History
from dotdo.engine.secrets import KeepsSecrets
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.watching import Watch
from dotdo.errors import ReplayError, ReplayMismatch
from dotdo.journal import Entry, read
from dotdo.service import Service

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


WITH_INPUT = ("committed", "completed", "attempt_failed", "child_started")  # entries that say what a step was given


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did: the steps it asked for, in order, with their inputs, and which are actions; those that the
    journal does not have; what it waits for, in words, if it did not end; and its end."""

    asked: dict[str, bytes]
    actions: list[str]
    new: list[str]
    result: bytes | None
    error: str | None
    waits: list[str] = []


def replay(
    service: Service[Any, Any],
    run: str,
    entries: list[Entry],
    pins: Snapshot,
    catalogue: Catalogue,
    watch: Watch | None = None,
    keeper: KeepsSecrets | None = None,
) -> Replayed:
    """Runs a service's code from a journal, starting nothing. Raises ReplayError when the code cannot be run so.

    keeper: opens the secrets of a run that has any.
    """
    history = History()
    history.load(entries)
    return replay_history(service, run, history, pins, catalogue, watch, keeper)


def replay_history(
    service: Service[Any, Any],
    run: str,
    history: History,
    pins: Snapshot,
    catalogue: Catalogue,
    watch: Watch | None = None,
    keeper: KeepsSecrets | None = None,
) -> Replayed:
    """The same from what a journal amounts to."""
    code = ServiceCode(run, service, history, pins, catalogue, watch, keeper)
    try:
        code.start()
        code.hand_over(history.handovers)
        asked = {call.id: call.input for call in code.calls.values() if call.begun}
        actions = [id for id in asked if not isinstance(code.calls[id].definition, Service)]
        new = [call.id for call in code.new if call.id.removeprefix("undo:") not in history.steps]
        if not code.main.done():
            return Replayed(asked, actions, new, None, "it did not end", _waits_of(code))
        result, error = code.outcome()
        if error is not None:
            return Replayed(asked, actions, new, None, f"{type(error).__name__}: {message_of(error)}")
        return Replayed(asked, actions, new, service.schema.dump(result)[0], None)
    finally:
        code.end()


def _waits_of(code: ServiceCode) -> list[str]:
    timer = code.loop.next_timer()
    timers = (
        [] if timer is None else [f"a timer of {duration(int(timer.key.removeprefix('timer:').partition('#')[0]))}"]
    )
    return [f"the event {name!r}" for name in code.awaited_events()] + timers


def check_replay(run: "LiveRun") -> ReplayError | None:
    """Replays a run that is about to complete; what differs, if anything does."""
    entries, code = run.journal.kept, run.code
    if entries is None or code is None:
        return None
    engine = run.engine
    try:
        pins = engine.pinned.of(run.accepted.pins)
        again = replay(run.definition, run.id, entries, pins, engine.catalogue, engine.watch, run)
    except ReplayError as error:
        return error
    live = {call.id: call.input for call in code.calls.values() if call.begun}
    outcome, error = code.outcome()
    result = None if error is not None else run.definition.schema.dump(outcome)[0]
    told = None if error is None else f"{type(error).__name__}: {message_of(error)}"
    hint = (
        " A service must do the same on every replay: no clock, random numbers, files or globals; use dotdo.now(), "
        "dotdo.random(), dotdo.uuid(), or an action."
    )
    if again.asked.keys() != live.keys():
        given = inputs_of(entries)  # a call that is over has given its input away
        live = {step: input or given.get(step, b"") for step, input in live.items()}
        other, missing = (_first(these, those) for these, those in ((again.asked, live), (live, again.asked)))
        return ReplayMismatch(
            f"Replayed at once, the service {run.definition.name} asked for other steps: {other} instead of "
            f"{missing}.{hint}"
        )
    if (again.result, again.error) != (result, told):
        return ReplayMismatch(
            f"Replayed at once, the service {run.definition.name} came to another end: "
            f"{again.error or (again.result or b'').decode()[:300]} instead of "
            f"{told or (result or b'').decode()[:300]}.{hint}"
        )
    return None


def inputs_of(entries: list[Entry]) -> dict[str, bytes]:
    """What the steps of a journal were given, as far as it says."""
    given: dict[str, bytes] = {}
    for entry in entries:
        if entry.step and entry.kind in WITH_INPUT:
            given[entry.step] = bytes(read(entry).input)
    return given


def _first(asked: dict[str, bytes], known: dict[str, bytes]) -> str:
    """The first of the steps that were asked for and are not among those known, and how many more there are."""
    strange = [step for step in asked if step not in known]
    if not strange:
        return "none"
    more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
    return f"{told_step(strange[0], asked[strange[0]])}{more}"
