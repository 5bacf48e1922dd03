"""Who may do what: one function authorises every request, before anything else is looked at.

A key is told apart by its checksum first, so that noise costs no look-up; then found by its digest; then its scopes
decide. What is known of a key is kept for a second, so a revoked one is refused within that.
"""

import asyncio
import logging
import time
from typing import Protocol

from starlette.requests import Request

from dotdo.errors import StoreError
from dotdo.keys import ApiKey, Rate, allows, digest_of, is_well_formed, read_rate
from dotdo.server.asked import asked_of
from dotdo.server.problems import Refused
from dotdo.server.rates import Rates

KEPT_SECONDS = 1.0
MOST_KEPT = 10_000
TOUCH_SECONDS = 30.0
log = logging.getLogger("dotdo.server")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="dotdo"'}


class Keys(Protocol):
    """Where the keys are."""

    async def find_api_key(self, digest: str) -> ApiKey | None:
        """A key by the digest of its text."""
        ...

    async def touch_api_keys(self, used: list[tuple[str, int]]) -> None:
        """Notes when keys were last used (ms)."""
        ...


class Gate:
    """The access control of one server. open: no key is needed, for development on loopback only."""

    def __init__(self, keys: Keys, *, open: bool, rate: Rate | None = None) -> None:
        self._keys, self.open = keys, open
        self._rates = Rates(rate)
        self._known: dict[str, tuple[float, ApiKey]] = {}
        self._used: dict[str, int] = {}
        self._flushing: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def authorise(self, request: Request, resource: str, verb: str, name: str | None) -> str | None:
        """The actor of a request: `key:<name of the key>`. Raises Refused: 401 without a valid key, 403 beyond it."""
        header = request.headers.get("authorization")
        scheme, _, text = (header or "").partition(" ")
        is_key = scheme.lower() == "bearer" and is_well_formed(text.strip())
        if self.open and not is_key:  # also a placeholder, such as YOUR_API_KEY, which opens nothing that is not open
            self._count(request, "", None)
            return None
        if header is None:
            raise _unknown("missing_key", "This needs an API key: send it as `Authorization: Bearer do_...`.")
        if not is_key:
            raise _unknown(
                "malformed_key",
                "That is no API key of dotdo, or it is mistyped or cut off; one looks like do_ and 46 letters and "
                "digits.",
            )
        key = await self._find(text.strip())
        now = int(time.time() * 1000)
        if key is None:
            raise _unknown("invalid_key", "There is no such API key.")
        if key.revoked_at is not None:
            raise _unknown("revoked_key", f"The API key {key.hint}... was revoked.")
        if key.expires_at is not None and key.expires_at <= now:
            raise _unknown("expired_key", f"The API key {key.hint}... has expired.")
        self._count(request, key.id, key.rate)
        if not allows(key.scopes, resource, verb, name):
            scope = f"{resource}:{verb}" + (f":{name}" if name else "")
            raise Refused(403, "forbidden", f"The API key {key.hint}... has no scope for {scope}.")
        await self._touch(key.id, now)
        return f"key:{key.name}"

    def _count(self, request: Request, id: str, rate: str | None) -> None:
        """Counts the request against the rate of its key, once, before anything is done for it. Raises Refused."""
        asked = asked_of(request)
        if not asked.counted:
            asked.counted = True
            asked.headers = self._rates.take(id, None if rate is None else read_rate(rate))

    async def _find(self, text: str) -> ApiKey | None:
        digest, now = digest_of(text), time.monotonic()
        kept = self._known.get(digest)
        if kept is not None and now - kept[0] < KEPT_SECONDS:
            return kept[1]
        key = await self._keys.find_api_key(digest)
        if key is not None:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[digest] = (now, key)
        else:
            self._known.pop(digest, None)
        return key

    async def _touch(self, id: str, now: int) -> None:
        self._used[id] = now
        if len(self._used) >= MOST_KEPT:
            await self.flush()
        elif self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(TOUCH_SECONDS, self._flush_later)

    def _flush_later(self) -> None:
        task = asyncio.create_task(self.flush())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Writes down when keys were used."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        used, self._used = list(self._used.items()), {}
        if used:
            try:
                await self._keys.touch_api_keys(used)
            except StoreError as error:  # no reason to refuse a request
                log.warning("when API keys were last used could not be written: %s", error.message)


def _unknown(code: str, detail: str) -> Refused:
    return Refused(401, code, detail, headers=_CHALLENGE)
