"""One task of a worker: runs the handler or effect that it is about, and says how that ended.

Handlers run as in an engine (engine/handling.py, attempting.py, applying.py): same context, transactions, applied rows
and settlement. What needs the journal goes to the server.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import msgspec

from dotdo import codec
from dotdo.action import NO_OVERRIDES, Action
from dotdo.effect import Effect, EffectCall
from dotdo.engine.attempting import Attempt
from dotdo.engine.calling import answer_of, run_effect, run_function
from dotdo.engine.failing import decisive
from dotdo.engine.handling import HandlerRun
from dotdo.engine.outliving import Outliving
from dotdo.engine.process_pool import ProcessPool
from dotdo.engine.secrets import RunSecrets, Vault
from dotdo.engine.settling import not_executed
from dotdo.engine.telling import error_of, failure_of
from dotdo.engine.threads import Threads
from dotdo.errors import AttemptOver, InvalidValue, StoreError
from dotdo.journal import Completion, weight
from dotdo.records import ErrorRecord
from dotdo.secret import Secret
from dotdo.worker_protocol import (
    ActionTask,
    Completed,
    EffectTask,
    EffectUndoTask,
    Failed,
    Failure,
    HandlerResult,
    LookupTask,
    Outcome,
    RequestCall,
    RequestState,
    SettleTask,
    StagedCall,
)

if TYPE_CHECKING:
    from dotdo.engine.applying import Databases
    from dotdo.engine.running import LiveRun
    from dotdo.engine.sql import Key

REQUEST_WAIT = 20.0
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0  # seconds between questions to a database that does not answer
ROOM = 64 * 1024  # bytes around a completion in a request

Ask = Callable[[RequestCall], Awaitable[RequestState]]


class Apart:
    """A thread for what is long, because something is large."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool: ThreadPoolExecutor | None = None

    def apart(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Runs a function there."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="dotdo-large")
        return self._loop.run_in_executor(self._pool, function)


class Stuck(Outliving):
    """The threads that outlive their attempts here. on_limit: told when they are too many."""

    def __init__(self, host: "Place", on_limit: Callable[[str], None]) -> None:
        super().__init__(cast("Any", host))
        self._on_limit = on_limit

    def _drain(self, what: str) -> None:
        self._on_limit(
            f"{self.count} threads of handlers go on after their attempts have ended, the last one of {what}"
        )


class Place:
    """Where tasks run: what a worker has beside its session. Stands for an engine, as far as handlers need one."""

    def __init__(
        self,
        *,
        databases: "Databases | None",
        vault: Vault,
        resources: dict[type, Any],
        on_stuck: Callable[[str], None],
        log: logging.Logger,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.databases, self.vault, self.resources, self.log = databases, vault, resources, log
        self.threads, self.processes = Threads(self.loop), ProcessPool()
        self.outliving, self.committer = Stuck(self, on_stuck), Apart(self.loop)
        self.doubles = None
        self.max_body = 0


class Owner:
    """Stands for the run of a task. Has no trace of its own: that is the server's."""

    trace = None

    def __init__(self, place: Place, id: str) -> None:
        self.engine, self.id = place, id
        self.secrets: RunSecrets | None = None

    def keep_secrets(self) -> RunSecrets:
        """The secrets that were met, from now on."""
        if self.secrets is None:
            self.secrets = RunSecrets(self.engine.vault, self.id)
        return self.secrets

    def look_up_secret(self, name: str) -> Secret[str]:
        """A secret of this process's environment. Raises UnknownSecret."""
        return self.keep_secrets().look_up(name)

    def told(self, failure: Failure) -> Failure:
        """A failure without secrets."""
        if self.secrets is None:
            return failure
        clean = self.secrets.clean_error(ErrorRecord(failure.type, failure.message, failure.traceback))
        return msgspec.structs.replace(failure, type=clean.type, message=clean.message, traceback=clean.traceback)


class HandlerTask(HandlerRun):
    """One attempt of an action. ask: makes a request through the server."""

    def __init__(self, place: Place, task: ActionTask, action: Action[..., Any], ask: Ask) -> None:
        self.owner = Owner(place, task.run)
        self.run = self.owner
        self.id, self.definition, self.overrides, self.input = task.step, action, NO_OVERRIDES, bytes(task.input)
        self.place, self.task, self._ask = place, task, ask
        self._loaded = None
        self._asked = 0
        self.over = False  # it is not ours any more
        self.attempt = Attempt(
            run_id=task.run,
            step=task.step,
            number=task.attempt,
            epoch=task.epoch,
            generation=task.generation,
            actor=task.actor,
            trail=task.trail,
            traceparent=task.traceparent,
            resources=place.resources,
            databases=place.databases,
            owner=self,
            loop=place.loop,
            is_async=action.is_async,
            keeper=self.owner,
        )

    async def execute(self) -> Outcome:
        """Runs the handler, and settles what it leaves in doubt. Raises AttemptOver when it is not ours any more."""
        task, attempt, action = self.task, self.attempt, self.definition
        try:
            given = codec.decode(self.input)
            self.input = action.schema.pack((), given)  # in the names of the code
            completion = await self.run_handler(action, attempt, task.completion.started)
            if attempt.promised is None:
                return self._completed_with(completion)
            failure: BaseException = not_executed(attempt)
        except BaseException as error:  # whatever a handler raises is its attempt's failure
            failure = error
        finally:
            attempt.end("has ended")  # nothing that the handler has left behind can begin to commit
            attempt.close()
        found = await self._settle(attempt) if attempt.in_doubt else None
        if found is not None:
            return self._completed_with(found)
        if self.over:
            raise AttemptOver(f"The attempt {attempt.number} of {attempt.step} is not this worker's any more.")
        told = failure_of(decisive(failure, action.retry), action.retry)
        return Failed(task.id, task.token, self.owner.told(told))

    def complete(self, attempt: Attempt, result: Any) -> Completion:
        """Part of AttemptOwner."""
        return self.completion(self.definition, attempt, self.task.completion.started, result)

    def is_fallback(self, action: Action[..., Any]) -> bool:
        """As the server knows it."""
        return self.task.completion.fallback

    def _completed(
        self, action: Action[..., Any], attempt: Attempt, started: int, data: bytes, loaded: Any
    ) -> Completion:
        completion = super()._completed(action, attempt, started, data, loaded)
        limit = self.place.max_body - ROOM
        if weight(completion) - len(self.input) > limit:
            # Before the commit: what the server cannot be told must not happen.
            raise InvalidValue(f"The result of {action.subject} and its effects have more than {limit:,} bytes.")
        return completion

    def _completed_with(self, completion: Completion) -> Completed:
        effects = [StagedCall(each.effect, each.version, each.key, each.input) for each in completion.effects]
        result = HandlerResult(completion.result, effects, completion.requests, completion.sql)
        return Completed(self.task.id, self.task.token, completion=msgspec.Raw(msgspec.json.encode(result)))

    async def _settle(self, attempt: Attempt) -> Completion | None:
        """Asks the database whether the attempt has committed, until it answers."""
        databases, wait = self.place.databases, FIRST_WAIT
        assert databases is not None, "it is in doubt"
        key = (attempt.run_id, attempt.step, attempt.generation, attempt.number)
        name = databases.known(attempt.database)
        while True:
            try:
                return await asyncio.shield(self.place.threads.run(lambda: databases.settle(name, key)))
            except StoreError as error:
                self.place.log.warning(
                    "how %s of %s ended is not known yet: %s", attempt.number, attempt.step, error.message
                )
                if self.over:
                    raise AttemptOver(error.message) from None
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT)

    async def make_request(self, attempt: Attempt, effect: Effect[..., Any], input: bytes, name: str) -> Any:
        """Has the server make a request: it journals intent and answer. The name is the server's, too."""
        self._asked += 1
        task = self.task
        call = RequestCall(
            "", task.id, task.token, self._asked, effect.name, effect.version, msgspec.Raw(input), REQUEST_WAIT
        )
        while True:
            state = await self._ask(call)
            if state.state == "answered":
                return effect.schema.load(bytes(state.answer))
            if state.state == "failed" and state.error is not None:
                raise error_of(state.error)
            if state.state == "over":
                attempt.end("is over, says the server")
                attempt.heartbeat()


async def perform_effect(place: Place, task: EffectTask, effect: Effect[..., Any]) -> Outcome:
    """Performs, looks up or undoes an effect."""
    owner = Owner(place, task.run)
    call = EffectCall(
        task.key,
        task.run,
        task.step,
        task.attempt,
        actor=task.actor,
        trail=task.trail,
        traceparent=task.traceparent,
        resources=place.resources,
        secrets=owner.look_up_secret,
    )
    run, input = cast("LiveRun", owner), bytes(task.input)  # all of a run that calls need
    found: Any = None
    try:
        if isinstance(task, EffectUndoTask):
            await run_function(run, effect.undo, call, effect, input, answer=effect.schema.load(bytes(task.answer)))
            return Completed(task.id, task.token)
        if isinstance(task, LookupTask):
            found = await run_function(run, effect.lookup, call, effect, input)
            if found is None:
                return Completed(task.id, task.token, found=False)
        else:
            found = await run_effect(run, effect, call, bytes(effect.schema.pack((), codec.decode(input))))
    except BaseException as error:  # whatever an effect raises is its try's failure
        return Failed(task.id, task.token, owner.told(failure_of(error, effect.retry)))
    try:
        data, _ = answer_of(run, effect, found)
    except InvalidValue as error:
        # It has happened all the same.
        return Completed(task.id, task.token, unkept=error.message)
    return Completed(task.id, task.token, answer=msgspec.Raw(data), found=True)


async def settle(place: Place, task: SettleTask) -> Outcome:
    """Decides an attempt in the databases that are here."""
    key: Key = (task.run, task.step, task.generation, task.attempt)
    databases = place.databases
    try:
        for name in databases.names if databases is not None else []:
            assert databases is not None, "it has names"
            found = await place.threads.run(lambda name=name: databases.settle(name, key))
            if found is not None:
                return Completed(task.id, task.token, completion=msgspec.Raw(msgspec.json.encode(found)))
    except StoreError as error:
        return Failed(task.id, task.token, failure_of(error))
    return Completed(task.id, task.token)
