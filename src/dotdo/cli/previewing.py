"""`dotdo run --preview`: what a run would do, without a store, so also beside a live application."""

import asyncio
import logging
from typing import Any

from dotdo.cli.loading import Application
from dotdo.cli.output import print_json, print_lines
from dotdo.cli.settings import databases
from dotdo.embedding import open_previewer
from dotdo.preview import page
from dotdo.records import Options, RunKind


def show_preview(
    application: Application,
    sql: tuple[str, ...],
    kind: RunKind,
    name: str,
    params: dict[str, Any],
    options: Options,
    seconds: float | None,
    *,
    as_json: bool,
) -> int:
    """Prints a preview and returns the exit code: 0 when the run would complete."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    async def look() -> int:
        opened = open_previewer(
            sql=databases(sql),
            resources=application.resources,
            catalogue=application.catalogue,
            secret_sources=application.secrets,
        )
        async with opened as previewer:
            found = await previewer.preview(kind, name, params, options, seconds)
        if as_json:
            print_json(found)
        else:
            print_lines(page(found))
        return 0 if found.status == "completed" else 1

    return asyncio.run(look())
