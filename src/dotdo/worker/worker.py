"""A worker: registers what it has, claims tasks, runs them beside each other, tells how they ended, and drains.

A session lasts until the worker leaves, or its lease is lost; then all of its tasks are somebody else's, and a new
session begins.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.catalogue import Catalogue, default_catalogue
from dotdo.embedding import open_databases
from dotdo.engine.resources import open_resource
from dotdo.engine.secrets import temporary_vault
from dotdo.errors import AttemptOver, DefinitionError, DotdoError, StoreError, UnknownWorker, UnsupportedProtocol
from dotdo.secret_provider import Given, SecretSources
from dotdo.worker.beating import Heart
from dotdo.worker.offering import offers_of
from dotdo.worker.performing import HandlerTask, Place, perform_effect, settle
from dotdo.worker.talking import Line, log
from dotdo.worker_protocol import (
    WITH_LIMITS,
    ActionTask,
    Batch,
    Beat,
    Claim,
    Complete,
    Completed,
    Done,
    Failed,
    Failure,
    OfWorker,
    Outcome,
    Register,
    Registered,
    RequestCall,
    RequestState,
    Results,
    SettleTask,
    Task,
)

if TYPE_CHECKING:
    from dotdo.engine.sql import Key

GRACE_SECONDS = 30.0
TELLERS = 4  # requests under way that tell how tasks ended
MOST_AT_ONCE, MOST_BYTES = 200, 4 * 1024 * 1024  # outcomes in one of them
FORGET_SECONDS = 1.0
TURNS = 4  # of the loop, before the next claim is made: it costs as much as a short handler


class Running:
    """A task that is here: being run, or not answered yet."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.work: asyncio.Task[None] | None = None
        self.handler: HandlerTask | None = None

    def stop(self, why: str) -> None:
        """It is not ours any more."""
        if self.handler is not None:
            self.handler.over = True
            self.handler.attempt.end(why)
        if self.work is not None:
            self.work.cancel()


