"""Nodes in processes of their own: how a module is the program of one, and how a test has it run.

The program says `ready`, and goes on until its input ends, or it is killed.
"""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dotdo import AsyncDo
from dotdo.engine.engine import Engine
from tests.guarantees.ledger import ROOT
from tests.stores import hurry


def be_node(
    client: Callable[..., AsyncDo], *, prepare: Callable[[Engine], None] | None = None, level: int = logging.WARNING
) -> None:
    """The whole program. client: makes it from the command's arguments. level: of what is logged to stderr."""
    logging.basicConfig(level=level)
    hurry()
    asyncio.run(_run(client(*sys.argv[1:]), prepare))


async def _run(client: AsyncDo, prepare: Callable[[Engine], None] | None) -> None:
    async with client:
        engine = await client.platform()
        assert isinstance(engine, Engine)
        if prepare is not None:
            prepare(engine)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


@contextmanager
def node_process(module: str, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """A node whose program is a module of this folder, once it is ready; it is killed at the end."""
    command = [sys.executable, "-m", f"tests.guarantees.{module}", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
