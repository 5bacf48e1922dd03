"""A program that starts a run and is killed around the commit of its first SQL: FOLDER DATABASES NAME MOMENT.

DATABASES: URLs by name, as JSON. MOMENT: `before-commit` or `after-commit`. The journal has heard of neither. The tests
open what it has left, with the same definitions or others (`define`).
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import text

from dotdo import Catalogue, Context, Do, Fail, action, service
from tests.contract_sql.dying import die_at
from tests.stores import hurry, url_of

ROOT = Path(__file__).resolve().parents[2]
KEY = "the one"


def define(*, first: str = "begun", without: str = "") -> Catalogue:
    """What the runs are made of. first: what the service notes first, which a changed service notes otherwise.
    without: "writes" leaves the service out."""
    catalogue = Catalogue()
    writes_in = Catalogue() if without == "writes" else catalogue

    @action("note", catalogue=catalogue)
    def note(text: str) -> str:
        return text

    @action("write", retry=1, catalogue=catalogue)
    def write(ctx: Context) -> str:
        ctx.sql.execute(text("insert into notes (text) values (:text)"), {"text": f"attempt {ctx.attempt}"})
        return f"attempt {ctx.attempt}"

    @write.undo
    def unwrite(ctx: Context, written: str) -> None:
        ctx.sql.execute(text("insert into notes (text) values (:text)"), {"text": f"{written} undone"})

    @action("write-elsewhere", catalogue=catalogue)
    def write_elsewhere(ctx: Context) -> str:
        sql = ctx.database("second")
        sql.execute(text("insert into notes (text) values (:text)"), {"text": f"attempt {ctx.attempt}"})
        return f"attempt {ctx.attempt}"

    @action("write-or-else", retry=1, fallback=write, catalogue=catalogue)
    def write_or_else(ctx: Context) -> str:
        raise Fail("no")

    @service("writes", catalogue=writes_in)
    async def writes() -> str:
        await note(text=first)
        return await write()

    return catalogue


def store_of(folder: Path) -> Path:
    """The store in a folder."""
    return folder / "store" / "dotdo.db"


def kill_one(folder: Path, databases: dict[str, str], name: str, moment: str) -> None:
    """Runs this program until it has killed itself."""
    command = [sys.executable, "-m", "tests.guarantees.unseen", str(folder), json.dumps(databases), name, moment]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def main(folder: Path, databases: str, name: str, moment: str) -> None:
    """Starts the run, and never returns."""
    hurry()
    catalogue = define()
    with Do(url_of(store_of(folder)), sql=json.loads(databases), catalogue=catalogue) as client:
        die_at(moment)
        kind: Any = client.service if catalogue.kind_of(name) == "service" else client.action
        kind(name, key=KEY).invoke()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
