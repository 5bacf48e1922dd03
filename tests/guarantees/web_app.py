"""An application for gunicorn: a client at the top of the module, used in every request.

`/run` runs an action and says which process answers and which one ran it; `/slow?KEY` runs a service that stands at a
gate; with EARLY in the environment the client is used while the module is imported, as it must not be before a fork.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dotdo import Catalogue, Context, Do, action, service
from dotdo.errors import DotdoError

catalogue = Catalogue()
FOLDER = Path(os.environ.get("FOLDER", "."))
client = Do(f"sqlite:///{FOLDER}/dotdo.db", catalogue=catalogue, grace=5.0)


@action("where", catalogue=catalogue)
def where() -> int:
    """The process that runs it."""
    return os.getpid()


@action("stand", retry=1, catalogue=catalogue)
def stand(ctx: Context, gate: str) -> int:
    """Says that it is there, and stands at a gate until the test opens it."""
    (FOLDER / f"{gate}.{os.getpid()}").touch()
    with open(FOLDER / gate) as opened:  # a FIFO: returns when the test has written to it, or has closed it
        opened.read()
    return os.getpid()


@service("slow", catalogue=catalogue)
async def slow(gate: str) -> list[int]:
    """One step, and one at a gate."""
    return [await where(), await stand(gate=gate)]


if os.environ.get("EARLY"):
    client.run(where)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For WSGI."""
    try:
        if environ["PATH_INFO"] == "/slow":
            gate = environ["QUERY_STRING"]
            answer: Any = client.run(slow.with_(key=gate), gate)
        else:
            answer = {"worker": os.getpid(), "engine": client.run(where)}
    except DotdoError as error:
        answer = f"{type(error).__name__}: {error.message}"
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
