"""The engine's side of several nodes on one store: what others leave for its runs, how runs end that others have, and
who defines what.

The store is the truth, and is looked at again and again; hints between nodes only make it sooner. So a hint may be
lost, or never come, as behind a pooler.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from dotdo.action import Action
from dotdo.catalogue import described
from dotdo.engine.elsewhere import Elsewhere, as_offered
from dotdo.errors import ClientClosed, StoreError, StoreUnavailable
from dotdo.offer import OfferedAction
from dotdo.records import Definition

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.store.sharing_protocol import SharedStore

# How often to look, in seconds: in peace, and while somebody waits here for a few runs that other nodes have.
LOOK, LOOK_OFTEN, FEW = 1.0, 0.1, 20
# How often runs are looked for that wait for what is there, in seconds: none, unless what told them was lost.
LOOK_FOR_ALL = 60.0
# Hints are gathered for so long, in seconds, because those who send them queue up at the server.
GATHER = 0.05
MOST = 100  # runs in one hint; with more of them, the others look at everything

log = logging.getLogger("dotdo.engine")


class Hint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one node tells all others. left: something was left for these runs. wanted: somebody there waits for them.
    over: they have news, or have ended. all: there was too much to say. defines: what it defines is new."""

    node: str
    left: list[str] = []
    wanted: list[str] = []
    over: list[str] = []
    all: bool = False
    defines: bool = False


class Bell:
    """Tells the other nodes of each piece of news of a run."""

    def __init__(self, peers: "Peers", run: str) -> None:
        self._peers, self._run = peers, run

    def set(self) -> None:
        """There is news."""
        self._peers.say("over", self._run)


