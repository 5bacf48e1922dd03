"""Actions whose handlers commit in transactions of their own: plain sqlite3, Django's ORM, asyncpg. Also a program.

Each gets the URL of the database and what to do at each attempt: `return`; `raise-before`, `hang-before`, `die-before`
(when it has the statement, before its transaction); the same `-after` its commit; `forget` the statement; `roll-back`.

As a program (FOLDER URL ACTION MOVES) it runs one and is killed there.
"""

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import django
from django.conf import settings
from django.db import connections, models, transaction

from dotdo import AsyncContext, Catalogue, Context, Do, Retry, action
from dotdo.testing import ManualClock
from tests.patience import PATIENCE

RETRY = Retry(attempts=100, delay=0, jitter=False)  # where time is short, a slow machine needs some
KEY = "the one"
catalogue = Catalogue()

settings.configure(DATABASES={}, INSTALLED_APPS=[], USE_TZ=True)
django.setup()


class Gate:
    """Where a handler hangs: it tells that it does, until it is released. then: what its late transaction came to."""

    def __init__(self) -> None:
        self.reached, self.released, self.over = threading.Event(), threading.Event(), threading.Event()
        self.then: list[str] = []

    def hang(self, ctx: Context | AsyncContext) -> None:
        """Hangs, unless the attempt is over already."""
        ctx.heartbeat()
        self.reached.set()
        assert self.released.wait(PATIENCE)


gates = {"sqlite3": Gate(), "django": Gate(), "asyncpg": Gate()}


def move_of(ctx: Context | AsyncContext, moves: str, gate: Gate) -> str:
    """What this attempt is to do. The first one that comes so far in time is the one that hangs."""
    each = moves.split(",")
    if each[0].startswith("hang"):
        return each[-1] if gate.reached.is_set() else each[0]
    return each[min(ctx.attempt, len(each)) - 1]


def act(ctx: Context | AsyncContext, move: str, moment: str, gate: Gate) -> None:
    """Does what is to be done at that moment."""
    if move == f"raise-{moment}":
        raise ConnectionError(f"raised {moment}")
    if move == f"die-{moment}":
        os.kill(os.getpid(), signal.SIGKILL)
    if move == f"hang-{moment}":
        gate.hang(ctx)


# -- sqlite3 -----------------------------------------------------------------------------------------------------------


@action("write-sqlite3", retry=RETRY, catalogue=catalogue)
def write_sqlite3(ctx: Context, url: str, moves: str) -> str:
    """Writes a note. After an error it commits all the same, which is careless."""
    gate, text = gates["sqlite3"], f"attempt {ctx.attempt}"
    move = move_of(ctx, moves, gate)
    statement = ctx.completion_statement(text, style="?")
    act(ctx, move, "before", gate)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=PATIENCE)) as connection:
        connection.execute("insert into notes (text) values (?)", (text,))
        try:
            if move != "forget":
                connection.execute(statement.sql, statement.parameters)
        except sqlite3.IntegrityError as error:
            gate.then.append(type(error).__name__)
        if move in ("roll-back", "forget"):
            connection.rollback()
        connection.commit()
        gate.over.set()
    act(ctx, move, "after", gate)
    return text


# -- Django ------------------------------------------------------------------------------------------------------------


class Note(models.Model):
    """A note."""

    objects: Any  # Django has no types
    text = models.CharField(max_length=100, unique=True)

    class Meta:
        """Of the table that the test has made."""

        app_label = "notes"
        db_table = "notes"


def django_database(url: str) -> dict[str, Any]:
    """Django's words for a database."""
    if url.startswith("sqlite"):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.removeprefix("sqlite:///")}
    user, _, rest = url.removeprefix("postgresql://").partition("@")
    place, _, name = rest.partition("/")
    host, _, port = place.partition(":")
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": user, "HOST": host, "PORT": port}


databases: Any = connections.databases
atomic: Any = transaction.atomic


class RolledBack(Exception):
    """Told to."""


@action("write-django", retry=RETRY, catalogue=catalogue)
def write_django(ctx: Context, url: str, moves: str) -> str:
    """Writes a note."""
    gate, text = gates["django"], f"attempt {ctx.attempt}"
    move, alias = move_of(ctx, moves, gate), f"{ctx.run_id}/{ctx.attempt}"
    databases[alias] = connections.configure_settings({"default": {}, alias: django_database(url)})[alias]
    statement = ctx.completion_statement(text, style="%s")
    act(ctx, move, "before", gate)
    try:
        with atomic(using=alias):
            Note.objects.using(alias).create(text=text)
            with connections[alias].cursor() as cursor:
                if move != "forget":
                    cursor.execute(statement.sql, statement.parameters)
            if move in ("roll-back", "forget"):
                raise RolledBack
    except RolledBack:
        return text
    except Exception as error:
        gate.then.append(type(error).__name__)
        raise
    finally:
        connections[alias].close()
        gate.over.set()
    act(ctx, move, "after", gate)
    return text


# -- asyncpg -----------------------------------------------------------------------------------------------------------


@action("write-asyncpg", retry=RETRY, catalogue=catalogue)
async def write_asyncpg(ctx: AsyncContext, url: str, moves: str) -> str:
    """Writes a note."""
    gate, text = gates["asyncpg"], f"attempt {ctx.attempt}"
    move = move_of(ctx, moves, gate)
    statement = ctx.completion_statement(text, style="$1")
    if move == "hang-before":
        gate.reached.set()
        await asyncio.get_running_loop().create_future()
    act(ctx, move, "before", gate)
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("insert into notes (text) values ($1)", text)
            if move != "forget":
                await connection.execute(statement.sql, *statement.parameters)
            if move in ("roll-back", "forget"):
                raise RolledBack
    except RolledBack:
        return text
    finally:
        await connection.close()
    if move == "hang-after":
        gate.reached.set()
        await asyncio.get_running_loop().create_future()
    act(ctx, move, "after", gate)
    return text


# -- the program -------------------------------------------------------------------------------------------------------


def main(folder: str, url: str, name: str, moves: str) -> None:
    """Runs one action, and never returns."""
    store = Path(folder) / "store" / "dotdo.db"
    with Do(f"sqlite:///{store}", sql=url, catalogue=catalogue, clock=ManualClock()) as client:
        client.action(name, key=KEY).invoke(url=url, moves=moves)


if __name__ == "__main__":
    main(*sys.argv[1:])
