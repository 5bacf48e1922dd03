"""The application of the workers in the tests. What happens is written into the folder WITNESS, by file.

`fault` does something to its process, once for all workers: the file of that name is made first.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import text

from dotdo import AsyncContext, Context, EffectCall, Fail, Retry, action, effect, service
from dotdo.engine.sql import SqlWork
from dotdo.worker.worker import Worker

WITNESS = Path(os.environ.get("WITNESS", "."))
INSERT = "insert into notes (text) values (:text)"
AT_ONCE = Retry(attempts=3, delay=0, jitter=False)
PATIENCE = 60.0


def witness(what: str) -> None:
    """Writes one line, whole, whatever other processes write."""
    file = os.open(WITNESS / "seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{what}\n".encode())
    os.close(file)


def is_first(name: str) -> bool:
    """Whether nobody was here before, in any process."""
    try:
        os.close(os.open(WITNESS / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def fault(where: str, wanted: str) -> None:
    """Kills this process if this is where it is to die, and it is the first to come here."""
    if where and where == wanted and is_first("died"):
        os.kill(os.getpid(), signal.SIGKILL)


def until(name: str) -> None:
    """Returns when a test has made that file."""
    end = time.monotonic() + PATIENCE
    while not (WITNESS / name).exists() and time.monotonic() < end:
        time.sleep(0.01)


def die_around(kind: type, method: str, before: str, after: str) -> None:
    """Has a method of dotdo be one of the places to die at."""
    original = getattr(kind, method)

    def around(self: object, *args: object) -> object:
        fault(before, os.environ.get("DIES", ""))
        result = original(self, *args)
        fault(after, os.environ.get("DIES", ""))
        return result

    setattr(kind, method, around)


die_around(SqlWork, "commit", "before its commit", "after its commit")
die_around(Worker, "_take_outcomes", "before it tells", "with what it tells in its hands")
die_around(Worker, "_row_is_unneeded", "after the answer", "")


@effect("letter", dedup="key", retry=AT_ONCE)
def letter(call: EffectCall, to: str) -> dict[str, str]:
    witness(f"letter {to} {call.key}")
    return {"to": to, "key": call.key}


@effect("customer", dedup="key", retry=AT_ONCE, undo=lambda call, answer: witness(f"gone {answer['id']}"))
async def customer(name: str) -> dict[str, str]:
    witness(f"customer {name}")
    return {"id": f"c-{name}"}


@action("write-note", retry=AT_ONCE)
def write_note(ctx: Context, note: str, wait_for: str = "", freezes: bool = False) -> dict[str, object]:
    witness(f"begins {note} attempt {ctx.attempt} at {os.environ.get('WORKER')}")
    fault("in the handler", os.environ.get("DIES", ""))
    if (freezes and is_first("frozen")) or (wait_for and not freezes):
        until(wait_for)
    ctx.sql.execute(text(INSERT), {"text": note})
    ctx.stage(letter, to=note)
    fault("after its statements", os.environ.get("DIES", ""))
    return {"note": note, "worker": os.environ.get("WORKER")}


@write_note.undo
def erase_note(ctx: Context, written: dict[str, object], input: dict[str, object]) -> None:
    ctx.sql.execute(text("delete from notes where text = :text"), {"text": input["note"]})
    witness(f"erased {written['note']}")


@action("find-customer", retry=AT_ONCE)
async def find_customer(ctx: AsyncContext, name: str, refuse: bool = False) -> str:
    found = await ctx.request(customer, name=name)
    await ctx.sql.execute(text(INSERT), {"text": found["id"]})
    if refuse:
        raise ExceptionGroup("as of a TaskGroup", [Fail("not this one")])
    return found["id"]


@action("own-transaction", retry=AT_ONCE)
def own_transaction(ctx: Context, note: str) -> str:
    import sqlite3

    statement = ctx.completion_statement(note, style="?")
    with sqlite3.connect(WITNESS / "app.db", timeout=60) as connection:
        connection.execute("insert into notes (text) values (?)", (note,))
        connection.execute(statement.sql, statement.parameters)
    connection.close()
    fault("after its own commit", os.environ.get("DIES", ""))
    return note


@action("wait-long")
async def wait_long(ctx: AsyncContext) -> None:
    witness("waits")
    try:
        await asyncio.sleep(PATIENCE)
    except asyncio.CancelledError:
        witness("was cancelled")
        raise


@action("stubborn", retry=1, timeout=0.2)
def stubborn(ctx: Context) -> None:
    until("enough")
    try:
        ctx.heartbeat()
    except BaseException as error:
        witness(f"told {type(error).__name__}")
        raise


@action("greet", version=int(os.environ.get("GREETS", "1")))
async def greet(name: str) -> str:
    return f"{'Hello' if os.environ.get('GREETS', '1') == '1' else 'Good day'}, {name}"


@action("spy")
def spy(ctx: Context) -> dict[str, object]:
    token = ctx.secret("A_TOKEN")
    if len(sys.argv) < 0:
        raise ValueError(token.reveal())
    raise Fail(f"it is {token.reveal()}")


@service("stays")
async def stays() -> None: ...
