"""Finds the code samples of README.md and docs, and runs each in an empty temporary folder.

    ```python             a program of its own
    ```python continue    appended to the page's previous program
    ```console            shown only: what needs another machine, or is installed
    ```console run        its lines after `$ ` (and after `> `, which continue a line) are run with bash

Every other form of Python or console block is refused, so that no sample can be shown without being run.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.repo.sources import ROOT

SECONDS = 60.0
# As it was before the tests: samples are begun on threads, while pytest goes on to name each test in its environment.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("DOTDO_", "PYTEST_CURRENT"))}
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^`]*)$")
CODE_LANGUAGES = {"python", "py", "python3", "pycon", "console", "shell-session", "sh", "bash", "shell", "zsh"}
RUN = {"python", "python continue", "console run"}
SHOWN = {"console"}


class SampleError(Exception):
    """A page has a block that cannot be run as it stands."""


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is the line of its fence, counted from 1."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def shown(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name}:{self.line}"


@dataclass(frozen=True)
class Sample:
    """What is run as one program: a Python program of one or more blocks, or the commands of a console block."""

    blocks: tuple[Block, ...]

    @property
    def shown(self) -> str:
        return self.blocks[0].shown

    @property
    def is_python(self) -> bool:
        return self.blocks[0].info.startswith("python")

    @property
    def program(self) -> str:
        """Its text. Blank lines put Python code on the lines it has in the page, so that tracebacks point there."""
        if not self.is_python:
            return "set -euo pipefail\n" + _commands(self.blocks[0])
        lines: list[str] = []
        for block in self.blocks:
            lines += [""] * (block.line - len(lines))
            lines += block.text.splitlines()
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Outcome:
    returncode: int | None
    output: str

    def __str__(self) -> str:
        ending = f"not done after {SECONDS} s" if self.returncode is None else f"exit code {self.returncode}"
        return f"{ending}\n{self.output}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, with the indentation of their fence taken away."""
    found: list[Block] = []
    opened: re.Match[str] | None = None
    start, body = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None:
            if fence:
                opened, start, body = fence, number, []
        elif fence and fence["ticks"].startswith(opened["ticks"]) and not fence["info"].strip():
            found.append(Block(page, start, " ".join(opened["info"].split()), "\n".join(body)))
            opened = None
        else:
            body.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise SampleError(f"{page}:{start}: the block is never closed")
    return found


def samples(page: Path) -> list[Sample]:
    """What of a page is to be run. Raises SampleError for a block that the rules above do not allow."""
    found: list[Sample] = []
    python: int | None = None
    for block in blocks(page):
        if block.info in RUN:
            if block.info == "python continue":
                if python is None:
                    raise SampleError(f"{block.shown}: there is no earlier program on this page to continue")
                found[python] = Sample((*found[python].blocks, block))
                continue
            if block.info == "python":
                python = len(found)
            found.append(Sample((block,)))
        elif block.info not in SHOWN and re.split(r"[ ,{]", block.info.lower())[0] in CODE_LANGUAGES:
            allowed = ", ".join(sorted(RUN | SHOWN))
            raise SampleError(f"{block.shown}: ```{block.info} is not allowed; use one of: {allowed}")
    return found


def run(sample: Sample) -> Outcome:
    """Run a sample in a new process whose working directory and home are empty temporary folders."""
    with tempfile.TemporaryDirectory(prefix="dotdo-sample-") as folder:
        program = Path(folder) / (Path(sample.blocks[0].page).stem.lower() + (".py" if sample.is_python else ".sh"))
        program.write_text(sample.program, encoding="utf-8")
        for name in ("home", "work"):
            (Path(folder) / name).mkdir()
        path = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}"
        environment = {**ENVIRONMENT, "HOME": str(Path(folder) / "home"), "PATH": path}
        # -P: a program named after its page, such as email.py, must not stand in for the standard library's module.
        command = [sys.executable, "-P", "-W", "error", program] if sample.is_python else ["bash", program]
        return _finish(command, Path(folder) / "work", environment)


def _finish(command: list[str | Path], folder: Path, environment: dict[str, str]) -> Outcome:
    with tempfile.TemporaryFile() as output:
        # Output goes to a file, not a pipe: a process left behind by a sample would keep a pipe open.
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            returncode = process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            returncode = None
            process.kill()
            process.wait()
        output.seek(0)
        return Outcome(returncode, output.read().decode(errors="replace"))


def _commands(block: Block) -> str:
    commands: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ ") or (commands and line.startswith("> ")):
            commands.append(line[2:])
    if not commands:
        raise SampleError(f"{block.shown}: no line starts with `$ `")
    return "\n".join(commands) + "\n"
