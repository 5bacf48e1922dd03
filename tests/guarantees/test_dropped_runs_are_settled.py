"""A run that left memory with an attempt whose commit the journal has not heard of: whoever has it next settles that
first, be it this node as somebody's child, or another one after an orderly stop. Its SQL is applied once (I7).
"""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw
from sqlalchemy import text

from dotdo import AsyncContext, Catalogue, Retry, action, service
from dotdo.errors import RunCancelled, StoreUnavailable
from dotdo.journal import Completion
from dotdo.records import Run
from dotdo.store.protocol import Write
from tests.contract_sql.databases import SQLiteFile
from tests.guarantees.lab import Lab, World, hold, in_loop, laboratory
from tests.patience import PATIENCE

catalogue = Catalogue()
catalogue.add("action", hold.name, 1, hold, hold.handler)


@action("write", retry=Retry(attempts=3, delay=0), catalogue=catalogue)
async def write(ctx: AsyncContext) -> str:
    """Leaves a row in the application's database."""
    await ctx.sql.execute(text("insert into notes (text) values (:text)"), {"text": f"attempt {ctx.attempt}"})
    return f"attempt {ctx.attempt}"


@service("writer", catalogue=catalogue)
async def writer() -> str:
    return await write()


@service("parent", catalogue=catalogue)
async def parent() -> list[str]:
    return list(await asyncio.gather(writer(), hold("gate")))


class Trouble:
    """A lab's store loses what says that these steps have completed, under the first claim that says so. The run of the
    first one cannot be read either, until `over`."""

    def __init__(self, lab: Lab, *steps: str) -> None:
        self.lost: dict[str, tuple[str, int]] = {}
        self.over = False
        self._first, self._happened = steps[0], {step: asyncio.Event() for step in steps}
        self._loop, self._store = asyncio.get_running_loop(), lab.engine.store
        self._write, self._get_run = self._store.write, self._store.get_run
        self._store.write, self._store.get_run = self._lose, self._read  # type: ignore[method-assign]

    async def has_lost(self, step: str) -> str:
        """Returns the run whose step that was, once it is lost."""
        async with asyncio.timeout(60):
            await self._happened[step].wait()
        return self.lost[step][0]

    def _lose(self, writes: list[Write]) -> None:
        for each in writes:
            for entry in each.entries:
                step, claim = entry.step.partition(":")[0], (each.run, each.claim)
                if step not in self._happened or entry.kind != "completed":
                    continue
                if self.lost.setdefault(step, claim) == claim:
                    self._loop.call_soon_threadsafe(self._happened[step].set)
                    raise StoreUnavailable("the disk is on fire")
        self._write(writes)

    def _read(self, run: str) -> Run | None:
        if not self.over and run == self.lost.get(self._first, ("", 0))[0]:
            raise StoreUnavailable("the disk is on fire")
        return self._get_run(run)


@pytest.mark.of_files("an error of one write, which a server does not give")
@in_loop
async def test_child_that_its_parent_finds_is_settled_first(tmp_path: Path):
    """Both have lost a write. The parent is back first, and finds that its child is not in memory."""
    database = SQLiteFile(tmp_path / "app.db")
    async with laboratory(tmp_path, catalogue=catalogue, sql=database.url) as lab:
        trouble = Trouble(lab, "write", "hold")
        handle = await lab.client.start(parent)
        child = await trouble.has_lost("write")
        lab.world.open("gate")
        assert await trouble.has_lost("hold") == handle.id
        assert await handle.result(timeout=60) == ["attempt 1", "gate"]
        trouble.over = True
        assert database.notes() == ["attempt 1"]
        assert [entry.kind for entry in await lab.client.runs.journal(child)] == [
            "accepted", "claimed", "completed", "ended"
        ]  # fmt: skip


@in_loop
async def test_run_that_could_not_be_read_again_before_an_orderly_stop_is_settled_after_it(tmp_path: Path):
    database = SQLiteFile(tmp_path / "app.db")
    async with laboratory(tmp_path, catalogue=catalogue, sql=database.url) as lab:
        trouble = Trouble(lab, "write")
        handle = await lab.client.start(writer)
        await trouble.has_lost("write")
        assert database.notes() == ["attempt 1"]
    async with laboratory(tmp_path, catalogue=catalogue, sql=database.url) as lab:
        assert await lab.client.handle(handle.id).result(timeout=60) == "attempt 1"
    assert database.notes() == ["attempt 1"]


