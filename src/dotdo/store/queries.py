"""Loads the named statements of queries/*.sql for one dialect.

Statements are written once. `each(:rows)` stands for a JSON array as rows with a column `value`, which every dialect
has under another name.
"""

import re
from functools import cache
from importlib import resources

EACH = {"sqlite": r"jsonb_each(\1)"}
_HEADER = re.compile(r"^-- name: (\w+)\n((?:--.*\n)*)", re.MULTILINE)


@cache
def load_queries(dialect: str) -> dict[str, str]:
    """Every statement by its name, without comments."""
    found: dict[str, str] = {}
    for file in sorted(resources.files("dotdo.store").joinpath("queries").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".sql"):
            found.update(_statements(file.read_text(encoding="utf-8"), dialect))
    return found


def _statements(text: str, dialect: str) -> dict[str, str]:
    headers = list(_HEADER.finditer(text))
    ends = [header.start() for header in headers[1:]] + [len(text)]
    return {
        header[1]: re.sub(r"\beach\((:\w+)\)", EACH[dialect], text[header.end() : end]).strip().rstrip(";")
        for header, end in zip(headers, ends, strict=True)
    }
