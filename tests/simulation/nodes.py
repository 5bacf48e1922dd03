"""Several nodes on one store, in one process: each has a loop of its own, and one driver has them act in turn.

So a node can stand still while the others go on, as a process that was stopped or a machine that slept; be cut off from
the store; die, and come back as a new process. What a node's handler does in one turn of its loop is never split.
"""

import asyncio
import contextlib
import heapq
import itertools
from asyncio import events
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw

import dotdo.engine.engine as engine_module
import dotdo.engine.leasing as leasing_module
import dotdo.engine.peering as peering_module
from dotdo.engine.engine import Engine
from dotdo.engine.peering import Peers
from dotdo.errors import ClientClosed, StoreError
from tests.simulation.auditor import audit
from tests.simulation.cases import LONG, Case, Order
from tests.simulation.machine import START, Died, SimulatedLoop, bury, no_threads, open_databases
from tests.simulation.peers import FREEZE_BEFORE, LEASE, SCHEMA, PeerClock, PeerDatabase, PeerStore
from tests.simulation.simulating import FAULTS_END, KEY, Play, Played, SeededDoubles, folder_of, silent
from tests.simulation.witnessing import owners
from tests.simulation.world import catalogue

NODES = 3
STEPS = 30_000  # turns of loops in one case, after which it does not end
# Each so many simulated seconds, a node may have something done to it.
EVERY = 20.0
TROUBLE = {"node.freeze": 0.10, "node.cut": 0.08, "node.killed": 0.03}
HEART = {"heart.stops": 0.05}  # only the heartbeat's connection is cut
MISFORTUNE = 6 * LEASE  # the longest that it lasts, most are far shorter


