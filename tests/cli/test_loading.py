"""What is wrong with an application is said with its place, without dotdo's own traceback."""

import pytest

from tests.cli.commands import Shell

GOOD = 'from dotdo import action\n@action("hello")\ndef hello(name: str) -> str:\n    return f"Hello {name}"\n'


@pytest.mark.parametrize(
    "source, messages",
    [
        ("def hello(:\n    pass\n", ["app.py, line 1: invalid syntax", "def hello(:", "^"]),
        ("import nowhere_to_be_found\n", ["needs the module 'nowhere_to_be_found', which is not installed", "line 1"]),
        ("x = 1\ny = x / 0\n", ["ZeroDivisionError: division by zero", "app.py, line 2: y = x / 0"]),
        ("import sys\nsys.exit(3)\n", ["ended the process while it was imported", "__main__"]),
        (GOOD + GOOD.replace("def hello", "def other"), ["action hello@1 is already defined at", "app.py, line 6"]),
        (GOOD + "resources = 5\n", ["`resources` must be a list, or a function that returns one; it is 5"]),
        ("from dotdo import action\n@action('1')\ndef f() -> None: ...\n", ["'1' cannot be the name of actions"]),
    ],
    ids=["syntax", "missing module", "exception", "exit", "duplicate", "resources", "definition"],
)
def test_application_that_cannot_be_loaded_is_told_with_its_place(shell: Shell, source: str, messages: list[str]):
    shell.write("app.py", source)
    for command in (["run", "hello", "name=Ada"], ["actions", "ls"]):
        done = shell.run(*command)
        assert (done.returncode, done.stdout) == (2, "")
        for message in messages:
            assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert "dotdo/cli" not in done.stderr
    assert not (shell.folder / ".dotdo").exists()


def test_caret_stands_below_what_is_wrong(shell: Shell):
    shell.write("app.py", "if True:\n        x = = 5\n")
    lines = shell.run("actions", "ls").stderr.splitlines()
    at = next(index for index, line in enumerate(lines) if line.strip() == "x = = 5")
    assert lines[at + 1].index("^") == lines[at].index("= 5")


def test_without_an_application_it_says_how_to_have_one(shell: Shell):
    done = shell.run("run", "hello")
    assert done.returncode == 2
    assert f"{shell.folder}/app.py does not exist" in done.stderr
    assert "--app, DOTDO_APP or `app` in dotdo.toml" in done.stderr
    assert "dotdo init" in done.stderr


def test_application_is_a_file_in_a_folder_or_a_module(shell: Shell):
    shell.write("shop/__init__.py", "")
    shell.write("shop/names.py", 'NAME = "Ada"\n')
    shell.write("shop/app.py", "from shop.names import NAME\n" + GOOD.replace("{name}", "{name} of {NAME}"))
    for app in ("shop/app.py", "shop.app", str(shell.folder / "shop" / "app.py")):
        assert shell.ok("run", "hello", "name=Ben", "--app", app) == '"Hello Ben of Ada"\n'
    missing = shell.run("run", "hello", "--app", "shop.nothing")
    assert missing.returncode == 2
    assert "There is no module 'shop.nothing'" in missing.stderr
    shell.write("shop.txt", "")
    other = shell.run("actions", "ls", "--app", "shop.txt")
    assert "shop.txt is a file, but not one of Python, whose name ends in .py." in other.stderr


def test_application_may_be_called_like_a_module_of_the_library(shell: Shell):
    shell.write("email.py", GOOD)
    assert shell.ok("run", "hello", "name=Ada", "--app", "email.py") == '"Hello Ada"\n'


def test_resources_and_catalogue_of_the_application_are_used(shell: Shell):
    shell.write(
        "app.py",
        """
from dotdo import Action, Catalogue, Context


class Greeting:
    text = "Good morning"


def hello(ctx: Context, name: str) -> str:
    return f"{ctx.resource(Greeting).text}, {name}"


catalogue = Catalogue()
Action("hello", hello, catalogue=catalogue)


def resources():
    return [Greeting()]
""",
    )
    assert shell.ok("run", "hello", "name=Ada") == '"Good morning, Ada"\n'
