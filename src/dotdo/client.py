"""`Do`: the client for code without async. Each method forwards to `AsyncDo` on an event loop of its own thread."""

import contextlib
import os
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Never, ParamSpec, Self, TypedDict, TypeVar, Unpack, overload

from dotdo.action import Action
from dotdo.async_client import ASGIApplication, AsyncDo, mountable
from dotdo.async_names import AsyncByName, AsyncNames, DefinitionList, refuse_unnamed
from dotdo.async_runs import AsyncHandle, AsyncRuns, Entries, RunList
from dotdo.catalogue import Catalogue
from dotdo.clock import Clock
from dotdo.enlisting import execute, is_within
from dotdo.policy import Retention
from dotdo.portal import Portal
from dotdo.preview import Preview
from dotdo.records import Outcome, Run, Status, Undo
from dotdo.secret_provider import Given
from dotdo.service import Service
from dotdo.terminating import drain_first_sync

P = ParamSpec("P")
R = TypeVar("R")


class ClientOptions(TypedDict, total=False):
    """What `Do` hands on to `AsyncDo`, for type checkers."""

    url: str | None
    api_key: str | None
    sql: Any
    resources: Sequence[Any]
    catalogue: Catalogue | None
    check_replay: bool | None
    clock: Clock | None
    actor: str | None
    grace: float
    retention: Retention | Sequence[Retention]
    secrets: Given | None
    engine: bool
    tracer_provider: Any
    workers: bool


class CallOptions(TypedDict, total=False):
    """What `Names` hands on to `AsyncNames`, for type checkers."""

    key: str | None
    version: int | None
    trail: str | None
    deadline: float | None
    delay: float | None
    priority: int | None
    wait: float | None
    labels: dict[str, str] | None
    within: Any


class ExecuteOptions(TypedDict, total=False):
    """What `Names.execute` hands on, for type checkers."""

    key: str | None
    version: int | None
    trail: str | None
    deadline: float | None
    delay: float | None
    priority: int | None
    wait: float | None
    labels: dict[str, str] | None


class ListFilter(TypedDict, total=False):
    """What `Runs.list` hands on to `AsyncRuns.list`, for type checkers."""

    status: Status | None
    undo: Undo | None
    name: str | None
    trail: str | None
    parent: str | None
    labels: dict[str, str] | None
    since: int | None
    before: Run | None
    limit: int


class Resolution(TypedDict, total=False):
    """What `Runs.resolve` hands on to `AsyncRuns.resolve`, for type checkers."""

    answer: Any
    step: str | None
    key: str | None
    actor: str | None


class Handle(Generic[R]):
    """A started run: its id, and what can be asked of it."""

    def __init__(self, portal: Portal, inner: AsyncHandle[R]) -> None:
        self._portal, self._inner, self.id = portal, inner, inner.id

    def result(self, *, timeout: float | None = None) -> R:
        """Waits for the end and returns the output. Like `AsyncHandle.result`."""
        return self._portal.call(lambda: self._inner.result(timeout=timeout))

    def get(self) -> Run:
        """The run as it stands; if its service has continued as new, the run that goes on for it."""
        return self._portal.call(self._inner.get)

    def cancel(self, *, actor: str | None = None) -> None:
        """Asks for the run to be cancelled; what it did is undone."""
        self._portal.call(lambda: self._inner.cancel(actor=actor))

    def send_event(self, name: str, value: Any = None, *, key: str | None = None) -> None:
        """Sends an event to the run. key: the sender's own; the same one twice is one event."""
        self._portal.call(lambda: self._inner.send_event(name, value, key=key))

    def progress(self) -> Iterator[Any]:
        """Every value that the run's service has published and will publish, until the run has ended or is blocked."""
        return _stream(self._portal, self._inner.progress())

    def journal(self) -> Entries:
        """Every entry of the run so far."""
        return self._portal.call(self._inner.journal)


def _stream(portal: Portal, values: AsyncIterator[Any]) -> Iterator[Any]:
    async def following() -> tuple[Any, ...]:
        async for value in values:
            return (value,)
        return ()

    while found := portal.call(following):
        yield found[0]


