"""The HTTP API: executions of one action per second at 64 connections, latency at one, and memory when idle.

`dotdo serve` as a user starts it, with an API key, a store on the disk and its log in a file; a load generator in
another process. Each request is a run of its own: accepted, journaled, flushed, answered with its result. Beside it a
bare endpoint of the same stack (Starlette on uvicorn), which reads a JSON body and answers, under the same load: what
is above it is dotdo's.
"""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Figure, at_least, at_most, median
from benchmarks.processes import ROOT, Failed, environment, measure, scratch
from benchmarks.scale import Scale

CONNECTIONS = 64
BODY = '{"params":{"email":"ada.lovelace@example.com"}}'
WITHIN_SECONDS = 30


class Server:
    """A server that runs, and what is asked of it."""

    def __init__(self, process: psutil.Process, port: int, key: str) -> None:
        self.process, self._port = process, port
        self._request = (
            f"POST /v1/actions/create-user/execute HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
        )

    def load(self, connections: int, requests: int) -> dict[str, float]:
        """What the load generator found, and the server's CPU per request, in ms."""
        before = self.process.cpu_times()
        arguments = {"host": "127.0.0.1", "port": self._port, "request": self._request}
        found = measure("benchmarks.http_load:load", connections=connections, requests=requests, **arguments)
        after = self.process.cpu_times()
        found["server"] = (after.user + after.system - before.user - before.system) / requests * 1000
        return found

    def resident(self) -> float:
        """MiB."""
        return self.process.memory_info().rss / 2**20


@contextlib.contextmanager
def dotdo() -> Iterator[Server]:
    """`dotdo serve`, and a key for it."""
    with scratch() as folder:
        store = f"sqlite:///{folder / 'dotdo.db'}"
        keys = [sys.executable, "-m", "dotdo", "keys", "create", "load", "--scope", "actions:execute:*"]
        made = subprocess.run([*keys, "--store", store], env=environment(), cwd=ROOT, capture_output=True, text=True)
        if made.returncode != 0:
            raise Failed(made.stderr)
        command = [sys.executable, "-m", "dotdo", "serve", "--app", "benchmarks.jobs", "--store", store, "--port", "0"]
        with running(command, folder) as (process, port):
            yield Server(process, port, f"Authorization: Bearer {made.stdout.strip()}\r\n")


@contextlib.contextmanager
def floor() -> Iterator[Server]:
    """The bare endpoint."""
    with scratch() as folder, running([sys.executable, "-m", "benchmarks.http_floor"], folder) as (process, port):
        yield Server(process, port, "")


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A process that tells on its output at which address it listens."""
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=file, stderr=file)
    try:
        until = time.monotonic() + WITHIN_SECONDS
        while not (found := re.search(r"at http://127\.0\.0\.1:(\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > until:
                raise Failed(log.read_text()[-3000:])
            time.sleep(0.02)
        yield psutil.Process(process.pid), int(found[1])
    finally:
        process.kill()
        process.wait()


def _measured(server: Server, requests: int) -> dict[str, Any]:
    server.load(CONNECTIONS, max(100, requests // 10))  # warm
    idle = server.resident()
    return {"idle": idle, "flood": server.load(CONNECTIONS, requests), "alone": server.load(1, requests // 10)}


def figures(scale: Scale) -> list[Figure]:
    """Ours and the bare endpoint, in turns."""
    requests = scale.of(6000)
    ours: list[dict[str, Any]] = []
    bare: list[dict[str, Any]] = []
    for _ in range(scale.repetitions):
        for open_server, found in ((dotdo, ours), (floor, bare)):
            with open_server() as server:
                found.append(_measured(server, requests))

    def of(found: list[dict[str, Any]], what: str, which: str) -> list[float]:
        return [one[what][which] for one in found]

    bare_cpu = of(bare, "flood", "server")
    note = f"of them {sum(bare_cpu) / len(bare_cpu):.3f} ms what the bare endpoint takes"
    load = of(ours, "flood", "cpu")
    return [
        median(f"executions at {CONNECTIONS} connections", of(ours, "flood", "rate"), "1/s", at_least(2500)),
        median("p50 of these", of(ours, "flood", "p50"), "ms"),
        median("p99 of these", of(ours, "flood", "p99"), "ms"),
        median("the server's CPU for one", of(ours, "flood", "server"), "ms", note=note),
        median("the load generator's CPU for one", [one / requests * 1000 for one in load], "ms"),
        median("bare endpoint: requests", of(bare, "flood", "rate"), "1/s"),
        median("one at a time, p50", of(ours, "alone", "p50"), "ms", at_most(2)),
        median("one at a time, p99", of(ours, "alone", "p99"), "ms"),
        median("bare endpoint: one at a time, p50", of(bare, "alone", "p50"), "ms"),
        median("resident when idle, with the API", [one["idle"] for one in ours], "MiB", at_most(80)),
    ]
