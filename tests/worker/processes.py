"""Servers and workers as processes of their own, and a witness of what the handlers did."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2

from tests.patience import PATIENCE
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
APP = Path(__file__).parent / "app.py"
# Seconds. The short one is for what is taken from a worker that is gone; nobody else should lose anything, ever.
SHORT, LONG = "2", "30"


def eventually(what: Callable[[], Any], message: str = "") -> Any:
    """What a question gives as soon as it gives something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        threading.Event().wait(0.02)
    raise AssertionError(message or "it did not come about in time")


class Stage:
    """A folder with a store, an application's database, and what the handlers have witnessed."""

    def __init__(self, folder: Path, lease: str) -> None:
        self.folder, self._lease = folder, lease
        self.processes: list[subprocess.Popen[bytes]] = []
        with closing(sqlite3.connect(folder / "app.db")) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute("create table notes (text text)")
            connection.commit()
        self.url, self.server = "", None

    # -- processes ----------------------------------------------------------------------------------------------------

    def serve(self, app: str = "", *, port: int = 0) -> subprocess.Popen[bytes]:
        """A server; the same port again is the same address."""
        port = port or free_port()
        app = app or str(self._empty_app())
        command = ["serve", "--open", "--app", app, "--store", str(self.folder / "dotdo.db"), "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self.server = self._start(f"server-{len(self.processes)}", command, {"DOTDO_WORKER_LEASE": self._lease})
        eventually(self._is_ready, f"no server: {self.log('server')}")
        return self.server

    def work(
        self, name: str, *, url: str = "", wait: bool = True, more: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[bytes]:
        """A worker, once it is registered."""
        sql = f"sqlite:///{self.folder / 'app.db'}"
        command = ["worker", str(APP), "--url", url or self.url, "--sql", sql, "--name", name, "--log", "text", *more]
        process = self._start(name, command, {"WORKER": name, **environment})
        if wait:
            eventually(lambda: " actions of " in self.log(name), f"{name} did not register")
        return process

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dotdo", *command],
                cwd=self.folder,
                env={**os.environ, "WITNESS": str(self.folder), "COLUMNS": "400", **environment},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/readyz", timeout=PATIENCE).status_code == 200
        return False

    def _empty_app(self) -> Path:
        path = self.folder / "nothing.py"
        path.write_text(
            "import dotdo\n\n\n@dotdo.service('of-the-server')\nasync def of_the_server(note: str):\n"
            "    return await dotdo.call('write-note', note=note)\n"
        )
        return path

    def end(self) -> None:
        """Ends whatever still runs."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    # -- what is seen -------------------------------------------------------------------------------------------------

    def log(self, name: str) -> str:
        """What a process has said."""
        return "".join(path.read_text() for path in self.folder.glob(f"{name}*.log"))

    def seen(self, beginning: str = "") -> list[str]:
        """What handlers did."""
        path = self.folder / "seen"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(beginning)]

    def notes(self) -> list[str]:
        """The rows of the application."""
        return [row[0] for row in self.rows("select text from notes order by rowid")]

    def rows(self, query: str) -> list[Any]:
        """Reads the application's database."""
        with closing(sqlite3.connect(self.folder / "app.db", timeout=60)) as connection:
            return connection.execute(query).fetchall()

    def let(self, name: str) -> None:
        """What a handler waits for has come."""
        (self.folder / name).touch()

    # -- requests -----------------------------------------------------------------------------------------------------

    def execute(
        self, name: str, /, wait: float = 0, kind: str = "actions", version: int | None = None, **params: Any
    ) -> Any:
        """Starts a run: as it stands after so many seconds at most."""
        prefer = f"wait={wait:g}" if wait else "respond-async"
        query = {} if version is None else {"version": version}
        response = httpx2.post(
            f"{self.url}/v1/{kind}/{name}/execute",
            json={"params": params},
            params=query,
            headers={"Prefer": prefer},
            timeout=PATIENCE,
        )
        assert response.status_code in (200, 202), response.text
        return response.json()

    def run(self, id: str, wait: float = 0) -> Any:
        """A run, after so many seconds at most."""
        return httpx2.get(f"{self.url}/v1/runs/{id}", headers={"Prefer": f"wait={wait:g}"}, timeout=PATIENCE).json()

    def until_it_waits(self, id: str, kind: str) -> str:
        """For what a run waits, in words, once it waits for something of that kind."""

        def waits() -> str | None:
            waiting_for = self.run(id)["waiting_for"]
            return waiting_for["text"] if waiting_for and waiting_for["kind"] == kind else None

        return eventually(waits)

    def ended(self, id: str) -> Any:
        """A run, once it has ended or is blocked."""
        found = eventually(
            lambda: (run := self.run(id, 20))["status"] in ("completed", "failed", "cancelled", "blocked") and run
        )
        return found

    def entries(self, id: str) -> list[tuple[str, int]]:
        """The kinds of a run's entries, with the number of the attempt."""
        journal = httpx2.get(f"{self.url}/v1/runs/{id}/journal", timeout=PATIENCE).json()
        return [(entry["kind"], entry["attempt"]) for entry in journal["entries"]]


@contextlib.contextmanager
def on_stage(folder: Path, lease: str = LONG) -> Generator[Stage]:
    """A stage with a server. lease: of its workers, in seconds."""
    stage = Stage(folder, lease)
    try:
        stage.serve()
        yield stage
    finally:
        stage.end()


class Cable:
    """A line between workers and their server that can be cut: what is open breaks, nothing new comes through."""

    def __init__(self, to: str) -> None:
        self._to = ("127.0.0.1", int(to.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing comes through any more."""
        self._is_cut = True
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """As before."""
        self._is_cut = False

    def close(self) -> None:
        """For good."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(self._to)
                for source, target in ((near, far), (far, near)):
                    self._open.add(source)
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()