class Runs:
    """`client.runs`: look at runs, and steer them. Methods as in `AsyncRuns`."""

    def __init__(self, portal: Portal, inner: AsyncRuns) -> None:
        self._portal, self._inner = portal, inner

    def get(self, id: str) -> Run:
        """A run as it stands. Raises UnknownName."""
        return self._portal.call(lambda: self._inner.get(id))

    def list(self, **filter: Unpack[ListFilter]) -> RunList:
        """Runs, newest first; filters as in `AsyncRuns.list`."""
        return self._portal.call(lambda: self._inner.list(**filter))

    def wait(self, id: str, *, timeout: float | None = None) -> Run:
        """Waits for the end and returns the run."""
        return self._portal.call(lambda: self._inner.wait(id, timeout=timeout))

    def journal(self, id: str, *, after: int = 0) -> Entries:
        """The entries of a run after a number."""
        return self._portal.call(lambda: self._inner.journal(id, after=after))

    def progress(self, id: str) -> Iterator[Any]:
        """Every value that a run's service has published and will publish, until the run has ended or is blocked."""
        return _stream(self._portal, self._inner.progress(id))

    def prune(
        self, *, older_than: float, name: str | None = None, status: str | None = None, actor: str | None = None
    ) -> int:
        """Deletes runs for good that ended more than `older_than` seconds ago; like `AsyncRuns.prune`."""
        return self._portal.call(
            lambda: self._inner.prune(older_than=older_than, name=name, status=status, actor=actor)
        )

    def erase(self, *ids: str, actor: str | None = None) -> int:
        """Erases the data of ended runs for good; like `AsyncRuns.erase`."""
        return self._portal.call(lambda: self._inner.erase(*ids, actor=actor))

    def cancel(self, id: str, *, actor: str | None = None) -> None:
        """Asks for a run to be cancelled."""
        self._portal.call(lambda: self._inner.cancel(id, actor=actor))

    def retry(self, id: str, *, actor: str | None = None) -> None:
        """Opens a failed, cancelled or blocked run again."""
        self._portal.call(lambda: self._inner.retry(id, actor=actor))

    def undo(self, id: str, *, actor: str | None = None) -> None:
        """Takes back what an ended run did."""
        self._portal.call(lambda: self._inner.undo(id, actor=actor))

    def resolve(self, id: str, outcome: Outcome, **which: Unpack[Resolution]) -> None:
        """Answers a question of a blocked run; parameters as in `AsyncRuns.resolve`."""
        self._portal.call(lambda: self._inner.resolve(id, outcome, **which))

    def send_event(
        self, id: str, name: str, value: Any = None, *, key: str | None = None, actor: str | None = None
    ) -> None:
        """Sends an event to a run."""
        self._portal.call(lambda: self._inner.send_event(id, name, value, key=key, actor=actor))


class ByName:
    """An action or service by name, with options."""

    def __init__(self, portal: Portal, inner: AsyncByName) -> None:
        self._portal, self._inner = portal, inner

    def invoke(self, /, *unnamed: Never, **params: Any) -> Any:
        """Runs it and returns its output as plain JSON values. Raises ActionFailed when it failed for good."""
        return self._portal.call(lambda: self._inner.invoke(*unnamed, **params))

    def execute(self, params: Mapping[str, Any]) -> Run:
        """Runs it and returns the run. Raises ActionFailed when it failed for good."""
        return self._portal.call(lambda: self._inner.execute(params))

    def start(self, /, *unnamed: Never, **params: Any) -> Handle[Any]:
        """Starts it; the handle's id is durable when this returns."""
        refuse_unnamed("start", unnamed)
        if self._inner.within is not None:  # on this thread: the connection is the caller's
            work = self._portal.call(lambda: self._inner.enlisting(params))
            return Handle(self._portal, self._inner.made(execute(work, self._inner.within)))
        return Handle(self._portal, self._portal.call(lambda: self._inner.start(**params)))

    def preview(self, /, *unnamed: Never, **params: Any) -> Preview[Any]:
        """What it would do: its result, effects and SQL. Nothing happens. Raises InputError, DefinitionError."""
        return self._portal.call(lambda: self._inner.preview(*unnamed, **params))


class Names:
    """`client.action` and `client.service`: call by name. Options as in `AsyncNames`."""

    def __init__(self, portal: Portal, inner: AsyncNames) -> None:
        self._portal, self._inner = portal, inner

    def __call__(self, name: str, **options: Unpack[CallOptions]) -> ByName:
        """An action or service by name, with options."""
        return ByName(self._portal, self._inner(name, **options))

    def execute(self, *, name: str, params: Mapping[str, Any] | None = None, **options: Unpack[ExecuteOptions]) -> Run:
        """Runs it by name and returns the run: `.id`, `.status`, `.result`. Raises ActionFailed."""
        return self._portal.call(lambda: self._inner.execute(name=name, params=params, **options))

    def list(self) -> DefinitionList:
        """What can be called, with schemas."""
        return self._portal.call(self._inner.list)


