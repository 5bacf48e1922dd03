"""What a worker says to its server: the requests of the worker protocol, repeated until they are answered.

Each of them may be repeated. Only a refusal ends one: a key that does not allow it, a session that is over.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from dotdo.errors import (
    AccessDenied,
    DefinitionError,
    DotdoError,
    InputError,
    LeaseLost,
    UnknownWorker,
    UnsupportedProtocol,
)
from dotdo.tls import trusted

try:
    import httpx2
except ModuleNotFoundError:
    raise DefinitionError("A worker needs httpx2: pip install 'dotdo[http]'.") from None

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
TIMEOUT_SECONDS = 15.0  # beyond what the server was asked to wait
NOT_TOLD = 3.0  # seconds without the server before the log says so

T = TypeVar("T")
log = logging.getLogger("dotdo.worker")
_KINDS: dict[str, type[DotdoError]] = {
    kind.code: kind for kind in (UnknownWorker, LeaseLost, UnsupportedProtocol, DefinitionError)
}


class _Problem(msgspec.Struct):
    """A problem document, as far as a worker needs it."""

    code: str = "refused"
    detail: str = ""
    retryable: bool = False


def refused_by(response: "httpx2.Response") -> DotdoError | None:
    """What a refusal means; None when the same request may succeed later."""
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem(detail=f"The server answered {response.status_code}.")
    if response.status_code == 429 or response.status_code >= 500:
        return None
    if response.status_code in (401, 403):
        return AccessDenied(problem.detail)
    return _KINDS.get(problem.code, InputError)(problem.detail)


def headers_of(api_key: str | None) -> dict[str, str]:
    """The headers of each request."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


class Line:
    """The connection to the server. on_reached: told when a request that was answered had been sent (monotonic)."""

    def __init__(self, url: str, api_key: str | None, on_reached: Callable[[float], None]) -> None:
        if not url.startswith(("http://", "https://")):
            raise DefinitionError(f"url={url!r}: an address such as https://do.example.com is needed.")
        self.url, self.api_key, self._on_reached = url.rstrip("/"), api_key, on_reached
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        self._http = httpx2.AsyncClient(
            headers=headers_of(api_key), timeout=TIMEOUT_SECONDS, limits=limits, verify=trusted(url)
        )
        self._missed: float | None = None  # since when the server was not reached
        self._told = False

    async def ask(self, verb: str, body: msgspec.Struct, answer: type[T], *, wait: float = 0.0) -> T:
        """Sends a request until it is answered. Raises AccessDenied, UnknownWorker, LeaseLost, InputError."""
        content, tries = msgspec.json.encode(body), 0
        while True:
            sent = time.monotonic()
            try:
                response = await self._http.post(
                    f"{self.url}/v1/worker/{verb}",
                    content=content,
                    headers={"Content-Type": "application/json"},
                    timeout=TIMEOUT_SECONDS + wait,
                )
            except httpx2.HTTPError as error:
                self._miss(f"{type(error).__name__}: {error}")
            else:
                if response.status_code == 200:
                    self._reach(sent)
                    return msgspec.json.decode(response.content, type=answer)
                refused = refused_by(response)
                if refused is not None:
                    self._reach(sent if isinstance(refused, LeaseLost) else None)
                    raise refused
                self._miss(f"it answers {response.status_code}")
            tries += 1
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(tries - 1, 10))
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay)  # noqa: S311 - spreading load, not a secret

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    def _miss(self, why: str) -> None:
        now = time.monotonic()
        if self._missed is None:
            self._missed = now
        if not self._told and now - self._missed >= NOT_TOLD:
            self._told = True
            log.warning("%s cannot be reached (%s); trying on", self.url, why)

    def _reach(self, sent: float | None) -> None:
        if self._told:
            log.warning("%s is reached again", self.url)
        self._missed, self._told = None, False
        if sent is not None:
            self._on_reached(sent)
