"""`TestDo`: a client for tests, with an engine and a store of its own, virtual time and fakes.

Time stands still while the test does something, and skips to the next thing that is due while the test waits for a run
and nothing else moves. Nothing is shared with other clients, so tests may run side by side, in threads and processes.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from dotdo.async_client import AsyncDo
from dotdo.async_runs import AsyncHandle, AsyncRuns, Load, checked, within
from dotdo.catalogue import Catalogue, default_catalogue
from dotdo.client import Do, Handle, Names, Runs
from dotdo.clock import duration
from dotdo.codec import encode_result
from dotdo.engine.engine import Engine
from dotdo.engine.resting import rests
from dotdo.engine.secrets import Vault, temporary_vault
from dotdo.errors import UnknownName
from dotdo.journal import Entry, Undone, read
from dotdo.platform import Platform
from dotdo.records import Options, Outcome, Run, RunFilter, RunKind, keyed_run_id
from dotdo.secret_provider import Given, SecretSources
from dotdo.store.protocol import ALL
from dotdo.testing.clock import START, Duration, ManualClock, milliseconds
from dotdo.testing.faking import Company, Definition, Fake, Raises, Sent
from dotdo.testing.killing import ANSWERER, KillableDatabase, KillableStore, Points, killable_databases
from dotdo.testing.portal import TestPortal, call_number
from dotdo.timeline import StepItem, timeline

P = ParamSpec("P")
T = TypeVar("T")

POLL = 0.0005  # seconds of real time between two looks at whether anything moves
PATIENCE = 30.0
MEMORY = "/dev/shm"  # noqa: S108 - a folder in memory, where the system has one; a private one is made in it


class Stuck(AssertionError):
    """The test waits for a run that waits for something which no passing of time brings about."""


class TestDo(Do):
    """A client for tests. All that `Do` can do, on a store that is gone when it closes; use it as a context manager.

    sql, resources, catalogue, secrets, actor: as of `Do`. check_replay: each run is replayed as it completes, so a
    service that asks a clock or keeps state outside its run fails at once. start: what the clock shows at first. seed:
    what the ids of runs are made of, that are started without a key; by default nothing that was there before.
    """

    __test__ = False  # not a class of tests

    def __init__(
        self,
        *,
        sql: Any = None,
        resources: Sequence[Any] = (),
        catalogue: Catalogue | None = None,
        secrets: Given | None = None,
        actor: str | None = None,
        check_replay: bool = True,
        start: datetime = START,
        seed: str | None = None,
    ) -> None:
        self.clock = ManualClock(start)
        self.points = Points()
        self._company = Company(self.points)
        self._tested = _TestedDo(
            self.clock,
            self.points,
            self._company,
            sql=sql,
            resources=resources,
            catalogue=catalogue or default_catalogue,
            secrets=secrets,
            actor=actor,
            check_replay=check_replay,
            seed=os.urandom(8).hex() if seed is None else seed,
        )
        self._inner = self._tested
        self._portal = self._tests = TestPortal(self._tested, self.points)
        self._leave_sigterm = None
        self.action = Names(self._portal, self._inner.action)
        self.service = Names(self._portal, self._inner.service)
        self.runs = Runs(self._portal, self._inner.runs)

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, by: Duration) -> None:
        """Lets time pass, as much as that: seconds, a timedelta, or text such as "3 days".

        Whatever becomes due on the way happens in its order, each at its own time, and has come to rest when this
        returns.
        """
        end = self.clock.now() + milliseconds(by)
        if end < self.clock.now():
            raise ValueError(f"advance({by!r}): time never goes back.")
        self._portal.call(lambda: self._tested.pass_time(end))

    def settle(self) -> None:
        """Waits until nothing moves any more without time passing, or the test doing something."""
        self._portal.call(self._tested.come_to_rest)

    def call(
        self,
        function: "Callable[Concatenate[AsyncDo, P], Coroutine[Any, Any, T]]",
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Awaits your own `async def` that takes an AsyncDo first, such as a web handler: `do.call(sign_up, body)`.

        Returns what it returns. If the engine is killed meanwhile it is called again, with the same arguments, like a
        request that its sender repeats: give what it invokes a key, or it is invoked again.
        """
        return self._portal.call(lambda: function(self._tested, *args, **kwargs))

    # -- fakes --------------------------------------------------------------------------------------------------------

    def fake(
        self,
        definition: Definition,
        function: Any = None,
        /,
        *,
        result: Any = msgspec.UNSET,
        raises: Raises | None = None,
        times: int | None = None,
    ) -> Fake:
        """Has this client call something else instead of an action's handler or an effect's function.

        function: called with those of the inputs that it takes by name, and the context (or call) if its first
        parameter is named `ctx` (`call`). result: what is returned instead. raises: an exception, or its class, that
        is raised instead; with times, only so often, and then the function, the result, or else the real thing.

        All else is as without it: inputs and outputs are checked, retries made, effects journaled. The fake that it
        returns has the `calls` made so far. A later fake of the same definition takes its place.
        """
        return self._company.fake(definition, function, result=result, raises=raises, times=times)

    # -- what has come about ------------------------------------------------------------------------------------------

    def sent(self, effect: Any = None) -> list[Sent]:
        """Effects that happened so far, in order; all, or those of one definition. Fakes count."""
        return [one for one in self._company.sent if effect is None or one.effect == effect.name]

    def steps(self, run: "Handle[Any] | Run | str") -> list[StepItem]:
        """The steps of a run, in the order in which they began: name, state, input, result, error, failures, effects
        and whether it was undone. Among them its undos and on_failure actions (`purpose`)."""
        return timeline(self.runs.journal(_id(run))).steps

    def step(self, run: "Handle[Any] | Run | str", name: str) -> StepItem:
        """The one step of that name (or id). Raises AssertionError when there is none, or there are several."""
        steps = [one for one in self.steps(run) if name in (one.name, one.id) and one.purpose == "step"]
        if len(steps) != 1:
            known = ", ".join(one.id for one in self.steps(run)) or "none"
            raise AssertionError(f"{len(steps)} steps of {_id(run)} are named {name!r}; it has: {known}.")
        return steps[0]

    def undone(self, run: "Handle[Any] | Run | str") -> list[str]:
        """The names of the steps that were taken back, in that order."""
        entries: list[Entry] = self.runs.journal(_id(run))
        names = {step.id: step.name for step in timeline(entries).steps}
        ends = [msgspec.json.decode(entry.data, type=Undone) for entry in entries if entry.kind == "undone"]
        return [names.get(end.step) or end.step for end in ends if end.error is None]

    @property
    def was_killed(self) -> bool:
        """Whether the engine was killed by now (see `crash_everywhere`)."""
        return self._tested.was_killed

    @property
    def asked(self) -> set[str]:
        """Keys of the questions that were for the test, whatever it did about them, as far as `state` has seen them."""
        return self._tested.asked

    def expect(self, questions: set[str]) -> None:
        """Says which questions, by key, are there without a kill, too; all others are answered after it."""
        self._tested.expected = questions

    def state(self) -> "dict[str, dict[str, Any]]":
        """What every run has come to, and every step of it; comparable between repetitions of a test."""
        return self._portal.call(self._tested.state)


