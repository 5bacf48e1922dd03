"""What the stand-in servers share: the ledger of what arrived, and the faults that they were told to make.

A fault is one of
    4xx, 5xx, 429   refuses, and does nothing (a 4xx of SMTP is temporary, one of HTTP is final)
    drop            hangs up, and does nothing
    lost            does it, then hangs up without an answer
    timeout         does it, then never answers
"""

import threading
import time
from pathlib import Path
from typing import Any

import msgspec

SERVERS = ("email", "billing", "crm", "slack")
FAULTS = ("4xx", "5xx", "429", "drop", "lost", "timeout")
SILENT = ("drop", "lost", "timeout")


class Arrival(msgspec.Struct, frozen=True):
    """One request or message, as the ledger keeps it.

    key: the idempotency key, or the Message-ID. status: what was answered, None if nothing was. happened: whether the
    server now did what it was asked to; not so for a refusal, and for the repeat of a request that it had done before.
    """

    server: str
    request: str
    key: str | None
    payload: dict[str, Any]
    status: int | None
    happened: bool
    answer: Any = None
    at: float = 0.0

    @property
    def shown(self) -> str:
        """What was asked, as text to search in."""
        return f"{self.request} {msgspec.json.encode(self.payload).decode()}"

    @staticmethod
    def read(file: Path) -> list["Arrival"]:
        """All of a ledger but a last line that is still being written."""
        whole, _, _ = file.read_bytes().rpartition(b"\n")
        return msgspec.json.decode(b"[" + whole.replace(b"\n", b",") + b"]", type=list[Arrival])


class Fault(msgspec.Struct):
    """An order to fail: so many times more (-1: always), where the request contains `match`."""

    server: str
    fail: int
    how: str = "5xx"
    match: str = ""

    def __post_init__(self) -> None:
        if self.server not in SERVERS or self.how not in FAULTS:
            raise ValueError(f"server must be one of {SERVERS} and how one of {FAULTS}")


class World:
    """The ledger and the faults. `lock` is held while a server looks, acts and records."""

    def __init__(self, ledger: Path) -> None:
        self._file = ledger.open("ab", buffering=0)
        self._faults: list[Fault] = []
        self.lock = threading.RLock()

    def record(self, arrival: Arrival) -> None:
        """Appends to the ledger before the answer leaves; what is written there outlives the end of any process."""
        with self.lock:
            self._file.write(msgspec.json.encode(msgspec.structs.replace(arrival, at=time.time())) + b"\n")

    def order(self, fault: Fault) -> None:
        """Takes an order to fail; `fail=0` ends all of that server."""
        with self.lock:
            if fault.fail == 0:
                self._faults = [one for one in self._faults if one.server != fault.server]
            else:
                self._faults.append(fault)

    def fault(self, server: str, request: str, payload: dict[str, Any]) -> str | None:
        """How to fail this time, if at all."""
        text = Arrival(server, request, None, payload, None, False).shown
        with self.lock:
            for one in self._faults:
                if one.server == server and one.fail != 0 and one.match in text:
                    one.fail -= 1
                    return one.how
        return None

    def close(self) -> None:
        """Closes the ledger."""
        self._file.close()
