"""A program whose process is stopped (SIGSTOP) in a handler, and goes on later as if nothing had been: FOLDER URL NAME.

Meanwhile another process has taken its run over. It prints what its commit came to, and what its caller is told.
"""

import signal
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import text

from dotdo import AsyncContext, Catalogue, Context, Do, Retry, action
from dotdo.engine import claiming
from dotdo.engine.sql import SqlWork
from tests.guarantees.unseen import store_of
from tests.stores import url_of

INSERT = "insert into notes (text) values ('{}')"
RETRY = Retry(attempts=2, delay=0, jitter=False)
catalogue = Catalogue()


def stop_once(ctx: Context | AsyncContext) -> None:
    """Stops the process, if it is the one that is to be stopped."""
    if __name__ == "__main__" and ctx.attempt == 1:
        # To this thread: one that goes to the process lets the thread that sent it go on for a moment.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


@action("come-to-rest", catalogue=catalogue)
def come_to_rest() -> None:
    """When it has completed, the engine has looked for runs that are due."""


@action("before-its-sql", retry=RETRY, catalogue=catalogue)
def before_its_sql(ctx: Context, url: str) -> str:
    """Is stopped before its transaction begins."""
    stop_once(ctx)
    ctx.sql.execute(text(INSERT.format(f"attempt {ctx.attempt}")))
    return f"attempt {ctx.attempt}"


@action("after-its-sql", retry=RETRY, catalogue=catalogue)
async def after_its_sql(ctx: AsyncContext, url: str) -> str:
    """Is stopped with its transaction open."""
    await ctx.sql.execute(text(INSERT.format(f"attempt {ctx.attempt}")))
    stop_once(ctx)
    return f"attempt {ctx.attempt}"


@action("in-its-own", retry=RETRY, catalogue=catalogue)
def in_its_own(ctx: Context, url: str) -> str:
    """Is stopped with the statement in its hands that commits its own transaction."""
    written = f"attempt {ctx.attempt}"
    on_sqlite = url.startswith("sqlite")
    statement: Any = ctx.completion_statement(written, style="?" if on_sqlite else "%s")
    stop_once(ctx)
    connection: Any = sqlite3.connect(url.removeprefix("sqlite:///")) if on_sqlite else psycopg.connect(url)
    with closing(connection):
        connection.execute(INSERT.format(written))
        try:
            connection.execute(statement.sql, statement.parameters)
        except Exception as error:
            print(f"commit: {type(error).__name__}", flush=True)
        connection.commit()  # careless: the statement may have failed
    return written


def watch_commits() -> None:
    """Has what goes wrong in the engine's own commits printed."""
    commit = SqlWork.commit

    def watched(self: SqlWork, *given: Any) -> None:
        try:
            commit(self, *given)
        except BaseException as error:
            print(f"commit: {type(error).__name__}", flush=True)
            raise

    SqlWork.commit = watched  # type: ignore[method-assign]


def main(folder: Path, url: str, name: str) -> None:
    """Runs the action, and says how that ended."""
    watch_commits()
    # It is to be stopped in its handler, and not in the middle of a write to the store, whose lock it would hold.
    claiming.POLL_SECONDS = 3600
    with Do(url_of(store_of(folder)), sql=url, catalogue=catalogue) as client:
        client.run(come_to_rest)
        print("told:", client.action(name).invoke(url=url), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
