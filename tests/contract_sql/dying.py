"""A program that starts one action and kills its own process around the commit: FOLDER URL SHAPE MOMENT.

The moment is `before-commit` or `after-commit` of the handler's SQL, or `after-close` of the client in the middle of a
slow commit, which then succeeds. The journal has heard of none of them.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import RootTransaction

from dotdo import AsyncContext, Catalogue, Context, Do, action

catalogue = Catalogue()
INSERT = text("insert into notes (text) values (:text)")


@action("write-sync", catalogue=catalogue)
def write_sync(ctx: Context) -> str:
    """Writes a note."""
    ctx.sql.execute(INSERT, {"text": f"written by attempt {ctx.attempt}"})
    return f"result of attempt {ctx.attempt}"


@action("write-async", catalogue=catalogue)
async def write_async(ctx: AsyncContext) -> str:
    """Writes a note."""
    await ctx.sql.execute(INSERT, {"text": f"written by attempt {ctx.attempt}"})
    return f"result of attempt {ctx.attempt}"


def open_client(folder: Path, url: str) -> Do:
    """A client on the store in that folder."""
    return Do(f"sqlite:///{folder / 'dotdo.db'}", sql=url, catalogue=catalogue, grace=0.05)


def die_at(moment: str) -> None:
    """Has this process killed at that moment of the next commit of an attempt."""
    commit = RootTransaction.commit

    def commit_and_die(self: Any) -> None:
        if type(self.connection).__name__ == "AttemptConnection":
            if moment == "after-commit":
                commit(self)
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self)

    RootTransaction.commit = commit_and_die  # type: ignore[method-assign]


def close_and_die(client: Do, write: Any) -> None:
    """Closes the client while an attempt commits, and dies once it has."""
    begun, closed, over = threading.Event(), threading.Event(), threading.Event()
    commit = RootTransaction.commit

    def commit_slowly(self: Any) -> None:
        if type(self.connection).__name__ == "AttemptConnection":
            begun.set()
            closed.wait()
        commit(self)
        over.set()

    RootTransaction.commit = commit_slowly  # type: ignore[method-assign]
    client.start(write)
    begun.wait()
    client.close()
    closed.set()
    over.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, url: str, shape: str, moment: str) -> None:
    """Starts the action, and never returns."""
    client = open_client(folder, url)
    client.__enter__()
    actions: dict[str, Any] = {"sync": write_sync, "async": write_async}
    if moment == "after-close":
        close_and_die(client, actions[shape])
    die_at(moment)
    client.run(actions[shape])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
