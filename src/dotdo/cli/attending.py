"""Asks the engine of a store for the time of one command, or runs one here if no process does, and waits for a run.

Ctrl-C and SIGTERM drain: attempts in flight are given time to end, and what is left goes on at the next start. A second
signal ends the process at once, which loses nothing either.
"""

import asyncio
import getpass
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from dotdo.async_client import AsyncDo
from dotdo.async_runs import nothing
from dotdo.cli.loading import Application
from dotdo.cli.output import clean, mark, print_json, say, say_error
from dotdo.cli.settings import databases
from dotdo.clock import duration
from dotdo.embedding import engine_on
from dotdo.errors import ActionFailed, RunBlocked, RunCancelled, StillRunning
from dotdo.platform import Platform
from dotdo.records import Run

if TYPE_CHECKING:
    from rich.status import Status

# How long attempts in flight are given after a signal, in seconds.
GRACE = 10.0
# How often the display of a waiting command is brought up to date, in seconds.
REFRESH = 0.5

UNDONE = {"none": "", "all": "; what it had done is undone", "partial": "; what it had done is undone in part"}

Work = Callable[[AsyncDo], Coroutine[Any, Any, int]]


def with_engine(
    application: Application, store: str, sql: tuple[str, ...], work: Work, *, engine: bool | None = None
) -> int:
    """Opens the store, does the work, drains, and returns the work's exit code. Raises StoreError.

    engine: whether one may run here; by default if no other process runs one. Beside a live application a command only
    asks, and never takes over: it may lack what the application was given, such as a database.
    """
    if engine is None:
        engine = engine_on(store) is None
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("dotdo.action").setLevel(logging.INFO)
    logging.getLogger("dotdo.engine").setLevel(logging.ERROR)  # how the run ended is told by `report`
    client = AsyncDo(
        store,
        sql=databases(sql),
        resources=application.resources,
        secrets=application.secrets,
        catalogue=application.catalogue,
        actor=user(),
        grace=GRACE,
        engine=engine,
    )
    return asyncio.run(_attend(client, work))


async def _attend(client: AsyncDo, work: Work) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        if len(caught) > 1:
            os._exit(128 + number)
        say(f"Stopping: attempts in flight are given {GRACE:g} s to end; the same again stops at once.")
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        async with client:
            return await work(client)
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]


async def wait_for_end(client: AsyncDo, id: str, seconds: float | None, *, quiet: bool = False) -> Run:
    """Waits until a run has ended or is blocked, and shows meanwhile what it waits for. Raises StillRunning."""
    platform = await client.platform()
    waiting = asyncio.ensure_future(platform.result(id))
    try:
        async with asyncio.timeout(seconds):
            with _display(quiet) as status:
                while not (await asyncio.wait([waiting], timeout=REFRESH if status else None))[0]:
                    await _refresh(platform, id, status)
        return waiting.result()
    except TimeoutError:
        run = await platform.get(id)
        waits = f"; it waits for {run.waiting_for.text}" if run.waiting_for is not None else ""
        error = StillRunning(
            f"The run {id} had not ended after {seconds:g} s{waits}. It is kept, and goes on while an engine runs on "
            f"this store: start your application, or use `dotdo runs watch {id} --resume`."
        )
        error.run_id = id
        raise error from None
    except asyncio.CancelledError:
        say(f"The run {id} is kept: it goes on while an engine runs on this store.")
        raise
    finally:
        waiting.cancel()


def _display(quiet: bool) -> "AbstractContextManager[Status | None]":
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True, highlight=False).status("running")


async def _refresh(platform: Platform, id: str, status: "Status | None") -> None:
    if status is not None:
        from rich.text import Text

        run = await platform.get(id)
        why = f", waits for {run.waiting_for.text}" if run.waiting_for else ""
        status.update(Text(clean(f"{run.name} {run.status}{why}")))


def report(run: Run, *, as_json: bool) -> int:
    """Prints how a run ended and returns the exit code: 0 when it completed. Raises InvalidOperation when its result
    was erased."""
    if as_json:
        print_json(run)
    took = f" after {duration(run.ended_at - run.created_at)}" if run.ended_at is not None else ""
    if run.status == "completed":
        if not as_json:
            nothing(run)
            print_json(run.result)
        say(f"{mark('✓', '+')} {run.name} completed{took}. More: dotdo runs show {run.id}")
        return 0
    if not as_json:
        say_error(outcome_error(run))
    verb = {"failed": "failed", "cancelled": "was cancelled"}.get(run.status, f"is {run.status}")
    say(f"{run.name} {verb}{took}{UNDONE[run.undo]}. More: dotdo runs show {run.id}")
    return 1


def outcome_error(run: Run) -> ActionFailed | RunBlocked | RunCancelled:
    """What the end of a run that did not complete means to its caller."""
    error = run.error
    if run.status == "failed" and error is not None:
        return ActionFailed(error.action or run.name, error.type, error.message, attempts=error.attempts, run_id=run.id)
    kind = RunBlocked if run.status == "blocked" else RunCancelled
    return kind(error.message if error else run.status)


def user() -> str | None:
    """Who runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return None
