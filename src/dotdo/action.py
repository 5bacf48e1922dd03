"""Actions: one named, versioned unit of work with typed input and output, a handler, and a policy.

A decorated function keeps its signature. Called inside a service it is a step; `.plain` calls the bare handler. What
runs it is reached through `context.current` only.
"""

import copy
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import msgspec

from dotdo import codec, policy
from dotdo.catalogue import Catalogue, catalogue_of, check_name, described
from dotdo.context import AsyncContext, Context, runner_for
from dotdo.effect import takes_first
from dotdo.errors import DefinitionError
from dotdo.policy import Concurrency, Rate, Retry
from dotdo.records import Definition, Options
from dotdo.schema import Schema, hints_of, normalise, schema_of
from dotdo.secret_input import check_same
from dotdo.step import Step

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_RETRY = Retry()
Wire = Literal["snake", "camel"]
Pool = Literal["thread", "process"]


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What one call says differently from the definition (`with_`). step_key: the step's own name within its run."""

    retry: Retry | None = None
    timeout: float | None = None
    version: int | None = None
    step_key: str | None = None


NO_OVERRIDES = Overrides()


class Policies(TypedDict, total=False):
    """What a definition may say beside its name and handler, for type checkers; see `action`."""

    version: int
    retry: Retry | int | None
    timeout: float | None
    undo: "Action[..., Any] | Callable[..., Any] | None"
    fallback: "Action[..., Any] | None"
    on_failure: "Sequence[Action[..., Any]]"
    concurrency: int | Concurrency | Sequence[int | Concurrency] | None
    rate: str | Rate | Sequence[str | Rate] | None
    pivot: bool
    wire: Wire
    pool: Pool
    catalogue: Catalogue | None


