"""`dotdo check`: which runs in flight would block with this code, and why. To be asked before the code is deployed."""

import click

from dotdo.cli.audit import counted
from dotdo.cli.loading import load_application
from dotdo.cli.output import Span, json_option, mark, print_json, print_lines, say
from dotdo.cli.settings import app_option, store_option
from dotdo.embedding import open_reader, vault_of
from dotdo.engine.foreseeing import Outlook, foresee


@click.command(short_help="Which runs in flight would block with this code.")
@click.argument("file", required=False, metavar="[APP]")
@app_option
@store_option
@click.option("--against", metavar="PATH", help="The store whose runs are looked at; the same as --store.")
@json_option
def check(file: str | None, app: str, store: str, against: str | None, as_json: bool) -> int:
    """Replay every unfinished run of a store against the code in APP, and tell which would block, and why.

    Nothing is run, sent or written, and an engine may be at work on the store. Exit code 1 when any would block. What a
    run does after the point where it stands now cannot be told.
    """
    application = load_application(file or app)
    chosen = against or store
    reader = open_reader(chosen)
    try:
        found = list(foresee(reader, application.catalogue, vault_of(chosen)))
    finally:
        reader.close()
    would = [one for one in found if one.reason]
    if as_json:
        print_json({"runs": len(found), "would_block": would, "would_go_on": [one for one in found if not one.reason]})
        return 1 if would else 0
    print_lines([line for one in would for line in _lines(one)])
    mended = sum(one.blocked for one in found if not one.reason)
    if mended:
        say(f"{counted(mended, 'blocked run', 'blocked runs')} would go on with this code when retried.")
    looked = counted(len(found), "unfinished run", "unfinished runs")
    if would:
        say(f"{mark('✗', 'x')} {len(would):,} of {looked} would block with {application.where}.")
    else:
        say(f"{mark('✓', '+')} {looked} would go on with {application.where}, none would block.")
    return 1 if would else 0


def _lines(one: Outlook) -> list[list[Span]]:
    now = "blocked now, and would stay so" if one.blocked else f"{one.status}, would block"
    return [
        [(one.run, "bold"), (f"  {one.name}@{one.version}  ", ""), (f"{now}: {one.reason}", "red")],
        [("    ", ""), (one.text, "dim")],
    ]
