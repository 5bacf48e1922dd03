"""The outside world of the onboarding, on this machine, in one process with a ledger of everything that arrived.

A real mail server, and HTTP APIs with the wire shapes of Stripe, HubSpot and Slack, that can be told to fail.

Program: `python -m examples.onboarding.standins --ledger FILE`. From Python: `with StandIns(folder) as world: ...`.
"""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

from examples.onboarding.standins.world import Arrival

__all__ = ["Arrival", "StandIns"]

ROOT = Path(__file__).resolve().parents[3]


class StandIns:
    """The stand-in servers as a context manager; they end with it, and also if this process dies.

    environment: what the example's app needs to find them. ledger(): what arrived so far. tell(): makes them fail.
    """

    environment: dict[str, str]

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.file = Path(folder) / "ledger.jsonl"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "examples.onboarding.standins", "--until-stdin-ends", "--ledger", self.file]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise RuntimeError(f"The stand-in servers did not start; exit code {process.wait()}.")
        self.environment = json.loads(ready)["environment"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()  # closes its standard input, which ends it

    def tell(self, server: str, fail: int, how: str = "5xx", match: str = "") -> None:
        """Has `server` (email, billing, crm, slack) fail the next `fail` times (-1: always, 0: no more).

        how: 4xx, 5xx, 429, drop, lost or timeout, as explained in world.py. match: only what contains this text, such
        as an address. Raises HTTPError when there is no such server or way to fail.
        """
        order = json.dumps({"server": server, "fail": fail, "how": how, "match": match}).encode()
        request = urllib.request.Request(f"{self.environment['BILLING_URL']}/_control", data=order, method="POST")  # noqa: S310
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - an http address of our own
            answer.read()

    def ledger(self, server: str | None = None, match: str = "") -> list[Arrival]:
        """What arrived, oldest first; of one server, or containing a text, if asked."""
        return [one for one in Arrival.read(self.file) if server in (None, one.server) and match in one.shown]

    def done(self, server: str, match: str = "") -> list[dict[str, Any]]:
        """The payloads of what a server really did: no refusals, no repeats."""
        return [one.payload for one in self.ledger(server, match) if one.happened]
