"""SIGTERM to `dotdo serve` under load loses nothing: every request that was taken is answered, or its run is found."""

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2

from tests.patience import PATIENCE
from tests.server.process import Serving, serving

APPLICATION = """
import asyncio
from pathlib import Path
from dotdo import Context, action, service, wait_for_event

@action("note")
async def note(text: str) -> str:
    return text

@action("stand")
async def stand(gate: str) -> str:
    Path(f"{gate}.reached").touch()
    while not Path(gate).exists():
        await asyncio.sleep(0.01)
    return gate

@service("approval")
async def approval(name: str) -> str:
    return await wait_for_event("answer")
"""


class Load:
    """Callers with connections of their own that start runs, one after the other, until they are cut off."""

    def __init__(self, serve: Serving, callers: int) -> None:
        self.answered: dict[str, tuple[int, str]] = {}
        self.lost: list[str] = []
        self._serve, self._enough = serve, threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(callers)]
        self._begun = threading.Barrier(callers + 1)
        for thread in self._threads:
            thread.start()

    def _call(self, caller: int) -> None:
        with self._serve.http() as http:
            for number in range(1_000_000):
                key = f"{caller}-{number}"
                body = {"params": {"text": key}}
                try:
                    found = http.post("/v1/actions/note/execute", json=body, headers={"Idempotency-Key": key})
                except httpx2.HTTPError:
                    self.lost.append(key)
                    break
                assert found.status_code in (200, 202), found.text
                self.answered[key] = (found.status_code, found.json()["id"])
                if number == 3:
                    self._begun.wait(PATIENCE)

    def begun(self) -> None:
        """Returns when every caller has had some answers."""
        self._begun.wait(PATIENCE)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_what_was_accepted_is_answered_or_found_again(tmp_path: Path):
    told: dict[str, Any] = {}

    def ask(name: str, *request: Any, **options: Any) -> threading.Thread:
        def work() -> None:
            with serve.http() as http:
                told[name] = http.request(*request, **options)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    with serving(tmp_path, APPLICATION, "--open") as serve:
        with serve.http() as http:
            headers = {"Prefer": "respond-async"}
            body = {"params": {"name": "Ada"}}
            waits = http.post("/v1/services/approval/execute", json=body, headers=headers).json()["id"]
        standing = ask("standing", "POST", "/v1/actions/stand/execute", json={"params": {"gate": "gate"}})
        until = time.monotonic() + PATIENCE
        while not (tmp_path / "gate.reached").exists():
            assert time.monotonic() < until
        polling = ask("polling", "GET", f"/v1/runs/{waits}", headers={"Prefer": "wait=30"})
        with serve.http() as http:  # both have been taken, and this is the third
            while "dotdo_http_requests_in_flight 3\n" not in http.get("/metrics").text:
                assert time.monotonic() < until
            while http.get(f"/v1/runs/{waits}").json()["status"] != "waiting":  # it leaves memory a moment later
                assert time.monotonic() < until
        load = Load(serve, 8)
        with serve.http() as http, http.stream("GET", f"/v1/runs/{waits}/stream") as stream:
            events = stream.iter_lines()
            while "published" not in (line := next(events)) and "waiting" not in line:
                if line.startswith("id: 1"):
                    break
            load.begun()
            serve.signal()
            serve.said("Stopping: ")
            standing.join(PATIENCE)  # is answered before what it waits for happens
            (tmp_path / "gate").touch()
            rest = list(events)  # the stream ends in order
        for thread in (standing, polling):
            thread.join(PATIENCE)
        load.end()
        assert serve.end() == 0
        assert "Stopped in order." in serve.lines[-1]
    assert rest[-1] == ""
    standing_run = told["standing"].json()["id"]
    where = told["standing"].headers["location"]
    assert (told["standing"].status_code, where) == (202, f"/v1/runs/{standing_run}"), "a wait ends, with where to look"
    assert (told["polling"].status_code, told["polling"].json()["status"]) == (200, "waiting"), "answered at once"
    assert len(load.answered) >= 8 * 4

    with serving(tmp_path, APPLICATION, "--open") as serve, serve.http() as http:
        for key, (_, id) in load.answered.items():
            run = http.get(f"/v1/runs/{id}", headers={"Prefer": "wait=20"}).json()
            assert (run["status"], run["result"], run["key"]) == ("completed", key, key)
        for key in load.lost:  # nobody knows: the same key tells, and there is one run
            again = http.post(
                "/v1/actions/note/execute", json={"params": {"text": key}}, headers={"Idempotency-Key": key}
            )
            assert again.json()["result"] == key
        total = 0
        cursor = None
        while True:
            query = {"name": "note", "limit": 200, **({"cursor": cursor} if cursor else {})}
            page = http.get("/v1/runs", params=query).json()
            total += len(page["runs"])
            cursor = page["next"]
            if cursor is None:
                break
        assert total == len(load.answered) + len(load.lost), "one run for each key"
        assert http.get(f"/v1/runs/{standing_run}").json()["result"] == "gate"
        assert http.get(f"/v1/runs/{waits}").json()["status"] == "waiting"
        http.post(f"/v1/runs/{waits}/events", json={"name": "answer", "value": "yes"})
        assert http.get(f"/v1/runs/{waits}", headers={"Prefer": "wait=20"}).json()["result"] == "yes"


