"""Every promise of docs/promises.md names tests that there are."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.repo.sources import ROOT, report

PAGE = ROOT / "docs" / "promises.md"
NOT_PROMISED = "What we do not promise"
LINK = re.compile(r"\[(?P<name>test_\w+)\]\((?P<target>[^)]*)\)")


class Item(NamedTuple):
    """One item of a list: in which section and line, and its whole text."""

    section: str
    line: int
    text: str


def items(page: str) -> list[Item]:
    """All items of all lists, each with the lines that continue it."""
    found: list[Item] = []
    section, open_item = "", False
    for number, line in enumerate(page.splitlines(), 1):
        if line.startswith("## "):
            section, open_item = line[3:], False
        elif line.startswith("* "):
            found.append(Item(section, number, line[2:]))
            open_item = True
        elif open_item and line.startswith("  "):
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line.strip()}")
        else:
            open_item = False
    return found


@cache
def functions_in(file: Path) -> frozenset[str]:
    """The test functions at the top level of a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(
        node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, functions)
    )


def problems_of(page: str) -> list[str]:
    """What is wrong with the promises of a page, in words."""
    problems: list[str] = []
    for item in items(page):
        links = list(LINK.finditer(item.text))
        if not links and item.section != NOT_PROMISED:
            problems.append(f"line {item.line}: no test is named for: {item.text}")
        for link in links:
            file = (PAGE.parent / link["target"]).resolve()
            if not file.is_relative_to(ROOT / "tests") or not file.is_file():
                problems.append(f"line {item.line}: {link['target']} is no file of tests")
            elif link["name"] not in functions_in(file):
                problems.append(f"line {item.line}: {link['target']} has no test {link['name']}")
    return problems


def test_every_promise_names_tests_that_there_are():
    page = PAGE.read_text(encoding="utf-8")
    promised = [item for item in items(page) if item.section != NOT_PROMISED]
    assert len(promised) > 50
    assert len({item.section for item in promised}) > 10
    assert len(items(page)) > len(promised), f"no section {NOT_PROMISED!r}"
    problems = problems_of(page)
    assert not problems, report(problems)


def test_promise_without_a_test_is_found():
    here = "[test_promise_without_a_test_is_found](../tests/repo/test_promises.py)"
    assert problems_of(f"## SQL\n\n* It holds.\n  {here}\n\n## {NOT_PROMISED}\n\n* The moon.\n") == []
    assert problems_of("## SQL\n\n* It holds.\n") == ["line 3: no test is named for: It holds."]
    moved = here.replace("test_promises.py", "test_moved.py")
    assert problems_of(f"## SQL\n\n* It holds. {moved}") == ["line 3: ../tests/repo/test_moved.py is no file of tests"]
    renamed = here.replace("[test_promise_", "[test_oath_")
    assert "has no test test_oath_without" in problems_of(f"## SQL\n\n* It holds. {renamed}")[0]
