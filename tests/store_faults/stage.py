"""What a workload's script has at hand, and the caller who plays it: asks again until it is accepted, and remembers
every answer. What was answered must hold after whatever happens later.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from dotdo.engine.engine import Engine
from dotdo.errors import ClientClosed, StoreError
from dotdo.records import Options, Run, RunKind, keyed_run_id

T = TypeVar("T")
PATIENCE = 3600.0  # simulated seconds in which everything must have happened
PAUSE = 5.0
DEFINITE = "Nothing was accepted"


class Stuck(AssertionError):
    """Something that must happen does not."""


class Stage:
    """One play of a workload, through all its processes. engine: the one of the process that lives now.

    ids: of runs whose acceptance was answered, by key. ends: what callers were told. refused: ids of runs of which
    callers were told that they are not there. said: messages of errors that callers have seen.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.app = folder, folder / "dotdo.db", folder / "app.db"
        self.engine: Engine
        self.ids: dict[str, str] = {}
        self.ends: dict[tuple[str, int], Any] = {}
        self.refused: set[str] = set()
        self.said: list[str] = []
        self.wrong: list[str] = []
        self.deleting = False  # from here on runs that have ended may be gone, or without their data
        self.closed = False

    async def start(self, key: str, name: str, kind: RunKind = "service", **params: Any) -> None:
        """Has a run accepted, however often that has to be asked for."""
        if self.deleting and key in self.ids:
            return  # it may be gone, and a new one would be made
        accept = self.engine.accept
        id = await self.repeat(lambda: accept(kind, name, params, Options(key=key)))
        if self.ids.setdefault(key, id) != id:
            self.wrong.append(f"I2: {key} was answered with {id} and {self.ids[key]}")

    async def once(self, key: str, name: str, **params: Any) -> None:
        """Asks for a run once. When it is refused, for good by the words, it must never be there."""
        try:
            self.ids.setdefault(key, await self.engine.accept("service", name, params, Options(key=key)))
        except StoreError as error:
            self._heard(error)
            if DEFINITE in error.message:
                self.refused.add(keyed_run_id(name, key))

    async def all_end(self) -> None:
        """Waits until every run that was answered has ended, and that is told."""
        for key, id in self.ids.items():
            if self.deleting and any(known == id for known, _ in self.ends):
                continue
            try:
                async with asyncio.timeout(PATIENCE):
                    run = await self.repeat(lambda id=id: self.engine.end_of(id))
            except TimeoutError:
                raise Stuck(f"I4: {key} ({id}) does not end: {await self.repeat(self._state(id))}") from None
            self._compare(run)
            if run.status == "blocked":
                raise Stuck(f"I4: {key} ({id}) is blocked: {run.error} {run.questions}")

    def _state(self, id: str) -> Callable[[], Awaitable[Any]]:
        async def state() -> Any:
            run = await self.engine.get(id)
            return run.status, run.waiting_for

        return state

    async def repeat(self, request: Callable[[], Awaitable[T]], unless: type[Exception] | tuple[()] = ()) -> T | Any:
        """Asks until it is answered. unless: an error that says that it was done before."""
        end = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return await request()
            except unless:
                return None
            except ClientClosed:
                raise
            except StoreError as error:
                self._heard(error)
                if asyncio.get_running_loop().time() > end:
                    raise Stuck(f"I4: the store stays unusable: {error.message}") from None
            await asyncio.sleep(PAUSE)

    async def run(self, function: Callable[[], T]) -> T:
        """Something that is not the engine's, in another thread so to speak."""
        await asyncio.sleep(0)
        return function()

    async def close(self) -> None:
        """Closes the engine in order; the script begins again in a new one."""
        self.closed = True
        await self.engine.close()

    def _compare(self, run: Run) -> None:
        seen = (run.status, run.undo, run.result, run.error and run.error.message)
        if self.ends.setdefault((run.id, run.generation), seen) != seen:
            self.wrong.append(f"I12: {run.id} was {self.ends[run.id, run.generation]}, and is {seen} now")

    def _heard(self, error: StoreError) -> None:
        self.said.append(error.message)
        if "simulated" not in error.message and "full" not in error.message and "earlier write" not in error.message:
            self.wrong.append(f"this does not say what is wrong: {type(error).__name__}: {error.message}")
