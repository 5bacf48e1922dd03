"""When the store fails a write, before or after it was made, nothing is lost or done twice, in that run or others."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dotdo import AsyncContext, Context, StoreError, action, service
from dotdo.errors import StoreUnavailable
from dotdo.store.protocol import Message, Write
from tests.guarantees.lab import Lab, book, catalogue, hold, in_loop, laboratory, note
from tests.patience import PATIENCE

pytestmark = pytest.mark.of_files("an error of one write, which a server does not give")

Picks = Callable[[Write], bool]


class Faults:
    """Fails the store's writes that it picks, so often; before they are made, or after, when the outcome is unknown."""

    def __init__(self, lab: Lab, picks: Picks, times: int, *, after: bool = False) -> None:
        self.left, self.fired = times, 0
        write = lab.engine.store.write

        def faulty(writes: list[Write]) -> None:
            fails = self.left > 0 and any(map(picks, writes))
            if not fails or after:
                write(writes)
            if fails:
                self.left, self.fired = self.left - 1, self.fired + 1
                raise StoreUnavailable("the disk is on fire")

        lab.engine.store.write = faulty  # type: ignore[method-assign]


def has(kind: str, step: str = "") -> Picks:
    """Picks writes with such an entry."""
    return lambda write: any(entry.kind == kind and entry.step.startswith(step) for entry in write.entries)


@service("pays", catalogue=catalogue)
async def pays() -> list[str]:
    first = await book(item="seat")
    return [first, *await asyncio.gather(note(text="a"), note(text="b"))]


PAID = ["ticket for seat", "a", "b"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["completed", "ended"])
@pytest.mark.parametrize("times", [1, 2])
@in_loop
async def test_run_whose_write_fails_is_read_again_and_completes(tmp_path: Path, kind: str, times: int, after: bool):
    async with laboratory(tmp_path) as lab:
        faults = Faults(lab, has(kind), times, after=after)
        beside = [await lab.client.start(note, text=f"beside {number}") for number in range(5)]
        handle = await lab.client.start(pays)
        assert await handle.result() == PAID
        for number, other in enumerate(beside):
            assert await other.result() == f"beside {number}"
        assert faults.fired >= 1


@in_loop
async def test_refused_acceptance_leaves_no_run(tmp_path: Path):
    """I3: a caller who is told that nothing was accepted can rely on it."""
    async with laboratory(tmp_path) as lab:
        Faults(lab, lambda write: bool(write.accepts), 2)
        with pytest.raises(StoreError):
            await lab.client.start(pays)
        assert await lab.client.runs.list() == []
        assert lab.world.said == []
        handle = await lab.client.start(pays)
        assert await handle.result() == PAID
        assert lab.world.said.count("book seat") == 1


@in_loop
async def test_acceptance_whose_outcome_was_not_known_is_looked_up(tmp_path: Path):
    """I1 and I4: the run is there, so its caller is not told that it was refused; and it starts once, in time."""
    async with laboratory(tmp_path) as lab:
        faults = Faults(lab, lambda write: bool(write.accepts), 2, after=True)
        handle = await lab.client.start(pays)
        delayed = await lab.client.start(note.with_(delay=3600), text="later")
        assert faults.fired == 2
        assert await handle.result() == PAID
        await lab.until(lambda: lab.engine.live == {})
        assert (await delayed.get()).status == "pending"
        assert sorted(lab.world.said) == ["a", "b", "book seat"]
        lab.clock.advance(3600)
        assert await delayed.result() == "later"


@service("pays-at-the-gate", catalogue=catalogue)
async def pays_at_the_gate() -> list[str]:
    return [await hold(gate="cash desk"), await note(text="receipt")]


@in_loop
async def test_guilty_run_of_a_batch_takes_no_other_with_it(tmp_path: Path):
    async with laboratory(tmp_path) as lab:
        handles = [await lab.client.start(pays_at_the_gate) for _ in range(20)]
        await lab.world.reached("cash desk")
        picked = handles[7].id
        faults = Faults(lab, lambda write: write.run == picked and bool(write.entries), 4)
        lab.world.open("cash desk")
        for handle in handles:
            assert await handle.result() == ["cash desk", "receipt"]
        assert faults.fired == 4
        claims = [len(await lab.entries(handle.id, "claimed")) for handle in handles]
        assert claims[7] >= 1
        assert sum(claims) == claims[7]


@action("insert-row", retry=1, catalogue=catalogue)
def insert_row(ctx: Context) -> str:
    ctx.sql.exec_driver_sql("insert into done values ('sync')")
    return "sync"


