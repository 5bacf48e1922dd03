"""The reckoning at the end of the demo: what arrived where, by the servers' own ledger and the users' database.

The ledger is written by the servers, in another process than the engine: it cannot be wrong in the same way.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, func, select

from examples.onboarding.standins import StandIns
from examples.onboarding.users import users


@dataclass(frozen=True)
class Person:
    """Somebody who signs up in the demo, and what is to be left of it at the end."""

    name: str
    story: str
    rows: int = 1
    customers: int = 1
    mails: int = 1
    mail_tries: int = 1
    slack: int = 1
    contacts: int = 0

    @property
    def email(self) -> str:
        """The address that they sign up with."""
        return f"{self.name.lower()}@example.com"

    @property
    def expected(self) -> tuple[int, ...]:
        """In the order of `COLUMNS`."""
        return (self.rows, self.customers, self.mails, self.mail_tries, self.slack, self.contacts)


COLUMNS = ("users", "billing", "mails", "mail tries", "Slack", "CRM")


class Account:
    """Collects checks; each is a sentence that must be true."""

    def __init__(self) -> None:
        self.checks: list[tuple[bool, str]] = []

    def check(self, is_true: bool, sentence: str) -> None:
        """Notes whether that sentence is true."""
        self.checks.append((is_true, sentence))

    @property
    def off(self) -> list[str]:
        """The sentences that are not true."""
        return [sentence for is_true, sentence in self.checks if not is_true]

    def settle(self, console: Console, people: list[Person], world: StandIns, folder: Path) -> None:
        """Compares, for each person, what is there with what is expected, and prints it as a table."""
        table = Table("who", "what happened", *COLUMNS, box=box.SIMPLE_HEAD)
        for person in people:
            found = arrived(person, world, folder)
            for column, is_there, expected in zip(COLUMNS, found, person.expected, strict=True):
                self.check(is_there == expected, f"{person.name}: {column} must be {expected}, is {is_there}")
            table.add_row(person.name, person.story, *map(str, found))
        console.print(table)
        keys = Counter(arrival.key for arrival in world.ledger() if arrival.happened)
        twice = [key for key, times in keys.items() if times > 1]
        self.check(not twice, f"No key has its effect twice: {twice}")


def arrived(person: Person, world: StandIns, folder: Path) -> tuple[int, ...]:
    """What is there of a person, in the order of `COLUMNS`; a customer who was deleted again does not count."""
    engine = create_engine(f"sqlite:///{folder / 'app.db'}")
    with engine.connect() as connection:
        rows = connection.scalar(select(func.count()).where(users.c.email == person.email)) or 0
    engine.dispose()
    created = [arrival.answer["id"] for arrival in world.ledger("billing", person.email) if arrival.happened]
    customers = [id for id in created if not world.done("billing", f"DELETE /v1/customers/{id}")]
    return (
        rows,
        len(customers),
        len(world.done("email", person.email)),
        len(world.ledger("email", person.email)),
        len(world.done("slack", f"{person.name} ")),
        len(world.done("crm", person.email)),
    )