class NodeLoop(SimulatedLoop):
    """A loop that is given its turns, and its time, by a driver."""

    def __init__(self, cluster: "ClusterPlay", node: "Node") -> None:
        super().__init__(cluster.chance, 0.0)
        self._cluster, self._node = cluster, node
        self.set_exception_handler(cluster.unexpected)

    def time(self) -> float:
        """The same for all."""
        return self._cluster.now

    def select(self, timeout: float | None) -> list[Any]:
        """The driver has waited."""
        return []

    def next(self) -> float | None:
        """When there is something to do."""
        if self._ready:  # type: ignore[attr-defined]
            return self._cluster.now
        while self._scheduled and self._scheduled[0]._cancelled:  # type: ignore[attr-defined]
            heapq.heappop(self._scheduled)._scheduled = False  # type: ignore[attr-defined]
            self._timer_cancelled_count = max(0, self._timer_cancelled_count - 1)  # type: ignore[attr-defined]
        return self._scheduled[0]._when if self._scheduled else None  # type: ignore[attr-defined]

    def before_commit(self) -> None:
        """The process may be stopped now."""
        self._node.perhaps_freeze(FREEZE_BEFORE)

    def turn(self) -> None:
        """One turn."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            self._run_once()  # type: ignore[attr-defined]
        finally:
            events._set_running_loop(before)


class Node:
    """One process, and after its death the next one on the same machine."""

    def __init__(self, cluster: "ClusterPlay", number: int) -> None:
        self.cluster, self.number = cluster, number
        self.is_cut = False
        self.frozen_until = self.heart_stops_until = 0.0
        self.down_until: float | None = None
        self.heard: Callable[[str], None] | None = None
        self.engine: Engine | None = None
        self.loop: NodeLoop
        self.begin()

    def begin(self) -> None:
        """A process starts."""
        self.down_until, self.heard, self.engine = None, None, None
        self.loop = NodeLoop(self.cluster, self)
        self._starting = self.loop.create_task(self._start())
        self.cluster.chance.seen["node.started"] += 1

    async def _start(self) -> None:
        error = self.cluster.chance.seconds(600) * (1 if self.number % 2 else -1)
        while True:
            store: Any = None
            try:
                store = self.cluster.open_store(self)
                databases = open_databases(self.cluster.app, self.loop)
                clock = PeerClock(self, error)
                engine = Engine(
                    store,
                    catalogue=catalogue,
                    clock=clock,
                    anchor_key=KEY,
                    databases=databases,
                    resources=[self.cluster.world],
                )
                clock.correct(store.server_time(), 0.0)
                engine.doubles, engine.host = SeededDoubles(), Peers(engine)
                self.engine = engine
                await engine.start()
                return
            except StoreError:
                if store is not None and self.engine is None:
                    store.close()  # else the engine has closed it
                self.engine = None
                await asyncio.sleep(5)

    @property
    def is_up(self) -> bool:
        """Whether clients can ask it something."""
        return self.down_until is None and self._starting.done() and not self.loop.dead

    @property
    def running(self) -> Engine:
        """Its engine, when it is up."""
        assert self.engine is not None, "it is up"
        return self.engine

    def perhaps_freeze(self, kinds: dict[str, float]) -> None:
        """The process is stopped, and goes on later as if nothing had been; or not."""
        if self.cluster.chance.fault(kinds, "freezes"):
            self.frozen_until = self.cluster.misfortune()

    def die(self) -> None:
        """The process is gone; its successor comes some time later."""
        self.down_until = self.cluster.now + 5 + self.cluster.chance.seconds(3 * LEASE)
        bury(self.engine, self.loop)
        self.cluster.chance.seen["node.died"] += 1


class ClusterPlay(Play):
    """One case on several nodes."""

    look = 120.0

    def __init__(self, case: Case, folder: Path) -> None:
        # A hostile run would be one of several reasons for a death here, and which one it was could not be told.
        wanted = [order for order in case.orders if order.service == "sim"]
        orders = tuple(replace(order, plan=_shorter(order.plan)) for order in wanted)
        super().__init__(replace(case, orders=orders, kills=1.0), folder)
        self.now = 0.0
        self._late: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.prepare()
        self.nodes = [Node(self, number) for number in range(NODES)]
        self._trouble_at, self._turns = EVERY, 0
        self.world.began = self._began  # type: ignore[attr-defined]

    # -- what the nodes share -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Makes the tables that nodes need, and those of the witness."""
        with closing(apsw.Connection(str(self.store))) as connection:
            connection.create_scalar_function("witnessed_node", lambda *given: "")
            connection.execute(SCHEMA).fetchall()

    def open_store(self, node: Node) -> Any:
        """The store as a node sees it."""
        return PeerStore(PeerDatabase(str(self.store), node))

    def is_there(self, node: str) -> bool:
        """Whether a node has joined, and was not expelled."""
        query = "select 1 from nodes where id = ? and expelled_at is null"
        with closing(apsw.Connection(str(self.store), flags=apsw.SQLITE_OPEN_READONLY, vfs="unix")) as connection:
            return bool(connection.execute(query, (node,)).fetchall())

    def server_time(self) -> int:
        """The server's clock, in ms."""
        return START + int(self.now * 1000)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Something happens on the way, whatever the nodes do meanwhile."""
        heapq.heappush(self._late, (self.now + seconds, next(self._count), function))

    def notify(self, sender: Node, hint: str) -> None:
        """A hint goes to all other nodes, or is lost."""
        for node in self.nodes:
            if self.chance.fault({"hint.lost": 0.3}) is None:
                self.later(self.chance.seconds(1.0), lambda node=node: self._deliver(node, hint))

    def _deliver(self, node: Node, hint: str) -> None:
        if node.heard is not None and not node.is_cut and not node.loop.dead:
            node.heard(hint)
            self.chance.seen["hint.heard"] += 1

    def unexpected(self, loop: Any, context: dict[str, Any]) -> None:
        """Something that nobody sees to is a finding, unless it dies with its process."""
        if not loop.dead and not isinstance(context.get("exception"), Died):
            self.wrong.append(f"nobody sees to this: {context['message']}: {context.get('exception')!r}")

    @property
    def _asked(self) -> Engine | None:
        return self._node.engine

    def _began(self, run: str, step: str) -> None:
        """I5: a handler begins on a node that may begin something."""
        engine = self._node.engine
        if engine is not None and not self.is_there(engine.node):
            self.wrong.append(f"I5: {step} of {run} begins on {engine.node}, which was expelled")

    # -- time ---------------------------------------------------------------------------------------------------------

    def to_end(self) -> Played:
        """Plays until nothing is left to do."""
        with self._no_lease_threads():
            try:
                self._orders()
                self._close_all()
            except Stopped as stopped:
                self.wrong.append(f"I4: {stopped}")
            for node in self.nodes:
                if node.down_until is None:
                    bury(node.engine, node.loop)
        self.world.close()
        self.wrong += audit(self.store, self.app, self.world, self.told, KEY, over=not self.wrong)
        self.wrong += owners(self.store)
        return Played(self.case, self.wrong, self.chance, self._journal(), self.chance.seen["node.started"])

    def _orders(self) -> None:
        for item in sorted([*self.case.orders, *self.case.deeds], key=lambda one: one.at):
            while self.now < item.at:
                self._advance(item.at)
            if isinstance(item, Order):
                self._do_until(
                    lambda node, item=item: self._start(node.running, item, item.plan), f"{item.key} is not accepted"
                )
            else:
                self._do_until(lambda node, item=item: self._do(node.running, item), f"{item.kind} is not answered")
        self._do_until(lambda node: self._come_to_rest(node.running, node.loop), "it does not come to rest")

    def _do_until(self, work: Callable[[Node], Coroutine[Any, Any, Any]], otherwise: str) -> None:
        """Has some node do something; another one, when that dies meanwhile."""
        while True:
            node = self._some_node()
            loop = node.loop
            task = loop.create_task(work(node))
            while not task.done() and not loop.dead:
                self._advance(None, otherwise)
            if loop.dead:
                continue
            error = task.exception()
            if error is None:
                return
            if not isinstance(error, StoreError | ClientClosed):
                raise error
            again = self.now + 1  # who is refused comes again a little later
            while self.now < again:
                self._advance(again)

    def _some_node(self) -> Node:
        while True:
            up = [node for node in self.nodes if node.is_up]
            if up:
                return up[int(self.chance.seconds(1.0) * 1e9) % len(up)]
            self._advance(None, "no node comes up")

    def _close_all(self) -> None:
        for node in self.nodes:
            while not node.is_up:
                self._advance(None, "a node does not come up")
            closing_ = node.loop.create_task(node.running.close())
            while not closing_.done():
                self._advance(None, "a node does not stop")
            closing_.result()
            node.engine = None

    def _advance(self, until: float | None, otherwise: str = "nothing happens") -> None:
        """Lets the next thing happen, whoever's it is; at most up to a time."""
        self._turns += 1
        if self._turns > STEPS:
            raise Stopped(f"{otherwise}: not after {STEPS} turns, at {self.now:.0f} s")
        self._mend()
        soonest: tuple[float, int, Node | None] | None = None
        if self._late:
            soonest = (self._late[0][0], -1, None)
        for node in self.nodes:
            if node.down_until is not None:
                when: float | None = node.down_until
            else:
                when = node.loop.next()
                if when is not None:
                    when = max(when, node.frozen_until)
            if when is not None and (soonest is None or (when, node.number) < soonest[:2]):
                soonest = (when, node.number, node)
        if soonest is None or (until is not None and soonest[0] >= until):
            if until is None:
                raise Stopped(otherwise)
            self.now = max(self.now, until)
            return
        self.now = max(self.now, soonest[0])
        if soonest[2] is None:
            heapq.heappop(self._late)[2]()
        else:
            self._turn(soonest[2])

    def _turn(self, node: Node) -> None:
        if node.down_until is not None:
            node.begin()
            return
        self._node = node
        self.world.loop = node.loop
        try:
            node.loop.turn()
        except Died:
            node.die()

    def _mend(self) -> None:
        """Troubles come and go."""
        if self.now >= FAULTS_END and not self.chance.quiet:
            self.chance.quiet = True
            for node in self.nodes:
                node.is_cut = False
        if self.chance.quiet or self.now < self._trouble_at:
            return
        self._trouble_at = self.now + EVERY
        for node in self.nodes:
            if node.down_until is not None:
                continue
            trouble = self.chance.fault(TROUBLE)
            if trouble == "node.freeze" and not node.loop._ready:  # type: ignore[attr-defined]
                node.frozen_until = self.misfortune()
            elif trouble == "node.cut":
                node.is_cut = True
                self.later(1 + self.chance.seconds(MISFORTUNE), lambda node=node: setattr(node, "is_cut", False))
            elif trouble == "node.killed":
                node.loop.dead = True
                node.die()
            elif self.chance.fault(HEART, "hearts"):
                node.heart_stops_until = self.misfortune()

    def misfortune(self) -> float:
        """Until when something lasts that begins now."""
        return self.now + 1 + self.chance.seconds(MISFORTUNE)

    @contextlib.contextmanager
    def _no_lease_threads(self) -> Generator[None]:
        names = itertools.count()
        replaced: list[tuple[Any, str, Any]] = [
            (leasing_module, "threading", LeaseThreads),
            (leasing_module, "monotonic", lambda: self.now),
            (leasing_module, "LOOK", 2.0),
            (engine_module, "new_node", lambda: f"node_{next(names):012x}"),
            (peering_module, "LOOK", 20.0),
            (peering_module, "LOOK_OFTEN", 5.0),
        ]
        before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
        try:
            for module, name, part in replaced:
                setattr(module, name, part)
            yield
        finally:
            for module, name, part in before:
                setattr(module, name, part)


