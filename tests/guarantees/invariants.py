"""The invariants I4, I5, I10, I11 and I12 of every run in a store, from its rows alone; the engine is not asked."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from tests.stores import rows_of

OWN_STEPS = ("undo:", "on_failure:")
FORWARD = ("committed", "completed", "requested", "child_started")
ENDED = ("completed", "failed", "cancelled")
Rows = list[dict[str, Any]]


def check_store(path: Path) -> None:
    """Raises AssertionError that names the run and the invariant which does not hold."""
    runs = rows_of(path, "select * from runs")
    inbox = {row["run"] for row in rows_of(path, "select run from inbox")}
    asking = {row["run"] for row in rows_of(path, "select run from tickets where scope is not null")}
    journals: dict[str, Rows] = {run["id"]: [] for run in runs}
    for entry in rows_of(path, "select * from journal order by run, seq"):
        if entry["data"] == f"@{entry['data_digest']}":  # large: it stands in parts of its own
            parts = "select data from blobs where run = ? and digest = ? order by part"
            found = rows_of(path, parts, entry["run"], entry["data_digest"])
            entry["data"] = b"".join(bytes(part["data"]) for part in found).decode()
        journals.setdefault(entry["run"], []).append(entry)
    for run in runs:
        check_run(run, journals[run["id"]], has_message=run["id"] in inbox, asks=run["id"] in asking)


def check_run(run: dict[str, Any], entries: Rows, *, has_message: bool, asks: bool = False) -> None:
    """All invariants of one run. asks: whether it has asked for a slot of a limit."""
    _check_moves(run, entries, has_message, asks)
    _check_chain(run, entries)
    children = {entry["step"] for entry in entries if entry["kind"] == "child_started"}
    for generation in range(entries[-1]["generation"] + 1):
        of_it = [entry for entry in entries if entry["generation"] == generation]
        _check_outcomes(run, of_it)
        _check_undo(run, of_it, children)
        # Who reopens an ended run claims it first.
        kinds = [entry["kind"] for entry in of_it if entry["kind"] != "claimed"]
        assert "ended" not in kinds[:-1], f"I12: {run['id']}: generation {generation} goes on after its end: {kinds}"


def _check_moves(run: dict[str, Any], entries: Rows, has_message: bool, asks: bool) -> None:
    if run["ended_at"] is not None:
        assert run["status"] in ENDED, run
        assert entries[-1]["kind"] == "ended", f"I4: {run['id']} is {run['status']}, its journal goes on"
        return
    waits = run["owner"] is not None or run["due_at"] is not None or has_message
    if run["status"] == "blocked":
        assert run["waiting_for"], f"I4: {run['id']} is blocked without a word"
    elif not waits:
        awaited = msgspec.json.decode(run["waiting_for"] or "null")
        assert awaited, f"I4: nothing can move {run['id']}: {run}"
        # Who defines or offers something that is waited for looks for those who wait.
        kinds = ("event", "child", "action", "worker", *(["limit"] if asks else []))
        assert awaited["kind"] in kinds, f"I4: nothing can move {run['id']}: {run}"


def _check_chain(run: dict[str, Any], entries: Rows) -> None:
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1)), f"I11: {run['id']} has gaps"
    previous = "0" * 64
    for entry in entries:
        assert hashlib.sha256(entry["data"].encode()).hexdigest() == entry["data_digest"], f"I11: {entry}"
        header = "|".join(str(entry[name]) for name in ("run", "seq", "kind", "step", "generation", "attempt", "at"))
        previous = hashlib.sha256(f"{previous}|{header}|{entry['data_digest']}".encode()).hexdigest()
        assert previous == entry["digest"], f"I11: the chain of {run['id']} breaks at {entry['seq']}"
    # The row is written when the run is parked or ends; meanwhile its head lags behind.
    assert entries[run["seq"] - 1]["digest"] == run["digest"], f"I11: {run['id']}: the row's head is not in the journal"


def _check_outcomes(run: dict[str, Any], entries: Rows) -> None:
    for step in {entry["step"] for entry in entries if entry["step"]}:
        kinds = [entry["kind"] for entry in entries if entry["step"] == step]
        commits = kinds.count("committed") + kinds.count("completed")
        assert commits <= 1, f"I5: {run['id']}: {step} committed {commits} times: {kinds}"
        assert kinds.count("failed") <= 1, f"I5: {run['id']}: {step} failed twice: {kinds}"
        assert not ("completed" in kinds and "failed" in kinds), f"I5: {run['id']}: {step} has two outcomes: {kinds}"
        attempts = [
            entry["attempt"] for entry in entries if entry["step"] == step and entry["kind"] == "attempt_failed"
        ]
        assert attempts == sorted(set(attempts)), f"{run['id']}: attempts of {step}: {attempts}"


def _check_undo(run: dict[str, Any], entries: Rows, children: set[str]) -> None:
    planned = [entry for entry in entries if entry["kind"] == "undo_planned"]
    if not planned:
        return
    assert len(planned) == 1, f"I10: {run['id']} has {len(planned)} undo plans in one generation"
    plan = msgspec.json.decode(planned[0]["data"])["steps"]
    after = [entry for entry in entries if entry["seq"] > planned[0]["seq"]]
    forward = [e for e in after if e["kind"] in FORWARD and not e["step"].startswith(OWN_STEPS)]
    assert not forward, f"I10: {run['id']} goes forward after its undo plan: {forward[0]}"
    undone = [msgspec.json.decode(entry["data"])["step"] for entry in after if entry["kind"] == "undone"]
    # A child whose undo asks a person comes when that is answered; everything else is undone meanwhile.
    own, planned = ([step for step in steps if step not in children] for steps in (undone, plan))
    assert own == planned[: len(own)], f"I10: {run['id']}: undone {undone}, planned {plan}"
    assert len(undone) == len(set(undone) & set(plan)), f"I10: {run['id']}: undone {undone}, planned {plan}"
    if any(entry["kind"] == "ended" for entry in after):
        assert sorted(undone) == sorted(plan), f"I10: {run['id']} ended before its undo: {undone} of {plan}"
