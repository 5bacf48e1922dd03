"""`dotdo nodes`: the processes that run engines on a store."""

from contextlib import closing

import click

from dotdo.cli.output import Span, clock_time, json_option, print_json, print_table, say
from dotdo.cli.settings import store_option
from dotdo.clock import duration
from dotdo.embedding import engine_on, open_reader, open_shared, postgres_url
from dotdo.records import Node

MOST = 4  # definitions that are named; more are counted


@click.command("nodes")
@store_option
@json_option
def nodes(store: str, as_json: bool) -> int:
    """List the processes that run engines on the store, with what they define and how many runs they have.

    A file has one engine; on PostgreSQL each process that opens the store is a node. Exit code 1 when there is none.
    """
    url = postgres_url(store)
    if url is None:
        open_reader(store).close()  # raises when there is no store
        holder = engine_on(store)
        if as_json:
            print_json([] if holder is None else [{"engine": holder}])
        else:
            say(f"One engine: {holder}." if holder else "No process runs an engine on this store now.")
        return 0 if holder else 1
    with closing(open_shared(url, migrates=False)) as opened:
        found = opened.list_nodes()
    if as_json:
        print_json(found)
    elif found:
        print_table(["NODE", "PROCESS", "SINCE", "LEASE", "RUNS", "DEFINES"], [_row(node) for node in found])
    else:
        say("No process runs an engine on this store now.")
    return 0 if found else 1


def _row(node: Node) -> list[Span]:
    names = [offer.partition(" ")[2].removesuffix("@1") for offer in node.offers]
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    is_late = node.lease <= 0
    return [
        (node.id, "bold"),
        (f"{node.pid} on {node.host}", ""),
        (clock_time(node.started_at), ""),
        ("over: its runs are about to go on elsewhere" if is_late else duration(node.lease), "red" if is_late else ""),
        (f"{node.runs}", ""),
        (", ".join(names[:MOST]) + more, "dim"),
    ]
