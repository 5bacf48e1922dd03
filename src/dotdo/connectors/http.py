"""Calls to other systems over HTTP: `http.post(url, json=...)` inside a handler stages a call, made after the commit.

A handler that needs the answer requests the call instead: `await ctx.request(http.call, method="POST", url=..., ...)`.
Every try carries the same Idempotency-Key, so a call is made at least once, and has its effect exactly once where the
server honours the key. Busy servers (408, 425, 429, 5xx) and network errors are tried again; other refusals are final.

Certainly not made is a call that was refused with 4xx, or with 503 and a Retry-After, and one of which nothing was sent
(no such host, connection refused, no TLS). Of a call that ended in another way nobody knows.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn, Self
from urllib.parse import SplitResult, urlsplit

import msgspec

from dotdo import (
    DefinitionError,
    EffectCall,
    Fail,
    FromSecret,
    Retry,
    RetryLater,
    Secret,
    Staged,
    StandIn,
    current_context,
    effect,
)
from dotdo.connectors._exchange import Form, Progress, Received, encoded, exchange, open_session, proxy_for, reason

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Answer", "HttpClient", "NotSent", "call", "delete", "patch", "post", "put"]

BUSY = {408, 425, 429}
KEPT_HEADERS = {"content-type", "etag", "idempotent-replayed", "link", "location", "request-id", "x-request-id"}
MAX_HEADER = 1000
SHOWN_OF_ERRORS = 500
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a method or header name, RFC 9110 5.6.2


class NotSent(RetryLater, ConnectionError):
    """Nothing of the request has left: the server could not be reached."""


class Answer(msgspec.Struct, frozen=True):
    """What a server answered.

    headers: those worth keeping, by their names in lower case. body: decoded JSON, else text, None when it is empty.
    truncated: the body was longer than 1 MiB, and `body` is the text of its beginning.
    """

    status: int
    headers: dict[str, str]
    body: Any = None
    truncated: bool = False


def show_call(call: EffectCall, input: dict[str, Any]) -> StandIn:
    """A call as a preview shows it. The values of an HttpClient's own headers are secrets, so only their names are.

    There is no answer that could stand in for the server's: a handler that requests a call is previewed up to there.
    """
    method, url = input["method"], input["url"]
    given: dict[str, str] = input.get("headers") or {}
    check(method, url, given, *(input.get(name) for name in ("json", "form", "text")))
    content, kind = encoded(input.get("json"), input.get("form"), input.get("text"))
    hidden = dict.fromkeys(call.resource(HttpClient, HttpClient).headers_for(url), "***")
    headers = ({"content-type": kind} if kind else {}) | hidden | _lower(given)
    lines = [f"{method.upper()} {url}", *(f"{name}: {value}" for name, value in headers.items())]
    return StandIn(text="\n".join(lines if content is None else [*lines, "", content.decode(errors="replace")]))


@effect(
    "http.call",
    dedup="key",
    key_window=24 * 3600,
    preview=show_call,
    retry=Retry(attempts=8, factor=3, max_delay=600),
    timeout=120,
)
async def call(
    call: EffectCall,
    method: str,
    url: str,
    json: Any = None,
    form: Form | None = None,
    text: str | None = None,
    headers: dict[str, str] | None = None,
    expect: list[int] | None = None,
    retry_on: list[int] | None = None,
    timeout: float | None = None,
) -> Answer:
    """Makes one call, with the effect's key as its Idempotency-Key. One of json, form and text is the body, or none.

    expect: the statuses that mean success, by default all of 2xx. retry_on: further statuses to try again on, such as
    409 where that means "in progress". timeout: seconds for the whole answer (120 at most), not those of HttpClient.

    Raises Fail for a final refusal (with the status and the first 500 characters of the body) and for a redirect, which
    is never followed; RetryLater, ConnectionError or TimeoutError when another try may succeed. What is a RetryLater,
    also a NotSent, and not `unknown`, certainly did not happen.
    """
    check(method, url, headers, json, form, text)
    client = call.resource(HttpClient, HttpClient)
    content, kind = encoded(json, form, text)
    sent = {"content-type": kind} if kind else {}
    ours = {name: _resolved(name, value, call.secret) for name, value in client.headers_for(url).items()}
    sent |= _trace_headers(call) | ours | _lower(headers or {}) | {"idempotency-key": call.key}
    answer = await client.send(method.upper(), url, sent, content, timeout)
    if answer.status in expect if expect is not None else 200 <= answer.status < 300:
        kept = {name: value[:MAX_HEADER] for name, value in answer.headers.items() if name in KEPT_HEADERS}
        return Answer(answer.status, kept, answer.decoded, answer.truncated)
    _refused(f"{method.upper()} {_shown(url)}", answer, retry_on or ())


def _trace_headers(call: EffectCall) -> dict[str, str]:
    """So that the server continues the run's trace (W3C Trace Context)."""
    given = {"traceparent": call.traceparent, "tracestate": call.tracestate}
    return {name: value for name, value in given.items() if value is not None}