class Peers:
    """What an engine knows of the other nodes on its store."""

    def __init__(self, engine: "Engine") -> None:
        self._engine, self._store = engine, cast("SharedStore", engine.store)
        self._turn = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._saying: asyncio.Task[None] | None = None
        self._said: dict[str, set[str]] = {"left": set(), "wanted": set(), "over": set()}
        self._asked: set[str] = set()
        self._bells: dict[str, Bell] = {}
        self._due = 0.0  # when to look at what was left, and at the other nodes
        self._own: list[str] | None = None  # what this node defines, as it was told last
        self._theirs: dict[str, tuple[list[str], list[Definition]]] = {}  # what the others do, by node
        self._known: set[str] = set()  # what anybody does, as far as those who wait for it were told
        self._sure = 0.0  # when to tell them again, whatever they were told
        self._tells = False
        self._elsewhere = engine.elsewhere = Elsewhere()
        engine.workers.catalogue.has_peers = True
        self._offer()

    def open(self) -> None:
        """Begins to look, and to listen."""
        self._tell_definitions()
        self._task = self._engine.loop.create_task(self._work())
        self._store.listen(self._hear)

    async def look(self) -> None:
        """Looking is a task of its own here."""

    def forget(self) -> None:
        """Looks no more."""
        self._store.listen(None)
        for task in (self._task, self._saying):
            if task is not None:
                task.cancel()

    async def close(self) -> None:
        """Nothing is left to close."""

    def left_for(self, run: str) -> None:
        """Something was left for a run that is not in memory here."""
        self.say("left", run)

    def say(self, what: str, run: str) -> None:
        """Hints something to all other nodes, soon."""
        self._said[what].add(run)
        self._say_soon()

    def workers_changed(self) -> None:
        """Workers have come or gone: with them what this node can do."""
        self._due = 0.0
        self._turn.set()

    def _tell_definitions(self) -> None:
        self._tells = True
        self._say_soon()

    def _say_soon(self) -> None:
        if self._saying is None:
            self._saying = self._engine.loop.create_task(self._say())

    async def _say(self) -> None:
        await asyncio.sleep(GATHER)
        said, self._said = self._said, {"left": set(), "wanted": set(), "over": set()}
        defines, self._tells = self._tells, False
        self._saying = None
        if sum(map(len, said.values())) > MOST:
            hint = Hint(self._engine.node, all=True, defines=defines)
        else:
            left, wanted, over = (sorted(said[what]) for what in ("left", "wanted", "over"))
            hint = Hint(self._engine.node, left, wanted, over, defines=defines)
        text = msgspec.json.encode(hint).decode()
        try:
            await self._engine.read(lambda: self._store.notify(text))
        except (StoreError, ClientClosed) as error:
            self._engine.log.debug("a hint could not be given: %s", error)

    # -- what the others say ------------------------------------------------------------------------------------------

    def _hear(self, text: str) -> None:
        """On the thread that listens."""
        try:
            self._engine.loop.call_soon_threadsafe(self._heard, text)
        except RuntimeError:
            return  # the loop was closed without a word

    def _heard(self, text: str) -> None:
        try:
            hint = msgspec.json.decode(text, type=Hint)
        except msgspec.MsgspecError:
            return  # of another version of dotdo
        engine = self._engine
        if hint.node == engine.node or engine.closing:
            return
        for run in hint.left:
            if run in engine.live:
                engine.hint(run)
        if hint.left or hint.all:
            engine.claimer.hint()
        for run in hint.wanted:
            if run in engine.live and run not in self._bells:
                self._bells[run] = Bell(self, run)
                engine.readers.join(run, self._bells[run])
        for run in hint.over:
            engine.readers.wake(run)
        if hint.defines:
            self._due = 0.0
        if hint.all or hint.defines or any(engine.answers.awaited(run) for run in hint.over):
            self._turn.set()

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        engine = self._engine
        while True:
            try:
                if engine.loop.time() >= self._due:
                    self._due = engine.loop.time() + LOOK
                    await self._look_at_own()
                    await self._look_at_nodes()
                await self._look_at_others()
            except ClientClosed:
                return
            except StoreError as error:
                engine.log.debug("looking at the store failed: %s", error)
            except Exception:  # such as something of another version of dotdo; the other looks go on
                engine.log.exception("looking at the store failed")
            self._turn.clear()
            if engine.loop.time() >= self._due:
                continue  # somebody said so meanwhile
            try:
                often = 0 < len(self._awaited()) <= FEW
                async with asyncio.timeout(LOOK_OFTEN if often else LOOK):
                    await self._turn.wait()
            except TimeoutError:
                pass

    async def _look_at_own(self) -> None:
        engine = self._engine
        for run in await engine.read(lambda: engine.store.runs_with_messages(engine.node)):
            engine.hint(run)
        for run in [run for run in self._bells if run not in engine.live]:
            engine.readers.leave(run, self._bells.pop(run))

    async def _look_at_nodes(self) -> None:
        """Who defines what; those who wait for something that has come are told."""
        engine, node = self._engine, self._engine.node
        if self._offer():
            await engine.committer.call(lambda: self._store.publish(node))
            self._tell_definitions()
        nodes = await engine.read(self._store.list_nodes)
        others = {one.id: one.offers for one in nodes if one.id != engine.node and one.lease > 0}
        new = [id for id, offers in others.items() if id not in self._theirs or self._theirs[id][0] != offers]
        told = await engine.read(lambda: self._store.published(new)) if new else {}
        for id in new:
            self._theirs[id] = others[id], as_offered(others[id], told.get(id, []))
        gone = self._theirs.keys() - others.keys()
        for id in gone:
            del self._theirs[id]
        if new or gone:
            self._elsewhere.learn([one for _, definitions in self._theirs.values() for one in definitions])
        own = set(self._own or ())
        theirs = {one for offers, _ in self._theirs.values() for one in offers}
        self._store.leave_to_others(sorted(theirs - own))
        await self._wake(own | theirs)

    async def _wake(self, there: set[str]) -> None:
        """Who waits for what has come goes on; once in a while, who waits for anything that is there, to be sure."""
        engine = self._engine
        if engine.loop.time() >= self._sure:
            self._known, self._sure = set(), engine.loop.time() + LOOK_FOR_ALL
        come = sorted(there - self._known)
        if come:
            self._elsewhere.changed()
            await engine.committer.call(lambda: self._store.expect_offered(come, engine.clock.now()))
            engine.claimer.hint()
        self._known = there

    async def _look_at_others(self) -> None:
        engine = self._engine
        runs = self._awaited()
        self._asked &= set(runs)
        for run in runs:
            if run not in self._asked:
                self._asked.add(run)
                self.say("wanted", run)
        if not runs:
            return
        for run in await engine.read(lambda: engine.store.runs_over(runs)):
            if run in engine.live:
                continue
            record = await engine.read(lambda run=run: engine.store.get_run(run))
            if record is None:
                error = StoreUnavailable(f"The run {run} was not accepted: the store could not be reached.")
                engine.answers.fail(run, error)
            elif record.ended:
                engine.answers.give(run, record)
            elif record.status == "blocked":
                await engine.tell_blocked(run)

    def _awaited(self) -> list[str]:
        live = self._engine.live
        return [run for run in self._engine.answers.awaited_runs() if run not in live]

    def _offer(self) -> bool:
        """Has the store say what this node defines; whether that is new."""
        engine = self._engine
        catalogue, workers = engine.catalogue, engine.workers
        found: list[Any] = [
            one
            for one in catalogue.all("action")
            if not isinstance(one, OfferedAction) or workers.is_offered(("action", one.name, one.version))
        ]
        found += catalogue.all("service")
        own = sorted(described(_kind_of(one), one.name, one.version) for one in found)
        if own == self._own:
            return False
        self._own = own
        self._store.offer(own, msgspec.json.encode([_shown(one) for one in found]))
        return True


def _kind_of(definition: Any) -> Literal["action", "service"]:
    return "action" if isinstance(definition, Action) else "service"


def _shown(definition: Any) -> Definition:
    """What other nodes need to call it."""
    try:
        return definition.definition()
    except Exception as error:  # a class of the user's may raise anything when its schema is asked for
        log.warning("other nodes cannot check the input of the %s: %r", definition.subject, error)
        return Definition(kind=_kind_of(definition), name=definition.name, version=definition.version)
