"""The engine's side of several processes on one store: it hears what the others leave there, and tells them of ends.

They file their requests in the store (following.py) and then say so on a line. What a lost line leaves unsaid the
engine finds by itself: due runs as ever, and messages for runs that it has in memory by `look`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.engine import line as lines
from dotdo.engine.line import Answer, Ask, Forget, Hint, Line, News, Watch, refusal
from dotdo.engine.parking import waiting_for
from dotdo.errors import DotdoError, StoreError
from dotdo.records import Options, RunKind, WaitingFor

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine


class StartAsked(msgspec.Struct, frozen=True):
    """To start a run of what the asking process does not define itself. id: the run's, so that asking twice is once."""

    id: str
    kind: RunKind
    name: str
    params: msgspec.Raw
    options: Options


class Bell:
    """Tells another process of each piece of news of a run."""

    def __init__(self, line: Line, run: str) -> None:
        self._line, self._run = line, run

    def set(self) -> None:
        """There is news."""
        self._line.say(News(self._run))


class Host:
    """The lines to the clients of other processes."""

    def __init__(self, engine: "Engine", store: str) -> None:
        self._engine, self._store = engine, store
        self._listener: int | None = None
        self._turns = False
        self._lines: dict[Line, dict[str, Bell]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: dict[str, Callable[[msgspec.Raw], Awaitable[Any]]] = {
            "start": self._start,
            "definitions": self._definitions,
            "waiting for": self._waiting_for,
        }

    def open(self) -> None:
        """Begins to listen."""
        try:
            self._listener = lines.listen(self._store)
        except OSError as error:
            self._engine.log.info("other processes on %s will be noticed once a second only: %s", self._store, error)
            return
        self._engine.loop.add_reader(self._listener, self._picked_up, self._listener)

    def forget(self) -> None:
        """Listens no more. The engine still holds its lock, so no other one can have a socket there."""
        if self._listener is not None:
            self._engine.loop.remove_reader(self._listener)
            lines.hang_up(self._listener)
            lines.socket_path(self._store).unlink(missing_ok=True)
            self._listener = None

    async def close(self) -> None:
        """Hangs up: the others learn at once that the engine is gone, and that its lock is free."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for line in list(self._lines):
            line.close()

    async def look(self) -> None:
        """Looks for messages that other processes have left for runs in memory, in case nobody said so."""
        engine = self._engine
        for run in await engine.read(lambda: engine.store.runs_with_messages(engine.node)):
            engine.hint(run)

    def left_for(self, run: str) -> None:
        """Something was left for a run that is not in memory: on a file, nobody else can have it."""

    def workers_changed(self) -> None:
        """Workers have come or gone: on a file, they are this engine's or nobody's."""

    # -- on a line ----------------------------------------------------------------------------------------------------

    def _picked_up(self, listener: int) -> None:
        try:
            caller = lines.pick_up(listener)
        except OSError:
            return  # it has hung up again
        line = Line(self._heard, self._lost)
        self._lines[line] = {}
        self._take_turns()
        self._spawn(self._connect(line, caller))

    async def _connect(self, line: Line, caller: Any) -> None:
        try:
            await self._engine.loop.connect_accepted_socket(lambda: line, caller)
        except OSError:
            self._lost(line)

    def _lost(self, line: Line) -> None:
        for run, bell in self._lines.pop(line, {}).items():
            self._engine.readers.leave(run, bell)
        self._take_turns()

    def _take_turns(self) -> None:
        """Writing by turns costs a little, so it is done only while somebody else may write."""
        wanted, engine = bool(self._lines), self._engine
        if wanted != self._turns and self._listener is not None:
            self._turns = wanted
            self._spawn(self._quietly(engine.committer.call(lambda: engine.store.take_turns(wanted))))

    async def _quietly(self, work: Awaitable[None]) -> None:
        try:
            await work
        except StoreError as error:
            self._engine.log.debug("turns at the store could not be set: %s", error)

    def _heard(self, line: Line, message: Any) -> None:
        if isinstance(message, Hint):
            self._engine.hint(message.run)
            if message.run not in self._engine.live:
                self._spawn(self._hint_newest(message.run))
        elif isinstance(message, Watch):
            self._watch(line, message.run)
        elif isinstance(message, Forget):
            self._forget(line, message.run)
        elif isinstance(message, Ask):
            self._spawn(self._answer(line, message))

    async def _hint_newest(self, run: str) -> None:
        """What was left for a run that has continued as new went to the newest one."""
        engine = self._engine
        try:
            newest = await engine.read(lambda: engine.store.newest_of_chain(run))
        except StoreError:
            return  # it is found by `look`
        if newest is not None:
            engine.hint(newest)

    def _watch(self, line: Line, run: str) -> None:
        bells = self._lines.get(line)
        if bells is None:
            return
        if run not in bells:
            bells[run] = Bell(line, run)
            self._engine.readers.join(run, bells[run])
        if run not in self._engine.live:
            line.say(News(run))  # it may have ended before it was watched

    def _forget(self, line: Line, run: str) -> None:
        bell = self._lines.get(line, {}).pop(run, None)
        if bell is not None:
            self._engine.readers.leave(run, bell)

    async def _answer(self, line: Line, ask: Ask) -> None:
        answer = self._answers.get(ask.question)
        try:
            if answer is None:
                raise DotdoError(f"The engine's dotdo does not know the question {ask.question!r}; upgrade it.")
            data = msgspec.json.encode(await answer(ask.data))
        except DotdoError as error:
            line.say(Answer(ask.number, error=refusal(error)))
        else:
            line.say(Answer(ask.number, msgspec.Raw(data)))

    # -- questions ----------------------------------------------------------------------------------------------------

    async def _start(self, data: msgspec.Raw) -> str:
        asked = msgspec.json.decode(data, type=StartAsked)
        engine = self._engine
        if asked.options.key is None and await engine.read(lambda: engine.store.get_run(asked.id)) is not None:
            return asked.id  # asked of an engine that has gone since
        params = msgspec.json.decode(asked.params)
        return await engine.accept(asked.kind, asked.name, params, asked.options, id=asked.id)

    async def _definitions(self, data: msgspec.Raw) -> Any:
        return await self._engine.definitions(msgspec.json.decode(data, type=str))

    async def _waiting_for(self, data: msgspec.Raw) -> dict[str, WaitingFor]:
        runs = msgspec.json.decode(data, type=list[str])
        live = self._engine.live
        return {run: waiting_for(live[run]) for run in runs if run in live and not live[run].over}

    def _spawn(self, work: Any) -> None:
        task = self._engine.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._engine.log.error("a line to another process failed", exc_info=task.exception())
