"""`dotdo db`: look after the store as a whole. None of it needs the application."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from dotdo import maintaining, promoting
from dotdo.audit import Audit
from dotdo.cli import Group
from dotdo.cli.attending import user
from dotdo.cli.audit import counted
from dotdo.cli.output import Span, clock_time, json_option, mark, print_json, print_lines, say
from dotdo.cli.settings import duration, store_option
from dotdo.policy import Retention

file_argument = click.argument("file", type=click.Path(dir_okay=False))


@click.group(cls=Group)
def db() -> None:
    """Look after the store: check, migrate, prune, back up, restore, promote."""


@db.command("check")
@store_option
@json_option
def check(store: str, as_json: bool) -> int:
    """Check that the file is sound and has this dotdo's schema. Exit code 1 when not.

    Whether somebody has tampered with the journals is told by `dotdo audit verify`.
    """
    found = maintaining.check(store)
    if as_json:
        print_json(found)
        return 1 if found.problems else 0
    runs = ", ".join(f"{count:,} {status}" for status, count in sorted(found.runs.items())) or "none"
    facts = {
        "store": found.where,
        "schema": f"{found.schema} of {found.newest}",
        "size": size(found.bytes) + (f", and {size(found.log_bytes)} of log" if found.log_bytes else ""),
        "engine": found.engine or "no process runs one now",
        "runs": runs,
    }
    lines: list[list[Span]] = [[(f"{name:<8}", "dim"), (value, "")] for name, value in facts.items()]
    print_lines(lines)
    for problem in found.problems:
        say(f"{mark('✗', 'x')} {problem}")
    if not found.problems:
        say(f"{mark('✓', '+')} The {'store' if '://' in found.where else 'file'} is sound.")
    return 1 if found.problems else 0


@db.command("migrate")
@store_option
@json_option
def migrate(store: str, as_json: bool) -> int:
    """Bring the store to this dotdo's schema. An engine does the same when it opens the store."""
    before, after = maintaining.migrate(store)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        say(f"The schema is {after} already.")
    else:
        say(f"{mark('✓', '+')} The schema was {before}, and is {after} now.")
    return 0


@db.command("prune", short_help="Delete runs that ended long ago, for good.")
@click.option("--older-than", type=duration, required=True, metavar="TIME", help="Such as 30d, 12h, 45min or 90s.")
@click.option("--name", metavar="TEXT", help="Only runs of this action or service.")
@click.option("--status", type=click.Choice(["completed", "failed", "cancelled"]), help="Only runs that ended so.")
@store_option
@json_option
def prune(older_than: float, name: str | None, status: str | None, store: str, as_json: bool) -> int:
    """Delete runs for good that ended longer ago than that, with their children. No engine may hold the store.

    Beside a live engine, use client.runs.prune(...) or Do(retention=...) in the application.
    """
    count = maintaining.prune(store, Retention(older_than=older_than, name=name, status=status), user())
    if as_json:
        print_json({"deleted": count})
    say(f"{mark('✓', '+')} {counted(count, 'run was', 'runs were')} deleted.")
    return 0


@db.command("backup", short_help="Copy the store, also beside a live engine.")
@file_argument
@store_option
@json_option
def backup(file: str, store: str, as_json: bool) -> int:
    """Copy the store to a new FILE, also beside a live engine, and verify the copy."""
    made = maintaining.back_up(store, file)
    if as_json:
        print_json(made)
    say(f"{mark('✓', '+')} {made.file}: {size(made.bytes)}, {counted(made.runs, 'run', 'runs')}, verified.")
    say("The audit key (DOTDO_AUDIT_KEY, or the store's .audit-key file) is not in it: keep a copy of that elsewhere.")
    return 0


@db.command("restore")
@file_argument
@store_option
@click.option("--go-on", is_flag=True, help="Nothing has run since: let unfinished runs go on by themselves.")
@json_option
def restore(file: str, store: str, go_on: bool, as_json: bool) -> int:
    """Put the backup FILE in the store's place. No engine may run; the store that was there is kept.

    Unfinished runs are blocked, because what they did after the backup is not known; look, then `dotdo runs retry` or
    `cancel` each. With --go-on they go on where the backup has them.
    """
    done = maintaining.restore(store, file, go_on=go_on)
    if as_json:
        print_json(done)
    say(f"{mark('✓', '+')} {done.store} is as it was at {clock_time(done.until)}: {counted(done.runs, 'run', 'runs')}.")
    if done.before is not None:
        say(f"The store that was there is {done.before} now.")
    if done.blocked:
        say(
            f"{counted(done.blocked, 'unfinished run is', 'unfinished runs are')} blocked, because nobody knows what "
            "was done after that: dotdo runs ls --status blocked"
        )
    return 0


@db.command("promote", short_help="Move a file's store to PostgreSQL.")
@click.argument("source")
@click.argument("target")
@json_option
def promote(source: str, target: str, as_json: bool) -> int:
    """Move the store of the file SOURCE to TARGET on PostgreSQL, with everything in it, also runs in flight.

    \b
        dotdo db promote sqlite:dotdo.db postgresql://app@db.example.com/shop

    No engine may hold the file, and nothing may be in the target's store yet. If it is cut short, nothing is done: ask
    again. Once it is done, whoever opens the file is told where the store is.
    """
    with _progress(quiet=as_json) as (copying, verifying):
        done = promoting.promote(source, target, copying, verifying)
    if as_json:
        print_json(done)
        return 0
    if done.before:
        say(f"{mark('✓', '+')} It had moved to {done.target} already; {done.source} says so now.")
        return 0
    entries = counted(done.rows["journal"], "entry", "entries")
    say(f"{mark('✓', '+')} The store is {done.target} now: {counted(done.runs, 'run', 'runs')} with {entries}.")
    if done.findings:
        wrong = counted(done.findings, "thing that was", "things that were")
        say(f"{mark('✗', 'x')} All of it was compared, with {wrong} wrong before: dotdo audit verify --store TARGET")
    else:
        say("  Counted, and every journal verified there.")
    if done.unfinished:
        say(f"  {counted(done.unfinished, 'unfinished run goes', 'unfinished runs go')} on when a node opens it.")
    say(f"  {done.source} is as it was, and tells whoever opens it to use the other.")
    for key in done.keys:
        variable = "DOTDO_AUDIT_KEY" if key.endswith(".audit-key") else "DOTDO_SECRET_KEYS"
        say(f"  Processes in other folders and on other machines need what is in {key}, as {variable}.")
    say(f"  Next: have every process open it (DOTDO_STORE={done.target}).")
    return 0


@contextmanager
def _progress(*, quiet: bool) -> Generator[tuple[Callable[[str, int, int], None], Callable[[Audit], None]]]:
    if quiet or not sys.stderr.isatty():
        yield lambda table, done, count: None, lambda audit: None
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False).status("copying") as status:
        yield (
            lambda table, done, count: status.update(f"copying {table}: {done:,} of {count:,}"),
            lambda audit: status.update(f"verifying: {audit.entries:,} entries of {audit.runs:,} runs"),
        )


def size(count: int) -> str:
    """A number of bytes in words."""
    for unit, limit in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"
