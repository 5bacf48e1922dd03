"""Runs a handler as one attempt: on the loop, in a thread or in a process; with its timeout, its transaction, and the
completion that this commits. The same in an engine and in a worker; nothing is journaled here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from dotdo.action import Action, Overrides
from dotdo.codec import is_heavy
from dotdo.context import AsyncContext, Context, current
from dotdo.engine.attempting import Attempt
from dotdo.engine.cancelling import whatever_happens
from dotdo.engine.failing import Block
from dotdo.engine.outliving import Outliving, outlive
from dotdo.engine.process_pool import ProcessPool, run_in_process
from dotdo.engine.threads import OnThread, Threads, TimeIsUp
from dotdo.errors import AttemptTimedOut
from dotdo.journal import LARGE, Completion, StagedEffect

if TYPE_CHECKING:
    from dotdo.engine.secrets import RunSecrets
    from dotdo.engine.spans import RunTrace


# Shared by the completions, which nobody changes, of attempts that have none: most. Lists, so that none is written.
_NO_EFFECTS: list[StagedEffect] = []
_NONE: list[str] = []


class Apart(Protocol):
    """Runs what is long on a thread for such things."""

    def apart(self, function: Callable[[], Any]) -> "asyncio.Future[Any]": ...


class HandlerHost(Protocol):
    """What handlers run in: an engine, or a worker."""

    @property
    def threads(self) -> Threads: ...
    @property
    def processes(self) -> ProcessPool: ...
    @property
    def outliving(self) -> Outliving: ...
    @property
    def committer(self) -> Apart: ...
    @property
    def log(self) -> logging.Logger: ...


class HandlerOwner(Protocol):
    """The run that an attempt belongs to, as far as its handler needs it."""

    @property
    def id(self) -> str: ...
    @property
    def engine(self) -> HandlerHost: ...
    @property
    def trace(self) -> "RunTrace | None": ...
    @property
    def secrets(self) -> "RunSecrets | None": ...
    def keep_secrets(self) -> "RunSecrets": ...


class HandlerRun:
    """One step, as far as running its handler goes. Who derives from it says what follows from an attempt's end."""

    __slots__ = ()  # an engine has thousands

    run: HandlerOwner
    id: str
    definition: Action[..., Any]
    input: bytes
    overrides: Overrides
    _loaded: tuple[Any] | None  # the result as a service receives it

    async def run_handler(self, action: Action[..., Any], attempt: Attempt, started: int) -> Completion:
        if len(self.input) <= LARGE:
            arguments = self._arguments(action, attempt)
        else:
            arguments = await self.run.engine.committer.apart(partial(self._arguments, action, attempt))
        timeout = self.overrides.timeout or action.timeout
        if action.pool is not None:
            return await self._run_elsewhere(action, attempt, started, timeout)
        if not action.is_async:
            return await self._run_in_thread(action, attempt, started, arguments, timeout)
        context = AsyncContext(attempt)
        token = current.set(context)
        try:
            handling = action.handler(*((context,) if action.takes_context else ()), **arguments)
            del arguments  # the handler has them
            result = await (handling if timeout is None else self._within(timeout, handling))
            attempt.begin_commit()
            if is_heavy(result):
                work = partial(self.completion, action, attempt, started, result, heavy=True)
                completion = await whatever_happens(self.run.engine.committer.apart(work))
            else:
                completion = self.completion(action, attempt, started, result)
            if attempt.work is not None:
                commit = attempt.work.commit_async(self._applied(attempt), completion)
                await whatever_happens(asyncio.ensure_future(commit))
            return completion
        except GeneratorExit:
            raise  # its loop is gone, as at the end of a process: nothing can be awaited any more
        except BaseException:
            if attempt.work is not None:
                await whatever_happens(asyncio.ensure_future(attempt.work.rollback_async()), is_commit=False)
            raise
        finally:
            current.reset(token)

    def _arguments(self, action: Action[..., Any], attempt: Attempt) -> dict[str, Any]:
        if action.schema.secrets is None:
            return action.schema.arguments(self.input)
        try:
            return self.run.keep_secrets().arguments(action.schema, self.input)
        except Block as block:  # for want of a key
            attempt.block = block
            raise

    async def _within(self, timeout: float, handling: Awaitable[Any]) -> Any:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await handling
        except TimeoutError:
            if limit.expired():
                raise AttemptTimedOut(f"The attempt did not end within {timeout} s.") from None
            raise

    async def _run_in_thread(
        self, action: Action[..., Any], attempt: Attempt, started: int, arguments: dict[str, Any], timeout: float | None
    ) -> Completion:
        applied = self._applied(attempt)

        def work() -> Completion:
            context = Context(attempt)
            current.set(context)
            try:
                result = action.handler(*((context,) if action.takes_context else ()), **arguments)
                attempt.begin_commit()
                completion = self.completion(action, attempt, started, result, heavy=is_heavy(result))
                if attempt.work is not None:
                    attempt.work.commit(applied, completion)
                return completion
            except BaseException:
                if attempt.work is not None:
                    attempt.work.rollback()
                raise

        trace = self.run.trace
        job = OnThread(self.run.engine.threads, work if trace is None else trace.bound(work))
        try:
            return await job.result(timeout)
        except TimeIsUp:
            if not attempt.end("timed out"):
                return await whatever_happens(job.future)
            # A thread cannot be killed: its context is dead now, and the retry waits until its SQL is rolled back.
            await outlive(self.run, job.future, attempt)
            raise AttemptTimedOut(f"The attempt did not end within {timeout} s.") from None
        except asyncio.CancelledError:
            if not attempt.end("was cancelled"):
                return await whatever_happens(job.future)
            if not job.call_off():
                await outlive(self.run, job.future, attempt)
            raise

    async def _run_elsewhere(
        self, action: Action[..., Any], attempt: Attempt, started: int, timeout: float | None
    ) -> Completion:
        """Runs a handler that is not for this process."""
        data = await run_in_process(self.run.engine.processes, action, attempt, self.input, timeout)
        attempt.begin_commit()
        load = partial(action.schema.load, data)
        loaded = load() if len(data) <= LARGE else await whatever_happens(self.run.engine.committer.apart(load))
        return self._completed(action, attempt, started, data, loaded)

    def completion(
        self, action: Action[..., Any], attempt: Attempt, started: int, result: Any, *, heavy: bool = False
    ) -> Completion:
        data, loaded = action.schema.dump(result, heavy=heavy)
        return self._completed(action, attempt, started, data, loaded)

    def is_fallback(self, action: Action[..., Any]) -> bool:
        """Whether it is what the step falls back to."""
        return (action.name, action.version) != (self.definition.name, self.definition.version)

    def _completed(
        self, action: Action[..., Any], attempt: Attempt, started: int, data: bytes, loaded: Any
    ) -> Completion:
        if self.run.secrets is not None:
            self.run.secrets.refuse_completion(action.schema.subject, data, attempt.effects)
        self._loaded = (loaded,)
        return Completion(
            action=action.name,
            version=action.version,
            input=msgspec.Raw(self.input),
            result=msgspec.Raw(data),
            started=started,
            effects=attempt.effects or _NO_EFFECTS,
            requests=attempt.requests or _NONE,
            undo=action.undo_action is not None,
            sql=[attempt.work.database] if attempt.work is not None else _NONE,
            fallback=self.is_fallback(action),
        )

    def _applied(self, attempt: Attempt) -> tuple[str, str, int, int]:
        return (self.run.id, self.id, attempt.generation, attempt.number)
