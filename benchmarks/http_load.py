"""A load generator for HTTP/1.1: keep-alive connections that send one prepared request after another.

It runs in a process of its own and does next to nothing per answer (reads its status and length), so that it is the
server that is measured: against the bare endpoint it needs a sixth of the server's CPU.
"""

import asyncio
import time
from functools import partial
from typing import cast

import uvloop

from benchmarks.driving import latency

LIMIT_SECONDS = 120


class _Connection(asyncio.Protocol):
    """Sends the request again whenever its answer is complete, while there are some left."""

    def __init__(self, request: bytes, left: list[int], over: "asyncio.Future[None]") -> None:
        self._request, self._left, self._over = request, left, over
        self._read = bytearray()
        self._began = 0.0
        self.seconds: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by its type
        self._next()

    def _next(self) -> None:
        if self._left[0] == 0:
            self._over.set_result(None)
            self.transport.close()
            return
        self._left[0] -= 1
        self._began = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._read += data
        end = self._read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._read[:end]).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self._read) < end + 4 + length:
            return
        if not head.startswith(b"http/1.1 200"):
            self._over.set_exception(RuntimeError(f"The server answered {bytes(self._read[:500])!r}"))
            return
        self.seconds.append(time.perf_counter() - self._began)
        self._read.clear()
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._over.done():
            self._over.set_exception(error or ConnectionError("The server has hung up."))


async def _load(host: str, port: int, request: bytes, connections: int, requests: int) -> dict[str, float]:
    loop, left = asyncio.get_running_loop(), [requests]
    made: list[_Connection] = []
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
    before = time.perf_counter()
    for end in ends:
        _, protocol = await loop.create_connection(partial(_Connection, request, left, end), host, port)
        made.append(protocol)
    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.gather(*ends)
    seconds = time.perf_counter() - before
    each = [one for protocol in made for one in protocol.seconds]
    return {"rate": len(each) / seconds, "cpu": time.process_time(), **latency(each)}


def load(host: str, port: int, request: str, connections: int, requests: int) -> dict[str, float]:
    """In a process of its own: so many requests on so many connections. Requests per second, CPU seconds, p50, p99."""
    return uvloop.run(_load(host, port, request.encode(), connections, requests))
