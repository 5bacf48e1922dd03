"""Restate: one server, which flushes its log in groups before it acknowledges (its default; said once more when it is
started); the handlers in a process of its Python SDK, served by granian, the fastest of the servers it supports.

Called over HTTP by a client that does as little as possible. CPU is that of client, worker and server together.
"""

import asyncio
import itertools
import json
import time
import urllib.error
import urllib.request
from typing import Any

from benchmarks import handlers
from benchmarks.peers.measuring import Plan, real, trivial


class Connections:
    """Keep-alive connections to the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, value: Any) -> Any:
        """Posts JSON and returns the answer's."""
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps(value).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if "content-length:" in answer:
            content = await reader.readexactly(int(answer.split("content-length:")[1].split("\r\n")[0]))
        else:
            content = await _chunks(reader)
        self._free.append((reader, writer))
        if int(answer.split(" ", 2)[1]) >= 300:
            raise RuntimeError(f"The server answered {answer.splitlines()[0]}: {content[:300]!r}")
        return json.loads(content)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    content = b""
    while size := int(await reader.readline(), 16):
        content += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return content


async def measured(plan: dict[str, Any], ports: dict[str, int]) -> dict[str, Any]:
    """ports: ingress, admin and worker."""
    the_plan, numbers = Plan(**plan), itertools.count(1)
    _register(ports["admin"], ports["worker"])
    connections = Connections(ports["ingress"])

    async def onboard(_: int) -> None:
        answer = await connections.post(f"/Onboarding/run{next(numbers)}/run", handlers.EMAIL)
        assert answer["sales"]["sent"]

    async def act(_: int) -> None:
        await connections.post("/Single/create", handlers.EMAIL)

    async def onboard_for_real(_: int) -> None:
        number = next(numbers)
        answer = await connections.post(f"/OnboardingForReal/run{number}/run_for_real", number)
        assert answer["customer_id"]

    await _until_it_answers(onboard)
    found = {"onboarding": await trivial(onboard, act, the_plan)}
    return {**found, "real": await real(onboard_for_real, the_plan), "memory": the_plan.memory()}


def _register(admin: int, worker: int) -> None:
    body = json.dumps({"uri": f"http://127.0.0.1:{worker}", "force": True}).encode()
    address = f"http://127.0.0.1:{admin}/deployments"
    end = time.monotonic() + 60
    while True:
        request = urllib.request.Request(address, body, {"content-type": "application/json"}, method="POST")
        try:
            urllib.request.urlopen(request, timeout=5).close()  # noqa: S310 - an http address of our own
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


async def _until_it_answers(onboard: Any) -> None:
    for _ in range(200):
        try:
            return await onboard(0)
        except (RuntimeError, OSError):
            await asyncio.sleep(0.05)
    raise RuntimeError("The server did not run the workflow within 10 s.")
