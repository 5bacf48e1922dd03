"""`dotdo run`: an action or service by name, by the live engine of the store or by one here for the time it takes."""

import difflib
from typing import Any

import click

from dotdo.async_client import AsyncDo
from dotdo.catalogue import Catalogue, split_version
from dotdo.cli.attending import report, user, wait_for_end, with_engine
from dotdo.cli.loading import load_application
from dotdo.cli.output import json_option
from dotdo.cli.parameters import check_parameters, labels_of, read_parameters
from dotdo.cli.previewing import show_preview
from dotdo.cli.settings import Number, WholeNumber, app_option, sql_option, store_option
from dotdo.errors import UnknownName
from dotdo.records import HIGHEST_PRIORITY, LOWEST_PRIORITY, Options, RunKind


@click.command()
@click.argument("name")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE | NAME:=JSON | @FILE | -]...")
@app_option
@store_option
@sql_option
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key and input again is the same run.")
@click.option("--version", type=WholeNumber(min=1), metavar="N", help="Version; also NAME@N.  [default: the newest]")
@click.option("--trail", metavar="TEXT", help="Ties this run to others.")
@click.option(
    "--priority",
    type=WholeNumber(LOWEST_PRIORITY, HIGHEST_PRIORITY),
    metavar="N",
    help=f"From {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}: where runs wait, the higher goes first.  [default: 0]",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label of the run; repeatable.")
@click.option("--wait", type=Number(min=0), metavar="SECONDS", help="Stop waiting after so long (exit code 3).")
@click.option("--preview", is_flag=True, help="Only tell what it would do: nothing is stored, written or sent.")
@json_option
def run(
    name: str,
    parameters: tuple[str, ...],
    app: str,
    store: str,
    sql: tuple[str, ...],
    key: str | None,
    version: int | None,
    trail: str | None,
    priority: int | None,
    labels: tuple[str, ...],
    wait: float | None,
    preview: bool,
    as_json: bool,
) -> int:
    """Run an action or service, wait for its end, and print its result as JSON.

    A parameter is NAME=VALUE: text where the definition takes text, else JSON. NAME:=JSON is always JSON. @FILE and -
    (stdin) read the whole input as a JSON object.

    \b
    dotdo run hello name=Ada
    dotdo run order items:='["tea", "milk"]' express=true
    echo '{"name": "Ada"}' | dotdo run hello -
    dotdo run order items:='["tea"]' --preview
    """
    application = load_application(app)
    bare, pinned = split_version(name)
    if version is not None and pinned not in (None, version):
        raise click.UsageError(f"{name} and --version {version} are two versions; one is needed.")
    definition = find_definition(application.catalogue, bare, version or pinned, app)
    kind: RunKind = "action" if application.catalogue.kind_of(bare) == "action" else "service"
    params = read_parameters(parameters, definition.schema)
    check_parameters(params, parameters, definition.schema)  # refused before the store is opened or made
    options = Options(
        key=key,
        version=definition.version,
        trail=trail,
        priority=priority,
        actor=user(),
        labels=labels_of(labels),
    )
    if preview:
        return show_preview(application, sql, kind, bare, params, options, wait, as_json=as_json)

    async def work(client: AsyncDo) -> int:
        handle = await client.accept(kind, bare, params, client.options(options), lambda ended: ended)
        return report(await wait_for_end(client, handle.id, wait, quiet=as_json), as_json=as_json)

    return with_engine(application, store, sql, work)


def find_definition(catalogue: Catalogue, name: str, version: int | None, app: str) -> Any:
    """The action or service of that name and version. Raises UnknownName, with what is near."""
    kind = catalogue.kind_of(name)
    if kind is not None:
        return catalogue.get(kind, name, version)
    names = sorted({definition.name for kind in ("action", "service") for definition in catalogue.all(kind)})
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    else:
        hint = f"It defines {', '.join(names[:20])}." if names else "It defines none."
    raise UnknownName(f"{app} defines no action or service {name!r}. {hint}")
