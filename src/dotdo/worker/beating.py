"""The heartbeat of a worker, on a thread and a connection of its own: a handler that keeps the event loop to itself
does not cost the lease.

It counts for itself for how long the server may still hold the lease: by this process's monotonic clock, from before
the last request was sent that was answered.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx2
import msgspec

from dotdo.tls import trusted
from dotdo.worker.talking import TIMEOUT_SECONDS, headers_of, log, refused_by
from dotdo.worker_protocol import Beat, Heartbeat, Registered

if TYPE_CHECKING:
    from dotdo.worker.talking import Line

AGAIN_SECONDS = 0.5


class Heart:
    """Beats for one session until it is closed.

    held: the tasks that the worker has, and the last batch. on_beat: told the answers. on_over: the session is over,
    or must be taken to be; in words. Both are called on this thread.
    """

    def __init__(
        self,
        line: "Line",
        session: Registered,
        held: Callable[[], tuple[list[str], int]],
        on_beat: Callable[[Beat], None],
        on_over: Callable[[str], None],
    ) -> None:
        self._line, self._session, self._held, self._on_beat, self._on_over = line, session, held, on_beat, on_over
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        threading.Thread(target=self._beat, name="dotdo-heartbeat", daemon=True).start()

    def renewed(self, sent: float) -> None:
        """A request was answered that was sent then."""
        self._renewed = max(self._renewed, sent)

    def close(self) -> None:
        """Beats no more."""
        self._stop.set()

    def _beat(self) -> None:
        session = self._session
        wait = session.heartbeat_seconds
        headers, tls = headers_of(self._line.api_key), trusted(self._line.url)
        with httpx2.Client(headers=headers, timeout=TIMEOUT_SECONDS, verify=tls) as http:
            while not self._stop.wait(wait):
                left = self._renewed + session.lease_seconds - time.monotonic()
                if left <= 0:
                    self._on_over(f"the server was not reached for {session.lease_seconds:g} s")
                    return
                wait = session.heartbeat_seconds if self._ask(http, min(left, TIMEOUT_SECONDS)) else AGAIN_SECONDS

    def _ask(self, http: httpx2.Client, timeout: float) -> bool:
        """Sends one; whether it was answered."""
        tasks, after = self._held()
        body, sent = Heartbeat(self._session.worker, tasks, after), time.monotonic()
        try:
            response = http.post(
                f"{self._line.url}/v1/worker/heartbeat",
                content=msgspec.json.encode(body),
                headers={"Content-Type": "application/json"},
                timeout=timeout,
            )
        except httpx2.HTTPError as error:
            log.debug("a heartbeat was not answered: %r", error)
            return False
        if response.status_code == 200:
            self.renewed(sent)
            self._on_beat(msgspec.json.decode(response.content, type=Beat))
            return True
        refused = refused_by(response)
        if refused is not None:
            self._on_over(refused.message)
            self._stop.set()
        return False
