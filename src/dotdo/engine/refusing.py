"""What `ctx.sql` refuses: statements that would end the attempt's transaction, known by their text."""

import re
from typing import NoReturn

from dotdo.errors import DefinitionError

# Statements that would end the attempt's transaction behind its back.
_ENDS_TRANSACTION = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|abort|rollback(?!(\s+(work|transaction))?\s+to)|prepare\s+transaction)\b",
    re.I,
)
# Quoted text and names, dollar quotes and comments: nothing in them is a statement.
_OPAQUE = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\1|--[^\n]*|/\*.*?\*/""", re.S)
_HAS_BODY = re.compile(r"\s*create\b.*\bbegin\b", re.I | re.S)  # a trigger or function with an `end` of its own
_COMMITS_BY_ITSELF = re.compile(r"\s*(create|alter|drop|truncate|rename|grant|revoke|lock\s+tables)\b", re.I)
_SELF_COMMITTING_DIALECTS = frozenset({"mysql", "mariadb", "oracle"})


def refuse(what: str) -> NoReturn:
    """Raises DefinitionError."""
    raise DefinitionError(
        f"ctx.sql does not take {what}: its transaction is committed with the attempt and rolled back when the handler "
        "raises. Just execute your statements."
    )


def refuse_rolled_back() -> NoReturn:
    """Raises DefinitionError: SQLite has ended the transaction."""
    raise DefinitionError(
        "SQLite has rolled back this attempt's whole transaction after an error that the handler caught, so the "
        "attempt can commit nothing more. Let that error pass: the attempt fails, and is retried as a whole."
    )


def refuse_ends(dialect: str, statement: str) -> None:
    """Raises DefinitionError for a text with a statement that ends the transaction."""
    for one in _statements(statement):
        if _ENDS_TRANSACTION.match(one):
            refuse(one.split(None, 1)[0].upper())
    if dialect in _SELF_COMMITTING_DIALECTS and _COMMITS_BY_ITSELF.match(statement):
        refuse(f"{statement.strip().split(None, 1)[0].upper()}, which commits by itself on this database")


def _statements(text: str) -> list[str]:
    """The statements in a text, as far as it matters how they begin. Some drivers take several at once."""
    if ";" not in text and "--" not in text and "/*" not in text:
        return [text]
    bare = _OPAQUE.sub(" ", text)
    return [bare] if _HAS_BODY.match(bare) else bare.split(";")
