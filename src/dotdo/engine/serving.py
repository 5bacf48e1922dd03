"""What clients ask of an engine about runs that are there: the `Platform` protocol, but for accepting runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from dotdo.catalogue import Catalogue
from dotdo.clock import Clock
from dotdo.engine import resolving
from dotdo.engine.answering import Answers
from dotdo.engine.doubles import Doubles
from dotdo.engine.elsewhere import Elsewhere
from dotdo.engine.erasing import erase
from dotdo.engine.parking import waiting_for
from dotdo.engine.previewing import Previewer
from dotdo.engine.pruning import Place, prune
from dotdo.engine.publishing import Readers
from dotdo.engine.running import LiveRun
from dotdo.errors import NodeDraining, UnknownName
from dotdo.journal import Entry
from dotdo.keys import ApiKey
from dotdo.policy import Retention
from dotdo.preview import Preview
from dotdo.records import HELD, Definition, Options, Outcome, Progress, Run, RunFilter, RunKind, WaitingFor
from dotdo.store.protocol import Message, Store
from dotdo.tracing import Tracing

T = TypeVar("T")

LEAVING = 3  # batches of the writer, in one of which is the row of a run that leaves memory


class Serving:
    """The part of the engine that answers clients; `Engine` is the whole."""

    store: Store
    clock: Clock
    catalogue: Catalogue
    answers: Answers
    watched: dict[str, set[asyncio.Event]]  # by run: who is told when an entry of it has been written
    write: Callable[[Callable[[], Any]], Awaitable[Any]]  # on the writer's thread
    readers: Readers
    previewer: Previewer
    live: dict[str, LiveRun]
    dropped: dict[str, str]  # left memory, and why, with attempts that may have ended unseen; not claimed anew yet
    tracing: Tracing | None = None  # set before the start
    capacity = 20_000  # runs in memory
    node: str
    draining = False
    read: Callable[[Callable[[], Any]], Awaitable[Any]]
    anchor_key: bytes
    post: Callable[[Message], Awaitable[None]]
    doubles: Doubles | None = None  # of tests
    elsewhere: Elsewhere | None = None  # what other nodes define

    async def preview(
        self, kind: RunKind, name: str, params: Any, options: Options, seconds: float | None = None
    ) -> Preview[Any]:
        """What a run would do; nothing happens."""
        return await self.previewer.preview(kind, name, params, options, seconds)

    async def result(self, id: str) -> Run:
        """Waits until the run, and whatever goes on for it, has ended or is blocked. Raises UnknownName."""
        while True:
            record = await self.end_of(id)
            if record.continued_as is None or record.undo != "none":
                return record
            id = await self.newest(id)

    async def newest(self, id: str) -> str:
        """The run that goes on for this one; the same when it has never continued as new."""
        return await self.read(lambda: self.store.newest_of_chain(id)) or id

    async def end_of(self, id: str) -> Run:
        """Waits until this very run has ended or is blocked, also if another goes on for it. Raises UnknownName."""
        future = self.answers.wait(id)
        try:
            if id not in self.live:
                record = await self.read(lambda: self.store.get_run(id))
                if record is None and id not in self.live:
                    self.answers.fail(id, UnknownName(f"There is no run {id!r}."))
                elif record is not None and record.ended:
                    self.answers.give(id, record)
                elif record is not None and record.status == "blocked":
                    await self.tell_blocked(id)
            return await future
        except BaseException:
            self.answers.forget(id, future)
            raise

    async def tell_blocked(self, id: str) -> None:
        """Tells callers that a run is blocked, unless a person has said meanwhile how it goes on."""
        record = await self.read(lambda: resolving.still_blocked(self.store, id))
        if record is not None:
            self.answers.give(id, record)

    async def get(self, id: str) -> Run:
        """A run as it stands. Raises UnknownName."""
        record = await self.read(lambda: self.store.get_run(id))
        if record is None:
            raise UnknownName(f"There is no run {id!r}.")
        return await self._as_it_stands(record)

    async def _as_it_stands(self, record: Run) -> Run:
        """A run that is in memory knows better than its row what it waits for."""
        if record.rests:  # also blocked: a person's answer may be being taken
            return record
        run = self.live.get(record.id)
        if run is not None and not run.over:
            return msgspec.structs.replace(record, waiting_for=waiting_for(run))
        if record.waiting_for is not None and record.waiting_for.kind != HELD:
            return record
        # It has left memory since its row was read, or is leaving it: what it waits for is being written.
        for _ in range(LEAVING):
            if run is None or self.live.get(record.id) is not run:
                break
            await self.write(lambda: None)
        record = await self.read(lambda: self.store.get_run(record.id)) or record
        why = self.dropped.get(record.id)
        if why is not None and not record.rests:
            return msgspec.structs.replace(
                record, waiting_for=WaitingFor("store", f"the store, to be read again: {why}")
            )
        return record

    async def list_runs(self, filter: RunFilter) -> list[Run]:
        """Runs, newest first."""
        return [await self._as_it_stands(record) for record in await self.read(lambda: self.store.list_runs(filter))]

    async def journal(self, id: str, after: int = 0) -> list[Entry]:
        """The entries of a run after a number."""
        await self.get(id)
        return await self.read(lambda: self.store.read_journal(id, after))

    async def progress(self, id: str, after: int) -> Progress:
        """What a run has published after an entry; waits for news or its end."""
        return await self.readers.read(self, id, after)

    async def prune(self, policy: Retention, actor: str | None) -> int:
        """Deletes ended runs as the policy says; returns how many."""
        place = Place(self.store, self.clock.now(), self.anchor_key, self.read, self.write)
        return await prune(place, policy, actor)

    async def erase(self, ids: list[str], actor: str | None) -> int:
        """Erases the data of ended trees; returns of how many runs."""
        return await erase(Place(self.store, self.clock.now(), self.anchor_key, self.read, self.write), ids, actor)

    async def news(self, id: str, after: int, seconds: float) -> list[Entry]:
        """A run's entries after a number, as soon as there are some; none when so many seconds have passed."""
        return await self.readers.news(self, id, after, seconds)

    async def count_by_status(self) -> dict[str, int]:
        """How many runs are in each state."""
        return await self.read(self.store.count_by_status)

    async def count_limited(self) -> list[tuple[str, str, int]]:
        """How many steps of each action have their slots (""), or wait for a limit of a kind (concurrency, rate)."""
        return await self.read(self.store.count_limited)

    async def is_full(self) -> bool:
        """Whether so many runs are in memory that new ones had better come later."""
        return len(self.live) >= self.capacity

    async def check(self) -> None:
        """Raises StoreError unless runs can be accepted now."""
        if self.draining:
            raise NodeDraining("The engine starts nothing new.")
        await self.write(lambda: self.store.touch(self.node))
        await self.read(self.store.next_due)

    async def find_api_key(self, digest: str) -> ApiKey | None:
        """An API key by the digest of its text."""
        return await self.read(lambda: self.store.find_api_key(digest))

    async def touch_api_keys(self, used: list[tuple[str, int]]) -> None:
        """Notes when API keys were last used (ms)."""
        await self.write(lambda: self.store.touch_api_keys(used))

    async def cancel(self, id: str, actor: str | None) -> None:
        """Asks for a run to be cancelled."""
        await self._ask(id, "cancel", actor)

    async def retry(self, id: str, actor: str | None) -> None:
        """Reopens a failed, cancelled or blocked run, and says "try again" to what it asks by now."""
        known = await self.read(lambda: resolving.questions_of(self.store, id))
        await self._ask(id, "retry", actor, msgspec.json.encode(known).decode())

    async def undo(self, id: str, actor: str | None) -> None:
        """Takes back what an ended run did."""
        await self._ask(id, "undo", actor)

    async def resolve(self, id: str, key: str, outcome: Outcome, answer: bytes | None, actor: str | None) -> None:
        """Answers a question of a blocked run. Raises UnknownName, InvalidOperation, InvalidInput, InvalidValue."""
        await resolving.resolve(self, id, key, outcome, answer, actor)

    async def _ask(self, id: str, kind: str, actor: str | None, value: str = "null") -> None:
        await self.post(Message(id, kind, "", value, None, actor, self.clock.now()))

    async def send_event(self, id: str, name: str, value: bytes, key: str | None, actor: str | None) -> None:
        """Sends an event to a run."""
        run = self.live.get(id)
        if run is not None and run.secrets is not None:
            run.secrets.refuse(value, f"The value of the event {name!r}")
        sender = None if key is None else f"event:{key}"
        await self.post(Message(id, "event", name, value.decode(), sender, actor, self.clock.now()))

    async def definitions(self, kind: str) -> list[Definition]:
        """What can be called, be it on another node."""
        own = [definition.definition() for definition in self.catalogue.all(kind)]
        if self.elsewhere is None:
            return own
        both = {(one.name, one.version): one for one in [*self.elsewhere.all(kind), *own]}
        return [both[key] for key in sorted(both)]
