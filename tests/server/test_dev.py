"""`dotdo dev`: starts again when a file changes, tells of mistakes and goes on watching, and loses no run."""

import os
import signal
import threading
import time
from pathlib import Path

import httpx2
import psutil

from dotdo.keys import new_key
from tests.patience import PATIENCE
from tests.ports import free_port
from tests.server.process import Serving, serving

APPLICATION = """
import asyncio
from pathlib import Path
from dotdo import action, service, wait_for_event

@action("greet")
async def greet(name: str) -> str:
    return f"Hello, {name}"

@action("stand", retry=1)
async def stand(gate: str) -> str:
    Path(f"{gate}.reached").touch()
    while not Path(gate).exists():
        await asyncio.sleep(0.01)
    return gate

@service("approval")
async def approval(name: str) -> str:
    said = await wait_for_event("answer")
    return f"{await greet(name=name)} {said}"
"""


def greet(url: str) -> str:
    """The answer of the server that is there, or that will be."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            body = {"params": {"name": "Ada"}}
            return httpx2.post(f"{url}/v1/actions/greet/execute", json=body, timeout=PATIENCE).json()["result"]
        except httpx2.ConnectError:
            assert time.monotonic() < until


def change(serve: Serving, text: str) -> int:
    """Writes the file anew, whole; how much had been said before."""
    said = len(serve.lines)
    (serve.folder / "app.txt").write_text(text)
    (serve.folder / "app.txt").replace(serve.folder / "app.py")
    serve.said("app.py", after=said)
    return said


def test_a_change_is_served_a_mistake_is_told_and_runs_in_flight_go_on(tmp_path: Path):
    port = str(free_port())
    with serving(tmp_path, APPLICATION, "--port", port, "--log", "text", command="dev") as serve:
        url = serve.url()
        assert greet(url) == "Hello, Ada"
        with httpx2.Client(base_url=url, timeout=PATIENCE) as http:
            for text, status in (("YOUR_API_KEY", 200), (new_key("shop", ["runs:read"], now=1)[0], 401)):
                asked = http.get("/v1/actions", headers={"Authorization": f"Bearer {text}"})
                assert asked.status_code == status, (text, asked.text)
        headers = {"Prefer": "respond-async"}
        with httpx2.Client(base_url=url, timeout=PATIENCE) as http:
            waits = http.post("/v1/services/approval/execute", json={"params": {"name": "Ada"}}, headers=headers)
            stands = http.post("/v1/actions/stand/execute", json={"params": {"gate": "gate"}}, headers=headers)
        until = time.monotonic() + PATIENCE
        while not (tmp_path / "gate.reached").exists():
            assert time.monotonic() < until
        stopping = threading.Timer(0.1, (tmp_path / "gate").touch)  # it ends while the server drains
        stopping.start()
        before = change(serve, APPLICATION.replace("Hello", "Good day"))
        serve.said("Stopped in order.", after=before)
        serve.url(after=before)
        assert greet(url) == "Good day, Ada"
        with httpx2.Client(base_url=url, timeout=PATIENCE) as http:
            stood = http.get(f"/v1/runs/{stands.json()['id']}", headers={"Prefer": "wait=20"}).json()
            assert (stood["status"], stood["result"]) == ("completed", "gate")

        before = change(serve, APPLICATION.replace("async def greet", "async dfe greet"))
        assert "app.py, line 7: " in serve.said("error: ", after=before)
        assert "started again when a file changes" in serve.said("It is started again", after=before)
        time_of_mistake = len(serve.lines)
        before = change(serve, APPLICATION.replace("Hello", "Welcome"))
        assert before >= time_of_mistake
        serve.url(after=before)
        assert greet(url) == "Welcome, Ada"
        with httpx2.Client(base_url=url, timeout=PATIENCE) as http:
            run = waits.json()["id"]
            http.post(f"/v1/runs/{run}/events", json={"name": "answer", "value": "!"})
            found = http.get(f"/v1/runs/{run}", headers={"Prefer": "wait=20"}).json()
            assert (found["status"], found["result"]) == ("completed", "Welcome, Ada !")
        serve.signal(signal.SIGINT)
        assert serve.end() == 0
        assert "Stopped in order." in serve.lines[-1]
        assert not [line for line in serve.lines if "Traceback" in line or "KeyboardInterrupt" in line]


def test_requests_around_a_restart_are_answered_or_refused_before_they_are_taken(tmp_path: Path):
    port = str(free_port())
    with serving(tmp_path, APPLICATION, "--port", port, "--log", "text", command="dev") as serve:
        url = serve.url()
        answered: dict[str, str] = {}
        enough, begun = threading.Event(), threading.Event()

        def call(caller: int) -> None:
            number = 0
            while not enough.is_set():
                number += 1
                key = f"{caller}-{number}"
                while key not in answered:
                    try:
                        found = httpx2.post(
                            f"{url}/v1/actions/greet/execute",
                            json={"params": {"name": key}},
                            headers={"Idempotency-Key": key},
                            timeout=PATIENCE,
                        )
                    except httpx2.TransportError:
                        continue  # refused or cut: the same key again
                    assert found.status_code in (200, 202, 409), found.text
                    if found.status_code != 409:
                        answered[key] = found.json()["id"]
                if number == 5:
                    begun.set()

        callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for caller in callers:
            caller.start()
        assert begun.wait(PATIENCE)
        first = len(answered)
        before = change(serve, APPLICATION + "\n# changed\n")
        serve.url(after=before)
        greet(url)
        enough.set()
        for caller in callers:
            caller.join(PATIENCE)
            assert not caller.is_alive()
        with httpx2.Client(base_url=url, timeout=PATIENCE) as http:
            for key, id in answered.items():
                run = http.get(f"/v1/runs/{id}", headers={"Prefer": "wait=20"}).json()
                assert (run["status"], run["key"]) == ("completed", key)
        assert len(answered) >= first + len(callers), "each had one under way, or asked again"


def test_server_ends_with_a_watcher_that_was_killed(tmp_path: Path):
    with serving(tmp_path, APPLICATION, "--log", "text", command="dev") as serve:
        serve.url()
        (server,) = psutil.Process(serve.process.pid).children()
        serve.signal(signal.SIGKILL)
        try:
            assert server.wait(PATIENCE) in (0, None)
        finally:
            if server.is_running():
                os.kill(server.pid, signal.SIGKILL)
