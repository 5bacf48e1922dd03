"""`AsyncDo`: the client, with all its logic. `Do` (client.py) is the same without await.

A client talks to a platform through the `Platform` protocol only. Embedded, it opens a store and runs an engine in
this process, on the event loop of its caller.
"""

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

import msgspec

from dotdo import codec
from dotdo.action import Action
from dotdo.async_names import AsyncNames
from dotdo.async_runs import AsyncHandle, AsyncRuns, Load, checked, loaded, run_id, within
from dotdo.catalogue import Catalogue, catalogue_of
from dotdo.clock import Clock
from dotdo.context import refuse_in_service
from dotdo.effect import Effect
from dotdo.enlisting import Work, execute_async, is_within, work_within
from dotdo.errors import ClientClosed, DefinitionError, InvalidOperation, StoreError
from dotdo.opening import connect, embed
from dotdo.platform import Platform
from dotdo.policy import Retention, numbers_of, patience, yes_or_no
from dotdo.preview import Preview
from dotdo.records import Options, Run, RunKind, check_options
from dotdo.secret_provider import Given
from dotdo.service import Service
from dotdo.terminating import Restore, drain_first

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# An application of the ASGI specification, which every server and framework of it takes.
Scope = MutableMapping[str, Any]
ASGIApplication = Callable[[Scope, Callable[[], Awaitable[Scope]], Callable[[Scope], Awaitable[None]]], Awaitable[None]]

RETENTION_SECONDS = 3600.0

_trail: ContextVar[str | None] = ContextVar("dotdo_trail", default=None)
FORKED = (
    "The client was opened before this process was forked from another one, where its engine runs. Open a client after "
    "the fork."
)


