"""Thousands of long-polls do not stop the API, and readers of streams who never read cost it little."""

import asyncio
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.process import Serving, serving

APPLICATION = """
from dotdo import Catalogue, action, publish, service, wait_for_event

catalogue = Catalogue()

@action("greet", catalogue=catalogue)
async def greet(name: str) -> str:
    return f"Hello, {name}"

@service("waits", catalogue=catalogue)
async def waits() -> str:
    return await wait_for_event("go")

@service("tells", catalogue=catalogue)
async def tells(times: int, size: int) -> None:
    for number in range(times):
        publish({"number": number, "text": "x" * size})
        await greet(name=str(number))
"""
POLLS, READERS = 10_000, 40
LOOPBACKS = [f"127.0.0.{number}" for number in range(2, 6)]  # one has not ports enough on some systems
PATIENCE = 90.0


@pytest.fixture
def many_files() -> Iterator[None]:
    """Sockets are files; the limit is raised for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 30_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Connections:
    """Connections to the server, on which requests are sent."""

    def __init__(self, server: Serving, key: str) -> None:
        self._port, self._key = int(server.url().rpartition(":")[2]), key
        self.open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, method: str, path: str, *headers: str, body: str = "", limit: int = 4096) -> Any:
        """Sends a request on a connection of its own. limit: bytes that are read ahead."""
        address = (LOOPBACKS[len(self.open) % len(LOOPBACKS)], 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=address, limit=limit)
        self.open.append((reader, writer))
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self._key}", *headers]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        return reader

    def close(self) -> None:
        """Hangs up, everywhere."""
        for _, writer in self.open:
            writer.transport.abort()


def _start(http: Any, service: str, **params: Any) -> str:
    headers = {"Prefer": "respond-async"}
    return http.post(f"/v1/services/{service}/execute", json={"params": params}, headers=headers).json()["id"]


def _in_flight(http: Any) -> int:
    lines = http.get("/metrics").text.splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("dotdo_http_requests_in_flight")))


def test_ten_thousand_long_polls_do_not_stop_the_api(tmp_path: Path, many_files: None):
    with serving(tmp_path, APPLICATION, "--app", "app.py") as server:
        key = server.key("*")
        with server.http(key) as http:
            alone = _seconds(http)
            id = _start(http, "waits")
            seconds = asyncio.run(_poll(server, key, http, id))
            memory = psutil.Process(server.process.pid).memory_info().rss / 2**20
    assert seconds < max(5.0, 20 * alone), f"alone {alone:.3f} s, beside the polls {seconds:.3f} s"
    assert memory < 1024


async def _poll(server: Serving, key: str, http: Any, id: str) -> float:
    """Has so many wait for the run; returns how long an execution takes beside; then all are answered."""
    polls = Connections(server, key)
    try:
        for start in range(0, POLLS, 200):
            asked = (polls.ask("GET", f"/v1/runs/{id}", "Prefer: wait=60") for _ in range(min(200, POLLS - start)))
            await asyncio.gather(*asked)
        until = time.monotonic() + PATIENCE
        while await asyncio.to_thread(_in_flight, http) < POLLS:
            assert time.monotonic() < until
        seconds = await asyncio.to_thread(_seconds, http)
        assert await asyncio.to_thread(_in_flight, http) > POLLS, "they were all waiting meanwhile"
        http.post(f"/v1/runs/{id}/events", json={"name": "go", "value": "gone"})
        answers = await asyncio.wait_for(
            asyncio.gather(*(reader.readuntil(b'"status":"completed"') for reader, _ in polls.open)), PATIENCE
        )
        assert len(answers) == POLLS
        return seconds
    finally:
        polls.close()


def _seconds(http: Any) -> float:
    """The median of some executions."""
    found: list[float] = []
    for _ in range(15):
        before = time.perf_counter()
        assert http.post("/v1/actions/greet/execute", json={"params": {"name": "Ada"}}).status_code == 200
        found.append(time.perf_counter() - before)
    return sorted(found)[7]


def test_readers_who_never_read_cost_bounded_memory(tmp_path: Path):
    with serving(tmp_path, APPLICATION, "--app", "app.py") as server:
        key = server.key("*")
        process = psutil.Process(server.process.pid)
        with server.http(key) as http:
            id = _start(http, "tells", times=400, size=16_000)  # a journal of more than 6 MB
            ended = http.get(f"/v1/runs/{id}", headers={"Prefer": "wait=60"}).json()
            assert ended["status"] == "completed", ended["error"]
            http.get(f"/v1/runs/{id}/stream")
            before = process.memory_info().rss
            asyncio.run(_never_read(server, key, http, id))
            grown = (process.memory_info().rss - before) / 2**20
            assert _seconds(http) < 5.0
    # All that they asked for would be 240 MB.
    assert grown < 120, f"{READERS} readers: {grown:.0f} MiB"


async def _never_read(server: Serving, key: str, http: Any, id: str) -> None:
    streams = Connections(server, key)
    try:
        readers = [await streams.ask("GET", f"/v1/runs/{id}/stream", limit=1024) for _ in range(READERS)]
        for reader in readers:
            await reader.readuntil(b"\r\n\r\n")  # it has begun
        for _ in range(3):
            await asyncio.to_thread(_seconds, http)
        assert await asyncio.to_thread(_in_flight, http) == READERS + 1, "none of them is at its end"
    finally:
        streams.close()
