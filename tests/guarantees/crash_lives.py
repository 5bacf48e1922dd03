"""A program that runs services in processes which it forks, and which die or stop at a chosen point.

`python -m tests.guarantees.crash_lives` has imported everything once. For each order (a line of JSON) it forks a
process, which opens a store of its own and runs or resumes a service there, and prints how that ended. A process that
was stopped goes on while the next one is alive, as if nothing had been. `crashing.Crasher` starts and asks it.
"""

import asyncio
import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dotdo import AsyncDo, AsyncHandle
from dotdo.engine.engine import Engine
from dotdo.errors import InvalidOperation, OutcomeError, StoreUnavailable
from dotdo.records import Outcome, Run
from tests.guarantees import crash_points, crash_services
from tests.guarantees.commits import Commits
from tests.guarantees.crash_services import World
from tests.guarantees.ledger import look
from tests.patience import PATIENCE
from tests.stores import hurry, url_of

KEY = "the one"
PARDON = "one who knows that it was not to blame"
DIED_TOO_OFTEN = "when its process died, and never got any further"
# Seconds after which a process that was stopped goes on in any case: it may hold what the next one waits for.
LONGEST_STOP = 3.0
AGAIN = 0.05  # and until it asks again

T = TypeVar("T")

# What an engine imports only when it needs it: each of a thousand processes would do so again.
NEEDED_LATER = [
    "dotdo.engine.aio_sqlite",
    "dotdo.engine.applying",
    "dotdo.engine.completing",
    "encodings.idna",
    "sqlalchemy.dialects.sqlite.aiosqlite",
]


def main() -> None:
    """Forks for each order, one at a time, and prints how that process ended, or that it was stopped."""
    for name in NEEDED_LATER:
        importlib.import_module(name)
    stopped: Forked | None = None
    for line in sys.stdin:
        order = json.loads(line)
        forked = Forked(order)
        if order["stops"] and forked.was_stopped():
            assert stopped is None, "one at a time"
            stopped = forked
            print(json.dumps({"signal": signal.SIGSTOP, "points": [], "run": None}), flush=True)
            continue
        told = forked.told_beside(stopped, order["wakes_at"])
        ended = forked.ended(told)
        if stopped is not None:  # it goes on to its end; what its caller is told is compared, too
            ended["woken"], stopped = stopped.ended(stopped.told()), None
        print(json.dumps(ended), flush=True)


class Forked:
    """A process of its own for one order."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._heard, tell = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._heard)
            _be_killed(order, tell)
        os.close(tell)

    def was_stopped(self) -> bool:
        """Waits until it is stopped, or ends before it came to where it was to be."""
        info = os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert info is not None
        return info.si_status == signal.SIGSTOP

    def told(self) -> bytes:
        """All that it says until it ends."""
        with open(self._heard, "rb") as stream:
            return stream.read()

    def told_beside(self, stopped: "Forked | None", wakes_at: int) -> bytes:
        """The same; one that was stopped goes on when this one has passed so many points, or has ended."""
        if stopped is None:
            return self.told()
        told, until = b"", time.monotonic() + LONGEST_STOP
        while told.count(b"\n") < wakes_at and (left := until - time.monotonic()) > 0:
            if select.select([self._heard], [], [], left)[0]:
                more = os.read(self._heard, 65536)
                if not more:
                    break
                told += more
        os.kill(stopped._pid, signal.SIGCONT)
        return told + self.told()

    def ended(self, told: bytes) -> dict[str, Any]:
        """How it ended, after all that it has told."""
        *points, last = told.decode().split("\n")
        _, status = os.waitpid(self._pid, 0)
        report = json.loads(last) if last else None
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            report = None
        return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "points": points, "run": report}


def _be_killed(order: dict[str, Any], tell: int) -> None:
    """In the forked process: never returns."""
    code = 1
    try:
        os.environ.update(order["environment"])
        hurry()
        crash_points.install(tell, order["deadly"], stops=order["stops"])
        report = asyncio.run(LIVES.get(order["service"], _live)(order))
        os.write(tell, json.dumps(report).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of the program that it was forked from may run


@asynccontextmanager
async def _opened(order: dict[str, Any]) -> AsyncIterator["Life"]:
    """With the service started, or found by its key."""
    folder = Path(order["folder"])
    world = World(tuple(order["ledger"]), folder)
    sql, store = f"sqlite:///{folder / 'app.db'}", url_of(folder / "dotdo.db")
    async with AsyncDo(store, sql=sql, resources=[world], catalogue=crash_services.catalogue) as client:
        service = client.service(order["service"], key=KEY)
        handle = await _patiently(lambda: service.start(**order["input"]))
        if not order["pardons"]:
            yield Life(client, handle, world)
            return
        pardons = Pardons(client)
        going_on = asyncio.create_task(pardons.go_on())
        yield Life(client, handle, world, pardons)
        going_on.cancel()
        await asyncio.wait([going_on])


class Pardons:
    """Retries what is blocked because it died too often, children, too."""

    def __init__(self, client: AsyncDo) -> None:
        self._client, self._granted, self._granting = client, set[tuple[str, int]](), asyncio.Lock()

    async def go_on(self) -> None:
        """Whenever there is such a run."""
        engine = await self._client.platform()
        assert isinstance(engine, Engine)
        await Commits(engine).until(self.grant)

    async def grant(self) -> bool:
        """Each run once; it is a generation older afterwards. Not over with that: never true."""
        with contextlib.suppress(StoreUnavailable):  # it looks again after the next commit
            async with self._granting:
                for run in await self._client.runs.list(status="blocked"):
                    if _died_too_often(run) and (run.id, run.generation) not in self._granted:
                        with contextlib.suppress(InvalidOperation):  # one that was stopped has just done it
                            await self._client.runs.retry(run.id, actor=PARDON)
                        self._granted.add((run.id, run.generation))
        return False


def _died_too_often(run: Run) -> bool:
    return run.status == "blocked" and run.error is not None and DIED_TOO_OFTEN in run.error.message


@dataclass
class Life:
    """One process of a run."""

    client: AsyncDo
    handle: AsyncHandle[Any]
    world: World
    pardons: Pardons | None = None

    async def end(self, handle: AsyncHandle[Any] | None = None) -> Run:
        """How the run ends, or another one."""
        handle = handle or self.handle
        while True:
            run = await _patiently(lambda: _rest(handle))
            if self.pardons is None:
                return run
            if _died_too_often(run):
                await self.pardons.grant()
            elif run.rests:  # or it was pardoned just now
                return run


async def _rest(handle: AsyncHandle[Any]) -> Run:
    try:
        await handle.result(timeout=PATIENCE)
    except OutcomeError as outcome:
        if outcome.code == "still_running":
            raise
    return await handle.get()


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Asks again as long as the store is out of reach, as callers do: a process that stood still is told so, until it
    has come back as a new node."""
    async with asyncio.timeout(2 * PATIENCE):
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                await asyncio.sleep(AGAIN)