@in_loop
async def test_row_that_is_there_already_is_the_attempts_own(tmp_path: Path):
    """However it came there (a store that was restored, say): an attempt with the same name has committed."""
    database = SQLiteFile(tmp_path / "app.db")

    @service("held", catalogue=(own := Catalogue()))
    async def held() -> str:
        return await write_held()

    @action("write-held", retry=Retry(attempts=3, delay=0), catalogue=own)
    async def write_held(ctx: AsyncContext) -> str:
        await ctx.resource(World).pass_gate("gate")
        await ctx.sql.execute(text("insert into notes (text) values (:text)"), {"text": f"attempt {ctx.attempt}"})
        return f"attempt {ctx.attempt}"

    async with laboratory(tmp_path, catalogue=own, sql=database.url) as lab:
        handle = await lab.client.start(held)
        await lab.world.reached("gate")
        (step,) = lab.engine.live[handle.id].steps.values()
        before = Completion("write-held", 1, Raw(b"{}"), Raw(b'"before"'), 0, sql=["main"])
        with closing(sqlite3.connect(database.path)) as connection, connection:
            row = (handle.id, step.id, 0, 1, msgspec.json.encode(before).decode(), 0)
            connection.execute("insert into dotdo_applied values (?, ?, ?, ?, ?, ?)", row)
        lab.world.open("gate")
        assert await handle.result(timeout=60) == "before"
    assert database.notes() == []


@in_loop
async def test_run_that_is_cancelled_before_its_turn_among_suspects_is_settled_first(tmp_path: Path):
    """Two runs were in flight when their process died, twice, so now one waits for the other. Of the one that waits, an
    attempt had committed: it is cancelled, and takes that back."""
    database = SQLiteFile(tmp_path / "app.db")

    @action("strike", catalogue=(own := Catalogue()))
    async def strike(ctx: AsyncContext, result: str) -> None:
        await ctx.sql.execute(text("delete from notes where text = :text"), {"text": result})

    @action("write-held", retry=Retry(attempts=5, delay=0), undo=strike, catalogue=own)
    async def write_held(ctx: AsyncContext, gate: str) -> str:
        await ctx.resource(World).pass_gate(gate)
        await ctx.sql.execute(text("insert into notes (text) values (:text)"), {"text": gate})
        return gate

    @service("held", catalogue=own)
    async def held(gate: str) -> str:
        return await write_held(gate)

    async with laboratory(tmp_path, catalogue=own, sql=database.url) as lab:
        gates = {(await lab.client.start(held, gate=gate)).id: gate for gate in ("left", "right")}
        for _ in range(2):
            for gate in gates.values():
                await lab.world.reached(gate)
            await die_in(lab, *gates)
        first, waiting = sorted(gates, key=lambda id: not lab.engine.live[id].began)
        await lab.world.reached(gates[first])
        assert not lab.engine.live[waiting].began
        (step,) = lab.engine.live[waiting].history.steps
        commit_unseen(database, waiting, step, gates[waiting], attempt=2)

        await lab.client.runs.cancel(waiting)
        await asyncio.gather(*lab.engine.background)
        lab.world.open(gates[first])
        with pytest.raises(RunCancelled):
            await lab.client.runs.wait(waiting, timeout=60)
        assert await lab.client.handle(first).result(timeout=60) == gates[first]
        assert (await lab.client.runs.get(waiting)).undo == "all"
    assert database.notes() == [gates[first]]


async def die_in(lab: Lab, *runs: str) -> None:
    """These runs are gone from memory, and their rows say that the process died with them; then they are taken up."""
    for id in runs:
        lab.engine.live.pop(id).release()
    await lab.sql("update runs set owner = null, crashed = 1, due_at = 0 where ended_at is null")
    async with asyncio.timeout(PATIENCE):
        while not all(id in lab.engine.live for id in runs):
            await lab.sweep()


def commit_unseen(database: SQLiteFile, run: str, step: str, note: str, *, attempt: int) -> None:
    """What an attempt left that had committed when its process died."""
    completion = Completion(
        "write-held",
        1,
        Raw(msgspec.json.encode({"gate": note})),
        Raw(msgspec.json.encode(note)),
        0,
        undo=True,
        sql=["main"],
    )
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("insert into notes (text) values (?)", (note,))
        row = (run, step, 0, attempt, msgspec.json.encode(completion).decode(), 0)
        connection.execute("insert into dotdo_applied values (?, ?, ?, ?, ?, ?)", row)
