"""What running code may ask for: a handler's context, and the functions that a service may call.

Definitions and user code reach whatever runs them through two narrow protocols, `Attempt` (behind a handler's context)
and `Runner` (behind a service); nothing of the engine shows through them.
"""

import asyncio
import logging
import random as random_module
import uuid as uuid_module
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, LiteralString, NoReturn, ParamSpec, Protocol, TypeVar

import msgspec

from dotdo.catalogue import split_version
from dotdo.effect import Effect, Staged
from dotdo.errors import CalledOutside
from dotdo.policy import check_text
from dotdo.secret import Secret, when_revealed

if TYPE_CHECKING:  # SQLAlchemy is an extra; only type checkers need it here
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Attempt(Protocol):
    """What a handler's context needs of the attempt that it belongs to."""

    run_id: str
    step: str
    number: int
    actor: str | None
    trail: str | None
    traceparent: str | None

    @property
    def idempotency_key(self) -> str: ...
    @property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]": ...
    def stage(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged: ...
    def request(
        self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]: ...
    def request_and_wait(self, effect: Effect[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
    def connection(self, database: str | None) -> Any: ...
    def session(self, database: str | None) -> Any: ...
    def resource(self, kind: type[T], default: Callable[[], T] | None = None) -> T: ...
    def heartbeat(self) -> None: ...
    def completion_statement(self, result: Any, database: str | None, style: "Style") -> "CompletionStatement": ...
    def secret(self, name: str) -> Secret[str]: ...
    def hide(self, text: str) -> None: ...


# How a driver marks parameters in SQL, by its look.
Style = Literal[":name", "?", "%s", "%(name)s", "$1"]


class CompletionStatement(msgspec.Struct, frozen=True):
    """A statement that a handler executes, as the last one of its own transaction, to commit its attempt.

    sql, parameters: for the driver; parameters are a dict for the styles with names, else a tuple. database: which of
    the client's databases it is for. dialect: that one's kind, such as `sqlite` or `postgresql`.
    """

    sql: LiteralString
    parameters: dict[str, Any] | tuple[Any, ...]
    database: str
    dialect: str


class Runner(Protocol):
    """What a service needs of the run that it belongs to."""

    run_id: str

    def call(self, definition: Any, args: tuple[Any, ...], kwargs: dict[str, Any], overrides: Any) -> Any: ...
    def call_by_name(self, name: str, version: int | None, params: dict[str, Any]) -> Any: ...
    def now(self) -> datetime: ...
    def uuid(self) -> uuid_module.UUID: ...
    def random(self) -> random_module.Random: ...
    def wait_for_event(self, name: str) -> "asyncio.Future[Any]": ...
    def publish(self, value: Any) -> None: ...
    def hide(self, text: str) -> None: ...
    def continue_as_new(self, params: dict[str, Any]) -> NoReturn: ...
    def undo(self, step: Any) -> Any: ...


class _Context:
    """What sync and async contexts share."""

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._attempt.run_id

    @property
    def step(self) -> str:
        """The step's id within the run."""
        return self._attempt.step

    @property
    def attempt(self) -> int:
        """Which attempt of the step this is, from 1."""
        return self._attempt.number

    @property
    def idempotency_key(self) -> str:
        """A key for this step, equal on every attempt, for calls that go round the context."""
        return self._attempt.idempotency_key

    @property
    def actor(self) -> str | None:
        """Who asked for the run."""
        return self._attempt.actor

    @property
    def trail(self) -> str | None:
        """The trail that ties the run to others."""
        return self._attempt.trail

    @property
    def traceparent(self) -> str | None:
        """The place in a trace that this attempt belongs to (W3C Trace Context), for headers of calls of your own."""
        return self._attempt.traceparent

    @property
    def log(self) -> "logging.LoggerAdapter[logging.Logger]":
        """A logger that names run, step, attempt, actor and trace."""
        return self._attempt.log

    def resource(self, kind: type[T], default: Callable[[], T] | None = None) -> T:
        """The resource of that type which the client was given; else what `default` makes, else DefinitionError."""
        return self._attempt.resource(kind, default)

    def secret(self, name: str) -> Secret[str]:
        """The secret of that name, from the client's `secrets=`: by default an environment variable.

        It is never stored, and from here on hidden in errors and logs. Raises UnknownSecret.
        """
        return self._attempt.secret(name)

    def heartbeat(self) -> None:
        """Says that the handler is alive; raises AttemptOver when its attempt has ended meanwhile."""
        self._attempt.heartbeat()

    def completion_statement(
        self, result: Any = None, *, database: str | None = None, style: Style = ":name"
    ) -> CompletionStatement:
        """For a handler with a transaction of its own (Django's ORM, asyncpg, sqlite3) instead of `ctx.sql`: a
        statement to execute there as the last one before the commit. Then what it does happens exactly once, too.

        result: what the handler is about to return. database: the client's name (`sql=`) for the one that it writes to,
        by default the first. style: how the driver marks parameters: `:name`, `?`, `%s`, `%(name)s` or `$1`.

        Stage and request before; afterwards that raises DefinitionError. Once the statement is committed the step is,
        whatever the handler does then. A handler that returns and has not committed it fails.
        """
        return self._attempt.completion_statement(result, database, style)

    def stage(self, effect: Effect[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Staged:
        """Has the effect sent after the commit; if the handler raises, nothing is sent. Raises InvalidInput at once."""
        return self._attempt.stage(effect, args, kwargs)


class Context(_Context):
    """The context of a `def` handler."""

    __slots__ = ()

    @property
    def sql(self) -> "Connection":
        """A SQLAlchemy Connection in a transaction that commits with the attempt. It refuses commit and rollback."""
        return self._attempt.connection(None)

    @property
    def session(self) -> "Session":
        """An ORM session on the same transaction; flushed before the commit."""
        return self._attempt.session(None)

    def database(self, name: str) -> "Connection":
        """Like `sql`, for one of several databases. One attempt may use one database."""
        return self._attempt.connection(name)

    def request(self, effect: Effect[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the effect now and returns its answer. Intent and answer are journaled; a retry replays the answer."""
        return self._attempt.request_and_wait(effect, args, kwargs)


class AsyncContext(_Context):
    """The context of an `async def` handler."""

    __slots__ = ()

    @property
    def sql(self) -> "AsyncConnection":
        """A SQLAlchemy AsyncConnection in a transaction that commits with the attempt. It refuses commit, rollback."""
        return self._attempt.connection(None)

    @property
    def session(self) -> "AsyncSession":
        """An ORM session on the same transaction; flushed before the commit."""
        return self._attempt.session(None)

    def database(self, name: str) -> "AsyncConnection":
        """Like `sql`, for one of several databases. One attempt may use one database."""
        return self._attempt.connection(name)

    def request(self, effect: Effect[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Awaited, it calls the effect now and returns its answer. Intent and answer are journaled; a retry replays the
        answer. An attempt fails for good that has made a request and never awaited it."""
        return self._attempt.request(effect, args, kwargs)


current: ContextVar[Context | AsyncContext | Runner | None] = ContextVar("dotdo_current", default=None)


def _hide_revealed(text: str) -> None:
    """A secret was revealed: whatever runs is told, so that it hides the text."""
    found = current.get()
    if isinstance(found, _Context):
        found._attempt.hide(text)  # pyright: ignore[reportPrivateUsage]  # of this module
    elif found is not None:
        found.hide(text)


when_revealed(_hide_revealed)


def current_context() -> Context | AsyncContext:
    """The context of the handler that is running. Raises CalledOutside anywhere else."""
    found = current.get()
    if isinstance(found, _Context):
        return found
    if found is not None:
        raise CalledOutside(
            "This needs the context of an action's handler, but was called in a service; put it into an action."
        )
    raise CalledOutside(
        "This needs the context of an action's handler, but was called outside a handler. Put it into an action, and "
        "run that with client.run(...) or in a service. A test of it needs a client, too (dotdo.testing.TestDo): "
        ".plain(...) has no such context."
    )


def runner_for(what: str, teach: str | Callable[[], str] = "It works inside a service only.") -> Runner:
    """The run of the service that is running. Raises CalledOutside, with what to do instead, anywhere else."""
    found = current.get()
    if isinstance(found, _Context):
        raise CalledOutside(
            f"{what} was called inside the handler of an action ({found.step}). Actions do not call actions: compose "
            "them in a service, or move the shared code into a plain function."
        )
    if found is None:
        raise CalledOutside(f"{what} was called outside a service. {teach if isinstance(teach, str) else teach()}")
    return found


def refuse_in_service() -> None:
    """Raises CalledOutside in a service, for what a client does: it is I/O, and would be done again on each replay."""
    found = current.get()
    if found is not None and not isinstance(found, _Context):
        raise CalledOutside(
            "A client was called inside a service. Call actions and services there themselves (`await create_user()`, "
            'or by name `await dotdo.call("create-user")`); what else a client does belongs in an action.'
        )


async def sleep(seconds: float) -> None:
    """Waits durably inside a service: costs nothing and survives restarts. The same as `asyncio.sleep` there.

    seconds: 0 or more. Raises CalledOutside, TypeError for what is no number.
    """
    _service("sleep()")
    _check_seconds("sleep()", seconds)
    await asyncio.sleep(seconds)


def now() -> datetime:
    """The time (UTC) of the latest thing that happened to the run; the same on every replay."""
    return _service("now()").now()


def uuid() -> uuid_module.UUID:
    """A random UUID; the same on every replay."""
    return _service("uuid()").uuid()


def random() -> random_module.Random:
    """A random generator seeded for this run; the same numbers on every replay. Not for secrets."""
    return _service("random()").random()


async def wait_for_event(name: str, *, timeout: float | None = None) -> Any:
    """Waits for an event of that name and returns its value. Events that came early are kept, first in first out.

    timeout: seconds. Raises TimeoutError when it passes.
    """
    runner = _service("wait_for_event()")
    check_text(name, "event")
    if timeout is not None:
        _check_seconds("wait_for_event(timeout=...)", timeout)
    future = runner.wait_for_event(name)
    try:
        async with asyncio.timeout(timeout):
            return await future
    except TimeoutError:
        raise TimeoutError(f"No event {name!r} came within {timeout} s.") from None


def publish(value: Any) -> None:
    """Tells readers how far the run is: `client.runs.get(id).progress` is the latest value, `handle.progress()` all.

    value: what JSON can carry, at most 16 KiB of it. Each call tells once, also when the service is replayed. Raises
    InvalidValue, CalledOutside.
    """
    _service("publish()").publish(value)


def continue_as_new(**params: Any) -> NoReturn:
    """Ends this run of the service here, and goes on as a new run of it with these parameters and an empty journal.

    For services without an end: a journal is read as a whole on each return to memory. Whoever waits for the run waits
    on for the new one; events that were not awaited yet go with it. Steps still under way are cancelled, as when the
    service returns. What the run did stays done: a later failure undoes what came after. Raises InvalidInput.
    """
    _service("continue_as_new()").continue_as_new(params)


async def call(name: str, /, **params: Any) -> Any:
    """Calls an action or service by name (`"charge"`, `"charge@2"`) inside a service, and returns its output as plain
    JSON values. It is a step, or a child run, as if it were called itself.

    params: its input, by name, plain JSON values too. Raises ActionFailed when it failed for good. A name that nobody
    defines, or an input that does not fit, is a bug of the service (UnknownName, InvalidInput): it blocks the run. With
    workers, or on PostgreSQL, a name that is not defined yet is waited for.
    """
    bare, version = split_version(name)
    return await runner_for("call()").call_by_name(bare, version, params)


def _check_seconds(what: str, seconds: object) -> None:
    if not isinstance(seconds, int | float):
        hint = ", but its total_seconds() is" if isinstance(seconds, timedelta) else ""
        raise TypeError(f"{what} takes a number of seconds, such as 3 * 24 * 3600; {seconds!r:.80} is none{hint}")


def _service(what: str) -> Runner:
    found = current.get()
    if isinstance(found, _Context):
        raise CalledOutside(
            f"{what} was called inside the handler of an action ({found.step}), but works inside a service only. "
            "A handler is ordinary code: use what Python has, such as asyncio.sleep, datetime or random."
        )
    return runner_for(what)
