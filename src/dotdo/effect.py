"""Effects: defined calls to the outside world.

An effect is registered by name and version, so that what was staged or requested can be delivered, looked up or undone
by any process after a crash; the journal keeps only its name, version and JSON input. Its function runs outside the
handler: staged effects after the commit, requests while the handler waits.
"""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

import msgspec

from dotdo import policy
from dotdo.catalogue import Catalogue, catalogue_of, check_name, described
from dotdo.errors import CalledOutside, DefinitionError
from dotdo.policy import Retry
from dotdo.records import Definition
from dotdo.schema import hints_of, schema_of
from dotdo.secret import Secret
from dotdo.secret_provider import Given, SecretSources

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Dedup = Literal["key", "find", "none"]
OnUnknown = Literal["resend", "ask"]

DEFAULT_RETRY = Retry(attempts=6, delay=1, factor=2, max_delay=60)


class EffectCall:
    """What an effect's function is told of the call that it makes.

    key: the idempotency key, equal on every try. run_id, step: whose effect it is. attempt: which try this is, from 1.
    actor, trail: as given by the caller of the run. traceparent, tracestate: the place in a trace, for headers of a
    call that continues it (W3C Trace Context). resources, secrets: what tests of an effect make a call with.
    """

    # fmt: off
    __slots__ = (
        "_resources", "_secrets", "actor", "attempt", "key", "run_id", "step", "traceparent", "tracestate", "trail"
    )
    # fmt: on

    def __init__(
        self,
        key: str,
        run_id: str,
        step: str,
        attempt: int,
        *,
        actor: str | None = None,
        trail: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        resources: "dict[type, Any] | None" = None,
        secrets: Given | Callable[[str], Secret[str]] | None = None,
    ) -> None:
        self.key, self.run_id, self.step, self.attempt = key, run_id, step, attempt
        self.actor, self.trail, self.traceparent, self.tracestate = actor, trail, traceparent, tracestate
        self._resources, self._secrets = resources or {}, secrets

    def resource(self, kind: type[T], default: Callable[[], T] | None = None) -> T:
        """The resource of that type which the client was given. Raises DefinitionError when there is none."""
        return find_resource(self._resources, kind, default)

    def secret(self, name: str) -> Secret[str]:
        """The secret of that name, from the client's `secrets=`. Raises UnknownSecret. See `Context.secret`."""
        given = self._secrets
        return SecretSources(given).get(name) if given is None or not callable(given) else given(name)


def find_resource(resources: dict[type, Any], kind: type[T], default: Callable[[], T] | None = None) -> T:
    """The resource of a type, or what `default` makes (kept for the next call)."""
    found = resources.get(kind)
    if found is None:
        found = next((resource for resource in list(resources.values()) if isinstance(resource, kind)), None)
    if found is None and default is not None:
        found = resources.setdefault(kind, default())  # the first one stays when two threads make one
    if found is None:
        known = ", ".join(sorted(item.__name__ for item in resources)) or "none"
        raise DefinitionError(
            f"No resource of type {kind.__name__} was given to the client (known: {known}); "
            f"pass it: Do(resources=[{kind.__name__}(...)])."
        )
    return cast("T", found)


class Staged(msgspec.Struct, frozen=True):
    """A staged effect: `id` is its stable key; it leaves after the commit."""

    id: str
    effect: str


class StandIn(msgspec.Struct, frozen=True):
    """What an effect's `preview=` may return instead of a bare answer.

    text: shows people what would be sent. answer: stands in for the answer of a request; without one, a request ends
    the preview.
    """

    text: str | None = None
    answer: Any = msgspec.UNSET


_CONTEXTS = {("dotdo.context", "Context"), ("dotdo.context", "AsyncContext")}  # by name: their module imports this one


class Effect(Generic[P, R]):
    """A defined call to the outside world. See `effect` for the parameters."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        version: int = 1,
        dedup: Dedup = "none",
        key_window: float | None = None,
        undo: "Effect[..., Any] | Callable[..., Any] | None" = None,
        lookup: Callable[..., Any] | None = None,
        preview: Callable[..., Any] | None = None,
        on_unknown: OnUnknown = "ask",
        retry: Retry | int | None = None,
        timeout: float | None = 60.0,
        catalogue: Catalogue | None = None,
    ) -> None:
        self.name, self.version, self.function = name, version, function
        self.subject = described("effect", name, version)
        if getattr(function, "__name__", "") == "<lambda>" or _is_closure(function):
            raise DefinitionError(
                f"{self.subject}: a lambda or closure cannot be an effect. After a crash another process must find it "
                "by its name: define it with @effect at module level and pass what it needs as parameters."
            )
        if dedup == "find" and lookup is None:
            raise DefinitionError(f'{self.subject}: dedup="find" needs lookup=, the function that finds it by its key.')
        policy.one_of(dedup, "dedup", ("key", "find", "none"))
        policy.one_of(on_unknown, "on_unknown", ("resend", "ask"))
        self.dedup: Dedup = dedup
        self.on_unknown: OnUnknown = on_unknown
        self.key_window, self.lookup = policy.seconds(key_window, "key_window"), lookup
        if key_window is not None and dedup != "key":
            raise DefinitionError(
                f'{self.subject}: key_window= is for dedup="key": seconds for which the receiver remembers our keys.'
            )
        self.preview = preview
        self.retry = policy.retry_of(retry, DEFAULT_RETRY)
        self.timeout = policy.seconds(timeout, "timeout")
        self.takes_call = takes_first(self.subject, function, EffectCall, ("call",))
        self.schema = schema_of(self.subject, function, 1 if self.takes_call else 0)
        self.is_async = inspect.iscoroutinefunction(function)
        self.undo: Callable[..., Any] | None = undo.function if isinstance(undo, Effect) else undo
        _check_companion(self.subject, "undo", self.undo, ("answer", "input"))
        _check_companion(self.subject, "lookup", lookup, ("input",))
        _check_companion(self.subject, "preview", preview, ("input",))
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)
        self.__module__ = function.__module__
        catalogue_of(catalogue).add("effect", name, version, self, function)

    def plain(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the bare function, for unit tests; the call record comes first if it takes one."""
        return self.function(*args, **kwargs)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        raise CalledOutside(
            f"{self.subject} was called directly. Inside a handler stage it (ctx.stage({self.__name__}, ...)) "
            "or ask for "
            f"its answer (await ctx.request({self.__name__}, ...)); in a unit test call {self.__name__}.plain(...)."
        )

    def definition(self) -> Definition:
        """What listings show of it."""
        return Definition(
            kind="effect",
            name=self.name,
            version=self.version,
            doc=inspect.cleandoc(self.__doc__ or ""),
            input_schema=self.schema.input_schema(),
            output_schema=self.schema.output_schema(),
            policy={
                "dedup": self.dedup,
                "on_unknown": self.on_unknown,
                "undo": self.undo is not None,
                "preview": self.preview is not None,
            },
        )

    def __repr__(self) -> str:
        return f"<Effect {self.name}@{self.version}>"


