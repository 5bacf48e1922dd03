"""The platform of a process whose store's engine runs in another one.

It reads the store, and files requests there: a run as a row that is nobody's yet and due, everything else as a
message. So what was answered is durable whatever becomes of either process; a line to the engine only makes it sooner.
When the engine's lock becomes free, one of those who follow takes it, and is the engine from then on.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from dotdo import codec
from dotdo.catalogue import Catalogue, Snapshot
from dotdo.clock import Clock
from dotdo.codec import is_heavy
from dotdo.engine import line as lines
from dotdo.engine.accepting import check_same_input, left_to_others, new_run, run_id
from dotdo.engine.elsewhere import look_for_others
from dotdo.engine.filing import Filing
from dotdo.engine.hosting import StartAsked
from dotdo.engine.line import Answer, Ask, Forget, Hint, Line, News, Watch, error_of
from dotdo.engine.own_store import OwnStore
from dotdo.engine.previewing import Previewer
from dotdo.engine.publishing import Readers
from dotdo.engine.resolving import still_blocked
from dotdo.engine.secrets import Vault
from dotdo.engine.serving import Serving
from dotdo.engine.spans import carried_here
from dotdo.engine.spilling import Late, spilled
from dotdo.errors import (
    ClientClosed,
    DotdoError,
    InputError,
    InvalidOperation,
    StoreError,
    StoreUnavailable,
    UnknownName,
)
from dotdo.journal import input_digest
from dotdo.policy import Retention
from dotdo.preview import Preview
from dotdo.records import HELD, Definition, Options, Progress, Run, RunFilter, RunKind, WaitingFor
from dotdo.store.protocol import Filed, Message, Store

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine

T = TypeVar("T")

# How often to look, in seconds: for a free lock and for ends that nobody told of, with a line to the engine; for an
# engine to speak to, when there is none; and for ends, when there is none and somebody waits.
LOOK, REDIAL, LOOK_ALONE = 1.0, 0.05, 0.02
# After which the engine counts as frozen, in seconds: for what is nice to know, and for what only it can do.
GLANCE, PATIENCE = 0.25, 30.0
# After an engine could not be started here: time for others to try, in seconds.
PENANCE = 5.0
# In a storm of cut connections, how long the store must have been there before it is said that it is not.
SILENT = 60.0


class _Moved(Exception):
    """What was to be asked of another process is to be asked here."""


class Follower(Serving):
    """A client of the engine in another process; perhaps the next engine.

    take_over: starts an engine here if the lock is free, else gives None; None for a process that must not.
    previewer: opens what makes previews here. moved: called with the engine once it runs here. holder: who has the
    lock, in words. address: the store beside which its engine's socket is; None where there is none.
    """

    def __init__(
        self,
        store: Store,
        *,
        catalogue: Catalogue,
        clock: Clock,
        anchor_key: bytes,
        vault: Vault,
        previewer: Callable[[], AbstractAsyncContextManager[Previewer]],
        take_over: Callable[[], Awaitable["Engine | None"]] | None,
        moved: Callable[["Engine"], None],
        holder: Callable[[], str | None],
        address: str | None,
    ) -> None:
        self.store, self.catalogue, self.clock, self.anchor_key = store, catalogue, clock, anchor_key
        self.vault, self._open_previewer = vault, previewer
        self.node = f"node_{os.urandom(6).hex()}"
        self.live, self.dropped = {}, {}
        self.log = logging.getLogger("dotdo.engine")
        self.engine: Engine | None = None
        self._take_over, self._moved, self._holder, self._address = take_over, moved, holder, address
        self._own = store
        self._line: Line | None = None
        self._watched: dict[str, int] = {}
        self._asked: dict[int, tuple[Ask, asyncio.Future[msgspec.Raw]]] = {}
        self._numbers = count(1)
        self._changes, self._pins = -1, ""
        self._blind = False  # the last look at the store failed
        self._silent_until = 0.0
        self._closed = False

    # -- beginning and end --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Calls the engine, and begins to watch over it."""
        self.loop = asyncio.get_running_loop()
        self.readers = Readers(self.loop)
        self.watched: dict[str, set[asyncio.Event]] = {}  # nobody here writes entries: readers look now and then
        self._at_own = OwnStore(self._own, self.loop)
        self._filing = Filing(self._at_own)
        self._turn = asyncio.Event()
        await self._dial()
        self._attending = self.loop.create_task(self._attend())

    async def close(self) -> None:
        """Ends; runs that were asked for go on with the engine."""
        if self._closed:
            return
        self._closed = True
        self._attending.cancel()
        await asyncio.wait([self._attending])
        await self._filing.close()
        for run in self._watched:
            self.readers.wake(run)
        if self._line is not None:
            self._line.close()
        if self.engine is not None:
            await self.engine.close()
        await self._at_own.finish()
        self._own.close()

    # -- watching over the engine -------------------------------------------------------------------------------------

    async def _attend(self) -> None:
        next_try = 0.0
        while True:
            if self._take_over is not None and self.loop.time() >= next_try:
                try:
                    self.engine = await self._take_over()
                except Exception as error:  # whatever a resource raises; others may have more luck
                    self.log.error("the engine of %s could not be started here: %s", self.store.where, error)
                    next_try = self.loop.time() + PENANCE
                if self.engine is not None:
                    self._lead(self.engine)
                    return
            if self._line is None:
                await self._dial()
            await self._look()
            self._turn.clear()
            try:
                async with asyncio.timeout(self._interval()):
                    await self._turn.wait()
            except TimeoutError:
                pass

    def _interval(self) -> float:
        if self._line is not None:
            return LOOK
        return LOOK_ALONE if self._watched else REDIAL

    async def _dial(self) -> None:
        try:
            if self._address is None:
                return
            caller = lines.call(self._address)
        except OSError:
            return  # there is none now, or none that can be spoken to
        line = Line(self._heard, self._lost)
        try:
            await self.loop.connect_accepted_socket(lambda: line, caller)
        except OSError:
            lines.hang_up(caller.detach())
            return
        self._line = line
        line.say(Hint(""))  # something may have been filed while nobody listened
        for run in self._watched:
            line.say(Watch(run))
        for ask, _ in self._asked.values():
            line.say(ask)

    def _lost(self, line: Line) -> None:
        if line is self._line:
            self._line = None
            self._turn.set()  # its lock is free, or somebody has it already

    def _heard(self, _line: Line, message: Any) -> None:
        if isinstance(message, News):
            self.readers.wake(message.run)
        elif isinstance(message, Answer):
            _, future = self._asked.pop(message.number, (None, None))
            if future is not None and not future.done():
                if message.error is None:
                    future.set_result(msgspec.Raw(bytes(message.data)))
                else:
                    future.set_exception(error_of(message.error))

    async def _look(self) -> None:
        """The truth about those who are waited for, told or not."""
        if self._watched:
            runs = list(self._watched)
            try:
                over = await self._read(lambda: self._own.runs_over(runs))
            except StoreError as error:
                if not self._blind and self.loop.time() >= self._silent_until:  # said once, not with each look
                    self.log.error("the store could not be looked at: %s", error)
                self._blind = True
                return
            if self._blind:
                self._blind, self._silent_until = False, self.loop.time() + SILENT
            for run in over:
                self.readers.wake(run)

    def _lead(self, engine: "Engine") -> None:
        """The engine runs here now: what was asked of another one is asked of it, and callers never know."""
        self.log.info("this process runs the engine of %s now", self.store.where)
        self.store = engine.store
        self._moved(engine)
        for run in self._watched:
            self.readers.wake(run)
        for _, future in self._asked.values():
            if not future.done():
                future.set_exception(_Moved())

    # -- reading and filing -------------------------------------------------------------------------------------------

    async def read(self, function: Callable[[], T]) -> T:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Runs a read of the store on the reader's thread."""
        return await (self.engine.read(function) if self.engine is not None else self._read(function))

    async def _read(self, function: Callable[[], T]) -> T:
        return await self._at_own.apart(function)

    async def write(self, function: Callable[[], T]) -> T:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Runs a write that is not of a run on the writer's thread."""
        return await (self.engine.write(function) if self.engine is not None else self._at_own.call(function))

    async def post(self, message: Message) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Leaves a message for a run. Raises UnknownName, InvalidOperation."""
        if self.engine is not None:
            await self.engine.post(message)
            return
        refused = await self._filing.file(await spilled(self._at_own, message))
        if isinstance(refused, InputError):
            raise refused
        self._hint(message.run)

    def _hint(self, run: str) -> None:
        if self.engine is not None:
            self.engine.hint(run)
        elif self._line is not None:
            self._line.say(Hint(run))

    # -- questions that only the engine can answer --------------------------------------------------------------------

    async def _inquire(self, question: str, about: Any, patience: float) -> msgspec.Raw:
        ask = Ask(next(self._numbers), question, msgspec.Raw(msgspec.json.encode(about)))
        future: asyncio.Future[msgspec.Raw] = self.loop.create_future()
        self._asked[ask.number] = ask, future
        if self._line is not None:
            self._line.say(ask)
        try:
            async with asyncio.timeout(patience):
                return await future
        except TimeoutError:
            raise StoreUnavailable(self._silence(patience)) from None
        finally:
            self._asked.pop(ask.number, None)

    def _silence(self, seconds: float) -> str:
        who = self._holder()
        if who is None:
            return f"No process runs an engine on the store {self.store.where} now."
        return (
            f"The engine of the store {self.store.where} ({who}) has not answered for {seconds:g} s. If that process "
            "is frozen, let it go on or end it; another one then takes over."
        )

    # -- Platform: accepting ------------------------------------------------------------------------------------------

    async def accept(self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options) -> str:
        """Validates and files a run, and returns its id once it is durable. Raises InputError, StoreError."""
        if self.engine is not None:
            return await self.engine.accept(kind, name, params, options)
        definition = self.catalogue.find(kind, name, options.version)
        id = run_id(name, options.key)
        if definition is None and self.store.shared:
            definition = await look_for_others(self, kind, name, options.version)
        elif definition is None:
            return await self._have_started(id, kind, name, params, options)
        at_rest = partial(self.vault.accepted, definition.schema, params, id, options)
        input, identity = await self._at_own.apart(at_rest) if is_heavy(params) else at_rest()
        pins = await self.newest_versions()
        accepted = new_run(self, id, definition, kind, input, options, pins=pins, identity=identity)
        if not accepted.entry.digest:
            late = Late()
            late.accept(accepted)
            await late.bring(self._at_own)
            late.accepted(self.anchor_key)
        known = await self._filing.file(Filed(left_to_others(accepted.row, "an engine"), accepted.entry))
        if isinstance(known, str):
            check_same_input(known, input_digest(identity), options.key or "", name, id)
        self._hint(id)
        return id

    async def _have_started(self, id: str, kind: RunKind, name: str, params: Any, options: Options) -> str:
        """Has the engine accept what is not defined here: it knows whether the input fits."""
        if self.tracing is not None:
            options = carried_here(options)
        if self._line is None and self._take_over is None and self._holder() is None:
            self.catalogue.get(kind, name, options.version)
        data = params if isinstance(params, bytes) else codec.encode(params, f"The input of {kind} {name}")
        asked = StartAsked(id, kind, name, msgspec.Raw(data), options)
        try:
            answer = await self._inquire("start", asked, PATIENCE)
        except _Moved:
            assert self.engine is not None
            return await self.engine.accept(kind, name, params, options, id=id)
        return msgspec.json.decode(answer, type=str)

    async def newest_versions(self) -> str:
        """The id of the snapshot of what is newest now."""
        if self.catalogue.changes != self._changes:
            changes, snapshot = self.catalogue.changes, self.catalogue.snapshot()
            await self._at_own.call(partial(self._save, snapshot))
            self._changes, self._pins = changes, snapshot.id
        return self._pins

    def _save(self, snapshot: Snapshot) -> None:
        self._own.save_definitions(snapshot.id, snapshot.newest, self.clock.now())

    # -- Platform: the rest -------------------------------------------------------------------------------------------

    async def execute(self, kind: RunKind, name: str, params: Mapping[str, Any] | bytes, options: Options) -> Run:
        """Files a run and waits until it has ended or is blocked."""
        return await self.result(await self.accept(kind, name, params, options))

    async def preview(
        self, kind: RunKind, name: str, params: Any, options: Options, seconds: float | None = None
    ) -> Preview[Any]:
        """What a run would do, tried out here; nothing happens."""
        async with self._open_previewer() as previewer:
            return await previewer.preview(kind, name, params, options, seconds)

    async def end_of(self, id: str) -> Run:
        """Waits until this very run has ended or is blocked, also if another goes on for it. Raises UnknownName."""
        told = asyncio.Event()
        with self._watching(id):
            self.readers.join(id, told)
            try:
                while self.engine is None:
                    record = await self.read(lambda: self.store.get_run(id))
                    if record is None:
                        raise UnknownName(f"There is no run {id!r}.")
                    if record.status == "blocked":
                        record = await self.read(lambda: still_blocked(self.store, id))
                    if record is not None and record.rests:
                        return record
                    await told.wait()
                    told.clear()
                    if self._closed:
                        raise ClientClosed("The client was closed before the run ended; the run goes on.")
            finally:
                self.readers.leave(id, told)
        return await self.engine.end_of(id)

    async def progress(self, id: str, after: int) -> Progress:
        """What a run has published after an entry; waits for news or its end."""
        with self._watching(id):
            return await super().progress(id, after)

    @contextmanager
    def _watching(self, run: str) -> Generator[None]:
        """Has the engine tell of news of the run. Asked once, however many wait: each asking is answered by news."""
        self._watched[run] = self._watched.get(run, 0) + 1
        if self._watched[run] == 1:
            if self._line is not None:
                self._line.say(Watch(run))
            self._turn.set()
        try:
            yield
        finally:
            self._watched[run] -= 1
            if not self._watched[run]:
                del self._watched[run]
                if self._line is not None:
                    self._line.say(Forget(run))

    async def get(self, id: str) -> Run:
        """A run as it stands. Raises UnknownName."""
        found = await super().get(id)
        return (await self._with_waits([found]))[0]

    async def list_runs(self, filter: RunFilter) -> list[Run]:
        """Runs, newest first."""
        return await self._with_waits(await super().list_runs(filter))

    async def _with_waits(self, found: list[Run]) -> list[Run]:
        """What runs wait for, as far as only the engine's memory knows, or that it does not answer."""
        moving = [run.id for run in found if run.status == "pending" or _is_held(run)]
        if not moving or self.engine is not None:
            return found
        waits: dict[str, WaitingFor] = {}
        other: WaitingFor | None = None
        try:
            waits = msgspec.json.decode(await self._inquire("waiting for", moving, GLANCE), type=dict[str, WaitingFor])
        except StoreUnavailable as error:
            other = WaitingFor("engine", error.message)
        except (DotdoError, _Moved):
            return found
        return [_with_wait(run, waits.get(run.id, other)) if run.id in moving else run for run in found]

    async def prune(self, policy: Retention, actor: str | None) -> int:
        """Not from here: only the engine's process deletes."""
        raise InvalidOperation(
            "Another process runs the engine of this store, and only that one deletes runs: call prune() there, or "
            "give its client a retention."
        )

    async def erase(self, ids: list[str], actor: str | None) -> int:
        """Not from here: only the engine's process erases."""
        raise InvalidOperation(
            "Another process runs the engine of this store, and only that one erases runs: call erase() there. Nothing "
            "was erased."
        )

    async def definitions(self, kind: str) -> list[Definition]:
        """What can be called: what is defined here, and what the engine offers beside."""
        own = await super().definitions(kind)
        if self.engine is not None or self._line is None:
            return own
        try:
            theirs = msgspec.json.decode(await self._inquire("definitions", kind, GLANCE), type=list[Definition])
        except (DotdoError, _Moved):
            return own
        both = {(one.name, one.version): one for one in [*theirs, *own]}
        return [both[key] for key in sorted(both)]


def _is_held(run: Run) -> bool:
    return run.waiting_for is not None and run.waiting_for.kind == HELD


def _with_wait(run: Run, wait: WaitingFor | None) -> Run:
    if wait is None or (run.status == "pending" and run.waiting_for is not None and run.waiting_for.kind == "start"):
        return run
    return msgspec.structs.replace(run, waiting_for=wait)
