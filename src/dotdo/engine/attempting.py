"""One attempt of a step, as its handler's context sees it (implements `context.Attempt`).

Everything a handler does to the world is collected here: SQL on the attempt's own transaction, staged effects in a
list, requests through the journal. When the attempt is over, nothing of this works any more.
"""

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from inspect import CORO_CREATED, getcoroutinestate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import msgspec

from dotdo.context import CompletionStatement, Style
from dotdo.effect import Effect, Staged, find_resource
from dotdo.engine.failing import Block
from dotdo.engine.secrets import KeepsSecrets
from dotdo.errors import AttemptOver, DefinitionError
from dotdo.journal import Completion, StagedEffect
from dotdo.secret import Secret
from dotdo.tracing import trace_id

if TYPE_CHECKING:
    from dotdo.engine.applying import Databases
    from dotdo.engine.pool_worker import ProcessAttempt
    from dotdo.engine.sql import SqlWork
    from dotdo.engine.workers import Handed

T = TypeVar("T")

log = logging.getLogger("dotdo.action")

# Most attempts have neither, so these are shared. They are replaced; who would add to them gets an error.
_NO_EFFECTS = cast("list[StagedEffect]", ())
_NO_REQUESTS = cast("list[str]", ())
_NO_COUNTS = cast("dict[str, int]", MappingProxyType({}))
_NONE_ASKED = cast("list[Coroutine[Any, Any, Any]]", ())
_NONE_ASKING: frozenset[Future[Any]] = frozenset()


class AttemptOwner(Protocol):
    """Whose attempt it is: a step."""

    async def make_request(self, attempt: "Attempt", effect: Effect[..., Any], input: bytes, id: str, /) -> Any:
        """The answer to a request of the attempt's handler, made now or before."""
        ...

    def complete(self, attempt: "Attempt", result: Any, /) -> Completion:
        """What the attempt commits, for a handler that does so by itself."""
        ...


