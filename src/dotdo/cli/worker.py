"""`dotdo worker`: the application's handlers, in a process that reaches the platform over HTTP only."""

import asyncio
import os
import signal

import click

from dotdo.cli.loading import Application, load_application
from dotdo.cli.logs import configure, log_option
from dotdo.cli.output import mark, say
from dotdo.cli.settings import WholeNumber, app_option, databases, sql_option
from dotdo.errors import DefinitionError
from dotdo.worker_protocol import Registered


@click.command("worker")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@app_option
@click.option("--url", envvar="DOTDO_URL", required=True, help="The server, such as https://do.example.com.")
@sql_option
@click.option(
    "--concurrency",
    default=10,
    show_default=True,
    type=WholeNumber(1, 10_000),
    help="How many actions run at a time.",
)
@click.option("--name", help="What logs and messages call this worker.  [default: host and process]")
@log_option
def worker(
    file: str | None,
    app: str,
    url: str,
    sql: tuple[str, ...],
    concurrency: int,
    name: str | None,
    log_format: str | None,
) -> None:
    """Run the application's actions and effects for a server. Its services stay on the server.

    The API key comes from DOTDO_API_KEY and needs the scope workers:serve. On SIGTERM or Ctrl-C no more actions are
    taken, those that run may end, and the worker leaves; a second signal ends it at once.
    """
    application = load_application(file or app)
    configure(log_format)
    asyncio.run(_work(application, url, sql, concurrency, name))
    say("Stopped in order.")


async def _work(application: Application, url: str, sql: tuple[str, ...], concurrency: int, name: str | None) -> None:
    try:
        from dotdo.worker.worker import Worker
    except ModuleNotFoundError as error:
        raise DefinitionError(f"A worker needs more packages ({error}): pip install 'dotdo[http]'.") from None

    def on_ready(session: Registered, left_out: list[str]) -> None:
        offers = {f"{each.name}@{each.version}" for each in made.offers.actions}
        names = sorted(offers - {each.removeprefix("action ") for each in session.served_here})
        say(f"{mark('✓', '+')} {made.name} runs {len(names)} actions of {application.where} for {url}: {_some(names)}")
        for each in (
            *left_out,
            *(f"{each}: the server defines it itself, and runs it" for each in session.served_here),
        ):
            say(f"  Not here: {each}")

    made = Worker(
        url,
        os.environ.get("DOTDO_API_KEY") or None,
        catalogue=application.catalogue,
        sql=databases(sql),
        resources=application.resources,
        secrets=application.secrets,
        concurrency=concurrency,
        name=name,
        on_ready=on_ready,
    )
    loop = asyncio.get_running_loop()

    def end() -> None:
        if made.draining:
            made.stop()
        else:
            say("Draining: what runs may end; a second signal ends it at once.")
            made.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await made.run()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
