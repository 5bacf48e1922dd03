"""`dotdo serve` and `dotdo dev`: the application's actions and services over HTTP."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from dotdo.async_client import AsyncDo
from dotdo.cli.attending import GRACE
from dotdo.cli.loading import Application, load_application
from dotdo.cli.logs import configure, log_option
from dotdo.cli.output import mark, say
from dotdo.cli.settings import WholeNumber, app_option, databases, sql_option, store_option
from dotdo.cli.watching import WATCHED_BY, watch_and_run
from dotdo.errors import DefinitionError
from dotdo.keys import Rate, read_rate

host_option = click.option(
    "--host", envvar="DOTDO_HOST", default="127.0.0.1", show_default=True, help="Address to listen on."
)
port_option = click.option(
    "--port",
    envvar="DOTDO_PORT",
    default=8787,
    show_default=True,
    type=WholeNumber(0, 65535),
    help="Port; 0 takes a free one.",
)


@click.command("serve")
@app_option
@store_option
@sql_option
@host_option
@port_option
@click.option("--open", "open_access", is_flag=True, help="Ask for no API key; on this machine only.")
@click.option(
    "--rate",
    envvar="DOTDO_RATE",
    metavar="RATE",
    help="How many requests an API key may make that has no rate of its own: 100/s, 600/m.  [default: any number]",
)
@log_option
def serve(
    app: str,
    store: str,
    sql: tuple[str, ...],
    host: str,
    port: int,
    open_access: bool,
    rate: str | None,
    log_format: str | None,
) -> None:
    """Serve the application's actions and services over HTTP, with an engine in this process.

    Clients need an API key: `dotdo keys create`. On SIGTERM or Ctrl-C requests in flight are answered and the engine
    drains; what is left goes on at the next start.
    """
    application = load_application(app)
    configure(log_format)
    of_keys = None if rate is None else read_rate(rate)
    _run(_serve(application, store, sql, host, port, open_access=open_access, rate=of_keys))


def _run(main: Coroutine[Any, Any, None]) -> None:
    """On uvloop if it is there, which sends an answer at once and with less work."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def _serve(
    application: Application,
    store: str,
    sql: tuple[str, ...],
    host: str,
    port: int,
    *,
    open_access: bool,
    rate: Rate | None,
) -> None:
    try:
        from dotdo.server.listening import serve as listen
    except ModuleNotFoundError as error:
        raise DefinitionError(
            f"Serving over HTTP needs more packages ({error}): pip install 'dotdo[server]'."
        ) from None

    def on_ready(url: str) -> None:
        names = [each.name for kind in ("action", "service") for each in application.catalogue.all(kind)]
        say(f"{mark('✓', '+')} Serving {len(set(names))} actions and services of {application.where} at {url}")
        say(f"  Try: curl {url}/v1/actions" + ("" if open_access else " -H 'Authorization: Bearer do_...'"))
        if open_access:
            say(f"  Read: {url}/reference")

    def on_signal(number: int, again: bool) -> None:
        if again:
            os._exit(128 + number)  # which loses nothing: what was accepted goes on at the next start
        say(f"Stopping: requests and attempts in flight are given {GRACE:g} s to end; the same again stops at once.")

    until = asyncio.Event()
    watching = asyncio.create_task(_end_with_watcher(until))
    async with AsyncDo(
        store,
        sql=databases(sql),
        resources=application.resources,
        catalogue=application.catalogue,
        secrets=application.secrets,
        grace=GRACE,
        workers=True,
    ) as client:
        await listen(
            client,
            host=host,
            port=port,
            open_access=open_access,
            rate=rate,
            on_ready=on_ready,
            until=until,
            on_signal=on_signal,
        )
    watching.cancel()
    say("Stopped in order.")


async def _end_with_watcher(until: asyncio.Event) -> None:
    """Under `dotdo dev`: stops when that has been killed, so that nobody is left with the port."""
    watcher = os.environ.get(WATCHED_BY)
    while watcher is not None and os.getppid() == int(watcher):  # noqa: ASYNC110  # nobody tells of that
        await asyncio.sleep(1)
    if watcher is not None:
        until.set()


@click.command("dev")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@app_option
@store_option
@sql_option
@port_option
@log_option
def dev(file: str | None, app: str, store: str, sql: tuple[str, ...], port: int, log_format: str | None) -> None:
    """Serve the application while you write it: without API keys, on this machine only, and restarted whenever a Python
    file beside it changes. Each run is replayed at once, to find services that would not replay.
    """
    app = file or app
    folder = Path(app).absolute().parent if app.endswith(".py") or "/" in app else Path.cwd()
    command = [sys.executable, "-m", "dotdo", "serve", "--open", "--app", app, "--store", store, "--port", str(port)]
    for url in sql:
        command += ["--sql", url]
    if log_format is not None:
        command += ["--log", log_format]
    os.environ.setdefault("DOTDO_DEV", "1")
    watch_and_run(folder, command, patience=2 * GRACE + 5)
