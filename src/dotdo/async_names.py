"""Calls by name: `client.action("x", key="...")` and `client.service(...)`, and what can be asked of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Never, Protocol

from dotdo.async_runs import AsyncHandle, Client, Load, plain
from dotdo.catalogue import split_version
from dotdo.enlisting import Work, execute_async
from dotdo.errors import DefinitionError, InputError
from dotdo.policy import patience
from dotdo.preview import Preview
from dotdo.records import Definition, Options, Run, RunKind

DefinitionList = list[Definition]  # in a class with a method `list` the name means that


class Caller(Client, Protocol):
    """What these need of the client that they belong to."""

    def options(self, options: Options) -> Options: ...
    async def execute(
        self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options, wait: float | None
    ) -> Run: ...
    async def accept(
        self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options, load: Load
    ) -> AsyncHandle[Any]: ...
    async def enlisting(self, kind: RunKind, name: str, params: Any, options: Options) -> Work[str]: ...


def refuse_unnamed(method: str, unnamed: Sequence[object]) -> None:
    """Raises InputError for parameters without names: where a name is all that is known, nobody knows their order."""
    if unnamed:
        raise InputError(
            f"Parameters of what is called by name have names: write {method}(name=value), "
            f"or {method}(**params) with a dictionary."
        )


class AsyncByName:
    """An action or service by name, with options: `client.action("x", key="...")`."""

    def __init__(
        self, client: Caller, kind: RunKind, name: str, options: Options, wait: float | None, within: Any = None
    ) -> None:
        self._client, self._name, self._options, self._wait, self.within = client, name, options, wait, within
        self._kind: RunKind = kind

    async def invoke(self, /, *unnamed: Never, **params: Any) -> Any:
        """Runs it and returns its output as plain JSON values. Raises ActionFailed when it failed for good."""
        refuse_unnamed("invoke", unnamed)
        self._refuse_within("invoke")
        return plain(await self.execute(params))

    async def execute(self, params: Mapping[str, Any]) -> Run:
        """Runs it and returns the run. Raises ActionFailed when it failed for good."""
        return await self._client.execute(self._kind, self._name, params, self._options, self._wait)

    async def start(self, /, *unnamed: Never, **params: Any) -> AsyncHandle[Any]:
        """Starts it; the handle's id is durable when this returns."""
        refuse_unnamed("start", unnamed)
        if self.within is not None:
            return AsyncHandle(self._client, await execute_async(await self.enlisting(params), self.within), None)
        return await self._client.accept(self._kind, self._name, params, self._options, None)

    async def enlisting(self, params: Mapping[str, Any]) -> Work[str]:
        """What `start` executes within a transaction of the caller's."""
        return await self._client.enlisting(self._kind, self._name, params, self._options)

    def made(self, id: str) -> AsyncHandle[Any]:
        """The handle of a run that was started so."""
        return AsyncHandle(self._client, id, None)

    async def preview(self, /, *unnamed: Never, **params: Any) -> Preview[Any]:
        """What it would do: its result, effects and SQL. Nothing happens. Raises InputError, DefinitionError."""
        refuse_unnamed("preview", unnamed)
        self._refuse_within("preview")
        platform = await self._client.platform()
        return await platform.preview(self._kind, self._name, params, self._options, self._wait)

    def _refuse_within(self, what: str) -> None:
        if self.within is not None:
            raise DefinitionError(f"within= is for start: {what} cannot wait for a transaction that you commit later.")


class AsyncNames:
    """`client.action` and `client.service`: call by name."""

    def __init__(self, client: Caller, kind: RunKind) -> None:
        self._client = client
        self._kind: RunKind = kind

    def __call__(
        self,
        name: str,
        *,
        key: str | None = None,
        version: int | None = None,
        trail: str | None = None,
        deadline: float | None = None,
        delay: float | None = None,
        priority: int | None = None,
        wait: float | None = None,
        labels: dict[str, str] | None = None,
        within: Any = None,
    ) -> AsyncByName:
        """An action or service by name (`"x"` or `"x@2"`).

        key: the same key and input again is the same run. deadline, delay, wait: seconds for the whole run, before its
        start, and for this caller. priority: from -10 to 10; where runs wait, the higher goes first. within: for
        `start`, as in `AsyncDo.start`.
        """
        bare, pinned = split_version(name)
        if version is not None and (type(version) is not int or version < 1 or pinned not in (None, version)):
            raise DefinitionError(f"{name!r}, version={version!r}: one whole number from 1 is needed, here or there.")
        patience(wait, "wait")  # before a run is accepted
        options = self._client.options(
            Options(
                key=key,
                version=version or pinned,
                trail=trail,
                deadline=deadline,
                delay=delay,
                priority=priority,
                labels=labels or {},
            )
        )
        return AsyncByName(self._client, self._kind, bare, options, wait, within)

    async def execute(
        self,
        *,
        name: str,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        version: int | None = None,
        trail: str | None = None,
        deadline: float | None = None,
        delay: float | None = None,
        priority: int | None = None,
        wait: float | None = None,
        labels: dict[str, str] | None = None,
    ) -> Run:
        """Runs it by name and returns the run: `.id`, `.status`, `.result`. Raises ActionFailed."""
        called = self(
            name,
            key=key,
            version=version,
            trail=trail,
            deadline=deadline,
            delay=delay,
            priority=priority,
            wait=wait,
            labels=labels,
        )
        return await called.execute(params or {})

    async def list(self) -> DefinitionList:
        """What can be called, with schemas."""
        return await (await self._client.platform()).definitions(self._kind)
