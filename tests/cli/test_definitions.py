"""`dotdo actions` and `dotdo services`."""

import re

from tests.cli.commands import Shell


def test_ls_has_name_versions_input_and_purpose(shop: Shell):
    lines = [line.split("\t") for line in shop.ok("actions", "ls").splitlines()]
    assert ["greet", "1, 2", "names", "Greets several."] in lines
    assert ["charge", "1", "cents", ""] in lines
    services = [line.split("\t") for line in shop.ok("services", "ls").splitlines()]
    assert ["order", "1", "item, cents?", "Reserves, tells and charges."] in services
    assert "greet" in shop.on_terminal("actions", "ls", columns=60)


def test_show_has_schemas_policies_and_versions(shop: Shell):
    shown = shop.ok("actions", "show", "greet")
    assert shown.startswith("greet@2  action\n  Greets several.\n")
    assert re.search(r"^versions +1, 2$", shown, re.MULTILINE)
    assert re.search(r"^input +names +array of string$", shown, re.MULTILINE)
    assert re.search(r"^output +string$", shown, re.MULTILINE)
    assert shown.endswith("dotdo run greet names:='[...]'\n")
    assert "name    string" in shop.ok("actions", "show", "greet@1")
    policy = shop.ok("actions", "show", "charge")
    assert re.search(r"^policy +retry +attempts 3, delay 0.01, max_delay 60$", policy, re.MULTILINE)


def test_show_proposes_what_run_takes(shell: Shell):
    """Arrays and objects are JSON, an older version has its number, and a secret does not belong into a command."""
    shell.write(
        "app.py",
        """
from dataclasses import dataclass

from dotdo import Secret, action

@dataclass
class Line:
    item: str

@dataclass
class Login:
    user: str
    password: Secret[str]

@action("order")
def order(lines: list[Line], first: Line, tags: list[str] | None, count: int, either: list[int] | str, by: str = ""):
    ...

@action("order", version=2)
def order_2(): ...

@action("sign-in")
def sign_in(login: Login): ...
""",
    )
    assert shell.ok("actions", "show", "order").endswith("dotdo run order\n")
    old = "dotdo run order@1 lines:='[...]' first:='{...}' tags:='[...]' count=... either=...\n"
    assert shell.ok("actions", "show", "order@1").endswith(old)
    assert shell.ok("actions", "show", "sign-in").endswith("dotdo run sign-in - < input.json\n")


def test_json_is_the_definition(shop: Shell):
    told = shop.json("services", "show", "order")
    assert (told["kind"], told["name"], told["version"]) == ("service", "order", 1)
    assert told["input_schema"]["required"] == ["item"]
    assert {one["name"] for one in shop.json("services", "ls")} == {"order", "approval", "buggy"}


def test_unknown_name_tells_what_is_near_or_of_which_kind_it_is(shop: Shell):
    near = shop.run("actions", "show", "gret")
    assert near.returncode == 2
    assert "There is no action 'gret'. Did you mean greet?" in near.stderr
    assert "order is a service, not an action." in shop.run("actions", "show", "order").stderr


def test_application_without_services_is_said_so(shell: Shell):
    shell.write("app.py", "")
    done = shell.run("services", "ls")
    assert (done.returncode, done.stdout) == (0, "")
    assert "app.py defines no services." in done.stderr
