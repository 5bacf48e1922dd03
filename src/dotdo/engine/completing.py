"""The statement with which a handler commits its attempt in a transaction of its own.

It inserts the same row as the engine's own last statement does (see applying.py), so the same settlement decides it.
"""

from typing import Any, LiteralString

from dotdo.context import CompletionStatement, Style
from dotdo.policy import one_of

# On SQLite a failed statement leaves its transaction open, and a handler may go on to commit the rest of it: `or
# rollback` ends it at once. PostgreSQL refuses everything after a failure by itself.
_INSERT: dict[str, LiteralString] = {
    "sqlite": "insert or rollback into dotdo_applied (run, step, generation, attempt, completion, at) values ",
    "": "insert into dotdo_applied (run, step, generation, attempt, completion, at) values ",
}
_VALUES: dict[Style, LiteralString] = {
    ":name": "(:run, :step, :generation, :attempt, :completion, :at)",
    "?": "(?, ?, ?, ?, ?, ?)",
    "%s": "(%s, %s, %s, %s, %s, %s)",
    "%(name)s": "(%(run)s, %(step)s, %(generation)s, %(attempt)s, %(completion)s, %(at)s)",
    "$1": "($1, $2, $3, $4, $5, $6)",
}


def completion_statement(database: str, dialect: str, style: Style, row: dict[str, Any]) -> CompletionStatement:
    """The statement for a row of `dotdo_applied`. Raises DefinitionError for a style that there is not."""
    one_of(style, "style", tuple(_VALUES))
    sql = _INSERT.get(dialect, _INSERT[""]) + _VALUES[style]
    return CompletionStatement(sql, row if "name" in style else tuple(row.values()), database, dialect)
