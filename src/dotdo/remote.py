"""A platform over HTTP: the `Platform` protocol against a server's API.

Every request that starts something carries a key, the caller's or one of its own, so it can be repeated safely: the
answer that was lost comes again. What cannot be told in the end is said plainly: refused, done, or unknown.
"""

import asyncio
import random
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo import errors
from dotdo.errors import (
    AccessDenied,
    ClientClosed,
    DefinitionError,
    DotdoError,
    InvalidInput,
    InvalidOperation,
    OutcomeUnknown,
    Problem,
    Unreachable,
)
from dotdo.journal import Entry
from dotdo.policy import Retention
from dotdo.preview import Preview
from dotdo.records import Definition, Options, Outcome, Progress, Run, RunFilter, RunKind, cursor_of, keyed_run_id
from dotdo.tls import trusted
from dotdo.tracing import current_place

if TYPE_CHECKING:
    import httpx2

WAIT_SECONDS = 30.0  # for how long one request waits for a run's end, before it asks again
TRIES = 5
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
TIMEOUT_SECONDS = 15.0  # beyond what the server was asked to wait
AUTO_KEY = "auto:"

_ERRORS: dict[str, type[DotdoError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DotdoError) and kind is not InvalidInput
}


class _Problem(msgspec.Struct):
    """A problem document, as far as a client needs it."""

    code: str = "refused"
    detail: str = ""
    retryable: bool = False
    request_id: str = ""
    run: str | None = None
    errors: list[Problem] = []


class _Page(msgspec.Struct):
    runs: list[Run]
    next: str | None = None


class _Entry(msgspec.Struct):
    seq: int
    kind: str
    step: str
    generation: int
    attempt: int
    at: int
    data: msgspec.Raw
    digest: str


class _Journal(msgspec.Struct):
    entries: list[_Entry]


class _Definitions(msgspec.Struct):
    definitions: list[Definition]


