"""What the guarantees are tried on: the onboarding example, real servers with a ledger of their own, a real database.

A test looks at three witnesses that do not know of each other: the servers' ledger (written by another process), the
users' database (read here without SQLAlchemy), and the journal.
"""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from dotdo import Do
from dotdo.journal import Entry
from dotdo.testing import ManualClock
from examples.onboarding import app
from examples.onboarding.providers import resources
from examples.onboarding.standins import Arrival, StandIns
from examples.onboarding.users import create_tables
from tests.guarantees.invariants import check_store
from tests.patience import PATIENCE
from tests.stores import url_of

SEED = 4  # jitter is drawn: with this seed none of the first draws is next to nothing, which would be no wait at all


class Witness:
    """What the stand-in servers have heard of since the test began."""

    def __init__(self, standins: StandIns) -> None:
        self._standins, self._start = standins, len(standins.ledger())
        self.tell = standins.tell
        self.environment = standins.environment

    def heard(self, server: str | None = None) -> list[Arrival]:
        """Everything that arrived, refused or not; of one server if asked."""
        return [one for one in self._standins.ledger()[self._start :] if server in (None, one.server)]

    def done(self, server: str) -> list[dict[str, Any]]:
        """The payloads of what a server really did."""
        return [one.payload for one in self.heard(server) if one.happened]

    def keys(self, server: str) -> set[str | None]:
        """The keys (Message-IDs) under which a server was asked."""
        return {one.key for one in self.heard(server)}

    def wait_for(self, server: str, arrivals: int = 1) -> None:
        """Returns when a server has heard so often. Raises TimeoutError."""
        found = threading.Event()
        for _ in range(int(PATIENCE / 0.01)):
            if len(self.heard(server)) >= arrivals:
                return
            found.wait(0.01)  # the ledger is a file of another process: nothing else tells that it has grown
        raise TimeoutError(f"{server} has heard {len(self.heard(server))} times, not {arrivals}.")


class Onboarding:
    """The example's application in a folder of its own. `open` gives a client with an engine in this process."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.folder, self.clock = folder, clock
        create_tables(folder)
        random.seed(SEED)
        self._open: list[Do] = []

    def open(self, **options: Any) -> Do:
        """A client like the example's, on the hand-moved clock; each finished run is replayed and compared."""
        store, database = self.folder / ".dotdo" / "dotdo.db", self.folder / "app.db"
        given = {"sql": f"sqlite:///{database}", "resources": resources(), "clock": self.clock, "check_replay": True}
        client = Do(url_of(store), **{**given, **options})
        self._open.append(client)
        return client.__enter__()  # its engine takes what is due

    def users(self) -> list[tuple[str, str]]:
        """Name and address of each user in the database."""
        with closing(sqlite3.connect(self.folder / "app.db")) as connection:
            return connection.execute("select name, email from users order by rowid").fetchall()

    def process(self, key: str, name: str, email: str) -> "subprocess.Popen[str]":
        """Onboards somebody in a process of its own, which prints the run's id and result."""
        command = [sys.executable, "-m", "examples.onboarding.onboard", str(self.folder), key, name, email]
        root = str(Path(app.__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": root}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=root
        )

    def close(self) -> None:
        """Closes what was opened, and checks the invariants of every run in the store."""
        for client in self._open:
            client.close()
        check_store(self.folder / ".dotdo" / "dotdo.db")


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL, and makes sure that it was what ended the process."""
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


def of_step(entries: list[Entry], name: str) -> list[str]:
    """The kinds of the entries of one action's step, in order."""
    return [entry.kind for entry in entries if entry.step.partition(":")[0] == name]
