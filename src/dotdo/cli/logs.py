"""How `dotdo serve` and `dotdo dev` log, on stderr: readable on a terminal, else a line of JSON for each record."""

import logging
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from dotdo.cli.output import clean
from dotdo.logs import JsonFormatter, fields_of

F = TypeVar("F", bound=Callable[..., Any])

SHOWN = ("run", "step", "attempt", "actor", "request_id")
_DIM, _RED, _YELLOW, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"


def log_option(command: F) -> F:
    """Adds `--log`."""
    return click.option(
        "--log",
        "log_format",
        envvar="DOTDO_LOG",
        type=click.Choice(["text", "json"]),
        help="How to log, on stderr.  [default: text on a terminal, else json]",
    )(command)


def configure(log_format: str | None, *, level: int = logging.INFO) -> None:
    """Has everything logged on stderr. log_format: text or json; None chooses."""
    on_terminal = sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    is_text = log_format == "text" or (log_format is None and on_terminal)
    handler.setFormatter(TextFormatter(colours=on_terminal) if is_text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level)
    # Of each connection and start it says more than anybody reads.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """A record for people: time, what is wrong with it, its text, and what it is about."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """The lines; control characters in them are shown, not sent to the terminal."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = fields_of(record)
        text = clean(record.getMessage()).replace("\n", "\n    ")
        if "seconds" in fields:
            text += f" in {fields['seconds'] * 1000:.1f} ms"
        about = " ".join(f"{name}={clean(str(fields[name]))}" for name in SHOWN if name in fields)
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        colour = _RED if record.levelno >= logging.ERROR else _YELLOW if level else ""
        line = f"{self._in(_DIM, time)} {self._in(colour, level + text)}" + (
            f"  {self._in(_DIM, about)}" if about else ""
        )
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line += "\n    " + clean(record.exc_text).replace("\n", "\n    ")
        return line

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if colour and self._colours else text
