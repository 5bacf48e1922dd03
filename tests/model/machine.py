"""The platform and the reference side by side: Hypothesis does to both whatever people may do, and compares.

What is compared after each step is what callers see (the list of runs: status, result, error, undo, generation,
questions, what each waits for; and the steps of the run in hand) and what was done in the world outside, in order.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dotdo import Do
from dotdo.engine import parking
from dotdo.engine.engine import Engine
from dotdo.engine.resting import rests
from dotdo.errors import InvalidOperation, KeyConflict
from dotdo.records import Run
from dotdo.testing import ManualClock
from dotdo.timeline import timeline
from tests import doors
from tests.guarantees.invariants import check_store
from tests.model import reference
from tests.model.reference import ENDED, OPERATIONS, TROUBLES, Question, Refused
from tests.model.trips import Outside, catalogue
from tests.patience import PATIENCE
from tests.stores import forget, url_of

LINGERS = parking.LINGER, parking.LINGER_FOR_CHILD
KEYS, CITIES = ("a", "b"), ("Oslo", "Rome")
OUTCOMES = ("happened", "did_not_happen", "try_again")

spans = st.sampled_from([1.0, 10.0, 20.0, 30.0, 59.0, 60.0, 600.0])
senders = st.sampled_from([None, None, "form-1", "form-2"])
words = st.sampled_from(["yes", "yes", "well", "no"])


class Trips(RuleBasedStateMachine):
    """The rules. door and seen are set by those who run it; seen: how often everything has occurred."""

    door: ClassVar[doors.Door] = "embedded"
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(lingers=st.booleans())
    def begin(self, lingers: bool) -> None:
        """An empty store. lingers: whether runs stay in memory while they wait, or leave it at once."""
        for name in ("LINGER", "LINGER_FOR_CHILD"):
            setattr(parking, name, PATIENCE if lingers else 0.0)
        self.folder = Path(tempfile.mkdtemp(prefix="dotdo-model-"))
        self.clock, self.outside, self.world = ManualClock(), Outside(), reference.World()
        self.ids: dict[reference.Run, str] = {}
        self.in_hand: reference.Run | None = None
        self.alike, self.moved = True, False
        self._open()

    # -- what people do -----------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS), city=st.sampled_from(CITIES), delay=st.sampled_from([0.0, 0.0, 60.0]))
    def start(self, key: str, city: str, delay: float) -> None:
        known = {run.key: run for run in self.ids if run.parent is None}
        with self._alike("start", lambda: self.world.start(key, city, delay), KeyConflict):
            handle = self.client.service("trip", key=key, trail=key, delay=delay).start(city=city)
            if key in known:
                self.seen["start.again"] += 1
                assert handle.id == self.ids[known[key]]
            else:
                (new,) = [run for run in self.world.runs if run.parent is None and run not in self.ids]
                self.ids[new] = handle.id

    @precondition(lambda self: self._some())
    @rule(data=st.data(), word=words, sender=senders)
    def send(self, data: Any, word: str, sender: str | None) -> None:
        waiting = self._some("open") and any(run.waits == "event" for run in self.ids)
        self._send(self._choose(data, lambda run: run.waits == "event" or not waiting), word, sender)

    @precondition(lambda self: self._some("open"))
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        self._operate("cancel", self._choose(data, lambda run: run.status == "open"))

    @precondition(lambda self: self._some("failed", "cancelled", "blocked"))
    @rule(data=st.data())
    def retry(self, data: Any) -> None:
        self._operate("retry", self._choose(data, lambda run: run.status in ("failed", "cancelled", "blocked")))

    @precondition(lambda self: self._some("completed", "failed", "cancelled"))
    @rule(data=st.data())
    def undo(self, data: Any) -> None:
        self._operate("undo", self._choose(data, lambda run: run.status in ENDED))

    @precondition(lambda self: self._some("blocked"))
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def resolve(self, data: Any, outcome: str) -> None:
        run = self._choose(data, lambda run: run.status == "blocked")
        self._resolve(run, data.draw(st.sampled_from(sorted(run.questions))), outcome)

    @precondition(lambda self: self._some())
    @rule(data=st.data(), what=st.sampled_from(["cancel", "retry", "undo", "resolve", "send"]))
    def out_of_turn(self, data: Any, what: str) -> None:
        """On whatever run, whether it makes sense or not."""
        run = self._choose(data)
        if what == "resolve":
            self._resolve(run, data.draw(st.sampled_from([("request", "pay"), ("undo", "book")])), "happened")
        elif what == "send":
            self._send(run, "yes", data.draw(senders))
        else:
            self._operate(what, run)

    @rule(trouble=st.sampled_from([*TROUBLES, "lost", "lost", "stuck"]))
    def trouble(self, trouble: str) -> None:
        """Something outside goes wrong from now on, or is in order again."""
        for place in (self.world, self.outside):
            place.troubles ^= {trouble}

    @rule(seconds=spans)
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.clock.advance(seconds)
        self._rest()
        self.seen["time"] += 1

    @precondition(lambda self: self._some() and self.moved)
    @rule()
    def reopen(self) -> None:
        """The engine is stopped in order, and another one started."""
        self.moved = False
        self.client.close()
        self._open()
        self.seen["reopen"] += 1

    def _send(self, run: reference.Run, word: str, sender: str | None) -> None:
        what = "event.repeated" if sender in run.senders else "event"
        with self._alike(what, lambda: run.send(word, sender), InvalidOperation):
            self.client.runs.send_event(self.ids[run], "word", word, key=sender)
        self.in_hand = run

    def _operate(self, what: str, run: reference.Run) -> None:
        of = run.status if run.status != "open" else run.waits
        with self._alike(f"{what} of {of}", lambda: OPERATIONS[what](run), InvalidOperation):
            getattr(self.client.runs, what)(self.ids[run])
        self.in_hand = run

    def _resolve(self, run: reference.Run, question: Question, outcome: str) -> None:
        about, step = question
        with self._alike(f"{outcome} to {about}", lambda: run.resolve(question, outcome), InvalidOperation):
            asked = [one for one in self.client.runs.get(self.ids[run]).questions if _question(one) == question]
            answer = f"receipt {run.city}" if (about, outcome) == ("request", "happened") else None
            key = asked[0].key if asked else "nobody asked"
            self.client.runs.resolve(self.ids[run], cast("Any", outcome), answer=answer, step=step, key=key)
        self.in_hand = run

    @contextlib.contextmanager
    def _alike(self, what: str, on_reference: Callable[[], None], refusal: type[Exception]) -> Generator[None]:
        """Both do it, or both refuse."""
        try:
            on_reference()
            refused = False
        except Refused:
            refused = True
        self.world.settle()
        try:
            yield
            refuses = False
        except refusal:
            refuses = True
        assert refuses == refused, f"{what}: the platform {'refuses' if refuses else 'does'} it, the reference not"
        self.seen[f"{what}, refused" if refused else what] += 1
        self.moved = True
        self._rest()

    def _some(self, *statuses: str) -> bool:
        return any(not statuses or run.status in statuses for run in getattr(self, "ids", ()))

    def _choose(self, data: Any, fits: Callable[[reference.Run], bool] = lambda run: True) -> reference.Run:
        number = data.draw(st.sampled_from([n for n, run in enumerate(self.ids) if fits(run)]))
        return list(self.ids)[number]

    # -- what they see ------------------------------------------------------------------------------------------------

    @invariant()
    def looks_alike(self) -> None:
        if not hasattr(self, "client"):
            return
        self.alike = False
        listed = {run.id: run for run in self.client.runs.list(limit=500)}
        self._name_children(listed)
        assert sorted(listed) == sorted(self.ids.values())
        for run, id in self.ids.items():
            _same(run, "looks", _looks(listed[id]), run.looks())
            self.seen[f"run.{run.status}.{run.undo}"] += 1
            self.seen[f"waits.{run.waits}"] += run.status == "open"
        assert self.outside.deeds == self.world.deeds, f"{self.outside.deeds}, not {self.world.deeds}"
        if self.in_hand is not None:
            self._same_steps(self.in_hand)
            assert self.client.runs.get(self.ids[self.in_hand]) == listed[self.ids[self.in_hand]]
        self.alike = True

    def _name_children(self, listed: dict[str, Run]) -> None:
        """Which of the listed runs is the reference's new child: one operation begins one at most of each parent."""
        known = set(self.ids.values())
        for run in self.world.runs:
            if run.parent is not None and run not in self.ids:
                parent = self.ids[run.parent]
                new = [one.id for one in listed.values() if one.parent == parent and one.id not in known]
                assert len(new) == 1, f"{parent} has {len(new)} new children, not 1"
                self.ids[run] = new[0]

    def _same_steps(self, run: reference.Run) -> None:
        items = timeline(self.client.runs.journal(self.ids[run])).steps
        seen = [(item.name.partition(" ")[0], item.state, item.undone) for item in items if item.purpose == "step"]
        _same(run, "has the steps", seen, [(step.name, step.state, step.undone) for step in run.steps])

    def teardown(self) -> None:
        """The invariants of the store, from its rows alone."""
        parking.LINGER, parking.LINGER_FOR_CHILD = LINGERS
        if not hasattr(self, "client"):
            return
        for run in self.ids if self.alike else ():
            self._same_steps(run)
        self.client.close()
        if self.alike:
            check_store(self.folder / "dotdo.db")
        forget(self.folder / "dotdo.db")
        shutil.rmtree(self.folder)

    # -- the platform -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        url = url_of(self.folder / "dotdo.db")
        self.behind = Do(url, catalogue=catalogue, clock=self.clock, resources=[self.outside], grace=PATIENCE)
        self.behind.__enter__()
        self.client = doors.enter(self.door, self.behind)
        self._rest()

    def _rest(self) -> None:
        engine = cast("Engine", self.behind._portal.call(self.behind._inner.platform))

        async def come_to_rest() -> None:
            async with asyncio.timeout(PATIENCE):
                while not await rests(engine):  # noqa: ASYNC110 - there is no event for that nothing moves
                    await asyncio.sleep(0.0005)

        self.behind._portal.call(come_to_rest)


def _question(asked: Any) -> Question:
    return asked.about, asked.step.partition(":")[0]


def _looks(run: Run) -> tuple[object, ...]:
    """The same as the reference says of a run."""
    if run.ended:
        return run.status, run.generation, run.result, run.error.type if run.error else None, run.undo
    if run.status == "blocked":
        return run.status, run.generation, sorted(_question(asked) for asked in run.questions)
    text, kind = (run.waiting_for.text, run.waiting_for.kind) if run.waiting_for else ("", "")
    return "open", run.generation, "event" if "'word'" in text else kind


def _same(run: reference.Run, what: str, seen: object, wanted: object) -> None:
    assert seen == wanted, f"{run.key} {what}\n  {seen}, not\n  {wanted}"