class _TestedDo(AsyncDo):
    """The client on the engine's loop. call: the number of the portal's call that is under way."""

    def __init__(
        self,
        clock: ManualClock,
        points: Points,
        company: Company,
        *,
        sql: Any,
        resources: Sequence[Any],
        catalogue: Catalogue,
        secrets: Given | None,
        actor: str | None,
        check_replay: bool,
        seed: str,
    ) -> None:
        super().__init__("sqlite://", actor=actor)
        self._clock, self._points, self._company = clock, points, company
        self._sql, self._resources, self._catalogue = sql, resources, catalogue
        self._check_replay, self._seed = check_replay, seed
        self._vault: Vault = temporary_vault(SecretSources(secrets))
        self._key = os.urandom(32)
        self._folder: str | None = None
        self._open = self._open_engine
        self.engine: Engine | None = None
        self.store: KillableStore | None = None
        self.was_killed = False
        self.asked: set[str] = set()  # keys of the questions that are for the test
        self.expected: set[str] = set()  # those of the undisturbed run
        self.runs: AsyncRuns = _TestedRuns(self)

    async def _open_engine(self) -> Platform:
        if self._folder is None:
            # What is made in memory need not be flushed to a disk; a store must outlive a kill of its engine.
            self._folder = tempfile.mkdtemp(prefix="dotdo-test-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
        databases = None if self._sql is None else killable_databases(self._sql, self._points)
        self.store = KillableStore(KillableDatabase(f"{self._folder}/dotdo.db", self._points))
        engine = Engine(
            self.store,
            catalogue=self._catalogue,
            clock=self._clock,
            anchor_key=self._key,
            databases=databases,
            resources=self._resources,
            check_replay=self._check_replay,
            vault=self._vault,
        )
        engine.doubles = self._company
        await engine.start()
        self.engine = engine
        return engine

    async def close(self) -> None:
        """Closes the client; no row of its own stays in the application's databases."""
        engine = self.engine
        if engine is not None and engine.databases is not None:
            await engine.applied.flush()
            await engine.threads.run(lambda: _forget_rows(engine.databases, self._is_own))
        await super().close()

    def _is_own(self, run: str) -> bool:
        assert self.store is not None, "it has an engine"
        return self.store.get_run(run) is not None

    def forget_engine(self) -> None:
        """It was killed: the next call opens another one."""
        self.engine, self._opening, self.was_killed = None, None, True

    def remove_store(self) -> None:
        """The client is closed."""
        if self._folder is not None:
            shutil.rmtree(self._folder)

    # -- accepting ----------------------------------------------------------------------------------------------------

    async def execute(self, kind: RunKind, name: str, params: Any, options: Options, wait: float | None) -> Run:
        """Accepts a run and waits for its end."""
        return await self.runs.wait(await self._accepted(kind, name, params, options), timeout=wait)

    async def accept(self, kind: RunKind, name: str, params: Any, options: Options, load: Load) -> AsyncHandle[Any]:
        """Accepts a run."""
        return AsyncHandle(self, await self._accepted(kind, name, params, options), load)

    async def _accepted(self, kind: RunKind, name: str, params: Any, options: Options) -> str:
        await self.platform()
        assert self.engine is not None, "it was just opened"
        self._points.armed = True
        if options.key is not None:
            return await self.engine.accept(kind, name, params, options)
        # The same id when the call is made again after a kill, and in each repetition of the test.
        id = keyed_run_id(name, f"call {call_number.get()} of {self._seed}")
        try:
            return (await self.engine.get(id)).id
        except UnknownName:
            return await self.engine.accept(kind, name, params, options, id=id)

    # -- time ---------------------------------------------------------------------------------------------------------

    async def come_to_rest(self) -> Engine:
        """Waits until nothing moves any more by itself."""
        await self.platform()
        engine = self.engine
        assert engine is not None, "it was just opened"
        end = engine.loop.time() + PATIENCE
        while not await rests(engine) or await self.answer_questions():
            if engine.loop.time() > end:
                busy = [f"{run.id} ({run.accepted.name})" for run in engine.live.values() if run.busy]
                raise TimeoutError(f"Something still moves after {PATIENCE:g} s: {', '.join(busy) or 'the engine'}.")
            await asyncio.sleep(POLL)
        return engine

    async def pass_time(self, end: int) -> None:
        """Moves the clock to a time, from one thing that is due to the next."""
        await self.come_to_rest()
        while (due := self._clock.next_due()) is not None and due <= end:
            self._clock.advance((due - self._clock.now()) / 1000)
            await self.come_to_rest()
        if end > self._clock.now():
            self._clock.advance((end - self._clock.now()) / 1000)
            await self.come_to_rest()

    async def skip(self, call: "asyncio.Future[Any]") -> None:
        """While a call waits for a run: skips to the next time that something is due at, whenever nothing moves."""
        while not call.done():
            await asyncio.wait([call], timeout=POLL)
            engine = self.engine
            if engine is None or call.done() or not _is_awaited(engine) or not await rests(engine):
                continue
            if await self.answer_questions() or not await rests(engine):
                continue  # what was awaited at first may have come meanwhile, and the call have started something else
            if call.done() or engine is not self.engine or not _is_awaited(engine):
                continue
            due = self._clock.next_due()
            if due is None:
                raise Stuck(await self._why_stuck(engine))
            self._clock.advance((due - self._clock.now()) / 1000)

    async def _why_stuck(self, engine: Engine) -> str:
        waiting = [run for run in await engine.list_runs(RunFilter(limit=50)) if not run.ended]
        lines = [
            f"  {run.name} ({run.id}) is {run.status}: it waits for {run.waiting_for.text}"
            for run in waiting
            if run.waiting_for is not None
        ]
        passed = duration(self._clock.now() - self._clock.began)
        return (
            f"The test waits, and so does everything else, for what no time will bring ({passed} have passed):\n"
            + "\n".join(lines)
        )

    # -- after a kill -------------------------------------------------------------------------------------------------

    async def answer_questions(self) -> bool:
        """After a kill: answers what blocked runs ask, as it really was; returns whether there was anything."""
        engine = self.engine
        if not self.was_killed or engine is None:
            return False
        answered = False
        for run in await engine.list_runs(RunFilter(status="blocked", limit=1000)):
            for question in run.questions:
                of_test = question.key in self.expected and question.error is not None
                if of_test or question.about not in ("request", "delivery"):
                    continue
                happened = [one for one in self._company.sent if one.key == question.key and not one.takes_back]
                answer = encode_result(happened[-1].answer, "The answer") if happened else None
                outcome: Outcome = "happened" if happened else "did_not_happen"
                await engine.resolve(run.id, question.key, outcome, answer, ANSWERER)
                answered = True
        return answered

    async def state(self) -> dict[str, dict[str, Any]]:
        """What every run has come to."""
        engine = await self.come_to_rest()
        found: dict[str, dict[str, Any]] = {}
        for run in await engine.list_runs(RunFilter(limit=10_000)):
            entries = await engine.journal(run.id)
            steps = timeline(entries).steps
            error = run.error
            blocked = [entry for entry in entries if entry.kind == "blocked" and entry.data]
            self.asked |= {question.key for entry in blocked for question in read(entry).questions}
            # Steps come first: what came of the run follows from them.
            found[f"{run.name} {run.id}"] = {
                **{f"step {step.id}": _of_step(step) for step in steps if step.purpose != "on_failure"},
                "status": run.status,
                "undo": run.undo,
                "result": run.result,
                "error": None if error is None else f"{error.type}: {error.message}",
                "not undone": sorted(run.not_undone),
            }
        return found


class _TestedRuns(AsyncRuns):
    """`client.runs` of a test."""

    def __init__(self, client: _TestedDo) -> None:
        super().__init__(client)
        self._tested = client

    async def wait(self, id: str, *, timeout: float | None = None) -> Run:
        """Waits for the end; after a kill, beyond questions that only the kill has raised."""
        while True:
            run = await within(timeout, (await self._tested.platform()).result(id), id)
            if run.status != "blocked" or not await self._tested.answer_questions():
                return checked(run)


def _forget_rows(databases: Any, is_own: Callable[[str], bool]) -> None:
    """Deletes applied rows of runs that nobody will ask about again: the next trial of a test has runs of their ids."""
    for name in databases.names:
        rows = databases.leftovers(name, ("", "", 0, 0), ALL, ALL)
        own = [row.key for row in rows if is_own(row.key[0])]
        if own:
            databases.forget(name, own)


def _is_awaited(engine: Engine) -> bool:
    """Whether somebody waits for the end of a run, or for what it publishes."""
    return engine.answers.any_awaited or bool(engine.watched)


def _of_step(step: StepItem) -> dict[str, Any]:
    return {
        "state": step.state,
        "result": step.result,
        "error": None if step.error is None else f"{step.error.type}: {step.error.message}",
        "effects": sorted(f"{one.name} {one.key}: {one.state}" for one in step.effects),
        "undone": step.undone,
    }


def _id(run: "Handle[Any] | Run | str") -> str:
    return run if isinstance(run, str) else run.id
