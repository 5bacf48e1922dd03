"""What commands print: data on stdout, talk on stderr; colours and tables on a terminal only, through rich.

Text comes from journals, so from anywhere: control characters are shown, never sent to the terminal, and nothing in it
is taken for markup.
"""

import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from dotdo.clock import duration
from dotdo.errors import DotdoError, InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

# A piece of text and rich's name of how it looks; a line is several.
Span = tuple[str, str]
STATUS_STYLES = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "blocked": "bold red",
    "waiting": "cyan",
    "pending": "cyan",
    "running": "blue",
    "stopping": "magenta",
    "undoing": "magenta",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_state = {"json": False}
MIN_COLUMN = 12  # a column that is cut further says nothing


def json_option(command: Any) -> Any:
    """Adds `--json`; errors are then JSON, too."""

    def remember(_context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
        _state["json"] = value
        return value

    return click.option("--json", "as_json", is_flag=True, callback=remember, help="Print JSON.")(command)


def print_json(value: Any) -> None:
    """Prints a value as readable JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_line(value: Any) -> None:
    """Prints a value as one line of JSON, at once."""
    click.echo(msgspec.json.encode(value))
    sys.stdout.flush()


def say(text: str) -> None:
    """Talk, on stderr."""
    click.echo(clean(text), err=True)


def say_error(error: DotdoError) -> None:
    """An error of dotdo, as one message; with --json as an object on stdout, too."""
    click.echo(click.style("error: ", fg="red", bold=True) + clean(error.message), err=True)
    if _state["json"]:
        told: dict[str, Any] = {"code": error.code, "message": error.message}
        if isinstance(error, InvalidInput):
            told["problems"] = error.problems
        run = getattr(error, "run_id", None)
        if run is not None:
            told["run"] = run
        print_json({"error": told})


def say_usage(error: click.ClickException) -> None:
    """A wrong use of the command line, and where to read how it is used."""
    context: click.Context | None = getattr(error, "ctx", None)
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and context is not None and context.parent is None:
        message += " Options stand behind the command, as in `dotdo runs ls --store dotdo.db`."
    click.echo(click.style("error: ", fg="red", bold=True) + clean(message), err=True)
    if context is not None:
        click.echo(f"`{context.command_path} --help` tells how it is used.", err=True)
    if _state["json"]:
        print_json({"error": {"code": "usage", "message": message}})


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def width() -> int:
    """The width of lines: the terminal's, else one that fits most."""
    return console().width if is_terminal() else 110


def console() -> "Console":
    """The terminal."""
    from rich.console import Console

    return Console(highlight=False)


def print_lines(lines: Sequence[Sequence[Span]]) -> None:
    """Prints lines of styled pieces; plain text when stdout is no terminal."""
    if not is_terminal():
        for line in lines:
            click.echo("".join(clean(text) for text, _ in line).rstrip())
        return
    from rich.text import Text

    terminal = console()
    for line in lines:
        # What does not fit goes on below the second piece; the first is a label or an indentation.
        pieces = [(clean(text), style) for text, style in line]
        first = Text.assemble(*pieces[:1])
        rest = Text.assemble(*pieces[1:])
        indent = first.cell_len
        for number, part in enumerate(rest.wrap(terminal, max(terminal.width - indent, 20)) or [rest]):
            part.rstrip()
            terminal.print(first + part if number == 0 else Text(" " * indent) + part, soft_wrap=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Span]]) -> None:
    """Prints a table; tab-separated without headings when stdout is no terminal.

    On a terminal the last column is cut to what is left, or left out; then the widest ones are cut.
    """
    if not is_terminal():
        for row in rows:
            click.echo("\t".join(" ".join(clean(text).split()) for text, _ in row))
        return
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(" ".join(clean(text).split()), style) for text, style in row] for row in rows]
    terminal = console()
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    widths = [max(len(heading), *(row[n].cell_len for row in cells)) for n, heading in enumerate(headings)]
    left = terminal.width - sum(width + 2 for width in widths[:-1])
    if left >= MIN_COLUMN:
        widths[-1] = min(widths[-1], left)
    else:
        del widths[-1]
    while sum(widths) + 2 * (len(widths) - 1) > terminal.width and max(widths) > MIN_COLUMN:
        widths[widths.index(max(widths))] -= 1
    for heading, size in zip(headings, widths, strict=False):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", width=size)
    for row in cells:
        table.add_row(*row[: len(widths)])
    terminal.print(table)


def clean(text: str) -> str:
    """Text with control characters spelled out, and without those that turn the direction of writing."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def mark(symbol: str, plain: str) -> str:
    """A symbol, or its stand-in where stdout cannot print it."""
    try:
        symbol.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return plain
    return symbol


def status_span(status: str, undo: str = "none") -> Span:
    """A run's status, with what was undone."""
    undone = {"all": ", undone", "partial": ", undone in part"}.get(undo, "")
    return status + undone, STATUS_STYLES.get(status, "")


def one_line(value: Any, limit: int) -> str:
    """A JSON value on one line, cut to a length."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=0).decode()
    text = " ".join(text.split("\n"))
    return text if len(text) <= limit else text[: max(limit - 1, 1)] + mark("…", "~")


def clock_time(ms: int, *, exact: bool = False) -> str:
    """A time of day in local time; with its date unless it is today. exact: to the millisecond."""
    at = datetime.fromtimestamp(ms / 1000).astimezone()
    text = at.strftime("%H:%M:%S") + (f".{ms % 1000:03d}" if exact else "")
    return text if at.date() == datetime.now().astimezone().date() else at.strftime("%Y-%m-%d ") + text


def until(ms: int) -> str:
    """When something will be, in local time and from now."""
    left = ms - int(time.time() * 1000)
    return f"{clock_time(ms)} (in {duration(left)})" if left > 0 else f"{clock_time(ms)} (due)"
