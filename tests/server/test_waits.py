"""Waits end with what they wait for, in time, when the caller has hung up, and when the server stops."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dotdo.server import listening, waits
from dotdo.server.waits import Waits
from tests.server.running import PATIENCE, Running, running


async def never_gone() -> dict[str, str]:
    return await asyncio.get_running_loop().create_future()


def test_wait_gives_what_came_or_none_when_its_time_is_over():
    async def main() -> None:
        here = Waits()
        assert await here.within(never_gone, PATIENCE, asyncio.sleep(0, "came")) == "came"
        assert await here.within(never_gone, 0.01, asyncio.sleep(PATIENCE, "late")) is None
        with pytest.raises(TimeoutError):  # one of the work's own is not ours
            await here.within(never_gone, PATIENCE, _timed_out())
        assert len(here) == 0

    asyncio.run(main())


async def _timed_out() -> None:
    raise TimeoutError


def test_wait_is_over_once_its_caller_has_hung_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waits, "LISTEN_AFTER", 0.0)

    async def main() -> None:
        here, gone = Waits(), asyncio.Event()

        async def receive() -> dict[str, str]:
            gone.set()  # somebody listens
            return {"type": "http.disconnect"}

        assert await here.within(receive, 3600, asyncio.Event().wait()) is None
        assert gone.is_set()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_all_waits_are_over_when_the_server_stops():
    async def main() -> None:
        here = Waits()
        waiting = [asyncio.create_task(here.within(never_gone, 3600, asyncio.Event().wait())) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(here) == 3
        here.end()
        assert await asyncio.gather(*waiting) == [None] * 3
        assert await here.within(never_gone, 3600, asyncio.Event().wait()) is None

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_caller_who_hangs_up_is_not_waited_for(server: Running):
    with server.http() as http:
        id = _waiting_run(http)
        target = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        key = server.key("*")
        target.sendall(
            f"GET /v1/runs/{id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nPrefer: wait=60\r\n\r\n".encode()
        )
        _until_in_flight(http, 2)
        target.close()
        _until_in_flight(http, 1)


def test_server_that_stops_answers_long_polls_and_ends_streams_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listening, "GRACE_SECONDS", 3600)  # what had to be cut off would keep it that long
    with ExitStack() as stack, ThreadPoolExecutor(1) as threads:
        with running(tmp_path / "dotdo.db") as server:
            one, other, third = (stack.enter_context(server.http()) for _ in range(3))
            id = _waiting_run(one)
            poll = threads.submit(one.get, f"/v1/runs/{id}", headers={"Prefer": "wait=60"})
            lines = stack.enter_context(other.stream("GET", f"/v1/runs/{id}/stream")).iter_lines()
            assert "event: accepted" in lines
            _until_in_flight(third, 3)
        answer = poll.result(PATIENCE)
        assert "event: end" not in list(lines)
    assert answer.status_code == 200
    assert answer.json()["status"] in ("running", "waiting")  # as it stood


def _waiting_run(http: Any) -> str:
    body, headers = {"params": {"name": "Ada"}}, {"Prefer": "respond-async"}
    return http.post("/v1/services/approval/execute", json=body, headers=headers).json()["id"]


def _until_in_flight(http: Any, count: int) -> None:
    """Returns once so many requests are being answered, this one among them."""
    until = time.monotonic() + PATIENCE
    while f"dotdo_http_requests_in_flight {count}\n" not in http.get("/metrics").text:
        assert time.monotonic() < until
