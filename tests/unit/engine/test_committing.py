"""Group commit: many runs in one transaction; each is told when its write is durable; only the guilty one fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dotdo.embedding import open_reader
from dotdo.engine.committing import FLUSH_AT, MAX_ROWS, GroupCommit
from dotdo.engine.journaling import RunJournal
from dotdo.errors import ClientClosed, FenceLost, StoreError, StoreUnavailable
from dotdo.journal import Empty
from dotdo.store.protocol import Message, Write
from dotdo.store.sql import SqlStore
from dotdo.store.sqlite import SQLiteDatabase
from dotdo.testing import ManualClock
from tests.loops import in_loop
from tests.patience import PATIENCE
from tests.store.runs import KEY, NODE, Runs


class FaultyStore(SqlStore):
    """A real store that fails for some runs as told, and counts its transactions."""

    def __init__(self, database: SQLiteDatabase) -> None:
        super().__init__(database)
        self.faults: dict[str, Exception] = {}
        self.batches: list[list[str]] = []

    def write(self, writes: list[Write]) -> None:
        self.batches.append([write.run for write in writes])
        for write in writes:
            if write.run in self.faults:
                raise self.faults[write.run]
        super().write(writes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FaultyStore]:
    opened = FaultyStore(SQLiteDatabase(str(tmp_path / "dotdo.db")))
    yield opened
    opened.close()


class Bench:
    """A group commit on a store, and journals of runs that write through it."""

    def __init__(self, store: FaultyStore) -> None:
        self.store, self.runs = store, Runs(store)
        self.committer = GroupCommit(store, asyncio.get_running_loop())
        self.lost: list[tuple[str, BaseException]] = []

    def journals(self, count: int) -> list[RunJournal]:
        for number in range(count):
            self.runs.accept(f"run_{number:04}")
        self.store.batches.clear()
        return [self.journal(f"run_{number:04}", 1) for number in range(count)]

    def journal(self, run: str, claim: int) -> RunJournal:
        return RunJournal(
            run,
            claim,
            committer=self.committer,
            clock=ManualClock(),
            anchor_key=KEY,
            head=self.store.read_journal(run)[-1],
            generation=0,
            on_lost=lambda journal, error: self.lost.append((journal.run, error)),
        )

    def kinds(self, journal: RunJournal) -> list[str]:
        return [entry.kind for entry in self.store.read_journal(journal.run)]

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """The writer's thread is kept busy meanwhile; what is appended has to wait."""
        entered, release = threading.Event(), threading.Event()

        def work() -> None:
            entered.set()
            release.wait(PATIENCE)

        future = self.committer.call(work)
        await asyncio.to_thread(entered.wait, PATIENCE)
        yield
        release.set()
        await future


@asynccontextmanager
async def bench(store: FaultyStore) -> AsyncIterator[Bench]:
    opened = Bench(store)
    async with asyncio.timeout(PATIENCE):
        yield opened
        await opened.committer.close()


async def durable(*journals: RunJournal) -> list[BaseException | None]:
    """Waits until each write is through; the error of each that failed."""
    return await asyncio.gather(*(journal.durable() for journal in journals), return_exceptions=True)


@in_loop
async def test_writes_of_one_moment_share_a_transaction(store: FaultyStore):
    async with bench(store) as at:
        journals = at.journals(50)
        for journal in journals:
            journal.append("completed", Empty())
            journal.append("fired", Empty())
        assert await durable(*journals) == [None] * 50
        assert [len(batch) for batch in store.batches] == [50]
        assert at.committer.commits == 1
        assert all(at.kinds(journal) == ["accepted", "completed", "fired"] for journal in journals)


@in_loop
async def test_writes_that_come_while_one_is_under_way_share_the_next(store: FaultyStore):
    async with bench(store) as at:
        journals = at.journals(5)
        async with at.busy():
            for journal in journals:
                journal.append("completed", Empty())
                await at_next_turns(4)  # each is flushed by itself
        await durable(*journals)
        assert [len(batch) for batch in store.batches] == [5]


