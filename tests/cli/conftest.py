"""Fixtures of the command line's tests; what they give is in commands.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Commands, each a process of its own, in an empty folder; none outlives the test."""
    opened = Shell(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def shop(shell: Shell) -> Shell:
    """The same in a folder with an application."""
    shell.write_application()
    return shell
