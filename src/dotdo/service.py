"""Services (durable workflows): an `async def` that composes actions, as plain asyncio, replayed from its journal.

A service does no input or output itself; it calls actions, sleeps, and waits for events. Called inside another service
it becomes a child run.
"""

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, cast

from dotdo import policy
from dotdo.action import NO_OVERRIDES, Action, Overrides, Wire, hooks_of, with_options
from dotdo.catalogue import Catalogue, catalogue_of, check_name, described
from dotdo.context import AsyncContext, Context, runner_for
from dotdo.errors import DefinitionError
from dotdo.records import Definition, Options
from dotdo.schema import hints_of, schema_of
from dotdo.step import Step

P = ParamSpec("P")
R = TypeVar("R")

OnBug = Literal["block", "fail"]


class Service(Generic[P, R]):
    """A durable workflow. See `service` for the parameters; `Service(name=..., handler=...)` is the same."""

    def __init__(
        self,
        name: str,
        handler: Callable[P, Coroutine[Any, Any, R]],
        *,
        version: int = 1,
        undo: bool = True,
        on_failure: Sequence[Action[..., Any]] = (),
        on_bug: OnBug = "block",
        wire: Wire = "snake",
        catalogue: Catalogue | None = None,
    ) -> None:
        self.name, self.version, self.handler = name, version, handler
        self.subject = described("service", name, version)
        if not inspect.iscoroutinefunction(handler):
            but = (
                "has a `yield`; return all values, such as in a list"
                if inspect.isasyncgenfunction(handler)
                else "is not"
            )
            raise DefinitionError(f"{self.subject}: a service is an `async def`; {handler!r} {but}.")
        if {Context, AsyncContext} & set(hints_of(self.subject, handler).values()):
            raise DefinitionError(
                f"{self.subject}: a service takes no context. Work on the world belongs in actions; "
                "dotdo.now(), dotdo.sleep() and the like need none."
            )
        self.schema = schema_of(self.subject, handler, 0, wire)
        policy.one_of(on_bug, "on_bug", ("block", "fail"))
        if callable(undo):
            raise DefinitionError(
                f"{self.subject}: undo={undo!r:.80}: a service is undone by undoing its steps, so each of its actions "
                "declares its own undo; here it is True, or False for none."
            )
        self.undoes, self.on_bug = policy.yes_or_no(undo, f"{self.subject}: undo"), on_bug
        self.on_failure = hooks_of(self.subject, on_failure)
        self.catalogue = catalogue_of(catalogue)
        self.options, self.overrides = Options(version=version), NO_OVERRIDES
        self.__doc__ = handler.__doc__
        self.__name__ = getattr(handler, "__name__", name)
        self.__qualname__ = getattr(handler, "__qualname__", name)
        self.__module__ = handler.__module__
        self.__wrapped__ = handler
        self.catalogue.add("service", name, version, self, handler)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Step[R]:
        return runner_for(self.subject, self._teach).call(self, args, kwargs, self.overrides)

    def _teach(self) -> str:
        return (
            f"Call client.start({self.__name__}, ...) or client.run(...) to run it durably, or call it inside a "
            "service."
        )

    def plain(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]:
        """Calls the bare function."""
        return self.handler(*args, **kwargs)

    def with_(
        self,
        *,
        key: str | None = None,
        version: int | None = None,
        trail: str | None = None,
        deadline: float | None = None,
        delay: float | None = None,
        priority: int | None = None,
        labels: dict[str, str] | None = None,
    ) -> Self:
        """A copy for one call. key: the idempotency key of the run (inside a service: the step's own name). version,
        trail, priority, labels as in `client.service(...)`; deadline, delay: seconds."""
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
            Overrides(version=version, step_key=key),
        )

    def definition(self) -> Definition:
        """What listings show of it."""
        return Definition(
            kind="service",
            name=self.name,
            version=self.version,
            doc=inspect.cleandoc(self.__doc__ or ""),
            input_schema=self.schema.input_schema(),
            output_schema=self.schema.output_schema(),
            policy={"undo": self.undoes, "on_bug": self.on_bug, "on_failure": [item.name for item in self.on_failure]},
        )

    def __repr__(self) -> str:
        return f"<Service {self.name}@{self.version}>"


class _ServiceDecorator(Protocol):
    def __call__(self, handler: Callable[P, Coroutine[Any, Any, R]], /) -> Service[P, R]: ...


def service(
    name: str,
    *,
    version: int = 1,
    undo: bool = True,
    on_failure: Sequence[Action[..., Any]] = (),
    on_bug: OnBug = "block",
    wire: Wire = "snake",
    catalogue: Catalogue | None = None,
) -> _ServiceDecorator:
    """Registers an `async def` as a service.

    name, version: how it is called by name. undo: whether a failed run takes back what it had completed. on_failure:
    actions given a Failure when a run fails for good or is blocked. on_bug: what an exception other than a failed
    action does to a run, `block` (a person mends and retries) or `fail`. wire: `camel` writes outputs in camelCase.
    catalogue: where it is registered.

    It takes its inputs, with type hints, and no context. Raises DefinitionError for a function that cannot be one,
    DuplicateDefinition when the name and version are taken.
    """
    check_name("service", name, version)

    def decorate(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Service[..., Any]:
        return Service(
            name,
            handler,
            version=version,
            undo=undo,
            on_failure=on_failure,
            on_bug=on_bug,
            wire=wire,
            catalogue=catalogue,
        )

    return cast("_ServiceDecorator", decorate)
