"""The table, and the JSON file beside it."""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, number

MARKS = ("<!-- figures -->", "<!-- end of figures -->")
STYLES = {"met": "green", "missed": "bold red"}


@dataclass(frozen=True)
class Section:
    """The figures of one benchmark. others: how many cores other processes kept busy meanwhile."""

    figures: Sequence[Figure]
    others: float


def show(sections: dict[str, Section], console: Console) -> None:
    """Prints a table; on a terminal with colours, else plain."""
    table = Table("benchmark", "figure", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2)
    table.add_column("value", justify="right")
    for column in ("unit", "bar", "", "note"):
        table.add_column(column)
    for name, section in sections.items():
        note = f"others used {section.others:.1f} cores" if section.others >= 0.1 else ""
        for figure in section.figures:
            bar = "" if figure.bar is None else str(figure.bar)
            verdict = f"[{STYLES[figure.verdict]}]{figure.verdict}" if figure.verdict else ""
            notes = "; ".join(filter(None, (figure.note, note)))
            table.add_row(name, figure.name, number(figure.value), figure.unit, bar, verdict, notes)
            name = note = ""
        table.add_section()
    console.print(table)


def console() -> Console:
    """A terminal as wide as it is; a file or pipe wide enough for a row to be a line."""
    return Console() if sys.stdout.isatty() else Console(width=220, no_color=True)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def write_page(sections: dict[str, Section], before: dict[str, Any], page: Path) -> None:
    """Puts the figures into a page of the documentation, between its two marks."""
    lines = [
        f"Taken on {time.strftime('%Y-%m-%d')}: {before['cores']} cores of {before['cpu']}, {before['system']}, Python "
        f"{before['python']}, SQLite {before['sqlite']}.",
        "",
        "| benchmark | figure | value | unit | bar | | note |",
        "|---|---|---:|---|---|---|---|",
    ]
    for name, section in sections.items():
        note = f"others used {section.others:.1f} cores" if section.others >= 0.1 else ""
        for figure in section.figures:
            bar = "" if figure.bar is None else str(figure.bar)
            notes = "; ".join(filter(None, (figure.note, note)))
            cells = (name, figure.name, number(figure.value), figure.unit, bar, figure.verdict, notes)
            lines.append(f"| {' | '.join(cells)} |")
            name = note = ""
    put_between(page, MARKS, lines)


def put_between(page: Path, marks: tuple[str, str], lines: Sequence[str]) -> None:
    """Puts lines into a page, in place of what is between two marks."""
    head, _, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, mark, tail = rest.partition(marks[1])
    if not mark:
        raise RuntimeError(f"{page} lacks the marks {marks[0]} and {marks[1]}, between which the figures belong.")
    page.write_text("\n".join([head + marks[0], "", *lines, "", mark + tail]), encoding="utf-8")


class Meanwhile:
    """How many cores processes other than ours and our children kept busy, from its making to `others`."""

    def __init__(self) -> None:
        self._at, self._machine, self._ours = time.monotonic(), _busy_seconds(), _own_seconds()

    def others(self) -> float:
        """Cores, on average; children that still run count as others."""
        busy = _busy_seconds() - self._machine - (_own_seconds() - self._ours)
        return max(0.0, busy / (time.monotonic() - self._at))


def _own_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _busy_seconds() -> float:
    """Of all cores since boot: user, nice, system, irq and softirq of /proc/stat; 0 where there is none."""
    if not Path("/proc/stat").exists():
        return 0.0
    fields = Path("/proc/stat").read_text().split(maxsplit=8)
    return sum(int(fields[which]) for which in (1, 2, 3, 6, 7)) / os.sysconf("SC_CLK_TCK")


def save(sections: dict[str, Section], before: dict[str, Any], files: Sequence[Path]) -> None:
    """Writes all figures with their repetitions. before: the machine as it was when the first benchmark began."""
    text = json.dumps(
        {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": before,
            "load_average_after": [round(load, 2) for load in os.getloadavg()],
            "benchmarks": {
                name: {
                    "cores_used_by_others": round(section.others, 2),
                    "figures": [figure.as_json() for figure in section.figures],
                }
                for name, section in sections.items()
            },
        },
        indent=1,
    )
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
