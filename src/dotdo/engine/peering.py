"""The engine's side of several nodes on one store: what others leave for its runs, and how runs end that others have.

The store is the truth, and is looked at again and again; hints between nodes only make it sooner. So a hint may be
lost, or never come, as behind a pooler.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import msgspec

from dotdo.errors import ClientClosed, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine
    from dotdo.store.protocol import SharedStore

# How often to look, in seconds: in peace, and while somebody waits here for a few runs that other nodes have.
LOOK, LOOK_OFTEN, FEW = 1.0, 0.1, 20
# Hints are gathered for so long, in seconds, because those who send them queue up at the server.
GATHER = 0.05
MOST = 100  # runs in one hint; with more of them, the others look at everything


class Hint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one node tells all others. left: something was left for these runs. wanted: somebody there waits for them.
    over: they have news, or have ended. all: there was too much to say."""

    node: str
    left: list[str] = []
    wanted: list[str] = []
    over: list[str] = []
    all: bool = False


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
        self._changes = -1

    def open(self) -> None:
        """Begins to look, and to listen."""
        self._offer([])
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
        if self._saying is None:
            self._saying = self._engine.loop.create_task(self._say())

    async def _say(self) -> None:
        await asyncio.sleep(GATHER)
        said, self._said = self._said, {"left": set(), "wanted": set(), "over": set()}
        self._saying = None
        if sum(map(len, said.values())) > MOST:
            hint = Hint(self._engine.node, all=True)
        else:
            hint = Hint(self._engine.node, sorted(said["left"]), sorted(said["wanted"]), sorted(said["over"]))
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
        if hint.all or any(engine.answers.awaited(run) for run in hint.over):
            self._turn.set()

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        engine = self._engine
        due = 0.0
        while True:
            try:
                if engine.loop.time() >= due:
                    due = engine.loop.time() + LOOK
                    await self._look_at_own()
                await self._look_at_others()
            except ClientClosed:
                return
            except StoreError as error:
                engine.log.debug("looking at the store failed: %s", error)
            self._turn.clear()
            try:
                often = 0 < len(self._elsewhere()) <= FEW
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
        nodes = await engine.read(self._store.list_nodes)
        self._offer([one for node in nodes if node.id != engine.node for one in node.offers])

    async def _look_at_others(self) -> None:
        engine = self._engine
        runs = self._elsewhere()
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

    def _elsewhere(self) -> list[str]:
        live = self._engine.live
        return [run for run in self._engine.answers.awaited_runs() if run not in live]

    def _offer(self, theirs: list[str]) -> None:
        catalogue = self._engine.catalogue
        kinds: list[Any] = [("action", each) for each in catalogue.all("action")]
        kinds += [("service", each) for each in catalogue.all("service")]
        own = sorted(f"{kind} {each.name}@{each.version}" for kind, each in kinds)
        self._store.offer(own, sorted(set(theirs) - set(own)))
