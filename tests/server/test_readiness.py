"""`/readyz` tells whether runs can be accepted now, also while it starts or its store is full or locked; `/healthz`
that the process lives."""

import asyncio
import resource
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from dotdo.server import readiness
from dotdo.server.app import make_app
from tests.patience import PATIENCE
from tests.server.process import serving as process
from tests.server.running import Running
from tests.server.test_mounted import serving as uvicorn_serving

APPLICATION = """
from dotdo import action

@action("note")
async def note(text: str) -> str:
    return text
"""


def until_ready(url: str, ready: bool) -> httpx2.Response:
    """The first answer that says so."""
    until = time.monotonic() + PATIENCE
    while (response := httpx2.get(f"{url}/readyz", timeout=PATIENCE)).status_code != (200 if ready else 503):
        assert time.monotonic() < until, response.text
    return response


def is_alive(url: str) -> bool:
    return httpx2.get(f"{url}/healthz", timeout=PATIENCE).json() == {"status": "ok"}


def test_server_whose_platform_still_opens_lives_and_is_not_ready(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(readiness, "KEPT_SECONDS", 0.0)
    gate, opened = asyncio.Event(), []

    class Platform:
        async def check(self) -> None:
            return

    async def open_platform() -> Any:
        opened.append(asyncio.get_running_loop())
        await gate.wait()
        return Platform()

    with uvicorn_serving(make_app(open_platform, open_access=True), lifespan="off") as url:
        refused = until_ready(url, False)
        assert (refused.json()["code"], refused.headers["retry-after"]) == ("not_ready", "1")
        assert is_alive(url)
        assert len(opened) == 1, "one asks, the others wait with it"
        opened[0].call_soon_threadsafe(gate.set)
        until_ready(url, True)


def test_full_disk_is_told_and_so_is_space(tmp_path: Path):
    """The process may not write to its files beyond their first bytes, as on a full disk; then it may again."""
    with process(tmp_path, APPLICATION, "--open") as serve:
        url = serve.url()
        until_ready(url, True)
        server = psutil.Process(serve.process.pid)
        server.rlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        refused = until_ready(url, False)
        assert refused.json()["code"] == "not_ready"
        assert "disk" not in refused.text, "why is for the log"
        assert is_alive(url)
        accepted = httpx2.post(f"{url}/v1/actions/note/execute", json={"params": {"text": "x"}}, timeout=PATIENCE)
        assert (accepted.status_code, accepted.headers["retry-after"]) == (503, "1"), "readiness told the truth"
        assert "not ready: " in serve.said("not ready: ")
        server.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until_ready(url, True)
        accepted = httpx2.post(f"{url}/v1/actions/note/execute", json={"params": {"text": "x"}}, timeout=PATIENCE)
        assert accepted.json()["result"] == "x"


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin immediate")
print("locked", flush=True)
sys.stdin.read()
"""


def test_store_that_somebody_else_has_locked_is_told(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "PATIENCE_SECONDS", 0.2)
    assert sqlite3.sqlite_version
    command = [sys.executable, "-c", LOCK, str(tmp_path / "dotdo.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        until_ready(server.url, False)
        assert is_alive(server.url)
        other.stdin.close()
    until_ready(server.url, True)


def test_engine_that_takes_nothing_more_is_not_ready(server: Running):
    engine = server.call(server.client.platform())
    until_ready(server.url, True)
    engine.draining = True
    until_ready(server.url, False)
    engine.draining = False
    until_ready(server.url, True)


def test_many_who_ask_cost_one_write_a_second(server: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readiness, "PATIENCE_SECONDS", PATIENCE)
    engine = server.call(server.client.platform())
    writes: list[str] = []
    touch = engine.store.touch

    def counted(node: str) -> None:
        writes.append(node)
        touch(node)

    engine.store.touch = counted
    began = time.monotonic()
    with httpx2.Client(base_url=server.url, timeout=PATIENCE) as http:
        assert {http.get("/readyz").status_code for _ in range(100)} == {200}
    assert 1 <= len(writes) <= 2 + time.monotonic() - began
