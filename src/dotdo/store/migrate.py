"""Applies numbered migrations in order; forward only.

A database that has none gets all of them in one transaction, so that a first start waits for the disk once. One that
is in use gets each in its own: other nodes go on meanwhile, and no lock is held for longer than one of them takes.

The number of the last one is kept in the database. A store written by a newer dotdo is refused and left untouched.
"""

from importlib import resources
from typing import Protocol

from dotdo.errors import StoreUnusable


class Migratable(Protocol):
    """What a database offers to its migrations."""

    dialect: str
    where: str
    migrates: bool

    def version(self) -> int: ...
    def apply(self, scripts: list[tuple[int, str]]) -> None: ...


def migrations(dialect: str) -> list[tuple[int, str]]:
    """Number and script of each migration of a dialect, in order."""
    folder = resources.files("dotdo.store").joinpath("migrations")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(f".{dialect}.sql")), key=lambda f: f.name)
    return [(int(file.name[:4]), file.read_text(encoding="utf-8")) for file in files]


def migrate(database: Migratable) -> None:
    """Brings the database to the newest schema; one that is opened beside an engine must have it. Raises StoreUnusable,
    also when it is newer than this code."""
    known = migrations(database.dialect)
    newest, present = known[-1][0], database.version()
    if present > newest:
        raise StoreUnusable(
            f"The store {database.where} was written by a newer dotdo (schema {present}; this one knows {newest}). "
            "Upgrade dotdo, or use another file. Nothing was changed."
        )
    if not database.migrates and present < newest:
        what = f"has an older schema ({present}; this dotdo needs {newest})" if present else "has never been used"
        raise StoreUnusable(f"The store {database.where} {what}: start your application on it once.")
    missing = [(number, script) for number, script in known if number > present]
    for together in [missing] if not present else [[one] for one in missing]:
        if together:
            database.apply(together)
