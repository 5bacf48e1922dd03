"""The workers that are connected to this engine: their sessions and leases, and the tasks that each has.

A session has one lease, renewed by each request of its worker that arrives, and measured by the loop's monotonic clock
alone. When it ends, so do its tasks here: under its tokens nothing can be said any more. Nothing here is durable but
what workers offer; an engine that starts anew knows no session.
"""

import asyncio
import logging
import os
import secrets
from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.catalogue import Catalogue, check_name, described
from dotdo.effect import EffectCall
from dotdo.engine.sessions import Handed, NobodyOffers, Session, What
from dotdo.engine.waiting import Pause
from dotdo.errors import AttemptTimedOut, DefinitionError, LeaseLost, UnknownWorker, UnsupportedProtocol, WorkerLost
from dotdo.offer import OfferedAction, OfferedCatalogue, OfferedEffect
from dotdo.store.protocol import Offer
from dotdo.worker_protocol import (
    MOST_BYTES,
    PROTOCOL,
    ActionOffer,
    Batch,
    Beat,
    Claim,
    Complete,
    EffectOffer,
    Heartbeat,
    OfWorker,
    Outcome,
    Register,
    Registered,
    Released,
    RequestCall,
    Results,
    Task,
    TaskState,
)

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.engine.running import LiveRun

LEASE_SECONDS, POLL_SECONDS = 15.0, 25.0
SHORTEST_LEASE, LONGEST_LEASE = 0.2, 3_600.0
STALL_SECONDS = 1.0  # a lease that is looked at so late has ended while this process itself stood still
MOST_CONCURRENCY = 10_000
REMEMBERED = 10_000  # outcomes, so that one that is told twice is answered twice
BATCH_BYTES, BATCH_TASKS = 4 * 1024 * 1024, 500

log = logging.getLogger("dotdo.workers")


