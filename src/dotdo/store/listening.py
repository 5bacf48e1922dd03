"""Hears what other nodes hint, on a connection and a thread of its own: a hint costs no transaction of a run anything.

Behind a pooler that gives each transaction another connection nothing can be heard, and nobody misses it: hints make
things sooner that are looked for anyway. DOTDO_LISTEN may name the server itself then.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from dotdo.store.connecting import Link

log = logging.getLogger("dotdo.store")

# In seconds: how long it waits for the next hint before it looks whether it is to end; between two tries to connect.
WAIT, RETRY = 0.5, 1.0


class Listener:
    """Calls `heard` with each hint, on its own thread."""

    def __init__(self, url: str, where: str, heard: Callable[[str], None]) -> None:
        self._link, self._heard = Link(url, where), heard
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dotdo-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hears nothing more. Does not wait for the thread, which ends soon."""
        self._stop.set()

    def again(self) -> None:
        """Listens on a new connection. From any thread."""
        self._link.cut()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                connection: Any = self._link.get()
                if self._link.pooled:
                    log.info("hints of other nodes cannot be heard through a pooler; they are looked for instead")
                    break
                connection.execute("listen dotdo")
                while not self._stop.is_set():
                    for notice in connection.notifies(timeout=WAIT):
                        self._heard(notice.payload)
            except psycopg.Error as error:
                log.debug("listening for hints failed: %s", error)
                self._link.drop()
                time.sleep(RETRY)
        self._link.drop()