class Do:
    """A client for code without async: `AsyncDo` on a thread of its own. Parameters as in `AsyncDo`."""

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        drain_on_sigterm: bool = False,
        **options: Unpack[ClientOptions],
    ) -> None:
        self._inner = AsyncDo(store, **options)
        self._portal = Portal(self._inner.close)
        self._leave_sigterm = drain_first_sync(self.close) if drain_on_sigterm else None
        self.action = Names(self._portal, self._inner.action)
        self.service = Names(self._portal, self._inner.service)
        self.runs = Runs(self._portal, self._inner.runs)

    @overload
    def run(self, definition: Action[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, definition: Service[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def run(self, definition: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs an action or service and returns its output, typed. Raises ActionFailed when it failed for good."""
        return self._portal.call(lambda: self._inner.run(definition, *args, **kwargs))

    @overload
    def start(self, definition: Action[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    def start(self, definition: Service[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]: ...
    @overload
    def start(self, definition: Action[..., R], /, *args: Any, within: Any, **kwargs: Any) -> Handle[R]: ...
    @overload
    def start(self, definition: Service[..., R], /, *args: Any, within: Any, **kwargs: Any) -> Handle[R]: ...
    def start(self, definition: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Starts an action or service; the handle's id is durable when this returns. within: as in `AsyncDo.start`."""
        if is_within(definition, kwargs):
            connection = kwargs.pop("within")  # used on this thread: it is the caller's
            work, load = self._portal.call(lambda: self._inner.enlisting_typed(definition, args, kwargs))
            return Handle(self._portal, AsyncHandle(self._inner, execute(work, connection), load))
        return Handle(self._portal, self._portal.call(lambda: self._inner.start(definition, *args, **kwargs)))

    @overload
    def preview(self, definition: Action[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Preview[R]: ...
    @overload
    def preview(self, definition: Service[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Preview[R]: ...
    def preview(self, definition: Any, /, *args: Any, **kwargs: Any) -> Preview[Any]:
        """What an action or service would do: its typed result, effects and SQL. Nothing happens."""
        return self._portal.call(lambda: self._inner.preview(definition, *args, **kwargs))

    def handle(self, id: str) -> Handle[Any]:
        """The handle of a run that was started earlier."""
        return Handle(self._portal, self._inner.handle(id))

    @contextlib.contextmanager
    def trail(self, name: str) -> Generator[None]:
        """Ties what is invoked inside together under one trail."""
        with self._inner.trail(name):
            yield

    def asgi(self, *, open_access: bool = False, rate: str | None = None) -> ASGIApplication:
        """The HTTP API of this client's platform, to mount into FastAPI, Starlette or Django, or to serve by itself.

        Callers need an API key (`dotdo keys create`), unless open_access is True, which is for development. rate: how
        many requests a key may make that has no rate of its own, such as "100/s"; by default any number. The engine
        goes on running on its own thread, whatever serves. Raises DefinitionError for a client of another server.
        """

        async def platform() -> _ThroughPortal:
            await self._portal.forward(self._inner.platform)
            return _ThroughPortal(self._portal, self._inner)

        async def close() -> None:
            return  # the engine is not on the loop that ends; it is closed with the program, as ever

        return mountable(self._inner, platform, close, lambda: True, open_access=open_access, rate=rate)

    def close(self) -> None:
        """Drains and closes. Called by itself when the program ends."""
        self._portal.close()
        if self._leave_sigterm is not None:
            self._leave_sigterm()

    def __enter__(self) -> Self:
        self._portal.call(self._inner.platform)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _ThroughPortal:
    """The platform of a client, for code on another event loop: each of its methods is awaited on the client's own."""

    def __init__(self, portal: Portal, inner: AsyncDo) -> None:
        self._portal, self._inner = portal, inner

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any, **kwargs: Any) -> Any:
            async def there() -> Any:
                return await getattr(await self._inner.platform(), name)(*args, **kwargs)

            return await self._portal.forward(there)

        return method
