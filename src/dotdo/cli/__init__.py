"""The command line, `dotdo`: one file per group of commands, loaded when it is used.

Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 refused (wrong usage, input or definition), 3 timed
out, 128 + n ended by signal n. What dotdo itself refuses is one message, never a traceback.
"""

import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from dotdo.errors import DefinitionError, DotdoError, InputError, StillRunning

COMMANDS = {
    "init": ("init", "Write a small working application into a folder."),
    "run": ("run", "Run an action or service and wait for its result."),
    "serve": ("serve", "Serve the application's actions and services over HTTP."),
    "dev": ("serve", "Serve while you write: no keys, restarted on changes."),
    "worker": ("worker", "Run the application's handlers for a server, over HTTP only."),
    "runs": ("runs", "Look at runs, send them events, and cancel, retry or undo them."),
    "actions": ("definitions", "The actions of the application."),
    "services": ("definitions", "The services of the application."),
    "check": ("check", "Which runs in flight would block with this code."),
    "db": ("db", "Look after the store: check, migrate, back up, restore, promote."),
    "nodes": ("nodes", "The processes that run engines on the store."),
    "keys": ("keys", "API keys: make one, list them, revoke one."),
    "audit": ("audit", "Check that no journal was tampered with."),
    "secrets": ("secrets", "The keys that secret inputs are encrypted under."),
}


class Group(click.Group):
    """Commands in the order of their definition. `list` is taken for `ls`, as other tools call it."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; only `ls` is shown in the help."""
        return super().get_command(ctx, "ls" if cmd_name == "list" and "ls" in self.commands else cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In order."""
        return list(self.commands)


class LazyGroup(click.Group):
    """Imports a command when it is called, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of a newcomer's day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"dotdo.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dotdo", message="dotdo %(version)s")
def dotdo() -> None:
    """Atomic actions and durable services.

    The application is app.py in this folder, its store .dotdo/dotdo.db; --app and --store behind the command, DOTDO_APP
    and DOTDO_STORE, or a file dotdo.toml say otherwise, in that order of precedence.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    code = run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough (`dotdo runs ls | head`); Python must not try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code; messages of errors are printed."""
    try:
        result: Any = dotdo.main(arguments, prog_name="dotdo", standalone_mode=False)
        return result or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        from dotdo.cli.output import say_usage

        say_usage(error)
        return error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except DotdoError as error:
        from dotdo.cli.output import say_error

        say_error(error)
        return exit_code(error)


def exit_code(error: DotdoError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, StillRunning):
        return 3
    return 2 if isinstance(error, InputError | DefinitionError) else 1
