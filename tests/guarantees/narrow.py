"""A node that has room for few runs, in a process of its own: URL ROOM. It ends with its input.

Its runs stand at gates, files of the test's, and tell a file when they begin and end.
"""

import asyncio
import logging
import sys

from dotdo import AsyncDo
from dotdo.engine.engine import Engine
from tests.guarantees.node import definitions


async def main(url: str, room: str) -> None:
    """Runs the node."""
    async with AsyncDo(url, catalogue=definitions()) as client:
        platform = await client.platform()
        assert isinstance(platform, Engine)
        platform.capacity = int(room)
        print("ready", platform.node, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    from tests.stores import hurry

    hurry()
    asyncio.run(main(*sys.argv[1:]))