class RemotePlatform:
    """A server's platform. url: such as https://do.example.com. api_key: a key with the scopes that are needed."""

    def __init__(self, url: str, api_key: str | None) -> None:
        try:
            import httpx2
        except ModuleNotFoundError:
            raise DefinitionError("A client with a URL needs httpx2: pip install 'dotdo[http]'.") from None
        if not url.startswith(("http://", "https://")):
            raise DefinitionError(f"url={url!r}: an address such as https://do.example.com is needed.")
        headers = {"Accept": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._url = url.rstrip("/")
        self._http = httpx2.AsyncClient(
            headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=False, verify=trusted(url)
        )
        self._closed = False

    # -- Platform -----------------------------------------------------------------------------------------------------

    async def accept(self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options) -> str:
        """Accepts a run; its id is durable when this returns."""
        return (await self._start(kind, name, params, options, 0.0)).id

    async def execute(self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options) -> Run:
        """Accepts a run and waits until it has ended or is blocked."""
        run = await self._start(kind, name, params, options, WAIT_SECONDS)
        return run if _is_last(run) else await self.result(run.id)

    async def preview(
        self,
        kind: RunKind,
        name: str,
        params: Mapping[str, Any] | bytes,
        options: Options,
        seconds: float | None = None,
    ) -> Preview[Any]:
        """What a run would do; nothing happens."""
        wait = WAIT_SECONDS if seconds is None else seconds
        headers = {"Prefer": f"wait={wait:g}"}
        path = f"/v1/{kind}s/{name}/preview"
        data = await self._post(path, _body(params, options), _version(options), headers, wait)
        return msgspec.json.decode(data, type=Preview[Any])

    async def result(self, id: str) -> Run:
        """Waits until the run, and whatever goes on for it, has ended or is blocked."""
        while True:
            data = await self._get(f"/v1/runs/{id}", headers={"Prefer": f"wait={WAIT_SECONDS:g}"})
            run = _run(data)
            if _is_last(run):
                return run
            id = run.continued_as or id

    async def get(self, id: str) -> Run:
        """A run as it stands."""
        return _run(await self._get(f"/v1/runs/{id}"))

    async def newest(self, id: str) -> str:
        """The run that goes on for this one, when its service has continued as new; else the same."""
        while (run := await self.get(id)).continued_as is not None:
            id = run.continued_as
        return id

    async def list_runs(self, filter: RunFilter) -> list[Run]:
        """Runs, newest first."""
        query: dict[str, Any] = {
            name: value
            for name, value in msgspec.structs.asdict(filter).items()
            if value is not None and name not in ("before", "limit", "labels")
        }
        if filter.labels:
            query["label"] = [f"{name}={value}" for name, value in filter.labels.items()]
        found: list[Run] = []
        cursor: str | None = None if filter.before is None else cursor_of(*filter.before)
        while len(found) < filter.limit:
            page_query = {**query, "limit": min(200, filter.limit - len(found))}
            if cursor is not None:
                page_query["cursor"] = cursor
            page = msgspec.json.decode(await self._get("/v1/runs", page_query), type=_Page)
            found += [_as_ours(run) for run in page.runs]
            cursor = page.next
            if cursor is None:
                break
        return found

    async def journal(self, id: str, after: int = 0) -> list[Entry]:
        """A run's journal after an entry's number. Digests of data are not told by the server."""
        return _entries(id, await self._get(f"/v1/runs/{id}/journal", {"after": after}))

    async def progress(self, id: str, after: int) -> Progress:
        """What a run has published after an entry's number; returns once there is something, or it has ended."""
        seen = after
        while True:
            run = await self.get(id)
            headers = {"Prefer": "wait=0" if run.rests else f"wait={WAIT_SECONDS:g}"}
            entries = _entries(id, await self._get(f"/v1/runs/{id}/journal", {"after": seen}, headers))
            seen = entries[-1].seq if entries else seen
            told = [entry.data for entry in entries if entry.kind == "published" and entry.data]
            values = [msgspec.json.decode(data)["value"] for data in told]
            if values or run.rests:
                return Progress(values, seen, run.rests, run.continued_as)

    async def cancel(self, id: str, actor: str | None) -> None:
        """Asks for a run to be cancelled. The actor is the key's owner."""
        await self._steer(id, "cancel")

    async def retry(self, id: str, actor: str | None) -> None:
        """Reopens a failed, cancelled or blocked run."""
        await self._steer(id, "retry")

    async def undo(self, id: str, actor: str | None) -> None:
        """Takes back what an ended run did."""
        await self._steer(id, "undo")

    async def resolve(self, id: str, key: str, outcome: Outcome, answer: bytes | None, actor: str | None) -> None:
        """Answers the question of a blocked run that goes by this key."""
        body = {"key": key, "outcome": outcome, **({} if answer is None else {"answer": msgspec.Raw(answer)})}
        await self._steer(id, "resolve", body)

    async def prune(self, policy: Retention, actor: str | None) -> int:
        """Refused: whoever runs the server decides for how long runs are kept."""
        raise InvalidOperation(
            "Runs are deleted where the server runs: `dotdo db prune`, or a Retention of its own. Nothing was deleted."
        )

    async def erase(self, ids: list[str], actor: str | None) -> int:
        """Refused: that is for whoever runs the server."""
        raise InvalidOperation(
            "The data of runs is erased where the server runs: `client.runs.erase(id)` there, or `dotdo runs erase ID` "
            "while it is stopped. Nothing was erased."
        )

    async def send_event(self, id: str, name: str, value: bytes, key: str | None, actor: str | None) -> None:
        """Sends an event to a run; the same key twice is one event."""
        body = {"name": name, "value": msgspec.Raw(value), "key": key or f"{AUTO_KEY}{uuid.uuid4().hex}"}
        await self._post(f"/v1/runs/{id}/events", body)

    async def definitions(self, kind: str) -> list[Definition]:
        """What can be called."""
        return msgspec.json.decode(await self._get(f"/v1/{kind}s"), type=_Definitions).definitions

    async def close(self) -> None:
        """Closes the connections; runs go on."""
        self._closed = True
        await self._http.aclose()

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _start(
        self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options, wait: float
    ) -> Run:
        key = options.key or f"{AUTO_KEY}{uuid.uuid4().hex}"
        headers = {"Idempotency-Key": key, "Prefer": f"wait={wait:g}" if wait else "respond-async"}
        path = f"/v1/{kind}s/{name}/execute"
        try:
            return _run(await self._post(path, _body(params, options), _version(options), headers, wait))
        except _StillRunning as running:
            return await self.get(running.run)
        except OutcomeUnknown as unknown:
            unknown.run_id = keyed_run_id(name, key)
            raise

    async def _steer(self, id: str, verb: str, body: Any = None) -> None:
        try:
            await self._post(f"/v1/runs/{id}/{verb}", body or {}, repeats=False)
        except OutcomeUnknown as unknown:
            unknown.run_id = id
            raise

    async def _get(
        self, path: str, query: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        return await self._send("GET", path, query, None, headers, WAIT_SECONDS, repeats=True)

    async def _post(
        self,
        path: str,
        body: Any,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        *,
        repeats: bool = True,
    ) -> bytes:
        return await self._send("POST", path, query, msgspec.json.encode(body), headers, wait, repeats=repeats)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        content: bytes | None,
        headers: Mapping[str, str] | None,
        wait: float,
        *,
        repeats: bool,
    ) -> bytes:
        """One request, repeated while that is safe and may help. Raises what the problem means."""
        import httpx2

        place = current_place()
        sent_headers = {**(headers or {}), **(place.headers if place is not None else {})}
        if content:
            sent_headers["Content-Type"] = "application/json"
        sent, failure = False, DotdoError("not asked yet")
        for attempt in range(1, TRIES + 1):
            if self._closed:
                raise ClientClosed("The client is closed; open a new one.")
            delay = random.uniform(0.5, 1.0) * min(LONGEST_DELAY, FIRST_DELAY * 3 ** (attempt - 1))  # noqa: S311
            try:
                response = await self._http.request(
                    method,
                    self._url + path,
                    params=query,
                    content=content,
                    headers=sent_headers,
                    timeout=TIMEOUT_SECONDS + wait,
                )
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
                failure = Unreachable(f"{self._url} cannot be reached ({error}); nothing happened.")
                if sent:
                    failure = _unknown(self._url, error)
            except httpx2.HTTPError as error:
                sent, failure = True, _unknown(self._url, error)
                if not repeats:
                    raise failure from error
            else:
                if response.status_code < 400:
                    return response.content
                failure, again = _failure(response)
                if not again:
                    raise failure
                delay = max(delay, _retry_after(response))
            if attempt < TRIES:
                await asyncio.sleep(delay)
        raise failure


def _is_last(run: Run) -> bool:
    """Whether it rests and nothing goes on for it."""
    return run.rests and (run.continued_as is None or run.undo != "none")


class _StillRunning(DotdoError):
    """The run of this key is under way."""

    code = "still_running_elsewhere"

    def __init__(self, message: str, run: str) -> None:
        super().__init__(message)
        self.run = run


def _failure(response: "httpx2.Response") -> tuple[DotdoError, bool]:
    """What a refusal means, and whether the same request may succeed later."""
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem(detail=f"The server answered {response.status_code}.", retryable=response.status_code >= 500)
    if problem.code == "still_running" and problem.run is not None:
        return _StillRunning(problem.detail, problem.run), False
    if response.status_code in (401, 403):
        return AccessDenied(problem.detail), False
    if problem.code == "invalid_input":
        subject = problem.detail.partition("The input of ")[2].partition(" is not valid")[0] or "the request"
        found = [
            Problem("$" + each.path.removeprefix("$.params").removeprefix("$"), each.message) for each in problem.errors
        ]
        return InvalidInput(subject, found or [Problem("$", problem.detail)]), False
    if response.status_code >= 500 and not problem.retryable:
        text = f"{problem.detail} (request {problem.request_id})" if problem.request_id else problem.detail
        return OutcomeUnknown(text), False
    kind = _ERRORS.get(problem.code, errors.InputError)
    return kind(problem.detail), problem.retryable


def _unknown(url: str, error: Exception) -> OutcomeUnknown:
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    return OutcomeUnknown(f"The answer of {url} was lost ({what}); whether the request was done is not known.")


def _retry_after(response: "httpx2.Response") -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isdecimal() else 0.0


def _body(params: Mapping[str, Any] | bytes, options: Options) -> dict[str, Any]:
    given = msgspec.Raw(params) if isinstance(params, bytes) else params
    optional = {
        "trail": options.trail,
        "deadline": options.deadline,
        "delay": options.delay,
        "priority": options.priority,
        "labels": options.labels or None,
        "timeout": options.timeout,
        "retry": options.retry,
    }
    return {"params": given, **{name: value for name, value in optional.items() if value is not None}}


def _version(options: Options) -> dict[str, Any]:
    return {} if options.version is None else {"version": options.version}


def _run(data: bytes) -> Run:
    return _as_ours(msgspec.json.decode(data, type=Run))


def _as_ours(run: Run) -> Run:
    """A key that this module made for repeating is nobody's name of anything."""
    return msgspec.structs.replace(run, key=None) if (run.key or "").startswith(AUTO_KEY) else run


def _entries(run: str, data: bytes) -> list[Entry]:
    return [
        Entry(
            run,
            one.seq,
            one.kind,
            one.step,
            one.generation,
            one.attempt,
            one.at,
            bytes(one.data).decode() if bytes(one.data) != b"null" else "",  # it was erased
            "",
            one.digest,
        )
        for one in msgspec.json.decode(data, type=_Journal).entries
    ]