class Stopped(AssertionError):
    """It does not go on."""


class LeaseThreads:
    """Stands for the module `threading` where the lease's heartbeat has a thread: it beats on the node's loop."""

    class Event:
        """Says that the heart stops."""

        def __init__(self) -> None:
            self.is_set = False

        def set(self) -> None:
            """It does."""
            self.is_set = True

    Lock = staticmethod(contextlib.nullcontext)

    class Thread:
        """Beats."""

        def __init__(self, target: Any, **options: Any) -> None:
            self._lease = target.__self__

        def start(self) -> None:
            """From now on."""
            self._again(self._lease._every)

        def join(self, timeout: float | None = None) -> None:
            """It has ended."""

        def is_alive(self) -> bool:
            """It has."""
            return False

        def _again(self, wait: float) -> None:
            self._lease._engine.loop.call_later(wait, self._beat)

        def _beat(self) -> None:
            if not self._lease._stop.is_set:
                self._again(self._lease._beat())


def _shorter(plan: Any) -> Any:
    """A plan without hours in which nothing happens but heartbeats."""
    if isinstance(plan, list):
        return [_shorter(node) for node in plan]
    if isinstance(plan, dict):
        return {name: 300.0 if (name, value) == ("sleep", LONG) else _shorter(value) for name, value in plan.items()}
    return plan


def play_on_nodes(case: Case, play: type[ClusterPlay] = ClusterPlay) -> Played:
    """Plays a case on several nodes, in a folder of its own."""
    with folder_of() as folder, no_threads(), silent():
        return play(case, folder).to_end()