async def at_next_turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@in_loop
async def test_waiter_is_told_when_its_entry_can_be_read_by_others_never_before(store: FaultyStore):
    async with bench(store) as at:
        [journal] = at.journals(1)
        reader = open_reader(store.where)
        async with at.busy():
            journal.append("completed", Empty())
            told = asyncio.ensure_future(journal.durable())
            await at_next_turns(5)
            assert not told.done()
            assert not journal.is_durable
            assert len(reader.read_journal(journal.run)) == 1
        await told
        assert journal.is_durable
        assert len(reader.read_journal(journal.run)) == 2
        reader.close()


@in_loop
async def test_only_the_guilty_run_of_a_batch_fails(store: FaultyStore):
    async with bench(store) as at:
        journals = at.journals(4)
        assert store.claim_one(NODE, journals[1].run) is not None  # fenced off by a newer claim
        store.faults[journals[2].run] = StoreUnavailable("the disk is full")
        for journal in journals:
            journal.append("completed", Empty())
        first, fenced, full, last = await durable(*journals)
        assert (first, last) == (None, None)
        assert isinstance(fenced, FenceLost)
        assert isinstance(full, StoreUnavailable)
        assert [run for run, _ in at.lost] == [journals[1].run, journals[2].run]
        assert [len(at.kinds(journal)) for journal in journals] == [2, 1, 1, 2]
        assert [len(batch) for batch in store.batches] == [4, 1, 1, 1, 1], "together, then run by run"


@in_loop
async def test_nothing_of_a_run_is_written_after_a_write_that_failed(store: FaultyStore):
    """Its journal would have a gap: the later entries are chained to the lost one."""
    async with bench(store) as at:
        guilty, other = at.journals(2)
        store.faults[guilty.run] = StoreUnavailable("for a moment")
        async with at.busy():
            guilty.append("completed", Empty())
            await at_next_turns(4)
            guilty.append("fired", Empty())
            other.append("completed", Empty())
        [error] = await durable(guilty)
        assert isinstance(error, StoreUnavailable)
        store.faults.clear()
        guilty.append("event", Empty())
        other.append("fired", Empty())
        assert await durable(other) == [None]
        assert at.kinds(guilty) == ["accepted"]
        assert at.kinds(other) == ["accepted", "completed", "fired"]
        assert len(at.lost) == 1, "told once"


@in_loop
async def test_where_nodes_share_a_store_nothing_is_written_after_a_failure_either(store: FaultyStore):
    """A failure is everybody's there, and the next batch may be in the queue when the server is back."""
    async with bench(store) as at:
        first, second = at.journals(2)
        store.shared = True
        store.faults[first.run] = StoreUnavailable("the server is away")
        async with at.busy():
            first.append("completed", Empty())
            second.append("completed", Empty())
            await at_next_turns(4)
        failed = await durable(first, second)
        assert [type(error) for error in failed] == [StoreUnavailable] * 2
        store.faults.clear()
        first.append("fired", Empty())
        second.append("fired", Empty())
        await at.committer.call(lambda: None)
        at.committer.flush()
        await at.committer.call(lambda: None)
        assert at.kinds(first) == at.kinds(second) == ["accepted"]

        at.committer.forgive_all()
        store.batches.clear()
        journals = [at.journal(each.run, each.claim) for each in (first, second)]
        for journal in journals:
            journal.append("completed", Empty())
        assert await durable(*journals) == [None] * 2
        assert [len(batch) for batch in store.batches] == [2]


