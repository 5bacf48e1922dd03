"""`dotdo init` writes an application that runs at once, and overwrites nothing."""

import json
import re

from tests.cli.commands import Shell

WRITTEN = {"app.py", "dotdo.toml", "templates", ".gitignore"}


def test_what_it_writes_runs_at_once(shell: Shell):
    done = shell.run("init")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in shell.folder.iterdir()} == WRITTEN
    assert done.stderr.rstrip().endswith("Now: dotdo run hello name=Ada")
    assert shell.ok("run", "hello", "name=Ada") == '"Hello, Ada!"\n'
    [letter] = (shell.folder / "outbox").iterdir()
    assert letter.read_text().startswith("Dear Ada,")
    greetings = json.loads(shell.ok("run", "greet-everybody", 'names=["Ada", "Ben"]', "pause=0"))
    assert greetings == ["Hello, Ada!", "Hello, Ben!"]
    assert shell.run("audit", "verify").returncode == 0


def test_commands_in_its_docstring_are_there(shell: Shell):
    shell.run("init")
    names = re.findall(r"^dotdo run ([\w-]+)", (shell.folder / "app.py").read_text(), re.MULTILINE)
    assert names
    defined = {one["name"] for kind in ("actions", "services") for one in shell.json(kind, "ls")}
    assert set(names) <= defined


def test_it_writes_into_a_new_folder(shell: Shell):
    done = shell.run("init", "my/app")
    assert done.stderr.rstrip().endswith("Now: cd my/app && dotdo run hello name=Ada")
    assert {path.name for path in (shell.folder / "my" / "app").iterdir()} == WRITTEN


def test_it_overwrites_nothing(shell: Shell):
    shell.write("app.py", "mine")
    shell.write(".gitignore", "mine, too")
    done = shell.run("init")
    assert done.returncode == 2
    assert f"app.py and .gitignore exist in {shell.folder}; nothing was written." in done.stderr
    assert (shell.folder / "app.py").read_text() == "mine"
    assert {path.name for path in shell.folder.iterdir()} == {"app.py", ".gitignore"}


def test_folder_that_cannot_be_written_is_told(shell: Shell):
    shell.write("file", "")
    done = shell.run("init", "file/app")
    assert done.returncode == 2
    assert "cannot be written: Not a directory." in done.stderr
