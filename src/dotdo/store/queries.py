"""Loads the named statements of queries/*.sql for one dialect.

Statements are written once. Two words stand for what every dialect has under another name: `each(:rows)` for a JSON
array as rows with a column `value`, and `pairs(text)` for a JSON object as rows with `key` and `value`. Where they
must differ, the lines for one dialect follow a line `-- sqlite` or `-- postgres`, up to the next one or `-- both`.
Files *.postgres.sql are of that dialect only. A line that ends with `-- if NAME` is there when that is given.
"""

import re
from functools import cache, lru_cache
from importlib import resources

DIALECTS = ("sqlite", "postgres")
SCHEMA = "dotdo"  # where the tables are in PostgreSQL, so that they are in nobody's way
_EACH = {"sqlite": r"jsonb_each(\1)", "postgres": r"jsonb_array_elements(cast(\1 as jsonb))"}
_PAIRS = {"sqlite": r"json_each(\1)", "postgres": r"jsonb_each_text(cast(\1 as jsonb))"}
_HEADER = re.compile(r"^-- name: (\w+)\n((?:--.*\n)*)", re.MULTILINE)
_PART = re.compile(r"^-- (sqlite|postgres|both)\b.*$")
_IF = re.compile(r"^(.*) -- if (\w+)$")
_TABLE = re.compile(
    r"\b(from|join|into|update|table)\s+"
    r"(runs|journal|inbox|nodes|definitions|links|labels|blobs|registry|leftovers|api_keys|erasing|facts|offers|"
    r"tickets|slots|rates|heads)\b"
)


@cache
def load_queries(dialect: str) -> dict[str, str]:
    """Every statement by its name, without comments."""
    found: dict[str, str] = {}
    for file in sorted(resources.files("dotdo.store").joinpath("queries").iterdir(), key=lambda item: item.name):
        only = [each for each in DIALECTS if file.name.endswith(f".{each}.sql")]
        if file.name.endswith(".sql") and only in ([], [dialect]):
            found.update(_statements(file.read_text(encoding="utf-8"), dialect))
    return found


def _statements(text: str, dialect: str) -> dict[str, str]:
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    return {
        header[1]: translated(part_of(text[header.end() : end], dialect), dialect)
        for header, end in zip(headers, ends, strict=True)
    }


def part_of(statement: str, dialect: str) -> str:
    """The lines of a statement that a dialect has."""
    lines: list[str] = []
    holds = True
    for line in statement.splitlines():
        part = _PART.match(line)
        if part:
            holds = part[1] in (dialect, "both")
        elif holds:
            lines.append(line)
    return "\n".join(lines).strip().rstrip(";").strip()


@lru_cache(maxsize=256)
def narrowed(statement: str, given: frozenset[str]) -> str:
    """A statement with those of its conditions whose names are given, and without the others."""
    lines = [(line, _IF.match(line)) for line in statement.splitlines()]
    return "\n".join(found[1] if found else line for line, found in lines if found is None or found[2] in given)


def translated(statement: str, dialect: str) -> str:
    """A statement as a dialect's driver wants it."""
    statement = re.sub(r"\beach\((:\w+)\)", _EACH[dialect], statement)
    statement = re.sub(r"\bpairs\(([^()]+)\)", _PAIRS[dialect], statement)
    if dialect == "postgres":
        statement = _TABLE.sub(rf"\1 {SCHEMA}.\2", statement)
        statement = re.sub(r"(?<!:):([a-z]\w*)", r"%(\1)s", statement.replace("%", "%%"))
    return statement
