"""The engine: keeps the claimed runs in memory, tells callers how they ended, and shuts down in order.

It implements the `Platform` protocol (with serving.py) for a process that has a store. Everything here happens on one
event loop, except what it hands to the writer, the reader and the handlers' threads.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dotdo.catalogue import Catalogue
from dotdo.clock import Clock
from dotdo.engine.answering import Answers, run_record
from dotdo.engine.children import blocked_message, child_message
from dotdo.engine.claiming import Claimer
from dotdo.engine.committing import GroupCommit
from dotdo.engine.erasing import take_up
from dotdo.engine.forgetting import AppliedRows
from dotdo.engine.hosting import Host
from dotdo.engine.intake import Intake
from dotdo.engine.journaling import RunJournal
from dotdo.engine.leasing import Lease
from dotdo.engine.limiting import Limiter
from dotdo.engine.outliving import Outliving
from dotdo.engine.peering import Peers
from dotdo.engine.pinning import Pins
from dotdo.engine.previewing import Previewer
from dotdo.engine.process_pool import ProcessPool
from dotdo.engine.pruning import Place
from dotdo.engine.publishing import Readers
from dotdo.engine.reloading import lost
from dotdo.engine.resources import open_resource
from dotdo.engine.resuming import Suspects, load_runs
from dotdo.engine.running import LiveRun
from dotdo.engine.secrets import Vault, temporary_vault
from dotdo.engine.serving import Serving
from dotdo.engine.settling import Settler
from dotdo.engine.spilling import spilled
from dotdo.engine.sweeping import Sweeper
from dotdo.engine.threads import Threads, on_pool
from dotdo.engine.tuning import tune_interpreter
from dotdo.engine.waking import Alarm
from dotdo.engine.watching import SPIN_SECONDS, Watch, Watchdog
from dotdo.engine.workers import Workers
from dotdo.errors import ClientClosed, StoreError
from dotdo.journal import LARGE, Blocked, Ended, Entry
from dotdo.records import Options, Run, RunKind
from dotdo.secret_provider import SecretSources
from dotdo.store.protocol import Claim, Message, Store

if TYPE_CHECKING:
    from dotdo.engine.applying import Databases

T = TypeVar("T")

CAPACITY = 20_000
GRACE_SECONDS = 10.0


def new_node() -> str:
    """The id of one incarnation of a process."""
    return f"node_{os.urandom(6).hex()}"


class Engine(Serving):
    """Runs actions and services on one store, in this process."""

    def __init__(
        self,
        store: Store,
        *,
        catalogue: Catalogue,
        clock: Clock,
        anchor_key: bytes,
        databases: "Databases | None" = None,
        resources: Sequence[Any] = (),
        check_replay: bool = False,
        capacity: int = CAPACITY,
        grace: float = GRACE_SECONDS,
        spin_limit: float = SPIN_SECONDS,
        vault: Vault | None = None,
    ) -> None:
        self.store, self.clock, self.anchor_key = store, clock, anchor_key
        self.workers = Workers(self, catalogue)
        self.catalogue = self.workers.catalogue
        self.databases, self.check_replay, self.capacity = databases, check_replay, capacity
        self.vault = vault or temporary_vault(SecretSources(None))
        self.log = logging.getLogger("dotdo.engine")
        self.node = new_node()
        self.live: dict[str, LiveRun] = {}
        self.dropped = {}
        self.resources: dict[type, Any] = {}
        self.draining = False
        self.host: Host | Peers | None = None  # for other processes on the store; set before the start
        self.lease: Lease | None = None  # on a store that several nodes share
        self.suspects = Suspects(self)
        self._given, self._grace, self._spin_limit = resources, grace, spin_limit
        self._stack = AsyncExitStack()
        self.pinned = Pins(self)
        self._kept: list[asyncio.Task[Any]] = []
        self.background: set[asyncio.Task[Any]] = set()
        self.applied, self.intake = AppliedRows(self), Intake(self)
        self._closed = False
        self._on_lost = partial(lost, self)  # one for all journals
        self.quiet = asyncio.Event()  # while draining: a run has come to rest

    # -- beginning and end --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens resources, joins the store and begins to claim what is due."""
        self.loop = asyncio.get_running_loop()
        tune_interpreter()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="dotdo-reader")
        self.committer = GroupCommit(self.store, self.loop)
        self.alarm = Alarm(self.clock, self.loop)
        self.threads = Threads(self.loop)
        self.outliving = Outliving(self)
        self.processes = ProcessPool()
        self.settler, self.answers = Settler(self), Answers(self.loop)
        self.readers, self.watched = Readers(self.loop), self.committer.watched
        self.write = self.committer.call
        self.watch = Watch()
        self._watchdog = Watchdog(self.loop, self.watch, limit=self._spin_limit)
        try:
            for given in self._given:
                await open_resource(given, self.resources, self._stack)
            if self.databases is not None:
                await self.threads.run(self.databases.prepare)
            node, host, pid = self.node, socket.gethostname(), os.getpid()
            await self.committer.call(lambda: self.store.join(node, host, pid, self.clock.now()))
            await self.workers.load()
            if self.store.shared:
                self.lease = Lease(self)
        except BaseException:
            await self._stop_parts()
            raise
        self.previewer = Previewer(
            catalogue=self.catalogue,
            clock=self.clock,
            databases=self.databases,
            resources=self.resources,
            outlives=self.outliving.add,
            watch=self.watch,
            sources=self.vault.sources,
        )
        self.limiter = Limiter(self)
        self.claimer = Claimer(self)
        self.sweeper = Sweeper(self)
        self.spawn(take_up(Place(self.store, self.clock.now(), self.anchor_key, self.read, self.write)))
        if self.host is not None:
            self.host.open()

    async def close(self) -> None:
        """Drains: starts nothing new, lets attempts in flight end within the grace, gives its runs back."""
        grace = self._grace
        if self._closed:
            return
        self._closed = self.draining = True
        self.sweeper.close()
        await self.claimer.close()
        if self.lease is not None:
            await self.lease.stop_returning()
        await self.previewer.close()
        self.workers.close()
        await self._drain(grace)
        self.alarm.close()
        tasks = [task for run in self.live.values() for task in run.acting()]
        unseen = [run.id for run in list(self.live.values()) if not run.give_back()]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        await self.applied.flush()
        if self.background:
            await asyncio.wait(self.background, timeout=grace)
        self.answers.fail_all(ClientClosed("The engine was stopped before the run ended; the run goes on later."))
        try:
            self.committer.flush()
            await self.committer.call(lambda: None)  # by then all who had something written know how that went
            unseen += self.dropped
            await self.committer.call(lambda: self.store.leave(self.node, self.clock.now(), unseen))
        except StoreError as error:
            self.log.error("the store could not be left in order: %s", error)
        await self._stop_parts()

    @property
    def closing(self) -> bool:
        """Whether the engine is being closed, or is."""
        return self._closed

    async def _drain(self, grace: float) -> None:
        """Waits until no attempt, delivery or undo is under way, `grace` seconds at most."""
        end = self.loop.time() + grace
        while any(run.busy for run in self.live.values()) and self.loop.time() < end:
            self.quiet.clear()
            waiting = self.loop.create_task(self.quiet.wait())
            await asyncio.wait([waiting], timeout=end - self.loop.time())
            waiting.cancel()

    async def _stop_parts(self) -> None:
        await self.committer.close()
        await self._stack.aclose()
        if self.databases is not None:
            await self.databases.close()
        self.alarm.close()
        await self.processes.close()
        self._reader.shutdown()
        self._watchdog.close()
        if self.lease is not None:
            self.lease.close()
        if self.host is not None:
            self.host.forget()
        self.store.close()
        if self.host is not None:
            await self.host.close()

    # -- accepting: intake.py -----------------------------------------------------------------------------------------

    async def accept(self, kind: RunKind, name: str, params: Any, options: Options, *, id: str | None = None) -> str:
        """Validates and accepts a run, and returns its id once it is durable. Raises InputError, StoreError.

        id: of a run without a key, if its caller has made one.
        """
        return await self.intake.accept(kind, name, params, options, id)

    async def execute(self, kind: RunKind, name: str, params: Any, options: Options) -> Run:
        """Accepts a run and waits until it has ended or is blocked; one wait instead of two."""
        return await self.result(await self.intake.accept_to_wait(kind, name, params, options))

    async def newest_versions(self) -> str:
        """The id of the snapshot of what is newest now."""
        if self.catalogue.changes != self.pinned.changes:
            await self.pinned.take()
        return self.pinned.now.id

    def journal_of(self, run: str, claim: int, head: Entry, generation: int) -> RunJournal:
        """A run's journal under a claim of this engine."""
        return RunJournal(
            run,
            claim,
            committer=self.committer,
            clock=self.clock,
            anchor_key=self.anchor_key,
            head=head,
            generation=generation,
            on_lost=self._on_lost,
        )

    # -- resuming -----------------------------------------------------------------------------------------------------

    async def resume(self, claims: list[Claim], node: str) -> None:
        """Loads runs that were claimed by this node, as it was called then, and lets them go on."""
        await load_runs(self, claims, node)

    def parked(self, run: LiveRun) -> None:
        """A run leaves memory; its row is being written."""
        run.release()

        def written(error: BaseException | None) -> None:
            if error is None:
                self.live.pop(run.id, None)
                self.claimer.hint()

        run.journal.when_written(written)

    # -- ending -------------------------------------------------------------------------------------------------------

    def ended(self, run: LiveRun, ended: Ended) -> None:
        """A run has appended its terminal entry; callers are told when it is durable."""
        message = child_message(run, ended)
        if message is not None:
            run.journal.send(message)
        run.release()

        def durable(error: BaseException | None) -> None:
            if error is None:
                self.live.pop(run.id, None)
                self.claimer.made_room()
                if self.answers.awaited(run.id):
                    self._answer(run, ended)
                self.readers.wake(run.id)
                if message is not None:
                    self.hint(message.run)

        run.journal.when_durable(durable)

    def _answer(self, run: LiveRun, ended: Ended) -> None:
        if len(ended.result) <= LARGE:
            self.answers.give(run.id, run_record(run, ended.status, ended))
            return
        record = self.committer.apart(partial(run_record, run, ended.status, ended))
        record.add_done_callback(lambda done: self.answers.give(run.id, done.result()))

    def blocked(self, run: LiveRun, data: Blocked) -> None:
        """A run has been blocked; callers are told when that is durable."""
        message = blocked_message(run)
        if message is not None:
            run.journal.send(message)
        run.release()

        def written(error: BaseException | None) -> None:
            if error is None:
                self.live.pop(run.id, None)
                self.claimer.made_room()
                self.log.warning("run %s (%s) is blocked: %.1000s", run.id, run.accepted.name, data.error.message)
                if self.answers.awaited(run.id):
                    self.spawn(self.tell_blocked(run.id))
                if message is not None:
                    self.hint(message.run)
                self.readers.wake(run.id)

        run.journal.when_written(written)

    # -- messages -----------------------------------------------------------------------------------------------------

    async def post(self, message: Message) -> None:
        """Leaves a message for a run. Raises UnknownName, InvalidOperation."""
        if self._closed:
            raise ClientClosed("The client is closed; open a new one.")
        stored = await spilled(self.committer, message)
        await self.committer.call(lambda: self.store.post(stored))
        if message.run not in self.live:
            newest = await self.read(lambda: self.store.newest_of_chain(message.run))
            if newest is not None:
                self.hint(newest)
        self.hint(message.run)

    def hint(self, id: str) -> None:
        """A message is waiting for a run: its owner takes it at once."""
        run = self.live.get(id)
        if run is None or run.over:
            self.claimer.hint()
            if self.host is not None:
                self.host.left_for(id)
        else:
            self.spawn(self._take_messages(run))

    async def _take_messages(self, run: LiveRun) -> None:
        messages = (await self.read(lambda: self.store.read_inbox([run.id])))[run.id]
        self.loop.call_soon(run.take, messages)

    # -- for running parts --------------------------------------------------------------------------------------------

    async def read(self, function: Callable[[], T]) -> T:
        """Runs a read of the store on the reader's thread."""
        if self._closed and not self.live:
            raise ClientClosed("The client is closed; open a new one.")
        return await on_pool(self.loop, self._reader, function)

    def spawn(self, work: Any) -> None:
        """Runs something in the background; its failure is logged."""
        task = self.loop.create_task(work)
        self.background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: "asyncio.Task[Any]") -> None:
        self.background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("a background task failed", exc_info=task.exception())

    def swallow(self, task: "asyncio.Task[Any]") -> None:
        """A task of a run has ended whose error is of no interest, or known to whoever needs it."""
        if not task.cancelled() and task.exception() is not None:
            self.log.debug("a task of a run ended with %r", task.exception())

    def keep(self, refusing: Sequence["asyncio.Task[Any]"]) -> None:
        """Tasks of a service that refused to end: kept, so that the garbage collector cannot run them."""
        for task in refusing:
            self._kept.append(task)
            self.log.error("a service's task refused to end and is kept suspended: %r", task)