class Attempt:
    """The state of one attempt. `databases` opens its transaction; `keeper` is the run, which keeps its secrets in
    mind."""

    __slots__ = (
        "_asked", "_asking", "_committing", "_counts", "_databases", "_is_async", "_keeper", "_lock", "_loop", "_over",
        "_owner", "_resources", "actor", "block", "effects", "elsewhere", "epoch", "generation",
        "is_cancelled", "number", "promised", "requests", "run_id", "step", "task", "traceparent", "trail", "work"
    )  # fmt: skip

    def __init__(
        self,
        *,
        run_id: str,
        step: str,
        number: int,
        epoch: int,
        generation: int,
        actor: str | None,
        trail: str | None,
        traceparent: str | None = None,
        resources: dict[type, Any],
        databases: "Databases | None",
        owner: AttemptOwner | None,
        loop: asyncio.AbstractEventLoop,
        is_async: bool,
        keeper: KeepsSecrets,
    ) -> None:
        self.run_id, self.step, self.number, self.epoch = run_id, step, number, epoch
        self.generation, self.actor, self.trail, self.traceparent = generation, actor, trail, traceparent
        self.effects: list[StagedEffect] = _NO_EFFECTS
        self.requests: list[str] = _NO_REQUESTS
        self.work: SqlWork | None = None
        self.elsewhere = False  # a worker has it that has databases: only they know whether it has committed
        self.task: Handed | None = None  # in which a worker has told its end
        # By the engine, with its step: calls under way go on to their answers. Its own code may cancel its task, too.
        self.is_cancelled = False
        self.promised: str | None = None  # the database in which the handler commits by itself
        self.block: Block | None = None  # raised by a request; the handler may swallow it, or wrap it in a group
        self._resources, self._databases = resources, databases
        self._owner, self._loop, self._is_async, self._keeper = owner, loop, is_async, keeper
        self._counts: dict[str, int] = _NO_COUNTS
        self._asked: list[Coroutine[Any, Any, Any]] = _NONE_ASKED  # to find those that were never awaited
        self._asking: frozenset[Future[Any]] = _NONE_ASKING  # requests that a thread waits for
        self._over: str | None = None
        self._committing = False
        self._lock = threading.Lock()

    @property
    def idempotency_key(self) -> str:
        """A key for this step, equal on every attempt."""
        return effect_key(self.run_id, self.step, "", 0, self.epoch)

    @property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """A logger that names run, step and attempt."""
        return logging.LoggerAdapter(log, log_fields(self))

    # -- its end ------------------------------------------------------------------------------------------------------

    def end(self, why: str) -> bool:
        """Declares the attempt over, unless its commit has begun; returns whether that was in time."""
        with self._lock:
            if self._committing:
                return False
            self._over = self._over or why
        for asking in self._asking:
            asking.cancel()
        return True

    def begin_commit(self) -> None:
        """From here on the attempt can no longer be declared over. Raises AttemptOver when it was already."""
        with self._lock:
            if self._over:
                raise AttemptOver(f"The attempt {self.number} of {self.step} {self._over}; it commits nothing.")
            if self.block is not None:
                raise self.block
            if self._asked:
                self._refuse_unasked()
            self._committing = True

    def _refuse_unasked(self) -> None:
        """Raises DefinitionError if the handler has made a request and never awaited it: it was not sent."""
        left = [one for one in self._asked if getcoroutinestate(one) == CORO_CREATED]
        if not left:
            return
        tasks = {task.get_coro() for task in asyncio.all_tasks(self._loop)}
        for one in left:
            if one not in tasks:
                one.close()  # or Python warns of what is told here
        raise DefinitionError(
            "The handler made a request and never awaited it, so it was not sent: write `await ctx.request(...)`."
        )

    def close(self) -> None:
        """The attempt has ended, however: tasks that the handler left behind can do nothing with its context."""
        self._over = self._over or "has ended"

    @property
    def database(self) -> str | None:
        """The database that it has used, if it has used one."""
        return self.promised if self.work is None else self.work.database

    @property
    def in_doubt(self) -> bool:
        """Whether only the database knows how it ended: a COMMIT was not answered, or was the handler's own affair."""
        return self.elsewhere or self.promised is not None or (self.work is not None and self.work.in_doubt)

    def heartbeat(self) -> None:
        """Raises AttemptOver when the attempt is over."""
        if self._over:
            raise AttemptOver(f"The attempt {self.number} of {self.step} {self._over}.")

    # -- context.Attempt ----------------------------------------------------------------------------------------------

    def stage(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        """Keeps the effect for the commit."""
        self._before_completion()
        input, _ = self._input(effect, args, kwargs)
        key = effect_key(self.run_id, self.step, effect.name, self._count(effect.name), self.epoch)
        self._keep(StagedEffect(effect.name, effect.version, key, msgspec.Raw(input)))
        return Staged(key, effect.name)

    def take_staged(self, effect: str, version: int, key: str, input: bytes) -> None:
        """Keeps an effect that the handler has staged in another process."""
        self._before_completion()
        self._keep(StagedEffect(effect, version, key, msgspec.Raw(input)))

    def _keep(self, staged: StagedEffect) -> None:
        if self.effects is _NO_EFFECTS:
            self.effects = []
        self.effects.append(staged)

    def request(
        self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Makes the call when it is awaited, or replays its answer."""
        asked = self._request(effect, args, kwargs)
        if self._asked is _NONE_ASKED:
            self._asked = []
        self._asked.append(asked)
        return asked

    async def _request(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._before_completion()
        input, identity = self._input(effect, args, kwargs)
        return await self.ask(effect, input, self.name_request(effect, identity))

    def name_request(self, effect: Effect[..., Any], identity: bytes) -> str:
        """A request is known by what is asked and its count among equals, so a retry finds its answer."""
        base = f"{effect.name}:{hashlib.sha256(identity).hexdigest()[:16]}"
        request = f"{base}#{self._count(base) + 1}"
        if self.requests is _NO_REQUESTS:
            self.requests = []
        self.requests.append(request)
        return request

    async def ask(self, effect: Effect[..., Any], input: bytes, request: str) -> Any:
        """The answer of a request that has its name."""
        self.heartbeat()
        assert self._owner is not None, "only previews have none, and they answer by themselves"
        return await self._owner.make_request(self, effect, input, request)

    def request_and_wait(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same from a handler's thread."""
        self.heartbeat()
        asking = asyncio.run_coroutine_threadsafe(self._request(effect, args, kwargs), self._loop)
        with self._lock:
            self._asking |= {asking}
            too_late = self._over is not None  # whoever declared it over did not see this one
        if too_late:
            asking.cancel()
        try:
            return asking.result()
        except CancelledError:
            self.heartbeat()
            raise
        finally:
            with self._lock:
                self._asking -= {asking}

    def connection(self, database: str | None) -> Any:
        """The connection of the attempt's transaction, begun at first use."""
        return self._sql(database).connection()

    def session(self, database: str | None) -> Any:
        """An ORM session on the attempt's transaction."""
        return self._sql(database).session()

    def completion_statement(self, result: Any, database: str | None, style: Style) -> CompletionStatement:
        """The statement with which the handler commits the attempt by itself."""
        databases = self._open_databases()
        name = databases.known(database)
        self._check_database(name)
        assert self._owner is not None, "only previews have none, and they refuse this"
        completion = msgspec.structs.replace(self._owner.complete(self, result), sql=[name])
        key = (self.run_id, self.step, self.generation, self.number)
        statement = databases.statement(name, style, key, completion)
        with self._lock:
            if self.work is not None:
                raise DefinitionError(
                    f"The step {self.step} has used ctx.sql or ctx.session, which commit with the attempt; "
                    "completion_statement() is for a transaction of the handler's own. Use one or the other."
                )
            # Whoever declares the attempt over must know that it can still commit.
            if self._committing or self._over:
                raise AttemptOver(f"The attempt {self.number} of {self.step} {self._over or 'is being committed'}.")
            self.promised = name
        return statement

    def resource(self, kind: type[T], default: Callable[[], T] | None = None) -> T:
        """A resource of the client."""
        return find_resource(self._resources, kind, default)

    def secret(self, name: str) -> Secret[str]:
        """A secret by its name. Raises UnknownSecret."""
        self.heartbeat()
        return self._keeper.keep_secrets().look_up(name)

    def hide(self, text: str) -> None:
        """A secret was revealed."""
        self._keeper.keep_secrets().hide(text)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _sql(self, database: str | None) -> "SqlWork":
        databases = self._open_databases()
        wanted = database or databases.default
        with self._lock:
            if self.promised is not None:
                raise DefinitionError(
                    f"The step {self.step} has asked for its completion_statement(), which commits the transaction of "
                    "its own; ctx.sql would be another one. Use one or the other."
                )
            if self.work is None:
                self.work = databases.begin(wanted, self._is_async, self.heartbeat)
        self._check_database(wanted)
        return self.work

    def _open_databases(self) -> "Databases":
        self.heartbeat()
        if self._databases is None:
            raise DefinitionError(
                "This handler uses SQL, but the client was given no database. Pass one, such as "
                'Do(sql="sqlite:///app.db") or Do(sql="postgresql+psycopg://user@host/app"); on the command line it is '
                "--sql, DOTDO_SQL, or `sql` in dotdo.toml."
            )
        return self._databases

    def _check_database(self, wanted: str) -> None:
        if self.database not in (None, wanted):
            raise DefinitionError(
                f"The step {self.step} already uses the database {self.database!r}; one attempt commits in one "
                f"database. Do the work on {wanted!r} in an action of its own."
            )

    def _before_completion(self) -> None:
        self.heartbeat()
        if self.promised is not None:
            raise DefinitionError(
                f"The step {self.step} has asked for its completion_statement(), which holds all that it stages and "
                "requests. Do that before you ask for it."
            )

    def _input(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """An effect's input as it is journaled, and what it is known by."""
        if not isinstance(effect, Effect):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
            raise DefinitionError(
                f"{effect!r} is not an effect. Functions and lambdas cannot be staged or requested, because after a "
                "crash another process must find them by name: define it with @effect at module level."
            )
        input = effect.schema.pack(args, kwargs)
        effect.schema.check(input)
        return self.take_input(effect, input)

    def take_input(self, effect: Effect[..., Any], input: bytes) -> tuple[bytes, bytes]:
        """An effect's plain input as it is journaled, and what it is known by."""
        if effect.schema.secrets is None and self._keeper.secrets is None:
            return input, input
        return self._keeper.keep_secrets().at_rest(effect.schema, input)

    def _count(self, name: str) -> int:
        if self._counts is _NO_COUNTS:
            self._counts = {}
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return count


def log_fields(attempt: "Attempt | ProcessAttempt") -> dict[str, Any]:
    """What a log record of a handler says beside its text."""
    known = {"run": attempt.run_id, "step": attempt.step, "attempt": attempt.number}
    return {**known, "actor": attempt.actor, "trace_id": trace_id(attempt.traceparent)}


def effect_key(run: str, step: str, effect: str, ordinal: int, epoch: int) -> str:
    """The stable idempotency key of an effect: run / step and effect / epoch, in characters that any receiver takes."""
    digest = hashlib.sha256(f"{step}|{effect}|{ordinal}".encode()).hexdigest()[:16]
    return f"{run}.{digest}.{epoch}"
