"""A program that drains on SIGTERM: `python -m tests.guarantees.terminated FOLDER async|sync`.

It says, as lines of JSON, what it does; its handlers wait until a line comes on standard input.
"""

import asyncio
import json
import os
import signal
import sys
import threading
from typing import Any

from dotdo import AsyncDo, Catalogue, Do, action, service
from tests.stores import url_of

catalogue = Catalogue()


def say(**what: Any) -> None:
    """One line for the test."""
    os.write(1, json.dumps(what).encode() + b"\n")


@action("wait-for-word", catalogue=catalogue)
def wait_for_word(number: str) -> str:
    say(handler=number)
    sys.stdin.readline()
    say(passed=number)
    return number


@service("two-words", catalogue=catalogue)
async def two_words() -> list[str]:
    return [await wait_for_word(number="one"), await wait_for_word(number="two")]


def tell_of_draining(platform: Any) -> None:
    """Says so when the engine begins to drain."""
    close = platform.close

    async def close_aloud() -> None:
        say(draining=True)
        await close()

    platform.close = close_aloud


async def run_async(store: str) -> None:
    """An application of its own loop."""
    async with AsyncDo(store, catalogue=catalogue, drain_on_sigterm=True) as client:
        tell_of_draining(await client.platform())
        handle = await client.start(two_words.with_(key="one"))
        say(started=handle.id)
        await handle.result()


def run_sync(store: str) -> None:
    """An application without async."""
    with Do(store, catalogue=catalogue, drain_on_sigterm=True) as client:
        tell_of_draining(client._portal.call(client._inner.platform))
        handle = client.start(two_words.with_(key="one"))
        say(started=handle.id)
        handle.result()


if __name__ == "__main__":
    assert threading.current_thread() is threading.main_thread()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    path = url_of(f"{sys.argv[1]}/dotdo.db")
    if sys.argv[2] == "async":
        asyncio.run(run_async(path))
    else:
        run_sync(path)