class _EffectDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[EffectCall, P], Coroutine[Any, Any, R]], /) -> Effect[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[EffectCall, P], R], /) -> Effect[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Effect[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Effect[P, R]: ...


def effect(
    name: str,
    *,
    version: int = 1,
    dedup: Dedup = "none",
    key_window: float | None = None,
    undo: Effect[..., Any] | Callable[..., Any] | None = None,
    lookup: Callable[..., Any] | None = None,
    preview: Callable[..., Any] | None = None,
    on_unknown: OnUnknown = "ask",
    retry: Retry | int | None = None,
    timeout: float | None = 60.0,
    catalogue: Catalogue | None = None,
) -> _EffectDecorator:
    """Registers a function as an effect.

    name, version: how journals refer to it. dedup: `key` when the receiver honours our idempotency key, `find` when
    `lookup` can find what was done, `none` otherwise. key_window: seconds for which the receiver remembers keys.
    undo: takes a request back; called with the EffectCall, and `answer` and `input` if it names them. lookup: called
    with the EffectCall, and `input` if it names it; returns the answer, or None when it did not happen. preview: called
    like lookup in a preview; returns the answer that stands in for a real one, or a StandIn. on_unknown: what to do
    when the answer was lost and neither helps: `resend`, or `ask` a person. retry: a Retry or a number of tries for
    deliveries and undos, 6 within half a minute by default. timeout: seconds per try. catalogue: where it is
    registered.

    The function takes the EffectCall first (or leaves it out), then its inputs; `def` or `async def`. Raises
    DefinitionError for one that cannot work, DuplicateDefinition when the name and version are taken.
    """
    check_name("effect", name, version)

    def decorate(function: Callable[..., Any]) -> Effect[..., Any]:
        return Effect(
            name,
            function,
            version=version,
            dedup=dedup,
            key_window=key_window,
            undo=undo,
            lookup=lookup,
            preview=preview,
            on_unknown=on_unknown,
            retry=retry,
            timeout=timeout,
            catalogue=catalogue,
        )

    return cast("_EffectDecorator", decorate)


def takes_first(subject: str, function: Callable[..., Any], kind: type, names: tuple[str, ...]) -> bool:
    """Whether a function takes an object of `kind` (a context, a call) as its first parameter.

    Without a hint the parameter's name decides. Raises DefinitionError when such an object stands elsewhere.
    """
    hints = hints_of(subject, function)
    found = inspect.signature(function).parameters
    named = {(getattr(hint, "__module__", ""), getattr(hint, "__name__", "")) for hint in hints.values()}
    if kind is EffectCall and named & _CONTEXTS:
        raise DefinitionError(
            f"{subject}: an effect takes no context, as it may be made long after the handler has ended. Take an "
            "EffectCall first, or nothing, and what it needs of the handler as parameters."
        )
    parameters = list(found)
    for name, parameter in found.items():
        if hints.get(name) is kind and (name != parameters[0] or parameter.kind is parameter.KEYWORD_ONLY):
            raise DefinitionError(f"{subject}: {name}: {kind.__name__} must be the first, positional parameter.")
    if not parameters:
        return False
    hint = hints.get(parameters[0])
    return hint is kind or (hint is None and parameters[0] in names)


def _check_companion(subject: str, role: str, function: Callable[..., Any] | None, offered: tuple[str, ...]) -> None:
    """Raises DefinitionError unless a companion can be called with the call record and what it is offered."""
    if function is None:
        return
    first, *others = [*inspect.signature(function).parameters.values(), None]
    hint = hints_of(subject, function).get(first.name) if first else None
    unknown = [one.name for one in others if one and one.default is one.empty and one.name not in offered]
    if first is None or first.name in offered or hint not in (None, EffectCall) or unknown:
        raise DefinitionError(
            f"{subject}: its {role} {getattr(function, '__name__', function)} cannot be called. It takes the "
            f"EffectCall first, then what it wants of: {', '.join(offered)}."
        )


def _is_closure(function: Callable[..., Any]) -> bool:
    # A function defined inside another one is fine as long as it keeps nothing of it.
    return bool(getattr(function, "__closure__", None))