async def _live(order: dict[str, Any]) -> dict[str, Any]:
    """Waits for the end of the run."""
    async with _opened(order) as life:
        return _report(await life.end())


async def _live_operated(order: dict[str, Any]) -> dict[str, Any]:
    """What failed is mended and retried; what then completes is undone."""
    async with _opened(order) as life:
        run = await life.end()
        if await _generation(life.handle) == 0:
            life.world.mend()
            await life.client.runs.retry(run.id)
            run = await life.end()
        if await _generation(life.handle) == 1:
            await life.client.runs.undo(run.id)
            run = await life.end()
        return _report(run)


async def _generation(handle: AsyncHandle[Any]) -> int:
    """How often the run was reopened, other than by a pardon."""
    reopened = [entry.data for entry in await handle.journal() if entry.kind == "reopened"]
    return sum(msgspec.json.decode(data).get("actor") != PARDON for data in reopened)


async def _live_steered(order: dict[str, Any]) -> dict[str, Any]:
    """The run is sent an event, and once it has done what that says, it is cancelled."""
    async with _opened(order) as life:
        engine, handle = await life.client.platform(), life.handle
        assert isinstance(engine, Engine)

        async def has_done_it() -> bool:
            ends = [entry for entry in await handle.journal() if entry.kind in ("completed", "effects_completed")]
            return {"open-billing", "tell-sales"} <= {entry.step.partition(":")[0] for entry in ends}

        with contextlib.suppress(InvalidOperation):  # it has ended: an earlier process has done all this
            await handle.send_event("next", order["input"]["name"], key="first")
            await Commits(engine).until(has_done_it)
            await handle.cancel()
        return _report(await life.end())


async def _live_beside(order: dict[str, Any]) -> dict[str, Any]:
    """A poison, and innocent runs in flight beside it."""
    async with _opened(order) as life:
        innocents = [
            await life.client.service("beside", key=f"{number}").start(number=number)
            for number in range(order["input"]["innocents"])
        ]
        if life.world.is_mended:
            await life.client.runs.retry(life.handle.id)
        poison, *beside = await asyncio.gather(*map(life.end, [life.handle, *innocents]))
        return {**_report(poison), "beside": [run.status for run in beside]}


async def _live_resolved(order: dict[str, Any]) -> dict[str, Any]:
    """A person answers what the run asks, as the ledger knows it."""
    async with _opened(order) as life:
        asked = 0
        while (run := await life.end()).status == "blocked":
            assert run.questions, run.error
            for question in run.questions:
                happened = look(tuple(order["ledger"]), order["folder"], "forms", question.key)
                outcome: Outcome = "did_not_happen" if happened is None else "happened"
                await life.client.runs.resolve(run.id, outcome, key=question.key, answer=happened)
                asked += 1
        return {**_report(run), "asked": asked}


LIVES = {
    "files-forms": _live_resolved,
    "files-in-vain": _live_resolved,
    "poisoned": _live_beside,
    "mendable": _live_operated,
    "steered": _live_steered,
}


def _report(run: Run) -> dict[str, Any]:
    error = f"{run.error.type}: {run.error.message}" if run.error else None
    return {"status": run.status, "undo": run.undo, "result": run.result, "error": error}


if __name__ == "__main__":
    main()
