"""Connections of our own server, within bounds that are met before any work is done for them.

A request's head must come within some seconds and bytes, its body within more seconds; a reader must read. uvicorn has
no such limits: it waits for ever, and keeps what it was sent. Mounted into another application, they are its server's.
"""

import asyncio
import os
import resource
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dotdo.server.problems import Refused, problem

HEAD_SECONDS = 10.0  # for the first byte of a connection, and for a request's head
WHOLE_SECONDS = 40.0  # for its body; longer than reading.BODY_SECONDS, after which it is refused in better words
STALL_SECONDS = 60.0  # for a reader to read something of what waits for it
LINGER_SECONDS = 1.0  # for a refusal to be read while the caller still sends
MAX_HEAD, MAX_URL, MAX_HEADERS = 32 * 1024, 8 * 1024, 100
SPARE_FILES = 256  # descriptors that are not for connections
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 414: "URI Too Long", 503: "Service Unavailable"}
_PHRASES[431] = "Request Header Fields Too Large"


class _TooMuch(Exception):
    """Ends the reading of a head."""


def most_connections() -> int:
    """How many connections this process can have at once; it takes as many files as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(soft - SPARE_FILES, 16)


class Connection(HttpToolsProtocol):
    """One connection. limit: of how many at once."""

    def __init__(self, *args: Any, limit: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit = limit
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._phase = "head"  # what comes next: a head, a body, or nothing
        self._timed = ""  # the phase that the timer is for
        self._bytes = 0  # of the head that are here
        self._refusal: Refused | None = None

    # -- reading ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has connected."""
        super().connection_made(transport)
        if len(self.connections) > self._limit:
            self._refuse(_refused(503, "overloaded", "The server has too many connections.", retryable=True))
        else:
            self._arm(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, however."""
        self._arm(None)
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request."""
        if self._refusal is not None:
            return  # read, so that the caller sees the refusal, and thrown away
        super().data_received(data)
        if self._refusal is not None:
            return
        if self._phase == "head":
            self._bytes += len(data)
            if self._bytes > MAX_HEAD:
                self._refuse(_too_large())
                return
        # Most requests come as one piece, and need no timer.
        if self._phase != self._timed:
            self._arm({"head": HEAD_SECONDS, "body": WHOLE_SECONDS}.get(self._phase))

    def on_message_begin(self) -> None:
        """A request begins."""
        self._phase, self._bytes = "head", 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._phase = "body"
        if len(self.url) > MAX_URL:
            self._refusal = _refused(414, "url_too_long", f"The address has more than {MAX_URL} bytes.")
            raise _TooMuch
        if len(self.headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            self._refusal = _too_large()
            raise _TooMuch
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is whole."""
        self._phase = "idle"
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """It is no HTTP, or its head was too large."""
        self._refuse(self._refusal or _refused(400, "invalid_request", msg))

    def _arm(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timed = self._phase
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = None
        if self._phase == "head" and self._bytes == 0:
            self.transport.close()  # nothing was asked
        elif self._phase == "head" or not self.cycle.response_started:
            self._refuse(_refused(408, "request_timeout", "The request did not come in time.", retryable=True))
        else:
            self.transport.abort()  # it was answered, and still sends

    def _refuse(self, refused: Refused) -> None:
        """Answers with a problem document, and ends the connection once that can have been read."""
        self._refusal = refused
        self._arm(None)
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(problem(refused, "req_" + os.urandom(12).hex()))
        head = f"HTTP/1.1 {refused.status} {_PHRASES[refused.status]}\r\ncontent-type: application/problem+json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n"
        head += "".join(f"{name.lower()}: {value}\r\n" for name, value in refused.headers.items()) + "\r\n"
        self.transport.write(head.encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        cycle = cast("RequestResponseCycle | None", self.cycle)  # none before the first request
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    # -- writing ------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The reader does not keep up."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """It does again."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size() and self._stall is None:
            self._watch_reader()  # it closes only when all has been read

    def _watch_reader(self) -> None:
        self._stall = self.loop.call_later(STALL_SECONDS, self._check_reader, self.transport.get_write_buffer_size())

    def _check_reader(self, before: int) -> None:
        self._stall = None
        left = self.transport.get_write_buffer_size()
        if left and left >= before:
            self.transport.abort()
        elif left:
            self._watch_reader()


def _too_large() -> Refused:
    text = f"The headers have more than {MAX_HEAD} bytes, or are more than {MAX_HEADERS}."
    return _refused(431, "headers_too_large", text)


def _refused(status: int, code: str, text: str, *, retryable: bool = False) -> Refused:
    return Refused(status, code, text, retryable=retryable, headers={"Retry-After": "1"} if retryable else None)
