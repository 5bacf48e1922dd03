"""What is done to a store while its disk fails: each a script of requests which its caller repeats until it succeeds.

Scripts are repeated from the beginning after a crash, so everything in them may be asked for twice. Effects are such
that nobody has to be asked about them.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw

from dotdo import Catalogue, action, maintaining, service
from dotdo.errors import InvalidOperation, UnknownName
from dotdo.policy import Retention
from dotdo.store.migrate import migrations
from dotdo.store.sqlite import APPLICATION_ID
from tests.simulation import world
from tests.store import previous
from tests.store_faults.stage import Stage

Script = Callable[[Stage], Awaitable[None]]

SCRIPTS: dict[str, Script] = {}
LARGE = 300_000  # bytes: more than fits into a row
ROWS = Path(__file__).parent.parent / "store" / "store_0001.sql"

ONBOARDING = [
    {"do": "stocked", "n": 1},
    {
        "beside": [
            {"do": "undoable", "n": 2, "request": ["keyed"]},
            {"do": "plain", "n": 3, "stage": ["found", "keyed"]},
        ]
    },
    {"sleep": 30.0},
    {"do": "plain", "n": 4, "stage": ["resent"]},
]
REFUSED = [
    {"do": "stocked", "n": 1, "stage": ["keyed"]},
    {"do": "undoable", "n": 2, "request": ["keyed"], "undo": ["keyed"]},
    {"child": [{"do": "undoable", "n": 3}]},
    {"do": "plain", "n": 4, "refuses": True},
]


@action("bulky", catalogue=world.catalogue)
async def bulky(letter: str) -> str:
    """Returns what is large."""
    return letter * LARGE


@service("hauls", catalogue=world.catalogue)
async def hauls(letters: str) -> int:
    """Carries large values."""
    return sum([len(await bulky(letter=letter)) for letter in letters])


def script(function: Script) -> Script:
    """Adds a workload to the list."""
    SCRIPTS[function.__name__] = function
    return function


@script
async def onboarding(stage: Stage) -> None:
    """Services with SQL, staged effects, requests and a timer; two at a time, so that they share commits."""
    for key in ("a", "b"):
        await stage.start(key, "sim", plan=ONBOARDING)
    await stage.once("c", "sim", plan=ONBOARDING[:1])
    await stage.all_end()


@script
async def undoing(stage: Stage) -> None:
    """A service that fails and is taken back; and one that an operator takes back later."""
    await stage.start("refused", "sim", plan=REFUSED)
    await stage.start("regretted", "sim", plan=REFUSED[:3])
    await stage.all_end()
    await stage.repeat(lambda: stage.engine.undo(stage.ids["regretted"], None), unless=InvalidOperation)
    await stage.all_end()


@script
async def hauling(stage: Stage) -> None:
    """Values that are kept apart from their rows."""
    await stage.start("large", "hauls", letters="xy")
    await stage.all_end()


@script
async def retaining(stage: Stage) -> None:
    """Runs are deleted, and the data of others is erased."""
    for number in range(3):
        await stage.start(f"r{number}", "sim", plan=ONBOARDING[3:])
    await stage.all_end()
    stage.deleting = True
    await stage.repeat(lambda: stage.engine.erase([stage.ids["r0"]], "ada"), unless=UnknownName)
    await stage.repeat(lambda: stage.engine.prune(Retention(older_than=0, name="sim"), "ada"))
    await stage.start("after", "sim", plan=ONBOARDING[1:2])
    await stage.all_end()


@script
async def checkpointing(stage: Stage) -> None:
    """The log is copied into the file again and again, and starts over; then the store is closed, and opened anew."""
    for number in range(3):
        await stage.start(f"p{number}", "sim", plan=ONBOARDING[:1])
        await stage.all_end()
    if not stage.closed:
        await stage.close()
        return
    await stage.start("last", "sim", plan=ONBOARDING[:1])
    await stage.all_end()


@script
async def backing_up(stage: Stage) -> None:
    """Copies are made beside the live engine, and afterwards one is what it claims to be."""
    await stage.start("before", "sim", plan=ONBOARDING[:2])
    copy = stage.folder / "copy.db"
    await stage.repeat(lambda: stage.run(lambda: copy.exists() or maintaining.back_up(str(stage.store), str(copy))))
    await stage.start("after", "sim", plan=ONBOARDING[:1])
    await stage.all_end()


@script
async def migrating(stage: Stage) -> None:
    """A store of the first schema is brought to today's, and its application goes on."""
    await stage.start("seat:9", "take-seat", kind="action", row=9)
    await stage.all_end()


def catalogue_of(name: str) -> Catalogue:
    """The definitions that a workload needs."""
    return previous.catalogue if name == "migrating" else world.catalogue


def prepare_old(path: Path) -> None:
    """Makes a store of the first schema."""
    connection = apsw.Connection(str(path))
    connection.execute("pragma journal_mode = wal").fetchall()
    connection.execute(migrations("sqlite")[0][1])
    connection.execute(ROWS.read_text(encoding="utf-8"))
    connection.execute(f"pragma user_version = 1; pragma application_id = {APPLICATION_ID}")
    connection.close()


__all__ = ["SCRIPTS", "Any", "Script", "catalogue_of", "prepare_old"]
