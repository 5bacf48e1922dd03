"""The table, and the JSON file beside it."""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, number

STYLES = {"met": "green", "missed": "bold red"}


def show(sections: dict[str, Sequence[Figure]], console: Console) -> None:
    """Prints a table; on a terminal with colours, else plain."""
    table = Table("benchmark", "figure", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2)
    table.add_column("value", justify="right")
    for column in ("unit", "bar", "", "note"):
        table.add_column(column)
    for name, figures in sections.items():
        for figure in figures:
            bar = "" if figure.bar is None else str(figure.bar)
            verdict = f"[{STYLES[figure.verdict]}]{figure.verdict}" if figure.verdict else ""
            table.add_row(name, figure.name, number(figure.value), figure.unit, bar, verdict, figure.note)
            name = ""
        table.add_section()
    console.print(table)


def console() -> Console:
    """A terminal as wide as it is; a file or pipe wide enough for a row to be a line."""
    return Console() if sys.stdout.isatty() else Console(width=180, no_color=True)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def save(sections: dict[str, Sequence[Figure]], before: dict[str, Any], files: Sequence[Path]) -> None:
    """Writes all figures with their repetitions. before: the machine as it was when the first benchmark began."""
    text = json.dumps(
        {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": before,
            "load_average_after": [round(load, 2) for load in os.getloadavg()],
            "benchmarks": {name: [figure.as_json() for figure in figures] for name, figures in sections.items()},
        },
        indent=1,
    )
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
