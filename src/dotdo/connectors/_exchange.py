"""One HTTP exchange: the request's body, the answer within bounds, and both between Python values and bytes.

Nothing here follows redirects, keeps cookies or retries; what an answer means is decided in `http`.
"""

import functools
import re
import ssl
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

import msgspec

if TYPE_CHECKING:
    import httpx2

Scalar = str | int | float | bool
Form = dict[str, Scalar | list[Scalar]]

MAX_BODY = 1024 * 1024
MAX_DEPTH = 60
LONGEST_WAIT = 24 * 3600.0


class Progress:
    """How far an exchange has come."""

    def __init__(self) -> None:
        self.sent = False  # whether any of the request may have left

    async def trace(self, event: str, _: object) -> None:
        """Told by the HTTP library what it does; see its `trace` extension."""
        if event.endswith(("send_request_headers.started", "send_connection_init.started")):
            self.sent = True


class Received(msgspec.Struct, frozen=True):
    """An answer as it came, with at most MAX_BODY of its body. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes
    truncated: bool

    @property
    def text(self) -> str:
        """The body as text, whatever it is."""
        charset = re.search(r"charset=\"?([\w.:-]+)", self.headers.get("content-type", ""))
        try:
            text = self.content.decode(charset[1] if charset else "utf-8", errors="replace")
        except LookupError:  # a charset that Python does not know
            text = self.content.decode(errors="replace")
        return text.replace("\0", "\ufffd")

    @property
    def decoded(self) -> Any:
        """The body as JSON values if it is JSON, else as text; None if it is empty."""
        if not self.content:
            return None
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if (kind != "application/json" and not kind.endswith("+json")) or self.truncated:
            return self.text
        try:
            value = msgspec.json.decode(self.content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self.text
        # A journal refuses NUL and deep nesting. The call was made, so its answer is kept all the same: as text.
        return self.text if b"\\u0000" in self.content or _is_deep(value, MAX_DEPTH) else value

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait, from either form of Retry-After (RFC 9110 10.2.3); None if it is not there or nonsense."""
        value = self.headers.get("retry-after", "").strip()
        if value.isdecimal() and len(value) < 10:
            return min(float(value), LONGEST_WAIT)
        try:
            wait = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
        return min(max(wait, 0.0), LONGEST_WAIT)


class Connections:
    """Clients of one connection each, kept by where they lead; at most `keeps` idle ones, none of them for 0.

    One client with a pool of its own would look at every connection of the pool before each request. How many are used
    at once is limited by the caller, and so is the time of a whole call.
    """

    def __init__(self, keeps: int) -> None:
        self._keeps = keeps
        self._idle: list[tuple[str, httpx2.AsyncClient]] = []  # the last one used is the last one here

    @asynccontextmanager
    async def lend(self, origin: str) -> AsyncGenerator["httpx2.AsyncClient"]:
        """A client for one exchange with scheme://host:port; it is kept only if the exchange went well."""
        client = self._take(origin)
        try:
            yield client
        except BaseException:
            await client.aclose()
            raise
        self._idle.append((origin, client))
        while len(self._idle) > self._keeps:
            await self._idle.pop(0)[1].aclose()

    async def close(self) -> None:
        """Closes the idle ones, and keeps none from now on."""
        self._keeps = 0
        while self._idle:
            await self._idle.pop()[1].aclose()

    def _take(self, origin: str) -> "httpx2.AsyncClient":
        for place in range(len(self._idle) - 1, -1, -1):
            if self._idle[place][0] == origin:
                return self._idle.pop(place)[1]
        return _new_client()


def _new_client() -> "httpx2.AsyncClient":
    import httpx2

    return httpx2.AsyncClient(
        timeout=None,
        limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
        follow_redirects=False,
        # A cookie of one run must not reach the calls of another.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        verify=_trusted(),
    )


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Reading the certificates takes tens of milliseconds, so it is done once."""
    import httpx2

    return httpx2.create_ssl_context()


async def exchange(
    client: "httpx2.AsyncClient",
    method: str,
    url: str,
    headers: dict[str, str],
    content: bytes | None,
    progress: Progress,
) -> Received:
    """Sends a request and reads the answer. Raises httpx2.HTTPError."""
    # A compressed answer could grow beyond any bound in one piece, and those of an API are short anyway.
    headers = {"accept": "application/json, */*;q=0.5", "accept-encoding": "identity"} | headers
    body = bytearray()
    async with client.stream(
        method, url, headers=headers, content=content, extensions={"trace": progress.trace}
    ) as response:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_BODY:
                break
    return Received(response.status_code, dict(response.headers), bytes(body[:MAX_BODY]), len(body) > MAX_BODY)


def encoded(json: Any, form: Form | None, text: str | None) -> tuple[bytes | None, str | None]:
    """A body and its content type, of the one that is given."""
    if json is not None:
        return msgspec.json.encode(json), "application/json"
    if form is not None:
        fields = {name: value if isinstance(value, list) else [value] for name, value in form.items()}
        pairs = [(name, _form_value(one)) for name, value in fields.items() for one in value]
        return urlencode(pairs).encode(), "application/x-www-form-urlencoded"
    if text is not None:
        return text.encode(), "text/plain; charset=utf-8"
    return None, None


def _form_value(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_deep(value: Any, levels: int) -> bool:
    inside: Iterable[Any] = ()
    if isinstance(value, dict):
        inside = cast("dict[str, Any]", value).values()
    elif isinstance(value, list):
        inside = cast("list[Any]", value)
    return levels < 0 or any(_is_deep(item, levels - 1) for item in inside)
