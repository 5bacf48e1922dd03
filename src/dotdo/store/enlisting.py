"""What is executed in a caller's own transaction so that a run exists if and only if that commits.

This knows no driver: `enlist` yields statements and is sent their rows, by whoever has the caller's connection.
"""

from collections.abc import Generator
from typing import Any

import msgspec

from dotdo.errors import DefinitionError
from dotdo.store.protocol import Filed, Rows, Statement
from dotdo.store.queries import load_queries


def enlist(
    filed: Filed, parts: list[tuple[str, int, bytes]], identity: str, where: str
) -> Generator[Statement, Rows, str | None]:
    """Writes a run, the parts of its large input, and a hint that nodes hear when the caller commits. Returns None, or
    the digest of the input of the run that has its id already; then nothing is written.

    Raises DefinitionError when the connection is to another database than the store's, or in no transaction.
    """
    sql, run = load_queries("postgres"), filed.run
    [(place, transaction)] = yield sql["moment"], {}
    if place != identity:
        raise DefinitionError(
            f"The connection given as within= is to another database than the store, which is {where}. A run can only "
            "be started in a transaction of the store's own database."
        )
    [(same,)] = yield sql["same_transaction"], {"transaction": transaction}
    if not same:
        raise DefinitionError(
            "The connection given as within= is in autocommit, so there is no transaction for the run to be part of: "
            "begin one (`with connection.transaction():`, `with engine.begin() as connection:`)."
        )
    accepted = yield _returning(sql["accept_runs"]), {"rows": _rows(run)}
    if not accepted:
        [(known,)] = yield sql["known_digest"], {"run": run.id}
        return known
    for digest, number, data in parts:
        yield _returning(sql["write_blob"]), {"run": run.id, "digest": digest, "part": number, "data": data}
    if run.labels != "{}":
        yield _returning(sql["label_runs"]), {"rows": _rows((run.id, run.labels))}
    entry = (*msgspec.structs.astuple(filed.entry), 1)
    written = yield _returning(sql["append_entries"]), {"rows": _rows(entry)}
    assert written, "the run was inserted in this transaction"
    hint = msgspec.json.encode({"node": "", "left": [run.id]}).decode()
    yield sql["notify"], {"hint": hint}
    return None


def _returning(statement: str) -> str:
    """With a row for each one that was written; and so that no driver has to know a type that it may treat its own way
    (a codec for jsonb, say)."""
    return statement.replace("cast(%(rows)s as jsonb)", "cast(cast(%(rows)s as text) as jsonb)") + " returning 1"


def _rows(row: Any) -> str:
    return msgspec.json.encode([row]).decode()
