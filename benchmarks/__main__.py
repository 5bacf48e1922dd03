"""The command line: `python -m benchmarks [--only NAME]... [--quick] [--profile] [--json FILE] [--page]`."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.figures import Figure
from benchmarks.processes import RESULTS, ROOT
from benchmarks.scale import FULL, QUICK

BENCHMARKS = (
    "flood",
    "latency",
    "flushes",
    "busy",
    "checkpoints",
    "real",
    "startup",
    "memory",
    "replays",
    "recovery",
    "disk",
    "audit",
    "http",
    "workers",
    "postgres",
    "growth",
)


def main() -> None:
    """Runs what was asked for. A missed bar is no error: it depends on the machine."""
    options = _options()
    if options.profile:
        from benchmarks import profiling

        print(profiling.report())
        return
    scale = QUICK if options.quick else FULL
    before, console = report.machine(), report.console()
    sections: dict[str, report.Section] = {}
    for name in options.only or BENCHMARKS:
        sections[name] = _section(name, importlib.import_module(f"benchmarks.{name}").figures, scale)
    report.show(sections, console)
    report.save(sections, before, [RESULTS / "latest.json", *([options.json] if options.json else [])])
    if options.page:
        report.write_page(sections, before, ROOT / "docs" / "benchmarks.md")
    missed = [figure for section in sections.values() for figure in section.figures if figure.verdict == "missed"]
    console.print(f"{len(missed)} bars missed." if missed else "All bars met.")
    if options.quick:
        console.print("--quick: a tenth of the work, once; these figures only show that the benchmarks run.")


def _section(name: str, figures: Callable[..., Sequence[Figure]], *arguments: Any) -> report.Section:
    print(f"{name} ...", file=sys.stderr, flush=True)
    meanwhile = report.Meanwhile()
    found = figures(*arguments)
    return report.Section(found, meanwhile.others())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures dotdo against its bars.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, once: does it run at all?")
    parser.add_argument("--profile", action="store_true", help="shows where the time of a flood goes instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a copy of benchmarks/results/latest.json")
    parser.add_argument("--page", action="store_true", help="also puts the figures into docs/benchmarks.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
