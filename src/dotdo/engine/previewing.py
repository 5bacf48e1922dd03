"""Previews: runs an action or service on a transaction that is rolled back, and tells what it would have done.

Needs no store and writes nothing: no run, no journal, no applied row, no message. A preview that holds the write lock
of a SQLite file is short, and leaves room for real attempts before the next one.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextvars import Context as VariableContext
from typing import TYPE_CHECKING, Any, TypeVar

from dotdo import codec
from dotdo.action import Action
from dotdo.catalogue import Catalogue
from dotdo.clock import Clock
from dotdo.engine.cancelling import whatever_happens
from dotdo.engine.failing import Block
from dotdo.engine.preview_services import Ending, preview_run
from dotdo.engine.rehearsing import Rehearsal
from dotdo.engine.secrets import temporary_vault
from dotdo.engine.threads import Threads
from dotdo.engine.watching import Watch
from dotdo.errors import ClientClosed
from dotdo.preview import Preview, shown
from dotdo.records import Options, RunKind
from dotdo.secret_provider import SecretSources

if TYPE_CHECKING:
    from dotdo.engine.applying import Databases
    from dotdo.engine.preview_sql import PreviewTransaction, PreviewWork

T = TypeVar("T")

# How long a preview may take in all, in seconds.
MAX_SECONDS = 30.0
# How long it waits for locks of others.
LOCK_SECONDS = 2.0
# How long it may keep the write lock of a SQLite file, for which real attempts wait at most 10 s.
HOLD_SECONDS = 2.0
MAX_THREADS = 16
# How long that file is left to others before the next preview, at most: a waiting writer looks every 0.1 s.
PAUSE_SECONDS = 0.15


class Previewer:
    """Makes previews with the definitions, databases and resources of an application."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        clock: Clock,
        databases: "Databases | None",
        resources: dict[type, Any],
        outlives: "Callable[[asyncio.Future[Any]], None]",
        watch: Watch,
        sources: SecretSources,
    ) -> None:
        self.catalogue, self.clock, self.databases, self.resources = catalogue, clock, databases, resources
        self.outlives, self.watch = outlives, watch
        self.vault = temporary_vault(sources)  # of its own: a preview makes no key file
        self.hold_seconds, self.pause_seconds = HOLD_SECONDS, PAUSE_SECONDS
        self.loop = asyncio.get_running_loop()
        # Not those of real attempts, which handlers that get stuck in a preview must not use up.
        self.threads, self.cleaners = Threads(self.loop, MAX_THREADS), Threads(self.loop, MAX_THREADS)
        # Two previews would only lock each other out of a SQLite file, which others want, too.
        self.turn = asyncio.Lock() if databases is not None and databases.files() else None
        self._under_way: set[asyncio.Task[Preview[Any]]] = set()
        self._kept: list[Any] = []
        self._closed = False

    async def preview(
        self,
        kind: RunKind,
        name: str,
        params: Mapping[str, Any] | bytes,
        options: Options,
        seconds: float | None = None,
    ) -> Preview[Any]:
        """What a run would do. seconds: in all, 30 at most. Raises InputError, DefinitionError, ClientClosed."""
        if self._closed:
            raise ClientClosed("The client is closed; open a new one.")
        definition = self.catalogue.get(kind, name, options.version)
        input = definition.schema.accept(params)
        seconds = MAX_SECONDS if seconds is None else min(seconds, MAX_SECONDS)
        work = self._preview(kind, definition, input, options, seconds)
        # A task of its own: a caller who gives up does not cut the clean-up short.
        task = self.loop.create_task(work, context=VariableContext())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            if self._closed:
                raise ClientClosed("The client was closed before the preview had ended.") from None
            raise

    async def close(self) -> None:
        """Ends the previews that are under way; each rolls back."""
        self._closed = True
        while self._under_way:
            for task in self._under_way:
                task.cancel()
            await asyncio.wait(self._under_way)

    async def _preview(
        self, kind: RunKind, definition: Any, input: bytes, options: Options, seconds: float
    ) -> Preview[Any]:
        mixed = not isinstance(definition, Action) or bool(definition.fallback or definition.on_failure)
        rehearsal = Rehearsal(self, f"preview_{os.urandom(8).hex()}", options, mixed=mixed)
        rehearsal.limit = limit = asyncio.timeout(seconds)
        try:
            try:
                async with limit:
                    if self.turn is not None:
                        await rehearsal.take_turn(self.turn)
                    input, _ = self.vault.at_rest(definition.schema, input, rehearsal.id, options)
                    ending = await preview_run(rehearsal, definition, input)
            finally:
                rehearsal.limit = None  # it can be set no more
                await whatever_happens(self.loop.create_task(rehearsal.close()), is_commit=False)
        except Block as block:
            rehearsal.note(block.message, block.step)
            if limit.expired():  # what it was ended for, while its handler refuses to
                rehearsal.note(rehearsal.out_of_time(seconds))
            ending = Ending("incomplete")
        except TimeoutError:
            rehearsal.note(rehearsal.out_of_time(seconds))
            ending = Ending("incomplete")
        found = Preview(
            kind=kind,
            name=definition.name,
            version=definition.version,
            status=ending.status,
            result=None if ending.result is None else codec.decode(ending.result),
            error=ending.error,
            steps=rehearsal.steps,
            effects=rehearsal.effects,
            statements=rehearsal.statements,
            notes=rehearsal.notes,
        )
        secrets = rehearsal.keeper.secrets
        return found if secrets is None else shown(found, secrets.shown)

    # -- for the steps ------------------------------------------------------------------------------------------------

    def begin(self, rehearsal: Rehearsal, database: str, is_async: bool) -> "PreviewTransaction":
        """The transaction of a preview; it is opened at its first statement."""
        from dotdo.engine.preview_sql import PreviewTransaction

        assert self.databases is not None
        engine, async_engine = self.databases.engines(database, None if rehearsal.mixed else is_async)
        return PreviewTransaction(
            database,
            engine,
            async_engine,
            lock=LOCK_SECONDS,
            statement=MAX_SECONDS,
            begun=rehearsal.begun,
        )

    def work(self, transaction: "PreviewTransaction", is_async: bool, check: Callable[[], None]) -> "PreviewWork":
        """A step's part in a transaction."""
        from dotdo.engine.preview_sql import PreviewWork

        return PreviewWork(transaction, is_async=is_async, check=check)

    def on_thread(self, rehearsal: Rehearsal, function: Callable[[], T]) -> "asyncio.Future[T]":
        """Runs a `def` handler, which may come to use a connection of an async driver."""
        if self.databases is None or not rehearsal.mixed:
            return self.threads.run(function)
        from dotdo.engine.preview_sql import run_bridged

        return self.threads.run(lambda: run_bridged(function, self.loop))

    def waited_too_long(self, error: BaseException) -> bool:
        """Whether the database gave a statement up because of the limits of a preview."""
        from dotdo.engine.preview_sql import waited_too_long

        return waited_too_long(error)

    def keep(self, refusing: Any) -> None:
        """Tasks of a service that refused to end: kept, so that the garbage collector cannot run them."""
        self._kept += refusing
