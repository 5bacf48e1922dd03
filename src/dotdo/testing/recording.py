"""A run that there has been, as a file; and its replay against today's code, as a unit test.

A change that would block runs in flight is found before it is deployed: record runs of today, keep the files with the
tests, and replay them. `dotdo check --against` does the same for all runs of a store at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.catalogue import Catalogue, Snapshot, default_catalogue
from dotdo.client import Do
from dotdo.engine.fitting import told_step
from dotdo.engine.replaying import Replayed, inputs_of
from dotdo.engine.replaying import replay as replay_entries
from dotdo.errors import ReplayError, ReplayMismatch, UnknownName
from dotdo.journal import Accepted, ChildStarted, Completion, Ended, Entry, read

if TYPE_CHECKING:
    from dotdo.client import Handle
    from dotdo.records import Run

FORMAT = 1
OWN_STEPS = ("undo:", "on_failure:", "timer:")


class Recording(msgspec.Struct, frozen=True):
    """What the file holds: JSON, one run's whole journal."""

    format: int
    run: str
    name: str
    version: int
    entries: list[dict[str, Any]]


def record(client: Do, run: "Handle[Any] | Run | str", path: str | Path) -> None:
    """Writes a run of a service to a file, with all that its journal holds: inputs, results, events.

    client: any client, also of a server. Raises UnknownName; ReplayError for a run that is not of a service.
    """
    id = run if isinstance(run, str) else run.id
    entries: list[Entry] = client.runs.journal(id)
    if not entries:
        raise UnknownName(f"There is no run {id}.")
    if not entries[0].data:
        raise ReplayError(f"The data of the run {id} was erased, so it cannot be replayed.")
    accepted: Accepted = read(entries[0])
    if accepted.kind != "service":
        raise ReplayError(f"The run {id} is of the action {accepted.name}: only services are replayed.")
    plain = [msgspec.structs.asdict(entry) for entry in entries]
    recording = Recording(FORMAT, id, accepted.name, accepted.version, plain)
    Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(recording), indent=1) + b"\n")


def replay(path: str | Path, *, catalogue: Catalogue | None = None) -> Any:
    """Replays a recorded run with today's code; nothing is called. Returns the result that it came to (or None).

    Raises ReplayMismatch when the code does not ask for the recorded steps, asks for others, or comes to another end;
    ReplayError when it cannot be run so at all.
    """
    recording = msgspec.json.decode(Path(path).read_bytes(), type=Recording)
    if recording.format != FORMAT:
        raise ReplayError(f"{path} was written in format {recording.format}; this version reads {FORMAT}.")
    entries = [msgspec.convert(entry, Fields).entry() for entry in recording.entries]
    known = catalogue or default_catalogue
    service = known.get("service", recording.name, recording.version)
    again = replay_entries(service, recording.run, entries, Snapshot("", _pins(entries)), known)
    _compare(f"{recording.name} ({path})", entries, again)
    return None if again.result is None else msgspec.json.decode(again.result)


class Fields(msgspec.Struct):
    """One entry by the names of its fields."""

    run: str
    seq: int
    kind: str
    step: str
    generation: int
    attempt: int
    at: int
    data: str
    data_digest: str
    digest: str

    def entry(self) -> Entry:
        """The entry."""
        return Entry(*msgspec.structs.astuple(self))


def _pins(entries: list[Entry]) -> dict[str, int]:
    """The versions that the run took of what it called: those that it keeps."""
    pins: dict[str, int] = {}
    for entry in entries:
        data = read(entry)
        if isinstance(data, Completion) and not data.fallback and entry.step.partition(":")[0] == data.action:
            pins.setdefault(data.action, data.version)
        elif isinstance(data, ChildStarted):
            pins.setdefault(data.name, data.version)
    return pins


def _compare(what: str, entries: list[Entry], again: Replayed) -> None:
    ended = next((read(entry) for entry in reversed(entries) if entry.kind == "ended"), None)
    recorded: dict[str, None] = {}
    for entry in entries:
        if entry.kind == "reopened" and read(entry).dropped:
            recorded = {}  # what depended on a result that came out differently is another step now
        elif entry.step and not entry.step.startswith(OWN_STEPS):
            recorded[entry.step] = None
    missing = [step for step in recorded if step not in again.asked]
    if missing:
        raise ReplayMismatch(f"Replayed, {what} does not ask for {_divergence(missing, inputs_of(entries), again)}.")
    if not isinstance(ended, Ended):
        return
    if again.new:
        new = ", ".join(told_step(step, again.asked.get(step)) for step in again.new)
        raise ReplayMismatch(f"Replayed, {what} asks for steps that it did not have: {new}.")
    if ended.status == "completed" and ended.continued_as is None and again.result != bytes(ended.result):
        came = again.error or (again.result or b"nothing").decode()
        raise ReplayMismatch(
            f"Replayed, {what} comes to another end: {came} instead of {bytes(ended.result).decode()}."
        )
    if ended.status == "failed" and again.result is not None and _by_itself(ended):
        raise ReplayMismatch(f"Replayed, {what} completes, with {again.result.decode()}; it had failed.")


def _divergence(missing: list[str], recorded: dict[str, bytes], again: Replayed) -> str:
    """The recorded step that the code does not ask for, what it does instead, and what only follows from that."""
    names = [step.partition(":")[0] for step in again.new]
    first = next((step for step in missing if step.partition(":")[0] in names), missing[0])
    text = f"its recorded step {told_step(first, recorded.get(first))}"
    if again.new:
        text += f"; it asks for {', '.join(told_step(step, again.asked.get(step)) for step in again.new)} instead"
    elif again.waits:
        text += f"; it waits for {' and '.join(again.waits)} instead"
    others = [step for step in missing if step != first]
    return f"{text}. Nor for what came later: {', '.join(others)}" if others else text


def _by_itself(ended: Ended) -> bool:
    """Whether its code brought it to its end, and not a deadline."""
    return ended.error is None or ended.error.type not in ("DeadlineExceeded", "Cancelled")
