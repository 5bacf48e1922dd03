"""The outside world of the crash tests: a process of its own that acts on requests, honours keys, and remembers all.

Each test has a world of its own in it, named by the test. A request is one line of JSON over TCP, so is its answer.
`python -m tests.guarantees.ledger` serves until its standard input ends; `Ledger` starts that, and asks it.
"""

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).resolve().parents[2]


class Arrival(NamedTuple):
    """One request: to which system, what, under which key, and whether it happened (not so if its key was known)."""

    system: str
    what: str
    key: str
    happened: bool


class Ledger:
    """The ledger's process as a context manager; `address` is how effects find it."""

    address: tuple[str, int]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.guarantees.ledger"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        self.address = ("127.0.0.1", int(self._process.stdout.readline()))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its standard input, which ends it

    def arrivals(self, world: str) -> list[Arrival]:
        """Everything that has arrived in a world, in order."""
        return [Arrival(*one) for one in ask(self.address, {"world": world})]


def act(address: tuple[str, int], world: str, system: str, what: str, key: str, *, honours_keys: bool = True) -> str:
    """Has a system do something; returns its answer, the same one again for the same key if it honours keys."""
    order = {"world": world, "system": system, "what": what, "key": key, "honours_keys": honours_keys}
    return ask(address, order)


def look(address: tuple[str, int], world: str, system: str, key: str) -> str | None:
    """What a system has answered under a key, if it was ever asked under it; it does nothing now."""
    return ask(address, {"world": world, "system": system, "key": key, "looks": True})


def ask(address: tuple[str, int], order: dict[str, Any]) -> Any:
    """One request and its answer."""
    with socket.create_connection(address, timeout=60) as connection, connection.makefile("rwb") as stream:
        stream.write(json.dumps(order).encode() + b"\n")
        stream.flush()
        return json.loads(stream.readline())


class _Worlds:
    """What the process remembers."""

    def __init__(self) -> None:
        self._arrivals: dict[str, list[Arrival]] = {}
        self._answers: dict[tuple[str, str, str], str] = {}

    def answer(self, order: dict[str, Any]) -> Any:
        """Acts, or tells what has arrived."""
        arrivals = self._arrivals.setdefault(order["world"], [])
        if "system" not in order:
            return arrivals
        if "looks" in order:
            return self._answers.get((order["world"], order["system"], order["key"]))
        system, what, key = order["system"], order["what"], order["key"]
        once = (order["world"], system, key)
        known = self._answers.get(once) if order["honours_keys"] else None
        arrivals.append(Arrival(system, what, key, happened=known is None))
        if known is None:
            number = sum(one.system == system and one.happened for one in arrivals)
            known = self._answers[once] = f"{system}-{number}"
        return known


async def serve() -> None:
    """Serves until standard input ends."""
    worlds = _Worlds()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line.endswith(b"\n"):  # a client that was killed while it wrote has asked for nothing
            writer.write(json.dumps(worlds.answer(json.loads(line))).encode() + b"\n")
        writer.close()

    over = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await over.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
