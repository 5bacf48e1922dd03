"""The command line as a whole: help, versions, usage, and a fast start."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from dotdo.cli import COMMANDS
from tests.cli.commands import Shell


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The help of every command, by its name."""
    shell = Shell(tmp_path_factory.mktemp("helps"))
    return {name: shell.ok(name, "--help") for name in COMMANDS}


def test_help_of_every_command_names_its_options(shell: Shell, helps: dict[str, str]):
    shown = shell.ok("--help")
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in shown
        assert text in shown
        assert helps[name].startswith(f"Usage: dotdo {name} ")
    for name in ("ls", "show", "watch", "cancel", "retry", "undo"):
        assert "--json" in shell.ok("runs", name, "-h")


def test_each_line_of_a_help_is_a_whole_sentence(helps: dict[str, str]):
    """On a terminal of 80 columns, where click cuts what is longer."""
    cut = [
        f"dotdo {name}: {line.strip()}"
        for name, shown in helps.items()
        for line in shown.partition("Commands:")[2].splitlines()
        if line.endswith("...")
    ]
    assert cut == []


def test_list_is_taken_for_ls(shell: Shell):
    shell.write_application()
    shell.ok("run", "greet@1", "name=Ada")
    for group in ("runs", "actions"):
        assert shell.ok(group, "list", "--json") == shell.ok(group, "ls", "--json")
        assert "  list " not in shell.ok(group, "--help")


def test_version(shell: Shell):
    assert shell.ok("--version") == f"dotdo {version('dotdo')}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["frobnicate"], "No such command 'frobnicate'."),
        (["run"], "Missing argument 'NAME'."),
        (["run", "greet", "--wiat", "3"], "No such option '--wiat'."),
        (["--store", "other.db", "runs", "ls"], "No such option '--store'. Options stand behind the command"),
        (["runs", "ls", "--limit", "0"], "Invalid value for '--limit'"),
        (["runs", "ls", "--limit", "x"], "'x' is not a valid whole number."),
        (["run", "greet", "--wait", "x"], "'x' is not a valid number."),
        (["runs", "ls", "--status", "odd"], "'odd' is not one of 'pending', 'running'"),
    ],
)
def test_wrong_usage_exits_with_2_and_points_to_help(shell: Shell, arguments: list[str], message: str):
    done = shell.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "--help` tells how it is used." in done.stderr


def test_command_loads_only_what_it_needs():
    program = "import sys; from dotdo.cli import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = set(done.stderr.split())
    assert "dotdo.cli" in loaded
    heavy = {
        "rich",
        "sqlalchemy",
        "dotdo.cli.run",
        "dotdo.cli.runs",
        "dotdo.cli.audit",
        "dotdo.audit",
        "dotdo.timeline",
    }
    assert not heavy & loaded
