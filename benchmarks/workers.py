"""What it adds to an execution that its handler is in a worker: another process, reached by long-polls over HTTP.

The same requests, one at a time and at 64 connections, to a server that runs the handler itself, and to one that has it
run by `dotdo worker`. A bar is set for the difference of the two medians at one.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.figures import Figure, at_most, median
from benchmarks.http import CONNECTIONS, WITHIN_SECONDS, Server, dotdo, running
from benchmarks.processes import ROOT, Failed, environment, scratch
from benchmarks.scale import Scale


@contextlib.contextmanager
def with_worker() -> Iterator[Server]:
    """A server that does not define what is asked of it, and a worker that does."""
    with scratch() as folder:
        store = f"sqlite:///{folder / 'dotdo.db'}"
        python = [sys.executable, "-m", "dotdo"]
        command = [*python, "serve", "--open", "--app", "benchmarks.elsewhere", "--store", store, "--port", "0"]
        with running(command, folder) as (process, port):
            log = folder / "worker.log"
            command = [*python, "worker", "--app", "benchmarks.jobs", "--url", f"http://127.0.0.1:{port}"]
            with log.open("wb") as file:
                worker = subprocess.Popen(
                    [*command, "--concurrency", "64"], env=environment(), cwd=ROOT, stdout=file, stderr=file
                )
            try:
                until = time.monotonic() + WITHIN_SECONDS
                while "actions of" not in log.read_text():
                    if worker.poll() is not None or time.monotonic() > until:
                        raise Failed(log.read_text()[-3000:])
                    time.sleep(0.02)
                yield Server(process, port, "")
            finally:
                worker.kill()
                worker.wait()


def _measured(server: Server, requests: int) -> dict[str, Any]:
    server.load(CONNECTIONS, max(100, requests // 10))  # warm
    return {"flood": server.load(CONNECTIONS, requests), "alone": server.load(1, requests // 5)}


def figures(scale: Scale) -> list[Figure]:
    """Handlers here and there, in turns."""
    requests = scale.of(2000)
    here: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    for _ in range(scale.repetitions):
        for open_server, found in ((dotdo, here), (with_worker, there)):
            with open_server() as server:
                found.append(_measured(server, requests))
    added = [far["alone"]["p50"] - near["alone"]["p50"] for near, far in zip(here, there, strict=True)]
    return [
        median("a worker adds to one at a time, p50", added, "ms", at_most(3)),
        median("in the server, one at a time, p50", [one["alone"]["p50"] for one in here], "ms"),
        median("in a worker, one at a time, p50", [one["alone"]["p50"] for one in there], "ms"),
        median("in a worker, one at a time, p99", [one["alone"]["p99"] for one in there], "ms"),
        median(f"in a worker, executions at {CONNECTIONS} connections", [o["flood"]["rate"] for o in there], "1/s"),
    ]