def post(url: str, *, json: Any = None, form: Form | None = None, text: str | None = None, **options: Any) -> Staged:
    """Stages a POST, for use inside a handler. options: headers, expect, retry_on and timeout, as of `call`."""
    return _stage("POST", url, json=json, form=form, text=text, **options)


def put(url: str, *, json: Any = None, form: Form | None = None, text: str | None = None, **options: Any) -> Staged:
    """Stages a PUT. See `post`."""
    return _stage("PUT", url, json=json, form=form, text=text, **options)


def patch(url: str, *, json: Any = None, form: Form | None = None, text: str | None = None, **options: Any) -> Staged:
    """Stages a PATCH. See `post`."""
    return _stage("PATCH", url, json=json, form=form, text=text, **options)


def delete(url: str, **options: Any) -> Staged:
    """Stages a DELETE. See `post`. A server that answers 404 to a second try needs `expect=[200, 204, 404]`."""
    return _stage("DELETE", url, **options)


def _stage(method: str, url: str, **options: Any) -> Staged:
    context = current_context()
    given = {name: value for name, value in options.items() if value is not None}
    check(method, url, **{name: given.get(name) for name in ("headers", "json", "form", "text")})
    return context.stage(call, method=method, url=url, **given)


def check(method: str, url: str, headers: Mapping[str, str] | None, json: Any, form: Any, text: Any) -> None:
    """Raises Fail for a call that cannot work, so that it is refused before the commit."""
    if not TOKEN.fullmatch(method):
        raise Fail(f"{method!r} is not an HTTP method.")
    if [json, form, text].count(None) < 2:
        raise Fail("Only one of json=, form= and text= can be the body.")
    try:
        parts = urlsplit(url)
        _ = parts.port  # for its ValueError
    except ValueError as error:
        raise Fail(f"The URL {url!r} is wrong: {error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise Fail(f"The URL {url!r} is wrong: http://host/path or https://host/path is needed.")
    if "@" in parts.netloc:
        raise Fail(f"The URL of {parts.hostname} holds a password, which would be journaled: HttpClient(headers=...).")
    for name, value in (headers or {}).items():
        if not TOKEN.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise Fail(f"The header {name!r} is wrong: a name, and ASCII text without line breaks, are needed.")
        if name.lower() == "idempotency-key":
            raise Fail("The Idempotency-Key is the effect's own key; it cannot be given as a header.")


class HttpClient:
    """Pooled connections, and headers by base URL: `Do(resources=[HttpClient(headers={...})])`.

    headers: by base URL, such as {"https://api.stripe.com": {"Authorization": FromSecret("STRIPE_KEY", "Bearer {}")}};
    sent with every call below that address and, unlike the headers of a call, never journaled. A `FromSecret` is looked
    up for each call. connections: how many at once. timeout: seconds for a whole answer.

    Without one, a default is made that knows no headers and opens a connection for each call.
    """

    def __init__(
        self,
        *,
        headers: Mapping[str, Mapping[str, str | FromSecret]] | None = None,
        connections: int = 100,
        timeout: float = 30.0,
    ) -> None:
        if find_spec("aiohttp") is None:
            raise DefinitionError('HTTP calls need aiohttp: pip install "dotdo[http]".')
        self._headers: list[tuple[SplitResult, dict[str, str | FromSecret]]] = []
        for base, fields in (headers or {}).items():
            try:
                texts = {name: "" if isinstance(value, FromSecret) else value for name, value in fields.items()}
                check("GET", base, texts, None, None, None)
            except Fail as problem:
                raise DefinitionError(f"HttpClient(headers=...): {problem}") from None
            self._headers.append((urlsplit(base), {name.lower(): value for name, value in fields.items()}))
        self._headers.sort(key=lambda item: len(item[0].path))
        self._timeout = timeout
        self._slots = asyncio.Semaphore(connections)
        self._proxy_for = lru_cache(maxsize=1000)(proxy_for)  # asked for once, as that goes through the environment
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise DefinitionError("This HttpClient is in use by another client; give each client one of its own.")
        self._session = open_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def headers_for(self, url: str) -> dict[str, str | FromSecret]:
        """The configured headers of every base URL that this URL is below; those of longer paths win."""
        parts = urlsplit(url)
        found: dict[str, str | FromSecret] = {}
        for base, fields in self._headers:
            if _origin(base) == _origin(parts) and f"{parts.path}/".startswith(f"{base.path.rstrip('/')}/"):
                found |= fields
        return found

    async def send(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None, timeout: float | None = None
    ) -> Received:
        """Sends one request and reads the answer. Raises ConnectionError or TimeoutError, with what was called."""
        import aiohttp

        seconds = self._timeout if timeout is None else timeout
        async with self._slots:
            progress = Progress()
            try:
                async with asyncio.timeout(seconds), self._opened() as session:
                    return await exchange(session, method, url, headers, content, progress, self._proxy_for)
            except TimeoutError:
                if not progress.sent:
                    raise NotSent(f"{method} {_shown(url)}: no connection within {seconds:g} s.") from None
                raise TimeoutError(f"{method} {_shown(url)}: no complete answer within {seconds:g} s.") from None
            except aiohttp.ClientError as error:
                text = f"{method} {_shown(url)}: {reason(error)}"
                raise (ConnectionError(text) if progress.sent else NotSent(text)) from error

    def _opened(self) -> AbstractAsyncContextManager["aiohttp.ClientSession"]:
        return open_session() if self._session is None else nullcontext(self._session)


def _refused(what: str, answer: Received, retry_on: Collection[int]) -> NoReturn:
    text = f"{what} was answered with {answer.status}: {answer.text[:SHOWN_OF_ERRORS].strip() or 'no body'}"
    if answer.status in BUSY or answer.status >= 500 or answer.status in retry_on:
        is_refusal = answer.status in BUSY or (answer.status == 503 and answer.retry_after is not None)
        raise RetryLater(text, after=answer.retry_after, unknown=not is_refusal)
    if 300 <= answer.status < 400:
        target = answer.headers.get("location", "nowhere")[:SHOWN_OF_ERRORS]
        raise Fail(f"{text} (a redirect to {_shown(target)}, which is not followed)")
    raise Fail(text)


def _resolved(name: str, value: str | FromSecret, lookup: Callable[[str], Secret[str]]) -> str:
    if isinstance(value, str):
        return value
    text = value.resolve(lookup)
    if not text.isascii() or not text.isprintable():
        raise DefinitionError(
            f"The secret {value.name!r} cannot be in the header {name!r}: ASCII text without line breaks is needed."
        )
    return text


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _shown(url: str) -> str:
    """The URL without its query, which may hold secrets."""
    return url.partition("?")[0].partition("#")[0]
