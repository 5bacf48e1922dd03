"""Where commands find the application and the store: flag, else DOTDO_* environment, else dotdo.toml, else default."""

import difflib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from dotdo.embedding import DEFAULT_STORE

FILE = Path("dotdo.toml")
DEFAULTS: dict[str, Any] = {"app": "app.py", "store": DEFAULT_STORE, "sql": ()}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = 100 * 366 * 86_400  # a time so far away still fits into the store
_NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)")

F = TypeVar("F", bound=Callable[..., Any])


def app_option(command: F) -> F:
    """Adds `--app`."""
    return click.option(
        "--app",
        envvar="DOTDO_APP",
        default=lambda: configured("app"),
        metavar="FILE",
        help="File or module that defines actions and services; its `resources`, `secrets` and `catalogue`, if it has "
        "them, are used.  [default: app.py]",
    )(command)


def store_option(command: F) -> F:
    """Adds `--store`."""
    return click.option(
        "--store",
        envvar="DOTDO_STORE",
        default=lambda: configured("store"),
        metavar="PATH",
        help=f"Path or URL (sqlite:///...) of the store.  [default: {DEFAULT_STORE}]",
    )(command)


def sql_option(command: F) -> F:
    """Adds `--sql`."""
    return click.option(
        "--sql",
        envvar="DOTDO_SQL",
        multiple=True,
        default=lambda: configured("sql"),
        metavar="[NAME=]URL",
        help="The application's own database; several by name.",
    )(command)


class WholeNumber(click.IntRange):
    """A whole number, called so in messages and help."""

    name = "whole number"


class Number(click.FloatRange):
    """A number, called so in messages and help."""

    name = "number"


def duration(text: str) -> float:
    """A length of time such as 30d, in seconds; the type of an option. Raises BadParameter."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_SECONDS)})", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no length of time: write it like 30d, 12h, 45min or 90s.")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds > _LONGEST:
        raise click.BadParameter(f"{text} is more than 100 years.")
    return seconds


def configured(name: str) -> Any:
    """A setting out of dotdo.toml, or its default."""
    return read_file(FILE).get(name, DEFAULTS[name])


def read_file(file: Path) -> dict[str, Any]:
    """The settings in a dotdo.toml; none when there is no such file. Raises UsageError."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        hint = ' Text stands in quotes: store = "dotdo.db".' if isinstance(error, tomllib.TOMLDecodeError) else ""
        raise click.UsageError(f"{file} cannot be read: {error}.{hint}") from None
    settings: dict[str, Any] = {}
    for name, value in found.items():
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(DEFAULTS)}."
            raise click.UsageError(f"{file}: there is no setting {name!r}. {hint}")
        settings[name] = _checked(file, name, value)
    return settings


def _checked(file: Path, name: str, value: Any) -> Any:
    if name == "sql" and isinstance(value, dict):
        urls = cast("dict[str, Any]", value)
        if all(isinstance(url, str) for url in urls.values()):
            return tuple(f"{key}={url}" for key, url in urls.items())
    elif isinstance(value, str):
        return (value,) if name == "sql" else value
    kind = "a text, or a table of texts" if name == "sql" else "a text"
    raise click.UsageError(f"{file}: {name} = {value!r}; {kind} is needed.")


def databases(sql: tuple[str, ...]) -> Any:
    """What `--sql` was given, as the client takes it: one URL, several by name, or None. Raises UsageError."""
    if not sql:
        return None
    named = [_NAMED.fullmatch(item) for item in sql]
    if len(sql) == 1 and named[0] is None:
        return sql[0]
    if not all(named):
        raise click.UsageError("Several databases need names: --sql users=sqlite:///users.db --sql shop=...")
    return {found[1]: found[2] for found in named if found}
