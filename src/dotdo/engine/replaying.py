"""Replays a finished run from its journal and compares: the same steps asked for, the same end.

In development every run is replayed at once, so that a service that reads the clock, draws random numbers or keeps
state outside its run is found when it is written, and not when a process restarts.
"""

from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.catalogue import Catalogue, Snapshot
from dotdo.engine.failing import message_of
from dotdo.engine.history import History
from dotdo.engine.secrets import KeepsSecrets
from dotdo.engine.service_code import ServiceCode
from dotdo.engine.watching import Watch
from dotdo.errors import ReplayError, ReplayMismatch
from dotdo.journal import Entry
from dotdo.service import Service

if TYPE_CHECKING:
    from dotdo.engine.running import LiveRun


class Replayed(msgspec.Struct, frozen=True):
    """What a replay did: the steps it asked for, in order, and which are actions; those that the journal does not have;
    and its end."""

    asked: list[str]
    actions: list[str]
    new: list[str]
    result: bytes | None
    error: str | None


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
        asked = [call.id for call in code.calls.values() if call.begun]
        actions = [id for id in asked if not isinstance(code.calls[id].definition, Service)]
        new = [call.id for call in code.new if call.id.removeprefix("undo:") not in history.steps]
        if not code.main.done():
            return Replayed(asked, actions, new, None, "it did not end")
        result, error = code.outcome()
        if error is not None:
            return Replayed(asked, actions, new, None, f"{type(error).__name__}: {message_of(error)}")
        return Replayed(asked, actions, new, service.schema.dump(result)[0], None)
    finally:
        code.end()


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
    live = [call.id for call in code.calls.values() if call.begun]
    outcome, error = code.outcome()
    result = None if error is not None else run.definition.schema.dump(outcome)[0]
    told = None if error is None else f"{type(error).__name__}: {message_of(error)}"
    hint = (
        " A service must do the same on every replay: no clock, random numbers, files or globals; use dotdo.now(), "
        "dotdo.random(), dotdo.uuid(), or an action."
    )
    if sorted(again.asked) != sorted(live):
        missing = sorted(set(live) - set(again.asked)) or ["none"]
        other = sorted(set(again.asked) - set(live)) or ["none"]
        return ReplayMismatch(
            f"Replayed at once, the service {run.definition.name} asked for other steps: {', '.join(other)} instead of "
            f"{', '.join(missing)}.{hint}"
        )
    if (again.result, again.error) != (result, told):
        return ReplayMismatch(
            f"Replayed at once, the service {run.definition.name} came to another end: "
            f"{again.error or (again.result or b'').decode()[:300]} instead of "
            f"{told or (result or b'').decode()[:300]}.{hint}"
        )
    return None
