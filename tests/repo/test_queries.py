"""Every SQL statement has a name, a reason, a reader and a readable length.

A statement opens with two comments, its name and why it exists or is shaped as it is:

    -- name: claim_due_runs
    -- Takes the oldest due runs first, so that no run starves behind newer ones.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from tests.repo.sources import PACKAGE, ROOT, report

STATEMENT_LINES = 30
NAME = re.compile(r"--\s*name:\s*(\S*)\s*$")


@dataclass
class Statement:
    file: Path
    line: int
    name: str
    rest: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.name}"

    @property
    def sql(self) -> list[str]:
        """Its lines without blank lines and whole-line comments."""
        return [line for line in self.rest if line.strip() and not line.strip().startswith("--")]

    @property
    def why(self) -> str:
        """The comment right below the name."""
        first = self.rest[0].strip() if self.rest else ""
        return first.removeprefix("--").strip() if first.startswith("--") else ""


def test_every_statement_has_an_identifier_as_name():
    problems = [statement.shown for statement in _statements() if not statement.name.isidentifier()]
    assert not problems, report(problems)


def test_no_two_statements_share_a_name():
    first: dict[str, Statement] = {}
    problems = [s.shown for s in _statements() if first.setdefault(s.name, s) is not s]
    assert not problems, report(problems)


def test_no_sql_stands_before_the_first_name():
    problems: list[str] = []
    for file in _files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if NAME.match(line):
                break
            if line.strip() and not line.strip().startswith("--"):
                problems.append(f"{file.relative_to(ROOT)}:{number}: {line}")
    assert not problems, report(problems)


def test_every_statement_says_why():
    problems = [statement.shown for statement in _statements() if not statement.why]
    assert not problems, report(problems)


def test_every_statement_has_at_most_30_lines():
    problems = [f"{s.shown}: {len(s.sql)} lines" for s in _statements() if len(s.sql) > STATEMENT_LINES]
    assert not problems, report(problems)


def test_no_statement_is_empty():
    problems = [statement.shown for statement in _statements() if not statement.sql]
    assert not problems, report(problems)


def test_every_statement_is_used_by_the_store():
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "store").glob("*.py")))
    words = set(re.findall(r"\w+", code))
    problems = [statement.shown for statement in _statements() if statement.name not in words]
    assert not problems, report(problems)


def _files() -> list[Path]:
    files = sorted((PACKAGE / "store" / "queries").glob("*.sql"))
    assert files, "no *.sql files in src/dotdo/store/queries"
    return files


def _statements() -> list[Statement]:
    statements: list[Statement] = []
    for file in _files():
        current: Statement | None = None
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if found := NAME.match(line):
                current = Statement(file, number, found[1])
                statements.append(current)
            elif current is not None:
                current.rest.append(line)
    assert statements, "no named statement in src/dotdo/store/queries"
    return statements