@action("insert-row-async", retry=1, catalogue=catalogue)
async def insert_row_async(ctx: AsyncContext) -> str:
    await ctx.sql.exec_driver_sql("insert into done values ('async')")
    return "async"


@service("inserts", catalogue=catalogue)
async def inserts() -> list[str]:
    return [await insert_row(), await insert_row_async()]


@service("inserts-side-by-side", catalogue=catalogue)
async def inserts_side_by_side() -> list[str]:
    return list(await asyncio.gather(insert_row(), insert_row_async()))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@in_loop
async def test_sql_that_has_committed_counts_although_the_journal_lost_it(tmp_path: Path, after: bool):
    """I7 holds when the application's database takes the commit and the store does not."""
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        connection.execute("create table done (how text)")
    async with laboratory(tmp_path, sql=f"sqlite:///{tmp_path / 'app.db'}") as lab:
        for definition in (inserts, inserts_side_by_side):
            faults = Faults(lab, has("completed", "insert-row"), 2, after=after)
            handle = await lab.client.start(definition)
            assert await handle.result() == ["sync", "async"]
            # Steps side by side may be in one write. It is durable then, and no second one of them can fail.
            assert faults.fired == 2 or (faults.fired == 1 and after and definition is inserts_side_by_side)
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        assert sorted(connection.execute("select how from done")) == [("async",)] * 2 + [("sync",)] * 2


@service("breaks-at-once", catalogue=catalogue)
async def breaks_at_once() -> None:
    await book(item="ladder")
    raise ArithmeticError


@in_loop
async def test_cancel_that_meets_the_blocking_of_its_run_is_not_lost(tmp_path: Path):
    """The cancel is durable just before the run becomes blocked: it was asked for, so it happens."""
    async with laboratory(tmp_path) as lab:
        store, write = lab.engine.store, lab.engine.store.write
        met: list[str] = []

        def cancel_first(writes: list[Write]) -> None:
            for each in writes:
                if each.update is not None and each.update.status == "blocked" and not met:
                    met.append(each.run)
                    store.post(Message(each.run, "cancel", "", "null", None, "ada", lab.clock.now()))
            write(writes)

        store.write = cancel_first  # type: ignore[method-assign]
        handle = await lab.client.start(breaks_at_once)
        run = await lab.until_status(handle.id, "cancelled")
        assert met == [handle.id]
        assert run.undo == "all"
        assert lab.world.said == ["book ladder", "unbook ladder"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@in_loop
async def test_run_whose_write_fails_while_its_row_says_blocked_takes_the_word_of_a_person(tmp_path: Path, after: bool):
    """It was claimed for a cancellation that had met its blocking, so this process has it, and its row is blocked."""
    async with laboratory(tmp_path) as lab:
        store, write = lab.engine.store, lab.engine.store.write

        def cancel_first(writes: list[Write]) -> None:
            blocked = [one.run for one in writes if one.update is not None and one.update.status == "blocked"]
            if blocked:
                store.write = write  # type: ignore[method-assign]
                store.post(Message(blocked[0], "cancel", "", "null", None, "ada", lab.clock.now()))
                write(writes)
                faults.append(Faults(lab, has("cancel_requested"), 2, after=after))
            else:
                write(writes)

        faults: list[Faults] = []
        store.write = cancel_first  # type: ignore[method-assign]
        handle = await lab.client.start(breaks_at_once)
        run = await lab.until_status(handle.id, "cancelled")
        assert faults[0].fired > 0
        assert run.undo == "all"
        assert lab.world.said == ["book ladder", "unbook ladder"]


@service("asks-another", catalogue=catalogue)
async def asks_another() -> list[str]:
    return await pays()


@in_loop
async def test_parent_learns_of_the_end_of_a_child_whose_last_write_was_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At once: not only when the engine looks for what nobody has told it of, or when the parent leaves memory."""
    monkeypatch.setattr("dotdo.engine.parking.LINGER_FOR_CHILD", PATIENCE)
    async with laboratory(tmp_path) as lab:
        monkeypatch.setattr(lab.engine.host, "look", _see_nothing)
        faults = Faults(lab, lambda write: bool(write.messages), 1, after=True)
        assert await (await lab.client.start(asks_another)).result(timeout=PATIENCE) == PAID
        assert faults.fired == 1


@in_loop
async def test_engine_that_is_told_of_much_still_looks_for_what_it_was_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with laboratory(tmp_path) as lab:
        looked = asyncio.Event()

        async def look() -> None:
            looked.set()

        monkeypatch.setattr(lab.engine.host, "look", look)
        async with asyncio.timeout(PATIENCE):
            while not looked.is_set():
                lab.engine.claimer.hint()
                await asyncio.sleep(0)


async def _see_nothing() -> None:
    """Stands for a look."""