def lease_seconds() -> float:
    """How long a worker's lease is, from DOTDO_WORKER_LEASE. Raises DefinitionError."""
    given = os.environ.get("DOTDO_WORKER_LEASE") or str(LEASE_SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not SHORTEST_LEASE <= seconds <= LONGEST_LEASE:
        raise DefinitionError(
            f"DOTDO_WORKER_LEASE={given!r}: a number of seconds from {SHORTEST_LEASE:g} to {LONGEST_LEASE:g} is needed."
        )
    return seconds


class Workers:
    """The workers of one engine."""

    def __init__(self, engine: "Engine", catalogue: Catalogue) -> None:
        self._engine, self.lease = engine, lease_seconds()
        self.catalogue = OfferedCatalogue(catalogue)
        self.sessions: dict[str, Session] = {}
        self.tasks: dict[str, Handed] = {}
        self._offering: dict[What, dict[str, Session]] = defaultdict(dict)
        self._queues: dict[What, deque[Handed]] = defaultdict(deque)
        self._absent: dict[What, list[asyncio.Future[None]]] = defaultdict(list)
        self._said: OrderedDict[str, tuple[str, asyncio.Future[TaskState]]] = OrderedDict()
        self._closed = False

    async def load(self) -> None:
        """Takes up what workers have offered to earlier engines: it can be called, and waits for a worker."""
        for each in await self._engine.read(self._engine.store.list_offers):
            try:
                self._take(each)
            except DefinitionError as error:
                log.warning("an earlier offer of %s cannot be taken up: %s", each.name, error.message)

    def close(self) -> None:
        """The engine stops: no worker has a task of it any more."""
        self._closed = True
        for session in list(self.sessions.values()):
            self._end(session, "the server stops")

    # -- what workers ask ---------------------------------------------------------------------------------------------

    async def register(self, given: Register, actor: str | None) -> Registered:
        """A worker has come. Raises UnsupportedProtocol, DefinitionError."""
        if not 1 <= given.protocol <= PROTOCOL:
            raise UnsupportedProtocol(
                f"This server speaks versions 1 to {PROTOCOL} of the worker protocol, not {given.protocol}. Use an SDK "
                "that does, or a newer server."
            )
        if not 1 <= given.concurrency <= MOST_CONCURRENCY:
            raise DefinitionError(f"concurrency={given.concurrency}: 1 to {MOST_CONCURRENCY:,} is needed.")
        own = self.catalogue.own
        each: ActionOffer | EffectOffer
        here: list[str] = []
        offers: list[Offer] = []
        databases = tuple(given.databases)
        for kind, group in (("action", given.actions), ("effect", given.effects)):
            for each in group:
                check_name(kind, each.name, each.version)
                if kind == "action" and own.kind_of(each.name) == "service":
                    raise DefinitionError(f"{each.name} is the name of a service of this server.")
                if own.find(kind, each.name, each.version) is not None:
                    here.append(described(kind, each.name, each.version))
                else:
                    data = msgspec.json.encode(each).decode()
                    offers.append(Offer(kind, each.name, each.version, data, list(databases), self._engine.clock.now()))
        definitions = [self._definition(offer) for offer in offers]  # all are sound, or none is taken
        await self._engine.write(lambda: self._engine.store.save_offers(offers))
        for offer, definition in zip(offers, definitions, strict=True):
            self.catalogue.offer(offer.kind, definition)
        session = self._join(given, actor, [(offer.kind, offer.name, offer.version) for offer in offers])
        self._engine.spawn(self._wake_waiting())
        return Registered(session.id, given.protocol, self.lease, self.lease / 3, POLL_SECONDS, MOST_BYTES, here)

    async def claim(self, given: Claim, actor: str | None) -> Batch:
        """Tasks for a worker, as soon as there are some; who hangs up, or has waited enough, cancels this. Raises
        UnknownWorker."""
        session = self.session(given.worker, actor)
        if session.poll is not None:
            session.wake()  # of two claims the older one gets nothing
            session.poll = None
        self._receive(session, given.after)
        if session.last is not None:
            return session.last  # its answer was lost
        self._feed(session)
        if not (session.outbox or session.untold) and given.wait > 0 and not self._closed:
            poll = session.poll = self._engine.loop.create_future()
            try:
                await poll
            except asyncio.CancelledError:
                if session.poll is poll:
                    self._take_back(session)
                raise
            finally:
                is_newest = session.poll is poll
                if is_newest:
                    session.poll = None
            if not is_newest:
                return Batch(session.number)
            self.session(given.worker, actor, renew=False)  # it may have ended meanwhile
        return self._send(session)

    async def complete(self, given: Complete, actor: str | None) -> Results:
        """A worker tells how tasks ended; answered when that is durable."""
        session = self.sessions.get(given.worker)
        if session is not None and session.actor == actor:
            self._renew(session)
        found: list[TaskState | asyncio.Future[TaskState]] = []
        for each in given.tasks:
            token, said = self._said.get(each.task, ("", None))
            task = self._held(given.worker, each.task, each.token)
            if said is not None and token == each.token:
                found.append(said)
            elif task is None:
                found.append(_lost(each.task))
            else:
                found.append(self._take_outcome(task, each))
        if session is not None and not session.over:
            self._feed(session, wakes=True)
        # Shielded: whoever asks again asks for the same.
        return Results([each if isinstance(each, TaskState) else await asyncio.shield(each) for each in found])

    def heartbeat(self, given: Heartbeat, actor: str | None) -> Beat:
        """A worker is alive. Raises UnknownWorker."""
        session = self.session(given.worker, actor)
        self._receive(session, given.after)
        named = set(given.tasks)
        for task in list(session.tasks.values()):
            if 0 < task.batch <= given.after and task.id not in named:
                self._lose(task, f"the worker {session.name} does not have it any more")
        cancelled = [id for id in given.tasks if id in session.tasks and session.tasks[id].outcome.done()]
        lost = [id for id in given.tasks if id not in session.tasks and id not in self._said]
        return Beat(self.lease, cancelled, lost)

    async def request(self, given: RequestCall, actor: str | None) -> Any:
        """A handler asks for the answer of an effect. Raises UnknownWorker, LeaseLost."""
        self.session(given.worker, actor)
        task = self._held(given.worker, given.task, given.token)
        if task is None or task.request is None or task.outcome.done():
            raise LeaseLost(f"The task {given.task} is not this worker's any more; stop its handler.")
        return await task.request(given)

    def drain(self, id: str, actor: str | None) -> None:
        """A worker takes no more actions. Raises UnknownWorker."""
        session = self.session(id, actor)
        session.draining = True
        for task in [task for task in session.outbox if task.is_action]:
            session.outbox.remove(task)
            self._queue_again(task)
        log.info("the worker %s drains", session.name)

    def leave(self, given: OfWorker, actor: str | None) -> None:
        """A worker goes. Raises UnknownWorker."""
        session = self.session(given.worker, actor)
        if given.after is not None:
            # What was on its way when it left was not begun.
            for task in [task for task in session.tasks.values() if task.batch > given.after]:
                self._queue_again(task)
        self._end(session, "it has left")

    def session(self, id: str, actor: str | None, *, renew: bool = True) -> Session:
        """The session of a worker, whose lease a request of it renews. Raises UnknownWorker."""
        session = self.sessions.get(id)
        if session is None or session.actor != actor:
            raise UnknownWorker(
                f"There is no worker {id[:100]!r} (any more): its lease ended, or the server was "
                "started anew. Register again."
            )
        if renew:
            self._renew(session)
        return session

    # -- what the engine asks -----------------------------------------------------------------------------------------

    def is_offered(self, what: What) -> bool:
        """Whether a worker that could do it is there."""
        return bool(self._offering.get(what))

    def count(self, what: What) -> int:
        """How many workers there are that could do it."""
        return len(self._offering.get(what, ()))

    async def until_offered(self, what: What, idle: "LiveRun | None") -> None:
        """Returns when there is a worker that could do it. idle: the run that is less busy by one meanwhile."""
        while not self.is_offered(what):
            future = self._engine.loop.create_future() if idle is None else Pause[None](idle)
            self._absent[what].append(future)
            try:
                await (future.over() if isinstance(future, Pause) else future)
            finally:
                if future in self._absent.get(what, ()):
                    self._absent[what].remove(future)

    def hand_out(self, task: Handed) -> None:
        """Gives a task to the worker with the least to do, or has it wait for one that is free."""
        self._name(task)
        free = [
            each for each in self._offering[task.what].values() if each.poll is not None and each.room(task.is_action)
        ]
        if free and not self._queues[task.what]:
            session = min(free, key=lambda each: len(each.tasks) / each.concurrency)
            self._assign(session, task)
            session.wake()
        else:
            self._queues[task.what].append(task)

    def give_up(self, task: Handed) -> None:
        """Nobody wants a task any more: its worker is told."""
        task.record("lease_lost", "Nobody wants it any more.")
        if task.timer is not None:
            task.timer.cancel()
        session = task.session
        if session is None or task.id not in session.tasks:
            self.tasks.pop(task.id, None)
            queue = self._queues.get(task.what)
            if queue is not None and task in queue:
                queue.remove(task)
        elif task.batch == 0:
            session.outbox.remove(task)
            self._forget(session, task)
            self.tasks.pop(task.id, None)
        else:
            task.outcome.cancel()
            session.untold.append(task.id)  # it has its place until the worker says nothing of it any more
            session.wake()

    # -- sessions -----------------------------------------------------------------------------------------------------

    def _join(self, given: Register, actor: str | None, offers: list[What]) -> Session:
        loop, defined = self._engine.loop, len(offers)
        if given.databases:
            names = {name for kind, name, _ in offers if kind == "action"}
            offers = [*offers, *(("settle", name, 0) for name in sorted(names))]
        actions = [(name, version) for kind, name, version in offers if kind == "action"]
        offers = [*offers, *(("expected", name, which) for name, version in actions for which in (0, version))]
        session = Session(f"wrk_{secrets.token_hex(12)}", actor, given, offers, loop.time())
        self.sessions[session.id] = session
        self._renew(session)
        session.timer = loop.call_at(session.lease_until, self._look, session)
        for what in offers:
            self._offering[what][session.id] = session
            for waiting in self._absent.pop(what, []):
                if not waiting.done():
                    waiting.set_result(None)
        log.info("the worker %s (%s) offers %s definitions", session.name, given.sdk[:100], defined)
        self._tell_nodes()
        return session

    def _tell_nodes(self) -> None:
        """Where several nodes share the store, those are told who has which workers."""
        if self._engine.host is not None:
            self._engine.host.workers_changed()

    async def _wake_waiting(self) -> None:
        """Runs that have left memory, because no worker could do what they need, look again."""
        engine = self._engine
        await engine.write(lambda: engine.store.expect_workers(engine.clock.now()))
        engine.claimer.hint()

    def _renew(self, session: Session) -> None:
        session.lease_until = self._engine.loop.time() + self.lease

    def _look(self, session: Session) -> None:
        """Looks whether a lease has ended."""
        now, loop = self._engine.loop.time(), self._engine.loop
        assert session.timer is not None
        if now - session.timer.when() > STALL_SECONDS:
            # This process stood still; what workers said meanwhile is still to be read.
            session.lease_until = max(session.lease_until, now + self.lease / 3)
        if now >= session.lease_until:
            self._end(session, f"nothing was heard of it for {self.lease:g} s")
        else:
            session.timer = loop.call_at(session.lease_until, self._look, session)

    def _end(self, session: Session, why: str) -> None:
        if session.over:
            return
        session.over = True
        del self.sessions[session.id]
        if session.timer is not None:
            session.timer.cancel()
        for what in session.offers:
            self._offering[what].pop(session.id, None)
        self._tell_nodes()
        self._take_back(session)
        held = list(session.tasks.values())
        for task in held:
            self._lose(task, f"the worker {session.name} had it when its lease ended: {why}")
        for what in session.offers:
            if not self._offering[what]:
                for task in self._queues.pop(what, ()):
                    if not task.outcome.done():
                        task.outcome.set_exception(NobodyOffers())
        session.wake()
        log.log(
            logging.INFO if why == "it has left" else logging.WARNING,
            "the worker %s is gone: %s; it had %s tasks",
            session.name,
            why,
            len(held),
        )

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _name(self, task: Handed) -> None:
        task.id, task.token, task.batch, task.session = f"tsk_{secrets.token_hex(8)}", secrets.token_hex(16), 0, None
        self.tasks[task.id] = task

    def _assign(self, session: Session, task: Handed) -> None:
        task.session = session
        session.tasks[task.id] = task
        session.actions += task.is_action
        session.outbox.append(task)

    def _forget(self, session: Session, task: Handed) -> None:
        if session.tasks.pop(task.id, None) is not None:
            session.actions -= task.is_action

    def _feed(self, session: Session, *, wakes: bool = False) -> None:
        """Gives a session what waits for a worker such as it."""
        if wakes and session.poll is None:
            return  # it will ask
        for what in session.offers:
            queue = self._queues.get(what)
            while queue and session.room(what[0] == "action") > 0 and len(session.outbox) < BATCH_TASKS:
                self._assign(session, queue.popleft())
        if wakes and session.outbox:
            session.wake()

    def _send(self, session: Session) -> Batch:
        """What a session is to be told now."""
        tasks: list[Task] = []
        number, size = session.number + 1, 0
        while session.outbox and (not tasks or size + session.outbox[0].size < BATCH_BYTES):
            task = session.outbox.popleft()
            size += task.size
            task.batch = number
            task.on_handed(session)
            if task.timeout is not None:
                limit = task.timeout + self.lease
                task.timer = self._engine.loop.call_later(limit, self._time_out, task, limit)
            tasks.append(task.make(task.id, task.token))
        untold, session.untold = session.untold, []
        if not tasks and not untold:
            return Batch(session.number)
        session.number = number
        session.last = Batch(number, tasks, untold)
        return session.last

    def _receive(self, session: Session, after: int) -> None:
        """The worker has the batches up to a number."""
        session.received = max(session.received, after)
        if session.last is not None and session.last.batch <= session.received:
            session.last = None

    def _take_back(self, session: Session) -> None:
        """What was not sent yet is for others."""
        while session.outbox:
            self._queue_again(session.outbox.pop())

    def _queue_again(self, task: Handed) -> None:
        if task.session is not None:
            self._forget(task.session, task)
        self.tasks.pop(task.id, None)
        if task.timer is not None:
            task.timer.cancel()
        if task.outcome.done():
            return
        if not self.is_offered(task.what):
            task.outcome.set_exception(NobodyOffers())
            return
        self._name(task)
        self._queues[task.what].appendleft(task)
        for session in list(self._offering[task.what].values()):
            self._feed(session, wakes=True)

    def _lose(self, task: Handed, why: str) -> None:
        """A worker has lost a task: nothing that it says of it counts any more."""
        assert task.session is not None
        self._forget(task.session, task)
        self.tasks.pop(task.id, None)
        if task.timer is not None:
            task.timer.cancel()
        if not task.outcome.done():
            task.outcome.set_exception(WorkerLost(f"Nobody knows how it ended: {why}."))

    def _time_out(self, task: Handed, limit: float) -> None:
        if not task.outcome.done():
            task.outcome.set_exception(AttemptTimedOut(f"Its worker did not answer within {limit:g} s."))
            self.give_up(task)

    def _held(self, worker: str, id: str, token: str) -> Handed | None:
        task = self.tasks.get(id)
        if task is None or task.session is None or task.session.id != worker:
            return None
        return task if secrets.compare_digest(task.token, token) else None

    def _take_outcome(self, task: Handed, outcome: Outcome) -> "TaskState | asyncio.Future[TaskState]":
        assert task.session is not None
        if isinstance(outcome, Released):
            self._queue_again(task)
            return TaskState(outcome.task, "accepted")
        self._forget(task.session, task)
        self.tasks.pop(task.id, None)
        if task.timer is not None:
            task.timer.cancel()
        if task.outcome.done():
            return _lost(task.id)
        task.outcome.set_result(outcome)
        self._said[outcome.task] = outcome.token, task.recorded
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        return task.recorded

    # -- definitions --------------------------------------------------------------------------------------------------

    def _definition(self, offer: Offer) -> OfferedAction | OfferedEffect:
        if offer.kind == "action":
            given = msgspec.json.decode(offer.definition, type=ActionOffer)
            return OfferedAction(given, self.catalogue, tuple(offer.databases))
        return OfferedEffect(msgspec.json.decode(offer.definition, type=EffectOffer), self._perform)

    def _take(self, offer: Offer) -> None:
        self.catalogue.offer(offer.kind, self._definition(offer))

    async def _perform(self, what: str, effect: OfferedEffect, call: EffectCall, input: Any, answer: Any) -> Any:
        from dotdo.engine.working import perform_effect

        return await perform_effect(self._engine, what, effect, call, input, answer)


def _lost(id: str) -> TaskState:
    return TaskState(id, "lease_lost", "It is not this worker's any more; nothing has changed.")
