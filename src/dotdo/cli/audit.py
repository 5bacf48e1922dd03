"""`dotdo audit`: checks that no journal was tampered with."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from dotdo.audit import Audit, Finding
from dotdo.cli.output import Span, json_option, mark, print_json, print_lines, say
from dotdo.cli.runs import find_run
from dotdo.cli.settings import store_option
from dotdo.clock import duration
from dotdo.embedding import audit_key, key_path, open_reader
from dotdo.errors import UnknownName
from dotdo.store.protocol import Store

# So many findings are kept for JSON and printed as text; all are counted.
MAX_SHOWN = 1_000


@click.group()
def audit() -> None:
    """Check that no journal was tampered with."""


@audit.command("verify")
@click.argument("id", required=False)
@store_option
@json_option
def verify(id: str | None, store: str, as_json: bool) -> int:
    """Verify every run, or one: hash chains, anchored heads, and rows. Exit code 1 when anything is wrong.

    The audit key is DOTDO_AUDIT_KEY, or the file beside the store that ends in .audit-key.
    """
    opened = open_reader(store)
    key = audit_key(key_path(store), make=False)
    run = None if id is None else whole_id(opened, id)
    started = time.monotonic()
    found: list[Finding] = []
    count = 0
    with _progress(quiet=as_json) as tick:
        checking = Audit(opened, key, lambda: tick(checking))
        for finding in checking.verify(run):
            count += 1
            if count <= MAX_SHOWN:
                found.append(finding)
    if as_json:
        print_json(
            {"sound": not count, "runs": checking.runs, "entries": checking.entries, "findings": found, "count": count}
        )
    else:
        print_lines([_line(finding) for finding in found])
        seconds = time.monotonic() - started
        looked = f"{counted(checking.entries, 'entry', 'entries')} of {counted(checking.runs, 'run', 'runs')}"
        looked += f", {duration(round(seconds * 1000))}"
        if count:
            more = f" (the first {MAX_SHOWN} are shown)" if count > MAX_SHOWN else ""
            say(f"{mark('✗', 'x')} {counted(count, 'thing is', 'things are')} wrong{more}; {looked}.")
        else:
            say(f"{mark('✓', '+')} Nothing was tampered with; {looked}.")
    return 1 if count else 0


def counted(number: int, one: str, many: str) -> str:
    """A number of things in words."""
    return f"{number:,} {one if number == 1 else many}"


def _line(finding: Finding) -> list[Span]:
    where = "the store" if not finding.run else finding.run
    entry = f", entry {finding.entry}" if finding.entry else ""
    return [(f"{where}{entry}: ", "bold"), (finding.text, "red")]


def whole_id(store: Store, id: str) -> str:
    """A run's id from its beginning; as it is when it is whole, because a tampered run may have no row."""
    try:
        return find_run(store, id).id
    except UnknownName:
        if store.read_journal(id):
            return id
        raise


@contextmanager
def _progress(*, quiet: bool) -> Generator[Callable[[Audit], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda checking: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status("verifying") as status:
        yield lambda checking: status.update(f"{checking.entries:,} entries of {checking.runs:,} runs")
