"""What the measurements of all systems say, side by side: rows of medians, and ratios against the project's bars.

A ratio is that of two measurements of the same round, minutes apart at most; the median of those counts.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import Bar, Figure, at_least, median, number
from benchmarks.peers.systems import System

MISSING = "-"


@dataclass
class Results:
    """Of one system. plain, slow: its measurements, one for each round; slow: with each flush 1 ms slower. why: why
    there is none, or why a round is missing."""

    plain: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    slow: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    why: str = ""


@dataclass(frozen=True)
class Row:
    """job, name, unit: what it is called. more: whether more is better. slow: taken with slower flushes. count: None
    where something else's flushes may be among it; then those with slower flushes count, which all are seen."""

    job: str
    name: str
    unit: str
    value: Callable[[dict[str, Any]], float | None]
    more: bool = False
    slow: bool = False
    count: bool = False


def _of(*path: str, times: float = 1) -> Callable[[dict[str, Any]], float]:
    def value(found: dict[str, Any]) -> float:
        for part in path:
            found = found[part]
        return float(found) * times  # pyright: ignore[reportArgumentType]  # the last one is a number

    return value


def _counted(job: str, name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda found: found[job][name] if found[job]["counted"] else None


_TRIVIAL, _REAL = "onboarding", "real"
JOBS = {_TRIVIAL: "onboarding", _REAL: "for real"}
FLUSHES = Row(_TRIVIAL, "flushes of a run alone", "", _counted(_TRIVIAL, "flushes_alone"), count=True)
ROWS = [
    Row(_TRIVIAL, "in a flood", "runs/s", _of(_TRIVIAL, "rate"), more=True),
    Row(_TRIVIAL, "CPU in a flood", "s/1000 steps", _of(_TRIVIAL, "cpu_per_1000_steps")),
    Row(_TRIVIAL, "one run, p50", "ms", _of(_TRIVIAL, "alone", "p50")),
    Row(_TRIVIAL, "one run, p99", "ms", _of(_TRIVIAL, "alone", "p99")),
    Row(_TRIVIAL, "one action, p50", "ms", _of(_TRIVIAL, "action", "p50")),
    FLUSHES,
    Row(_TRIVIAL, "flushes of a run in a flood", "", _counted(_TRIVIAL, "flushes_in_flood"), count=True),
    Row(_TRIVIAL, "flushes 1 ms slower: in a flood", "runs/s", _of(_TRIVIAL, "rate"), more=True, slow=True),
    Row(_TRIVIAL, "flushes 1 ms slower: one run, p50", "ms", _of(_TRIVIAL, "alone", "p50"), slow=True),
    Row(_REAL, "100 in flight", "runs/s", _of(_REAL, "rate"), more=True),
    Row(_REAL, "CPU of a run", "ms", _of(_REAL, "cpu", times=1000)),
    Row(_REAL, "one run, p50", "ms", _of(_REAL, "alone", "p50")),
    Row(_REAL, "one run, p99", "ms", _of(_REAL, "alone", "p99")),
    Row(_REAL, "flushes of a run alone", "", _counted(_REAL, "flushes_alone"), count=True),
    Row(_REAL, "flushes 1 ms slower: 100 in flight", "runs/s", _of(_REAL, "rate"), more=True, slow=True),
    Row(_REAL, "flushes 1 ms slower: one run, p50", "ms", _of(_REAL, "alone", "p50"), slow=True),
    Row(_REAL, "memory of all processes at the end", "MiB", _of("memory")),
]
# Ours, theirs, and how many times as many runs/s ours must do in a flood.
RATIOS: list[tuple[str, str, Bar | None]] = [
    ("dotdo-sqlite", "restate", at_least(4)),
    ("dotdo-sqlite", "dbos-sqlite", at_least(30)),
    ("dotdo-sqlite", "celery", None),
    ("dotdo-postgres", "dbos-postgres", at_least(30)),
]


def value_of(row: Row, results: Results) -> float | None:
    """The median of the rounds."""
    for measured in [results.slow] if row.slow else [results.plain, results.slow] if row.count else [results.plain]:
        found = [value for value in map(row.value, measured) if value is not None]
        if found:
            return statistics.median(found)
    return None


def cells(found: dict[str, Results]) -> list[tuple[Row, list[str], int | None]]:
    """For each row: what stands in each column, and which column is the best, if there are two to compare."""
    table: list[tuple[Row, list[str], int | None]] = []
    for row in ROWS:
        values = [value_of(row, results) for results in found.values()]
        there = [value for value in values if value is not None]
        best = None
        if len(there) > 1:
            best = values.index(max(there) if row.more else min(there))
        table.append((row, [MISSING if value is None else number(value) for value in values], best))
    return table


def ratios(systems: Sequence[System], found: dict[str, Results]) -> list[Figure]:
    """How many times as many runs/s ours does in a flood, with the bars."""
    labels = {system.name: system.label for system in systems}
    figures: list[Figure] = []
    for ours, theirs, bar in RATIOS:
        if not (ours in found and theirs in found):
            continue
        pairs = list(zip(found[ours].plain, found[theirs].plain, strict=False))
        if pairs:
            rates = [one[_TRIVIAL]["rate"] / other[_TRIVIAL]["rate"] for one, other in pairs]
            figures.append(median(f"{labels[ours]} to {labels[theirs]}: runs/s in a flood", rates, "x", bar))
    return figures


def notes(systems: Sequence[System], found: dict[str, Results]) -> list[str]:
    """What must be said beside the table: who is missing and why, and whether everybody did flush."""
    said = [f"{system.label}: {found[system.name].why}" for system in systems if found[system.name].why]
    flushed = {
        system.label: value for system in systems if (value := value_of(FLUSHES, found[system.name])) is not None
    }
    lazy = [label for label, value in flushed.items() if value < 1]
    if lazy:
        said.append(f"NOT EQUALLY DURABLE: fewer flushes than runs: {', '.join(lazy)}.")
    elif flushed:
        least = min(flushed, key=lambda label: flushed[label])
        said.append(
            f"Equally durable: alone, each system flushed before its answer; the fewest times {least}, "
            f"{number(flushed[least])} per run."
        )
    return said
