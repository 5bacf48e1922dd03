"""One HTTP exchange: the request's body, the answer within bounds, and both between Python values and bytes.

Nothing here follows redirects or keeps cookies; what an answer means is decided in `http`. The library sends again what
is idempotent (GET, PUT, DELETE) when a kept connection turns out to be closed, as RFC 9110 9.2.2 allows.
"""

import functools
import re
import ssl
import time
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

if TYPE_CHECKING:
    import aiohttp
    import yarl

Scalar = str | int | float | bool
Form = dict[str, Scalar | list[Scalar]]

MAX_BODY = 1024 * 1024
MAX_DEPTH = 60
# What is left as it is: reserved characters (RFC 3986 2.2), and % because it begins what is escaped already.
IN_URLS = "%:/?#[]@!$&'()*+,;=|"
LONGEST_WAIT = 24 * 3600.0


class Progress:
    """How far an exchange has come."""

    def __init__(self) -> None:
        self.sent = False  # whether any of the request may have left


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


def open_session() -> "aiohttp.ClientSession":
    """Connections that are kept by where they lead. Belongs to the running event loop."""
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_about_to_send)
    trace.on_connection_reuseconn.append(_about_to_send)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # how many are used at once is limited by the caller
        # A cookie of one run must not reach the calls of another.
        cookie_jar=aiohttp.DummyCookieJar(),
        # A compressed answer could grow beyond any bound in one piece, and those of an API are short anyway.
        headers={
            "Accept": "application/json, */*;q=0.5",
            "Accept-Encoding": "identity",
            "User-Agent": _user_agent(),
        },
        skip_auto_headers=("Content-Type",),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # and so is the time of a whole call
        trace_configs=[trace],
    )


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy for a host, as HTTP_PROXY and its like name it; its URL may hold a password.

    The library would look for itself (`trust_env`): with two visits to a thread for each call, and it takes passwords
    from ~/.netrc, which it then refuses to send beside an Authorization header.
    """
    return None if proxy_bypass(host) else getproxies().get(scheme)


@functools.cache
def _user_agent() -> str:
    """Read from a file, so once: without an HttpClient there is a session for each call."""
    return f"dotdo/{version('dotdo')}"


async def _about_to_send(_session: Any, context: SimpleNamespace, _connection: Any) -> None:
    """Told by the HTTP library when there is a connection: what follows is the request."""
    context.trace_request_ctx.sent = True


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates of the system, wherever it has them. Reading them takes tens of milliseconds."""
    import httpx2

    return httpx2.create_ssl_context()


async def exchange(
    session: "aiohttp.ClientSession",
    method: str,
    url: str,
    headers: dict[str, str],
    content: bytes | None,
    progress: Progress,
    find_proxy: Callable[[str, str], str | None],
) -> Received:
    """Sends a request and reads the answer. Raises aiohttp.ClientError."""
    address, body = _address(url), bytearray()
    async with session.request(
        method,
        address,
        headers=headers,
        data=content,
        allow_redirects=False,
        ssl=_trusted() if address.scheme == "https" else True,
        proxy=find_proxy(address.scheme, address.host or ""),
        trace_request_ctx=progress,
    ) as response:
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > MAX_BODY:
                break
        names = dict.fromkeys(name.lower() for name in response.headers)
        found = {name: ", ".join(response.headers.getall(name)) for name in names}
    return Received(response.status, found, bytes(body[:MAX_BODY]), len(body) > MAX_BODY)


def reason(error: "aiohttp.ClientError") -> str:
    """What went wrong, without the URL, whose query may hold secrets."""
    import aiohttp

    text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    return text or type(error).__name__


def _address(url: str) -> "yarl.URL":
    """The URL as it was given, since it may be signed; what cannot stand in one is escaped."""
    import yarl

    parts = urlsplit(url)
    path, query = (quote(text, safe=IN_URLS) for text in (parts.path, parts.query))
    origin = yarl.URL(f"{parts.scheme}://{parts.netloc}").origin()
    return yarl.URL(f"{origin}{path or '/'}{query and '?'}{query}", encoded=True)


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