class Worker:
    """Runs the handlers of a catalogue for a server.

    url, api_key: of the server; the key needs the scope `workers:serve`. sql, resources, secrets: as `Do` takes them.
    concurrency: actions at a time. name: for people; by default host and process. grace: seconds for which handlers may
    go on once the worker drains. on_ready: told each session, and what is not offered, in words.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        catalogue: Catalogue | None = None,
        sql: Any = None,
        resources: Sequence[Any] = (),
        secrets: Given | None = None,
        concurrency: int = 10,
        name: str | None = None,
        grace: float = GRACE_SECONDS,
        on_ready: Callable[[Registered, list[str]], None] = lambda session, left_out: None,
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self.grace, self._on_ready = grace, on_ready
        self._catalogue = default_catalogue if catalogue is None else catalogue
        self.offers = offers_of(self._catalogue)
        if not (self.offers.actions or self.offers.effects):
            raise DefinitionError(
                "There is nothing that a worker could run: define an action (@action), or import the module that does. "
                + " ".join(self.offers.left_out)
            )
        self._databases = None if sql is None else open_databases(sql)
        self._vault = temporary_vault(SecretSources(secrets))
        self._resources, self._concurrency = resources, concurrency
        self._line = Line(url, api_key, self._renewed)
        self._heart: Heart | None = None
        self._session: Registered | None = None
        self._held: dict[str, Running] = {}
        self._batch = 0
        self._outcomes: list[Outcome] = []
        self._unneeded: dict[str, list[Key]] = {}
        self.draining = False

    # -- its life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Works until it has drained. Raises AccessDenied, DefinitionError, StoreUnusable."""
        self._loop = asyncio.get_running_loop()
        self._news, self._changed, self._drained = asyncio.Event(), asyncio.Event(), asyncio.Event()
        async with AsyncExitStack() as stack:
            resources: dict[type, Any] = {}
            for given in self._resources:
                await open_resource(given, resources, stack)
            self._place = Place(
                databases=self._databases,
                vault=self._vault,
                resources=resources,
                on_stuck=self._stuck,
                log=log,
            )
            stack.push_async_callback(self._close)
            if self._databases is not None:
                await self._place.threads.run(self._databases.prepare)
            while not self.draining:
                await self._work()

    def drain(self) -> None:
        """Takes no more actions, finishes those that are here, then ends. On the worker's loop."""
        self.draining = True
        self._drained.set()

    def stop(self) -> None:
        """Ends now; what is still here is tried again elsewhere. On the worker's loop."""
        self.grace = 0.0
        self.drain()
        self._changed.set()

    async def _close(self) -> None:
        await self._forget()
        await self._line.close()
        await self._place.processes.close()
        if self._databases is not None:
            await self._databases.close()

    async def _work(self) -> None:
        """One session."""
        session = await self._register()
        if session is None:
            return
        self._session, self._batch, self._over = session, 0, self._loop.create_future()
        self._place.max_body = session.max_body
        self._heart = Heart(self._line, session, self._what_is_held, self._beaten, self._over_from_thread)
        self._on_ready(session, self.offers.left_out)
        parts = [self._loop.create_task(part) for part in (self._claim(session), self._tell(session))]
        ending = self._loop.create_task(self._drain(session, parts[0]))
        try:
            await asyncio.wait([self._over, ending], return_when=asyncio.FIRST_COMPLETED)
            if self._over.done() and not self.draining:
                log.warning("the session of this worker is over: %s", self._over.result())
        finally:
            self._heart.close()
            for part in (*parts, ending):
                part.cancel()
            await asyncio.wait([*parts, ending])
            await self._abandon()

    async def _register(self) -> Registered | None:
        offers, limited = self.offers, self.offers.limited
        given = Register(
            WITH_LIMITS if limited else 1,
            self.name,
            f"dotdo-python/{version('dotdo')}",
            self._concurrency,
            [] if self._databases is None else self._databases.names,
            offers.actions,
            offers.effects,
        )
        asking = self._loop.create_task(self._line.ask("register", given, Registered))
        stopping = self._loop.create_task(self._drained.wait())
        try:
            await asyncio.wait([asking, stopping], return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        except UnsupportedProtocol as error:
            if not limited:
                raise
            raise UnsupportedProtocol(
                f"{error} Version {WITH_LIMITS} is for concurrency= and rate= of {', '.join(limited)}: an older server "
                "would not keep to them."
            ) from None
        finally:
            asking.cancel()
            stopping.cancel()

    async def _drain(self, session: Registered, claiming: "asyncio.Task[None]") -> None:
        """Waits until the worker is to drain, then until nothing is left here, and leaves."""
        await self._drained.wait()
        end = self._loop.time() + self.grace
        try:
            async with asyncio.timeout(self.grace):
                await self._line.ask("drain", OfWorker(session.worker), Done)
            while self._held and self.grace:
                self._changed.clear()
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
        except TimeoutError:
            log.warning("%s tasks did not end within %g s; they are tried again elsewhere", len(self._held), self.grace)
        claiming.cancel()
        await asyncio.wait([claiming])
        try:
            async with asyncio.timeout(2.0):
                await self._line.ask("leave", OfWorker(session.worker, self._batch), Done)
        except (TimeoutError, UnknownWorker):
            log.info("the server was not told that this worker leaves; it notices by itself")

    async def _abandon(self) -> None:
        """What is still here is somebody else's now."""
        self._outcomes.clear()
        held = list(self._held.values())
        for running in held:
            running.stop("is somebody else's now: its worker has lost its lease, or stops")
        work = [running.work for running in held if running.work is not None]
        if work:
            await asyncio.wait(work, timeout=max(self.grace, 1.0))
        self._held.clear()

    # -- what the heart tells, from its thread ------------------------------------------------------------------------

    def _renewed(self, sent: float) -> None:
        if self._heart is not None:
            self._heart.renewed(sent)

    def _what_is_held(self) -> tuple[list[str], int]:
        batch = self._batch  # before the tasks: a batch is counted when all of it is here
        return list(self._held), batch

    def _beaten(self, beat: Beat) -> None:
        if beat.cancelled or beat.lost:
            self._loop.call_soon_threadsafe(self._give_up, [*beat.cancelled, *beat.lost])

    def _over_from_thread(self, why: str) -> None:
        self._loop.call_soon_threadsafe(self._end_session, why)

    def _end_session(self, why: str) -> None:
        if not self._over.done():
            self._over.set_result(why)

    def _stuck(self, why: str) -> None:
        log.critical("%s. Threads cannot be killed, so this worker drains; start it again.", why)
        self.drain()

    # -- tasks --------------------------------------------------------------------------------------------------------

    async def _claim(self, session: Registered) -> None:
        wait = session.poll_seconds
        try:
            while True:
                batch = await self._line.ask("claim", Claim(session.worker, self._batch, wait), Batch, wait=wait)
                for task in batch.tasks:
                    if task.id not in self._held:
                        self._start(session, task)
                self._batch = batch.batch
                self._give_up(batch.cancelled)
                for _ in range(TURNS):
                    await asyncio.sleep(0)  # short handlers first, and their answers
        except DotdoError as error:
            self._end_session(error.message)

    def _start(self, session: Registered, task: Task) -> None:
        running = self._held[task.id] = Running(task)
        running.work = self._loop.create_task(self._perform(session, running))

    def _give_up(self, tasks: list[str]) -> None:
        for id in tasks:
            running = self._held.get(id)
            if running is not None:
                running.stop("was cancelled")

    async def _perform(self, session: Registered, running: Running) -> None:
        task = running.task
        outcome: Outcome | None = None
        try:
            outcome = await self._outcome(session, running)
        except (AttemptOver, asyncio.CancelledError) as error:
            log.info("%s of %s is given up: %s", task.id, task.run, error)
        except Exception:  # of this worker's own
            log.exception("%s of %s could not be run", task.id, task.run)
            failure = Failure("WorkerError", "The worker failed; its log says why.")
            outcome = Failed(task.id, task.token, failure)
        if outcome is None or self._session is not session:
            self._drop(task.id)
            return
        if isinstance(outcome, Failed):
            log.warning("%s %s of %s failed: %.500s", task.name, task.id, task.run, outcome.error.message)
        self._outcomes.append(outcome)
        self._news.set()

    async def _outcome(self, session: Registered, running: Running) -> Outcome:
        task = running.task
        if isinstance(task, SettleTask):
            return await settle(self._place, task)
        kind = "action" if isinstance(task, ActionTask) else "effect"
        definition = self._catalogue.find(kind, task.name, task.version)
        if definition is None:
            text = f"This worker does not define the {kind} {task.name}@{task.version}."
            return Failed(task.id, task.token, Failure("DefinitionError", text, kind="refused"))
        if not isinstance(task, ActionTask):
            return await perform_effect(self._place, task, definition)

        def ask(call: RequestCall) -> Any:
            call = msgspec.structs.replace(call, worker=session.worker)
            return self._line.ask("request", call, RequestState, wait=call.wait)

        running.handler = HandlerTask(self._place, task, definition, ask)
        return await running.handler.execute()

    async def _tell(self, session: Registered) -> None:
        """Tells how tasks ended, several at a time."""
        free = asyncio.Semaphore(TELLERS)
        telling: set[asyncio.Task[None]] = set()
        try:
            while True:
                await self._news.wait()
                await free.acquire()
                outcomes = self._take_outcomes()
                if not outcomes:
                    self._news.clear()
                    free.release()
                    continue
                task = self._loop.create_task(self._complete(session, outcomes))
                telling.add(task)
                task.add_done_callback(lambda done: (telling.discard(done), free.release()))
        finally:
            for task in telling:
                task.cancel()

    def _take_outcomes(self) -> list[Outcome]:
        taken, size = 0, 0
        for outcome in self._outcomes[:MOST_AT_ONCE]:
            size += len(outcome.completion) + len(outcome.answer) if isinstance(outcome, Completed) else 1000
            if taken and size > MOST_BYTES:
                break
            taken += 1
        outcomes, self._outcomes = self._outcomes[:taken], self._outcomes[taken:]
        return outcomes

    async def _complete(self, session: Registered, outcomes: list[Outcome]) -> None:
        try:
            found = await self._line.ask("complete", Complete(session.worker, outcomes), Results)
        except DotdoError as error:
            self._end_session(error.message)
            return
        for state in found.results:
            running = self._held.get(state.task)
            if state.state != "accepted":
                log.warning("what %s had done was not taken: %s (%s)", state.task, state.state, state.detail)
            elif running is not None and running.handler is not None:
                self._row_is_unneeded(running.handler)
            self._drop(state.task)

    def _drop(self, id: str) -> None:
        self._held.pop(id, None)
        self._changed.set()

    # -- applied rows -------------------------------------------------------------------------------------------------

    def _row_is_unneeded(self, handler: HandlerTask) -> None:
        attempt = handler.attempt
        if attempt.database is None or self._databases is None:
            return
        first = not self._unneeded
        keys = self._unneeded.setdefault(self._databases.known(attempt.database), [])
        keys.append((attempt.run_id, attempt.step, attempt.generation, attempt.number))
        if first:
            self._loop.call_later(FORGET_SECONDS, lambda: self._loop.create_task(self._forget()))

    async def _forget(self) -> None:
        """Deletes rows of attempts that the server has durably."""
        unneeded, self._unneeded = self._unneeded, {}
        databases = self._databases
        for name, keys in unneeded.items():
            assert databases is not None, "there are rows"
            try:
                await self._place.threads.run(lambda name=name, keys=keys: databases.forget(name, keys))
            except StoreError as error:
                log.warning("rows of dotdo_applied stay for now: %s", error.message)