@in_loop
async def test_run_goes_on_under_a_new_claim_and_batches_are_shared_again(store: FaultyStore):
    async with bench(store) as at:
        journals = at.journals(10)
        guilty = journals[0]
        store.faults[guilty.run] = StoreUnavailable("for a moment")
        guilty.append("completed", Empty())
        await durable(guilty)
        store.faults.clear()

        claim = await at.committer.call(lambda: store.claim_one(NODE, guilty.run))
        assert claim is not None
        at.committer.forgive(guilty.run, guilty.claim)
        journals[0] = at.journal(guilty.run, claim.claim)
        await at.committer.call(lambda: None)
        store.batches.clear()
        for journal in journals:
            journal.append("completed", Empty())
        assert await durable(*journals) == [None] * 10
        assert [len(batch) for batch in store.batches] == [10]
        assert at.kinds(journals[0]) == ["accepted", "completed"]


@in_loop
async def test_unexpected_failure_of_the_store_is_a_store_error(store: FaultyStore):
    async with bench(store) as at:
        [journal] = at.journals(1)
        store.faults[journal.run] = RuntimeError("odd")
        journal.append("completed", Empty())
        [error] = await durable(journal)
        assert type(error) is StoreError
        assert "RuntimeError('odd')" in str(error)


@in_loop
async def test_what_a_run_does_in_one_go_is_written_together_also_in_a_flood(store: FaultyStore):
    async with bench(store) as at:
        journals = at.journals(FLUSH_AT + 20)
        for journal in journals:  # the writer is handed the first ones while the loop is still here
            first = journal.append("completed", Empty())
            journal.send(Message(journal.run, "event", "x", "1", None, None, first.at))
        assert await durable(*journals) == [None] * len(journals)
        assert sum(len(batch) for batch in store.batches) == len(journals)  # one write for each
        messages = store.read_inbox([journal.run for journal in journals])
        assert all(len(each) == 1 for each in messages.values())


@in_loop
async def test_large_batches_are_split(store: FaultyStore):
    async with bench(store) as at:
        journals = at.journals(MAX_ROWS + 200)
        for journal in journals:
            journal.append("completed", Empty())
        assert set(await durable(*journals)) == {None}
        sizes = [len(batch) for batch in store.batches]
        assert sum(sizes) == MAX_ROWS + 200
        assert max(sizes) <= MAX_ROWS


@in_loop
async def test_call_runs_after_the_writes_before_it_and_hands_over_what_it_raises(store: FaultyStore):
    async with bench(store) as at:
        [journal] = at.journals(1)
        journal.append("completed", Empty())
        await at_next_turns(4)
        assert await at.committer.call(lambda: len(store.read_journal(journal.run))) == 2

        def fail() -> None:
            raise StoreUnavailable("no")

        with pytest.raises(StoreUnavailable, match="no"):
            await at.committer.call(fail)
        journal.append("fired", Empty())
        assert await durable(journal) == [None]


@in_loop
async def test_close_writes_what_waits_and_takes_no_more(store: FaultyStore):
    at = Bench(store)
    [journal] = at.journals(1)
    journal.append("completed", Empty())
    await at.committer.close()
    assert at.kinds(journal) == ["accepted", "completed"]
    with pytest.raises(ClientClosed):
        await at.committer.call(lambda: None)


def test_loop_that_is_closed_before_its_client_ends_the_writer(store: FaultyStore, caplog: pytest.LogCaptureFixture):
    """As when a server ends its loop without the lifespan of its application: the thread says so, and ends."""
    asked, released = threading.Event(), threading.Event()

    def long_write() -> None:
        asked.set()
        assert released.wait(PATIENCE)

    async def main() -> GroupCommit:
        committer = GroupCommit(store, asyncio.get_running_loop())
        committer.call(long_write)
        assert await asyncio.to_thread(asked.wait, PATIENCE)
        return committer

    committer = asyncio.run(main())
    released.set()
    committer._thread.join(PATIENCE)
    assert not committer._thread.is_alive()
    assert [record.message for record in caplog.records] == [
        f"the event loop of {store.where} was closed before its client; close that first"
    ]