class Action(Generic[P, R]):
    """One atomic unit of work. See `action` for the parameters; `Action(name=..., handler=...)` is the same."""

    @overload
    def __init__(
        self,
        name: str,
        handler: Callable[Concatenate[AsyncContext, P], Coroutine[Any, Any, R]],
        **policies: Unpack["Policies"],
    ) -> None: ...
    @overload
    def __init__(
        self, name: str, handler: Callable[Concatenate[Context, P], R], **policies: Unpack["Policies"]
    ) -> None: ...
    @overload
    def __init__(
        self, name: str, handler: Callable[P, Coroutine[Any, Any, R]], **policies: Unpack["Policies"]
    ) -> None: ...
    @overload
    def __init__(self, name: str, handler: Callable[P, R], **policies: Unpack["Policies"]) -> None: ...

    def __init__(
        self,
        name: str,
        handler: Callable[..., Any],
        *,
        version: int = 1,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        undo: "Action[..., Any] | Callable[..., Any] | None" = None,
        fallback: "Action[..., Any] | None" = None,
        on_failure: "Sequence[Action[..., Any]]" = (),
        concurrency: int | Concurrency | Sequence[int | Concurrency] | None = None,
        rate: str | Rate | Sequence[str | Rate] | None = None,
        pivot: bool = False,
        wire: Wire = "snake",
        pool: Pool = "thread",
        catalogue: Catalogue | None = None,
    ) -> None:
        self.name, self.version, self.handler = name, version, handler
        self.subject = described("action", name, version)
        self.is_async = _is_async(handler)
        self.takes_context = _takes_context(self.subject, handler, self.is_async)
        self.schema = schema_of(self.subject, handler, 1 if self.takes_context else 0, wire)
        self.pool: tuple[str, str | None, str] | Literal["worker"] | None = place_in_process(self, pool)
        self.retry = policy.retry_of(retry, DEFAULT_RETRY)
        self.timeout = policy.seconds(timeout, "timeout")
        self.limits = policy.limits_of(self.subject, self.schema.names, concurrency, rate)
        refuse_secret_keys(self)
        self.pivot = policy.yes_or_no(pivot, f"{self.subject}: pivot")
        self.catalogue = catalogue_of(catalogue)
        _check_action(self.subject, "fallback", fallback)
        if fallback is not None and fallback.fallback is not None:
            raise DefinitionError(f"{self.subject}: its fallback {fallback.name} has a fallback itself; no chains.")
        if fallback is not None:
            check_fallback(self.subject, self.schema, fallback)
        self.fallback = fallback
        self.on_failure = hooks_of(self.subject, on_failure)
        self.options = Options(version=version)
        self.overrides = NO_OVERRIDES
        self.undo_action: Action[..., Any] | None = None
        self.__doc__ = handler.__doc__
        self.__name__ = getattr(handler, "__name__", name)
        self.__qualname__ = getattr(handler, "__qualname__", name)
        self.__module__ = handler.__module__
        self.__wrapped__ = handler
        self.catalogue.add("action", name, version, self, handler)
        if undo is not None:
            self.undo_action = undo if isinstance(undo, Action) else self._undo_of(undo)
            check_undo(self.subject, self.schema, self.undo_action)
            refuse_secret_keys(self.undo_action)

    def undo(self, handler: Callable[..., Any]) -> "Action[..., Any]":
        """Decorator: the action that takes back a completed one of this. It receives the output as its first
        parameter, and the input as a parameter named `input` if it has one."""
        self.undo_action = self._undo_of(handler)
        check_undo(self.subject, self.schema, self.undo_action)
        refuse_secret_keys(self.undo_action)
        return self.undo_action

    def _undo_of(self, handler: Callable[..., Any]) -> "Action[..., Any]":
        if not callable(handler) or hasattr(handler, "with_") or hasattr(handler, "dedup"):  # pyright: ignore[reportUnnecessaryComparison]
            raise DefinitionError(f"{self.subject}: undo={handler!r:.80}: an action is needed, or a function.")
        return Action(f"{self.name}.undo", handler, version=self.version, catalogue=self.catalogue)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Step[R]:
        return runner_for(self.subject, self._teach).call(self, args, kwargs, self.overrides)

    def _teach(self) -> str:
        return (
            f"Call {self.__name__}.plain(...) for the bare handler, client.run({self.__name__}, ...) to run it "
            "durably, or call it inside a service."
        )

    def plain(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the bare handler, for unit tests; the context comes first if it takes one."""
        return self.handler(*args, **kwargs)

    def with_(
        self,
        *,
        key: str | None = None,
        retry: Retry | int | None = None,
        timeout: float | None = None,
        version: int | None = None,
        trail: str | None = None,
        deadline: float | None = None,
        delay: float | None = None,
        priority: int | None = None,
        labels: dict[str, str] | None = None,
    ) -> Self:
        """A copy for one call that says some things differently.

        retry, timeout: instead of the definition's. version: another version. key: inside a service the step's own
        name in its run, elsewhere the run's idempotency key. trail, deadline, delay, priority, labels: for
        `client.run/start`.
        """
        policy.check_text(key, "key")
        return with_options(
            self,
            Options(
                key=key,
                version=version,
                trail=trail,
                deadline=deadline,
                delay=delay,
                priority=priority,
                labels=labels or {},
            ),
            Overrides(
                retry=None if retry is None else policy.retry_of(retry, self.retry),
                timeout=policy.seconds(timeout, "timeout"),
                version=version,
                step_key=key,
            ),
        )

    def definition(self) -> Definition:
        """What listings show of it."""
        return Definition(
            kind="action",
            name=self.name,
            version=self.version,
            doc=inspect.cleandoc(self.__doc__ or ""),
            input_schema=self.schema.input_schema(),
            output_schema=self.schema.output_schema(),
            policy={
                "retry": {
                    "attempts": self.retry.attempts,
                    "delay": self.retry.delay,
                    "max_delay": self.retry.max_delay,
                },
                "timeout": self.timeout,
                **({} if self.limits is None else self.limits.described()),
                "undo": self.undo_action.name if self.undo_action else None,
                "fallback": self.fallback.name if self.fallback else None,
                "pivot": self.pivot,
                "on_failure": [item.name for item in self.on_failure],
            },
        )

    def __repr__(self) -> str:
        return f"<Action {self.name}@{self.version}>"


D = TypeVar("D")
S = TypeVar("S", bound=msgspec.Struct)


def with_options(definition: D, options: Options, overrides: Overrides) -> D:
    """A copy of an action or service that says what is given here differently in its next call."""
    twin = cast("Any", copy.copy(definition))
    twin.options, twin.overrides = _merged(twin.options, options), _merged(twin.overrides, overrides)
    return cast("D", twin)


def _merged(before: S, given: S) -> S:
    changes = {name: value for name, value in msgspec.structs.asdict(given).items() if value is not None}
    if not changes.get("labels", True):
        del changes["labels"]  # no labels given are no labels taken away
    return msgspec.structs.replace(before, **changes)


class _ActionDecorator(Protocol):
    @overload
    def __call__(self, handler: Callable[Concatenate[AsyncContext, P], Coroutine[Any, Any, R]], /) -> Action[P, R]: ...
    @overload
    def __call__(self, handler: Callable[Concatenate[Context, P], R], /) -> Action[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, Coroutine[Any, Any, R]], /) -> Action[P, R]: ...
    @overload
    def __call__(self, handler: Callable[P, R], /) -> Action[P, R]: ...


def action(
    name: str,
    *,
    version: int = 1,
    retry: Retry | int | None = None,
    timeout: float | None = None,
    undo: Action[..., Any] | Callable[..., Any] | None = None,
    fallback: Action[..., Any] | None = None,
    on_failure: Sequence[Action[..., Any]] = (),
    concurrency: int | Concurrency | Sequence[int | Concurrency] | None = None,
    rate: str | Rate | Sequence[str | Rate] | None = None,
    pivot: bool = False,
    wire: Wire = "snake",
    pool: Pool = "thread",
    catalogue: Catalogue | None = None,
) -> _ActionDecorator:
    """Registers a function as an action.

    name, version: how it is called by name; versions live side by side. retry: a Retry, or a number of attempts.
    timeout: seconds per attempt. undo: what takes a completed one back, an action or function: it is given the output,
    and the input as `input` if it names that. fallback: an action with the same
    input, tried when the retries are used up. on_failure: actions given a Failure when a run of this action fails for
    good. concurrency, rate: how many attempts may run at a time (5), and start within a time ("100/minute"), on all
    nodes together; or a Concurrency or Rate, or several, for each value of a parameter; the others wait. pivot: undoing
    a service stops at this step. wire: `camel` writes outputs in camelCase. pool: `process` runs a `def` handler in a
    process of its own, for what computes for long or may crash; it may stage effects there.

    The handler takes `Context` (`def`) or `AsyncContext` (`async def`) first, or leaves it out, then its inputs with
    type hints. catalogue: where it is registered. Raises DefinitionError for a handler that cannot work,
    DuplicateDefinition when the name and version are taken.
    """
    check_name("action", name, version)

    def decorate(handler: Callable[..., Any]) -> Action[..., Any]:
        return Action(
            name,
            handler,
            version=version,
            retry=retry,
            timeout=timeout,
            undo=undo,
            fallback=fallback,
            on_failure=on_failure,
            concurrency=concurrency,
            rate=rate,
            pivot=pivot,
            wire=wire,
            pool=pool,
            catalogue=catalogue,
        )

    return cast("_ActionDecorator", decorate)


def refuse_secret_keys(action: "Action[..., Any]") -> None:
    """Raises DefinitionError for a limit that goes by a secret: what it goes by is stored, and told to whoever asks why
    a run waits."""
    limits, secrets = action.limits, action.schema.secrets
    if limits is None or secrets is None:
        return
    for each in (*limits.concurrency, *limits.rate):
        if each.key is not None and secrets.fields.reaches(each.key):
            raise DefinitionError(
                f"{action.subject}: {each!r}: its key is a Secret, and what a limit goes by is stored in the clear. "
                "Take a parameter that is none and tells the same apart, such as the id of an account."
            )


def place_in_process(action: "Action[..., Any]", pool: Pool) -> tuple[str, str | None, str] | None:
    """Where a process of the pool finds the handler: module, file, name. None for one that runs here. Raises
    DefinitionError for a handler that no other process can find, or that would not do there what it is for."""
    policy.one_of(pool, "pool", ("thread", "process"))
    if pool == "thread":
        return None
    subject, handler = action.subject, action.handler
    name: str = getattr(handler, "__qualname__", "")
    problem = None
    if action.is_async:
        problem = "an `async def` handler computes nothing for long; make it a `def`"
    elif not inspect.isfunction(handler) or "<" in name:
        problem = "a process of its own finds only a function at the top level of a module"
    elif action.schema.secrets is not None:
        problem = "secret inputs do not leave the engine's process"
    if problem is not None:
        raise DefinitionError(f'{subject}: pool="process": {problem}.')
    return handler.__module__, inspect.getsourcefile(handler), name


def undo_input(undo: Action[..., Any], output: bytes, given: bytes) -> bytes:
    """The input of an undo action: the output under its first parameter's name, the input under `input` if asked."""
    fields: dict[str, msgspec.Raw] = {}
    for index, parameter in enumerate(undo.schema.parameters):
        if parameter.name == "input":
            fields["input"] = msgspec.Raw(given)
        elif index == 0:
            # The output may be in camelCase (`wire="camel"`); the undo's hint has the names of the code.
            named = normalise(codec.decode(output), parameter.hint)
            fields[parameter.name] = msgspec.Raw(codec.encode_result(named, "output"))
    return msgspec.json.encode(fields)


def check_undo(subject: str, schema: Schema, undo: Action[..., Any]) -> None:
    """Raises DefinitionError unless the undo action can be called with an output (and input)."""
    unknown = [p.name for p in undo.schema.parameters[1:] if p.required and p.name != "input"]
    if unknown:
        raise DefinitionError(
            f"{subject}: its undo {undo.name} takes {', '.join(unknown)}; an undo gets the output as its first "
            "parameter and, under the name `input`, what the action was called with."
        )
    undo.schema.lend_secrets(subject, schema)


def hooks_of(subject: str, on_failure: object) -> "tuple[Action[..., Any], ...]":
    """The actions that are told of a failure. Raises DefinitionError for what cannot be, as nothing else would say so
    before there is one."""
    if not isinstance(on_failure, list | tuple):
        raise DefinitionError(f"{subject}: on_failure={on_failure!r}: a list of actions is needed, as in [tell_admin].")
    hooks = cast("tuple[Action[..., Any], ...]", tuple(cast("Sequence[Any]", on_failure)))
    for hook in hooks:
        _check_action(subject, "on_failure", hook)
        more = [p.name for p in hook.schema.parameters[1:] if p.required]
        if more:
            raise DefinitionError(
                f"{subject}: its on_failure {hook.name} takes {', '.join(more)}, too; it is given a Failure, "
                "and no more."
            )
    return hooks


def _check_action(subject: str, role: str, given: object) -> None:
    if given is not None and not isinstance(given, Action):
        raise DefinitionError(f"{subject}: {role}: {given!r} is not an action; define it with @action.")


def check_fallback(subject: str, schema: Schema, fallback: Action[..., Any]) -> None:
    """Raises DefinitionError unless the fallback can be called with the same input."""
    other = fallback.schema
    unknown = sorted(schema.names - other.names)
    missing = [p.name for p in other.parameters if p.required and p.name not in schema.names]
    if unknown or missing:
        differ = [f"does not take {name}" for name in unknown] + [f"needs {name}" for name in missing]
        raise DefinitionError(
            f"{subject}: its fallback {fallback.name} {' and '.join(differ)}; a fallback is given the same input."
        )
    check_same(subject, f"its fallback {fallback.name}", schema.secrets, other.secrets)


def _is_async(handler: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def _takes_context(subject: str, handler: Callable[..., Any], is_async: bool) -> bool:
    wanted, wrong = (AsyncContext, Context) if is_async else (Context, AsyncContext)
    hints = hints_of(subject, handler)
    if wrong in hints.values():
        raise DefinitionError(
            f"{subject}: {'an async def' if is_async else 'a def'} handler takes {wanted.__name__}, not "
            f"{wrong.__name__}."
        )
    return takes_first(subject, handler, wanted, ("ctx", "context"))