class AsyncDo:
    """A client. Without a URL it is embedded: it opens a store and runs an engine on the caller's event loop; or, while
    another process runs one on that store, is a client of that, and takes over when it ends.

    url, api_key: of a server that runs the engine, `https://do.example.com` and `do_...`; by default DOTDO_URL, unless
        a store is given, and DOTDO_API_KEY. What follows is for an embedded client only.

    store: `sqlite:///dotdo.db`, a path, or `sqlite://` for one that is gone when the client closes; by default
        `.dotdo/dotdo.db`. sql: the application's database(s), a URL or SQLAlchemy engine, or several by name.
    resources: objects, (async) context managers or functions that make them, opened once and given to handlers by type.
    catalogue: the definitions to offer; by default all that were made. check_replay: replay each finished run at once
        and compare, for development and tests. clock: for tests. actor: who asks, for the journal. grace: seconds
        that attempts in flight are given when the client closes. drain_on_sigterm: close first when the process is sent
        SIGTERM, then let the signal take its course. secrets: where `ctx.secret` looks: a SecretProvider, a mapping,
        or several, asked in order; by default the environment. engine: False for a process that only asks, and leaves
        it to others to run an engine. retention: which ended runs are deleted, looked at when the client opens and
        every hour, where its engine runs; by default none. tracer_provider: of OpenTelemetry, for spans of runs, steps
        and attempts; by default the one that the program has set before the client opens, if any. workers: whether an
        action that a service calls by name may be one that no worker has offered yet; then the call waits for it.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        sql: Any = None,
        resources: Sequence[Any] = (),
        catalogue: Catalogue | None = None,
        check_replay: bool | None = None,
        clock: Clock | None = None,
        actor: str | None = None,
        grace: float = 10.0,
        drain_on_sigterm: bool = False,
        secrets: Given | None = None,
        engine: bool = True,
        retention: Retention | Sequence[Retention] = (),
        tracer_provider: Any = None,
        workers: bool = False,
    ) -> None:
        store = _path_of(store)
        if url is not None and store is not None:
            raise DefinitionError("A client has a store of its own, or the URL of a server; not both.")
        url = url or (os.environ.get("DOTDO_URL") if store is None else None)
        if api_key is not None and url is None:
            raise DefinitionError("api_key= is for a client of a server: give its url=, too, or DOTDO_URL.")
        _check_options_of_engine(grace, engine, workers, check_replay, resources, retention)
        definitions = catalogue_of(catalogue)
        self._url, self.tracer_provider = url, tracer_provider
        self._open = lambda: (
            connect(url, api_key)
            if url is not None
            else embed(
                store,
                self._move,
                engine=engine,
                sql=sql,
                resources=resources,
                catalogue=definitions,
                check_replay=check_replay,
                clock=clock,
                grace=grace,
                secret_sources=secrets,
                tracer_provider=tracer_provider,
                workers=workers,
            )
        )
        self._opening: asyncio.Future[Platform] | None = None
        self._followed: Platform | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = ""
        self._retention = (retention,) if isinstance(retention, Retention) else tuple(retention)
        self._retaining: asyncio.Task[None] | None = None
        self._drain_on_sigterm = drain_on_sigterm
        self._leave_sigterm: Restore | None = None
        self.actor = actor
        self.action = AsyncNames(self, "action")
        self.service = AsyncNames(self, "service")
        self.runs = AsyncRuns(self)

    # -- typed calls --------------------------------------------------------------------------------------------------

    @overload
    async def run(self, definition: Action[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def run(self, definition: Service[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def run(self, definition: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs an action or service and returns its output, typed. Raises ActionFailed when it failed for good."""
        definition, kind, options, input = await self._packed(definition, args, kwargs)
        run = await self.execute(kind, definition.name, input, options, None)
        return loaded(run, _loader(definition))

    @overload
    async def start(self, definition: Action[P, R], /, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]: ...
    @overload
    async def start(self, definition: Service[P, R], /, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]: ...
    @overload
    async def start(self, definition: Action[..., R], /, *args: Any, within: Any, **kwargs: Any) -> AsyncHandle[R]: ...
    @overload
    async def start(self, definition: Service[..., R], /, *args: Any, within: Any, **kwargs: Any) -> AsyncHandle[R]: ...
    async def start(self, definition: Any, /, *args: Any, **kwargs: Any) -> AsyncHandle[Any]:
        """Starts an action or service; the handle's id is durable when this returns.

        within: a connection (psycopg, asyncpg, SQLAlchemy) in a transaction on the store's PostgreSQL database: the run
        exists if and only if you commit that. By name, if the definition has a parameter `within`.
        """
        if is_within(definition, kwargs):
            connection = kwargs.pop("within")
            work, load = await self.enlisting_typed(definition, args, kwargs)
            return AsyncHandle(self, await execute_async(work, connection), load)
        definition, kind, options, input = await self._packed(definition, args, kwargs)
        return await self.accept(kind, definition.name, input, options, _loader(definition))

    @overload
    async def preview(self, definition: Action[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Preview[R]: ...
    @overload
    async def preview(self, definition: Service[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Preview[R]: ...
    async def preview(self, definition: Any, /, *args: Any, **kwargs: Any) -> Preview[Any]:
        """What an action or service would do: its typed result, effects and SQL. Nothing happens."""
        definition, kind, options, input = self._typed(definition, args, kwargs)
        found = await (await self.platform()).preview(kind, definition.name, input, options)
        if found.status != "completed":
            return found
        return msgspec.structs.replace(found, result=definition.schema.load_plain(found.result))

    def handle(self, id: str) -> AsyncHandle[Any]:
        """The handle of a run that was started earlier."""
        return AsyncHandle(self, run_id(id), None)

    @contextlib.contextmanager
    def trail(self, name: str) -> Generator[None]:
        """Ties what is invoked inside together under one trail."""
        token = _trail.set(name)
        try:
            yield
        finally:
            _trail.reset(token)

    def asgi(self, *, open_access: bool = False, rate: str | None = None) -> ASGIApplication:
        """The HTTP API of this client's platform, to mount into FastAPI, Starlette or Django, or to serve by itself.

        Callers need an API key (`dotdo keys create`), unless open_access is True, which is for development. rate: how
        many requests a key may make that has no rate of its own, such as "100/s"; by default any number. Mounted, it
        opens the client with the first request, and you close the client; served by itself, it closes it, too. Serve
        it on the client's event loop. Raises DefinitionError for a client of another server.
        """

        def is_open() -> bool:
            return self._opening is not None

        return mountable(self, self.platform, self.close, is_open, open_access=open_access, rate=rate)

    @property
    def url(self) -> str | None:
        """Of the server that runs the engine; None when embedded."""
        return self._url

    # -- what the methods above share ---------------------------------------------------------------------------------

    async def _packed(self, definition: Any, args: Any, kwargs: Any) -> tuple[Any, RunKind, Options, bytes]:
        if codec.is_heavy(args) or codec.is_heavy(kwargs):
            return await asyncio.to_thread(self._typed, definition, args, kwargs)
        return self._typed(definition, args, kwargs)

    def _typed(self, definition: Any, args: Any, kwargs: Any) -> tuple[Any, RunKind, Options, bytes]:
        if not isinstance(definition, Action | Service):
            raise DefinitionError(_no_definition(definition))
        options: Options = definition.options
        overrides = definition.overrides
        retry = overrides.retry
        if retry is not None or overrides.timeout is not None:
            numbers = None if retry is None else numbers_of(retry)
            options = msgspec.structs.replace(options, timeout=overrides.timeout, retry=numbers)
        kind: RunKind = "action" if isinstance(definition, Action) else "service"
        meant = cast("Any", definition)
        if options.version != definition.version:  # `with_(version=...)`: that one's input and output
            meant = definition.catalogue.get(kind, definition.name, options.version)
        return meant, kind, self.options(options), meant.schema.pack(args, kwargs)

    def options(self, options: Options) -> Options:
        """Options with the trail and actor that are in force."""
        trail = options.trail or _trail.get()
        if trail != options.trail or self.actor != options.actor:
            options = msgspec.structs.replace(options, trail=trail, actor=self.actor)
        check_options(options)
        return options

    async def execute(
        self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options, wait: float | None
    ) -> Run:
        """Accepts a run and waits for its end."""
        platform = await self.platform()
        if wait is None:
            return checked(await platform.execute(kind, name, params, options))
        id = await platform.accept(kind, name, params, options)
        return checked(await within(wait, platform.result(id), id))

    async def accept(
        self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options, load: Load
    ) -> AsyncHandle[Any]:
        """Accepts a run."""
        return AsyncHandle(self, await (await self.platform()).accept(kind, name, params, options), load)

    async def enlisting_typed(self, definition: Any, args: Any, kwargs: Any) -> tuple[Work[str], Load]:
        """What `start` executes within a transaction of the caller's, and what loads the output."""
        definition, kind, options, input = await self._packed(definition, args, kwargs)
        return await self.enlisting(kind, definition.name, input, options), _loader(definition)

    async def enlisting(self, kind: RunKind, name: str, params: Any, options: Options) -> Work[str]:
        """What is executed within a transaction of the caller's. Raises like `accept`."""
        return await work_within(await self.platform(), self._url, kind, name, params, options)

    async def platform(self) -> Platform:
        """The platform, opened at first use. Raises StoreError; ClientClosed after `close`; CalledOutside."""
        refuse_in_service()
        if self._closed:
            raise ClientClosed(self._closed)
        opening = self._opening
        if opening is None or _has_failed(opening):
            _opened.add(self)
            if self._drain_on_sigterm and self._leave_sigterm is None:
                self._leave_sigterm = drain_first(self.close)
            opening = self._opening = asyncio.create_task(self._open())
            if self._retention:
                self._retaining = asyncio.create_task(self._retain())
        _check_loop(opening)
        if opening.done():
            return opening.result()
        # Shielded: others may wait for the same opening, so a caller who gives up does not end it.
        return await asyncio.shield(opening)

    def _move(self, engine: Platform) -> None:
        """The engine that was followed is gone, and one runs here now."""
        assert self._opening is not None
        self._followed = self._opening.result()
        self._opening = self._opening.get_loop().create_future()
        self._opening.set_result(engine)

    def _forked(self) -> None:
        """In a process that was forked from the one that had opened the client."""
        if self._opening is not None:
            self._opening, self._closed = None, FORKED

    async def _retain(self) -> None:
        while not self._closed:
            try:
                for policy in self._retention:
                    await (await self.platform()).prune(policy, "retention")
            except ClientClosed:
                return
            except InvalidOperation:
                pass  # another process runs the engine, and keeps to its own policies
            except StoreError as error:
                logging.getLogger("dotdo.engine").error("retention is tried again in an hour: %s", error)
            await asyncio.sleep(RETENTION_SECONDS)

    async def close(self) -> None:
        """Drains and closes: attempts in flight end, runs go on at the next start."""
        self._closed = self._closed or "The client is closed; open a new one."
        opening = self._opening
        if opening is None:
            return
        _check_loop(opening)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(opening))
        # Shielded, and the same for all who close: who gives up, or comes second, must not cut the drain short.
        await asyncio.shield(self._closing)

    async def _close(self, opening: "asyncio.Future[Platform]") -> None:
        await asyncio.wait([opening])
        if self._retaining is not None:
            self._retaining.cancel()
        try:
            if not _has_failed(opening):  # whoever wanted it opened was told
                await (self._followed or opening.result()).close()
        finally:
            if self._leave_sigterm is not None:
                self._leave_sigterm()

    async def __aenter__(self) -> Self:
        await self.platform()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


_opened: "weakref.WeakSet[AsyncDo]" = weakref.WeakSet()


def _forget_in_child() -> None:
    for client in _opened:
        client._forked()  # pyright: ignore[reportPrivateUsage]  # of this module


os.register_at_fork(after_in_child=_forget_in_child)


def mountable(
    client: AsyncDo,
    platform: Callable[[], Awaitable[Any]],
    close: Callable[[], Awaitable[None]],
    is_open: Callable[[], bool],
    *,
    open_access: bool,
    rate: str | None,
) -> ASGIApplication:
    """The HTTP API of a client, as an ASGI application. Raises DefinitionError."""
    if client.url is not None:
        raise DefinitionError(f"This client asks the server at {client.url}, which has an HTTP API of its own.")
    try:
        # Imported here: only who serves needs a web framework.
        from dotdo.server.mounting import mountable as application
    except ModuleNotFoundError as error:
        raise DefinitionError(
            f"Serving over HTTP needs more packages ({error}): pip install 'dotdo[server]'."
        ) from None
    return application(
        platform, close, is_open, open_access=open_access, tracer_provider=client.tracer_provider, rate=rate
    )


def _check_options_of_engine(
    grace: Any, engine: Any, workers: Any, check_replay: Any, resources: Any, retention: Any
) -> None:
    """Raises DefinitionError for what would be of no use, or come to light only when the client closes."""
    patience(grace, "grace", endless=False)
    yes_or_no(engine, "engine")
    yes_or_no(workers, "workers")
    if check_replay is not None:
        yes_or_no(check_replay, "check_replay")
    if isinstance(resources, str | Mapping) or not isinstance(resources, Iterable):
        raise DefinitionError(
            f"resources={resources!r:.80}: a list of objects, context managers or functions is needed; handlers ask "
            "for them by type."
        )
    policies = cast("list[Any]", retention if isinstance(retention, list | tuple) else [retention])
    if not all(isinstance(each, Retention) for each in policies):
        raise DefinitionError(f"retention={retention!r:.80}: a Retention is needed, or a list of such.")


def _path_of(store: object) -> str | None:
    """A store as it was given, as text. Raises DefinitionError."""
    if isinstance(store, os.PathLike):
        store = os.fspath(cast("os.PathLike[str]", store))
    if store is not None and not isinstance(store, str):
        raise DefinitionError(
            f"The store {store!r:.80} is neither a path nor a URL: use sqlite:///path/to/dotdo.db, a path, or "
            "postgresql://host/database."
        )
    return store


def _has_failed(opening: "asyncio.Future[Platform]") -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


def _check_loop(opening: "asyncio.Future[Platform]") -> None:
    if opening.get_loop() is not asyncio.get_running_loop():
        raise DefinitionError(
            "The client was opened on another event loop, where its engine runs. Open one for each loop (each "
            "asyncio.run), or use Do, which has a loop of its own."
        )


def _loader(definition: Any) -> Load:
    return None if definition.schema.is_plain else definition.schema.load_plain


def _no_definition(given: object) -> str:
    if isinstance(given, str):
        return (
            f"{given!r} is a name. By name it is client.action({given!r}).invoke(...), with parameters by name; "
            "client.run and client.start take the definition itself."
        )
    if isinstance(given, Effect):
        return f"{given!r} is an effect: a handler of an action stages or requests it, and the action is run."
    owner = getattr(given, "__self__", None)
    if isinstance(owner, Action | Service):
        return f"{given!r:.80} is a bare function; give {owner!r} itself."
    if callable(given):
        return f"{given!r} is not an action or service; decorate it with @action or @service."
    return (
        f"{given!r} is not an action or service. Give the definition and its parameters: client.run(book_seat, 'Ada')."
    )