def test_draining_server_says_so_on_connections_that_it_still_has(tmp_path: Path):
    with serving(tmp_path, APPLICATION, "--open") as serve:
        host, _, port = serve.url().removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            body = json.dumps({"params": {"gate": "gate"}}).encode()
            head = f"POST /v1/actions/stand/execute HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            # The second request is in the same piece, so it is taken before the connection is closed.
            connection.sendall(head.encode() + body + b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            until = time.monotonic() + PATIENCE
            while not (tmp_path / "gate.reached").exists():
                assert time.monotonic() < until
            serve.signal()
            data = connection.recv(65536)
            # Only now, as an action that ends before the server has looked at its waits is answered as completed.
            (tmp_path / "gate").touch()
            while piece := connection.recv(65536):
                data += piece
        assert data.startswith(b"HTTP/1.1 202"), "the wait is over, and its answer says where to look"
        first, _, second = data.partition(b"HTTP/1.1 503")
        assert b"location: /v1/runs/run_" in first
        assert b'"code":"draining"' in second
        assert serve.end() == 0


def test_second_signal_stops_at_once_and_loses_nothing(tmp_path: Path):
    with serving(tmp_path, APPLICATION, "--open") as serve:
        with serve.http() as http:
            body = {"params": {"gate": "gate"}}
            run = http.post("/v1/actions/stand/execute", json=body, headers={"Prefer": "respond-async"}).json()["id"]
        until = time.monotonic() + PATIENCE
        while not (tmp_path / "gate.reached").exists():
            assert time.monotonic() < until
        polling = threading.Thread(target=poll, args=(serve, run))
        polling.start()
        serve.signal()
        assert "the same again stops at once" in serve.said("Stopping: ")
        serve.signal()
        assert serve.end() in (128 + signal.SIGTERM, -signal.SIGTERM), "not 0, as after the attempt's 10 s"
        polling.join(PATIENCE)
    (tmp_path / "gate").touch()
    with serving(tmp_path, APPLICATION, "--open") as serve, serve.http() as http:
        found = http.get(f"/v1/runs/{run}", headers={"Prefer": "wait=20"}).json()
        assert (found["status"], found["result"]) == ("completed", "gate")


def poll(serve: Serving, run: str) -> None:
    try:
        with serve.http() as http:
            http.get(f"/v1/runs/{run}", headers={"Prefer": "wait=30"})
    except httpx2.HTTPError:
        return  # cut
