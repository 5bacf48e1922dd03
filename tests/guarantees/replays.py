"""Replays what has ended in a store, with the code at hand: the same steps asked for, the same end (I9)."""

from pathlib import Path
from typing import Any

from dotdo import Catalogue
from dotdo.catalogue import Snapshot
from dotdo.embedding import open_reader
from dotdo.engine.replaying import Replayed, replay
from dotdo.journal import Accepted, Ended, Entry, read
from dotdo.records import RunFilter
from dotdo.store.sql import SqlStore
from tests.stores import url_of

MOST = 20_000
OWN_STEPS = ("undo:", "on_failure:")


def check_replays(path: Path, catalogue: Catalogue) -> int:
    """Raises AssertionError that names the run which differs; returns how many were replayed."""
    store = open_reader(url_of(path))
    try:
        return sum(_check(store, entries, catalogue) for entries in ended_services(store))
    finally:
        store.close()


def ended_services(store: SqlStore) -> list[list[Entry]]:
    """The journals of services that have completed, or failed by their own doing."""
    ended = [run for status in ("completed", "failed") for run in store.list_runs(RunFilter(status=status, limit=MOST))]
    journals = store.read_journals([run.id for run in ended])
    found = [entries for entries in journals.values() if read(entries[0]).kind == "service"]
    return [entries for entries in found if not _was_stopped(_end(entries))]


def replay_again(store: SqlStore, entries: list[Entry], catalogue: Catalogue) -> Replayed:
    """Replays one journal."""
    accepted: Accepted = read(entries[0])
    service = catalogue.get("service", accepted.name, accepted.version)
    pins = Snapshot(accepted.pins or "", store.load_definitions(accepted.pins) if accepted.pins else {})
    return replay(service, entries[0].run, entries, pins, catalogue)


def _check(store: SqlStore, entries: list[Entry], catalogue: Catalogue) -> int:
    again, ended = replay_again(store, entries, catalogue), _end(entries)
    name = f"I9: {entries[0].run} ({read(entries[0]).name})"
    if ended.continued_as is not None:
        assert (again.error or "").startswith(("ContinueAsNew", "BaseExceptionGroup")), (
            f"{name}: {again} instead of {ended}"
        )
    elif ended.status == "completed":
        assert again.result == bytes(ended.result), f"{name}: {again} instead of {ended}"
    else:
        assert again.result is None, f"{name}: {again} instead of {ended}"
        assert again.error != "it did not end", f"{name}: {again} instead of {ended}"
    recorded = {step for step in _steps(entries) if not step.startswith(OWN_STEPS)}
    assert recorded <= {*again.asked}, f"{name}: {recorded - {*again.asked}} were not asked for"
    return 1


def _steps(entries: list[Entry]) -> set[str]:
    """The steps that count in the last generation."""
    steps: set[str] = set()
    for entry in entries:
        if entry.kind == "reopened" and read(entry).dropped:
            steps = set()  # what depends on a result that came out differently is another step than before
        elif entry.step and not entry.step.startswith("timer:"):
            steps.add(entry.step)
    return steps


def _end(entries: list[Entry]) -> Ended:
    return next(read(entry) for entry in reversed(entries) if entry.kind == "ended")


def _was_stopped(ended: Ended) -> bool:
    """Whether something else than its code brought it to its end."""
    error: Any = ended.error
    return ended.status == "cancelled" or (error is not None and error.type in ("DeadlineExceeded", "Cancelled"))
