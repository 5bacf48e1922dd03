"""The application's own data: a table of users in a SQL database."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Column, MetaData, String, Table, create_engine

metadata = MetaData()
users = Table(
    "users",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("email", String, nullable=False, unique=True),
)


@dataclass
class User:
    """A user, as actions answer with one."""

    user_id: str
    name: str
    email: str


def create_tables(folder: Path) -> None:
    """Makes the database `app.db`, and the table in it, unless they are there."""
    engine = create_engine(f"sqlite:///{folder / 'app.db'}")
    metadata.create_all(engine)
    engine.dispose()
