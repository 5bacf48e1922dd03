"""Restate: one server as it comes, which flushes its log before it acknowledges, in groups; the handlers in a process
of its Python SDK, served by granian, the fastest of the servers it supports.

Called over HTTP by a client that does as little as possible. CPU is that of client, worker and server together.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks import handlers
from benchmarks.driving import STEPS, device_flushes, in_flight, latency, one_at_a_time
from benchmarks.processes import ROOT, scratch

INGRESS, ADMIN, WORKER = 8080, 9070, 9080
_numbers = itertools.count(1)


class Connections:
    """Keep-alive connections to the server."""

    def __init__(self) -> None:
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, value: Any) -> Any:
        """Posts JSON and returns the answer's."""
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", INGRESS)
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


async def measured(runs: int, server: str) -> dict[str, Any]:
    """Latencies, then floods at two levels, of which the better one counts."""
    with scratch() as folder:
        processes = _start(server, folder)
        try:
            _register()
            return await _measure(runs, processes)
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)  # granian's worker is a child that would outlive it
                process.wait()


def _start(server: str, folder: Path) -> list["subprocess.Popen[bytes]"]:
    log = (folder / "log").open("wb")
    environment = {
        **os.environ,
        "RESTATE_LOG_FILTER": "error",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }
    granian = [str(Path(sys.executable).parent / "granian"), "--interface", "asgi", "--http", "2", "--no-access-log"]
    granian += ["--log-level", "error", "--host", "127.0.0.1", "--port", str(WORKER)]
    serve = [server, "--base-dir", str(folder / "data"), "--node-name", "n1", "--bind-ip", "127.0.0.1"]
    return [
        subprocess.Popen(serve, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True),
        subprocess.Popen(
            [*granian, "benchmarks.peers.restate_handlers:app"],
            env=environment,
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ),
    ]


def _register() -> None:
    body = json.dumps({"uri": f"http://127.0.0.1:{WORKER}", "force": True}).encode()
    address = f"http://127.0.0.1:{ADMIN}/deployments"
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


async def _measure(runs: int, processes: list["subprocess.Popen[bytes]"]) -> dict[str, Any]:
    connections = Connections()

    async def onboard(_: int) -> None:
        answer = await connections.post(f"/Onboarding/{os.getpid()}-{next(_numbers)}/run", handlers.EMAIL)
        assert answer["sales"]["sent"]

    async def act(_: int) -> None:
        await connections.post("/Single/create", handlers.EMAIL)

    await _until_it_answers(onboard)
    await one_at_a_time(onboard, 30)
    before = device_flushes()
    alone = await one_at_a_time(onboard, 300)
    flushes = (device_flushes() - before) / 300
    single = await one_at_a_time(act, 300)
    found: list[dict[str, float]] = []
    for limit in (50, 500):
        cpu = _cpu(processes)
        seconds = await in_flight(onboard, runs, limit)
        cpu = _cpu(processes) - cpu
        found.append({"runs_per_second": runs / seconds, "cpu_per_1000_steps": cpu / (runs * STEPS) * 1000})
    best = max(found, key=lambda one: one["runs_per_second"])
    return {**best, "onboarding": latency(alone), "action": latency(single), "flushes": flushes}


async def _until_it_answers(onboard: Any) -> None:
    for _ in range(200):
        try:
            return await onboard(0)
        except (RuntimeError, OSError):
            await asyncio.sleep(0.05)
    raise RuntimeError("The server did not run the workflow within 10 s.")


def _cpu(processes: list["subprocess.Popen[bytes]"]) -> float:
    cpu = time.process_time()
    for process in processes:
        family = psutil.Process(process.pid)
        for one in [family, *family.children(recursive=True)]:
            times = one.cpu_times()
            cpu += times.user + times.system
    return cpu
