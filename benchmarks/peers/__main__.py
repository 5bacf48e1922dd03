"""`make bench-peers`: both jobs on every system in turns, A B C A B C, then the table, the plot and the JSON.

`python -m benchmarks.peers [--quick] [--only NAME]... [--rounds N] [--again] [--page]`. A system that cannot
be installed, or fails, keeps its column, and the reason is said below the table.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.figures import Figure, number
from benchmarks.peers import comparison
from benchmarks.peers.comparison import JOBS, Results
from benchmarks.peers.installing import Unavailable, python_of
from benchmarks.peers.systems import SYSTEMS, Effort, System, measured
from benchmarks.processes import RESULTS, ROOT, Failed, measure

KEPT = RESULTS / "peers.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = ("<!-- peers -->", "<!-- end of peers -->")
FULL, QUICK = Effort(1.6, [50, 500], 100), Effort(0.3, [50], 20)
# Panels of the plot: title, job, and what is in the row's name.
PANELS = [
    ("Onboardings per second, in a flood", "onboarding", "in a flood", "flushes 1 ms slower: in a flood"),
    ("One onboarding alone, p50, ms", "onboarding", "one run, p50", "flushes 1 ms slower: one run, p50"),
    ("Onboardings for real per second, 100 in flight", "real", "100 in flight", "flushes 1 ms slower: 100 in flight"),
    ("CPU in a flood, seconds per 1000 steps", "onboarding", "CPU in a flood", None),
]


def main() -> None:
    """Sets up, measures, and shows."""
    options = _options()
    systems = [system for system in SYSTEMS if not options.only or system.name in options.only]
    if not options.again:
        _measure_and_keep(systems, options)
    taken: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    found = {name: Results(**results) for name, results in taken["systems"].items()}
    systems = [system for system in SYSTEMS if system.name in found]
    figures, notes = comparison.ratios(systems, found), comparison.notes(systems, found)
    console, title = report.console(), _title(taken)
    _show(systems, found, figures, notes, console)
    console.print(f"{title} It took {taken['minutes']} minutes. All of it: {KEPT}")
    if taken["quick"]:
        console.print("--quick: one short round; these figures only show that the comparison runs.")
    plot = RESULTS / "benchmarks.svg"
    drawn = _plot(systems, found, plot, title)
    if options.page:
        report.put_between(PAGE, MARKS, _markdown(systems, found, figures, [*notes, title]))
        if drawn:
            shutil.copy(plot, PAGE.with_suffix(".svg"))


def _measure_and_keep(systems: list[System], options: argparse.Namespace) -> None:
    before, began, meanwhile = report.machine(), time.monotonic(), report.Meanwhile()
    rounds = 1 if options.quick else options.rounds
    found = _measure(systems, QUICK if options.quick else FULL, rounds)
    taken = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": before,
        "cores_used_by_others": round(meanwhile.others(), 2),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "quick": options.quick,
        "rounds": rounds,
        "durability": {system.name: system.durability for system in systems},
        "systems": {name: asdict(results) for name, results in found.items()},
    }
    KEPT.write_text(json.dumps(taken, indent=1) + "\n", encoding="utf-8")


def _measure(systems: list[System], effort: Effort, rounds: int) -> dict[str, Results]:
    found = {system.name: Results() for system in systems}
    given: dict[str, Any] = {}
    for system in systems:
        try:
            given[system.name] = system.set_up()
        except Unavailable as reason:
            found[system.name].why = f"not measured: {reason}"
            print(f"{system.label}: {reason}", file=sys.stderr)
    for turn, slow in itertools.product(range(1, rounds + 1), (False, True)):
        which = f"round {turn}{', flushes 1 ms slower' if slow else ''}"
        for system in systems:
            if system.name in given:
                _measure_one(system, given[system.name], effort, slow, which, found[system.name])
    return found


def _measure_one(system: System, given: Any, effort: Effort, slow: bool, which: str, results: Results) -> None:
    """Adds a measurement, or why there is none."""
    print(f"{which}: {system.label} ...", file=sys.stderr, flush=True)
    try:
        one = measured(system, given, effort, slow)
    except (Failed, Unavailable, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        results.why = f"{which} failed: {str(error).strip().splitlines()[-1]}"
        print(f"{system.label}: {error}", file=sys.stderr)
    else:
        (results.slow if slow else results.plain).append(one)


def _show(
    systems: list[System], found: dict[str, Results], figures: list[Figure], notes: list[str], console: Console
) -> None:
    table = Table("", "unit", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2)
    for system in systems:
        table.add_column(system.label, justify="right")
    job = ""
    for row, values, best in comparison.cells(found):
        if row.job != job:
            table.add_section()
            table.add_row(f"[bold]{JOBS[row.job]}[/]")
            job = row.job
        marked = [f"[bold green]{value}[/]" if which == best else value for which, value in enumerate(values)]
        table.add_row(row.name, row.unit, *marked)
    console.print(table)
    for figure in figures:
        bar = "" if figure.bar is None else f" (bar {figure.bar}: [{report.STYLES[figure.verdict]}]{figure.verdict}[/])"
        console.print(f"{figure.name}: {number(figure.value)}x{bar}")
    for note in notes:
        console.print(note)


def _markdown(systems: list[System], found: dict[str, Results], figures: list[Figure], notes: list[str]) -> list[str]:
    lines = [
        f"| | unit | {' | '.join(system.label for system in systems)} |",
        f"|---|---|{'---:|' * len(systems)}",
    ]
    job = ""
    for row, values, best in comparison.cells(found):
        if row.job != job:
            lines.append(f"| *{JOBS[row.job]}* | |{' |' * len(systems)}")
            job = row.job
        marked = [f"**{value}**" if which == best else value for which, value in enumerate(values)]
        lines.append(f"| {row.name} | {row.unit} | {' | '.join(marked)} |")
    lines += ["", "| ratio, round by round | value | bar | |", "|---|---:|---|---|"]
    for figure in figures:
        bar = "" if figure.bar is None else str(figure.bar)
        lines.append(f"| {figure.name} | {number(figure.value)}x | {bar} | {figure.verdict} |")
    return [*lines, "", *(f"* {note}" for note in notes)]


def _title(taken: dict[str, Any]) -> str:
    machine = taken["machine"]
    return (
        f"Taken on {taken['at'][:10]}, {taken['rounds']} round{'s' if taken['rounds'] > 1 else ''}: {machine['cores']} "
        f"cores of {machine['cpu']}, {machine['system']}, Python {machine['python']}; other processes used "
        f"{taken['cores_used_by_others']:.1f} cores meanwhile."
    )


def _plot(systems: list[System], found: dict[str, Results], file: Path, title: str) -> bool:
    def values(job: str, name: str) -> list[float | None]:
        row = next(row for row in comparison.ROWS if (row.job, row.name) == (job, name))
        return [comparison.value_of(row, found[system.name]) for system in systems]

    panels = [
        {"title": heading, "plain": values(job, plain), "slow": None if slow is None else values(job, slow)}
        for heading, job, plain, slow in PANELS
    ]
    ours = sum(system.name.startswith("dotdo") for system in systems)
    labels = [system.label for system in systems]
    try:
        python = python_of("plot")
    except Unavailable as reason:
        print(f"There is no plot: {reason}", file=sys.stderr)
        return False
    text = f"{title}\nMedians. Paler bars: the same with each flush of the disk 1 ms slower."
    given = {"file": str(file), "title": text, "labels": labels, "ours": ours, "panels": panels}
    measure("benchmarks.peers.plotting:draw", python=python, **given)
    print(f"The plot: {file}", file=sys.stderr)
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measures dotdo beside its peers.")
    names = [system.name for system in SYSTEMS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    parser.add_argument("--rounds", type=int, default=3, help="how often all are measured in turns (3)")
    parser.add_argument("--again", action="store_true", help="measures nothing; shows the last measurements again")
    parser.add_argument("--page", action="store_true", help="also puts table and plot into docs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
