"""The reference: what a reader of the docs expects of trips, in plain words and without anything of the engine.

A run is a story that is told from its top whenever something has happened: what stands it takes from memory, then it
does the next things, until it must wait, ask a person, or fail. The world outside fails as the test says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE, NAP = 600.0, 60.0  # seconds
BETWEEN_CALLS, BETWEEN_LETTERS = (10.0, 20.0), (30.0,)  # seconds before each further try
ENDED = ("completed", "failed", "cancelled")

Question = tuple[str, str]  # about a request or an undo; of which step


class Refused(Exception):
    """The operation must be refused."""


class Waits(Exception):
    """The run waits for this."""


class Asks(Exception):
    """The run asks a person these questions."""

    def __init__(self, *questions: Question) -> None:
        self.questions = set(questions)


class Failed(Exception):
    """The run has failed, with an error of this type."""


@dataclass
class Step:
    """One step. place: of its outcome among all that its run has heard. charge: what is known of its request."""

    name: str
    state: str = "open"
    place: int = 0
    tries: int = 0
    next_at: float = 0.0
    gave_up: bool = False
    committed: bool = False
    error: str = ""
    charge: str = ""
    child: "Run | None" = None
    undone: bool = False
    partly: bool = False
    undo_failed: bool = False
    left: bool = False


class World:
    """The time in seconds, what goes wrong outside, everything that was done there for each trip, and all runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.troubles: set[str] = set()
        self.deeds: dict[str, list[str]] = {}
        self.runs: list[Run] = []

    def start(self, key: str, city: str, delay: float) -> None:
        """The same key again is the same trip, or with another city refused."""
        trip = next((run for run in self.runs if run.key == key and run.parent is None), None)
        if trip is None:
            self.add(Trip(self, key, city, self.now + delay))
            self.settle()
        elif trip.city != city:
            raise Refused

    def add(self, run: "Run") -> "Run":
        """A run has begun."""
        self.runs.append(run)
        return run

    def pass_time(self, seconds: float) -> None:
        """All of it passes at once."""
        self.now += seconds
        self.settle()

    def settle(self) -> None:
        """Everybody goes as far as it gets; the end of one may be what another waits for."""
        before: list[tuple[object, ...]] = []
        while before != (after := [run.looks() for run in self.runs]):
            before = after
            for run in list(self.runs):
                run.go()


@dataclass(eq=False, repr=False)
class Run:
    """One run. status: open, blocked, or how it ended. stands: the steps that count, by name; steps: all there were.

    heard: when it heard of what its story goes by, in order. ending: what it will end as, once it is undone.
    """

    world: World
    key: str
    city: str
    begins: float
    parent: "Run | None" = None
    status: str = "open"
    waits: str = ""
    undo: str = "none"
    error: str | None = None
    result: str | None = None
    generation: int = 0
    steps: list[Step] = field(default_factory=list)
    stands: dict[str, Step] = field(default_factory=dict)
    questions: set[Question] = field(default_factory=set)
    ending: str = ""
    reopened_to_undo: bool = False
    plan: list[Step] | None = None
    told: int = -1
    heard: list[float] = field(default_factory=list)
    place: int = 0
    events: list[tuple[str, int]] = field(default_factory=list)
    senders: set[str] = field(default_factory=set)
    taken: int = 0
    fired: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.heard.append(self.begins)

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()} {self.key} ({self.status})"

    def story(self) -> str | None:
        """What the service does."""
        raise NotImplementedError

    def looks(self) -> tuple[object, ...]:
        """What a caller sees of it."""
        if self.status in ENDED:
            return self.status, self.generation, self.result, self.error, self.undo
        if self.status == "blocked":
            return self.status, self.generation, sorted(self.questions)
        return self.status, self.generation, self.waits

    # -- what people do -----------------------------------------------------------------------------------------------

    def send(self, word: str, sender: str | None) -> None:
        """An event; a sender's key is taken once. Ended runs refuse what they have not taken before."""
        if sender in self.senders:
            return
        if self.status in ENDED:
            raise Refused
        if sender is not None:
            self.senders.add(sender)
        self.events.append((word, self._hear()))

    def cancel(self) -> None:
        """Gives it up, unless it is on its way out already."""
        if self.status in ENDED:
            raise Refused
        if not self.ending and not self.reopened_to_undo:
            self._stop("cancelled", "Cancelled")

    def retry(self) -> None:
        """Goes on where it was; or, when it had ended, from what failed it. What was undone is done again. A child
        that has ended is its parent's to do again."""
        if self.status == "blocked":
            for step in self.stands.values():
                self._answer(step, "try_again")
        elif self.status in ("failed", "cancelled") and self.parent is None:
            self.ending, self.error, self.undo = "", None, "none"
            self.stands = {
                name: step for name, step in self.stands.items() if step.state == "completed" and not step.undone
            }
        else:
            raise Refused
        self._reopen()

    def take_back(self) -> None:
        """Undoes what an ended run did."""
        if self.status not in ENDED or self.undo == "all":
            raise Refused
        self.ending, self.reopened_to_undo = self.status, True
        self._reopen()

    def resolve(self, question: Question, outcome: str) -> None:
        """Answers one question; with the last answer the run goes on."""
        if question not in self.questions:
            raise Refused
        self.questions.remove(question)
        self._answer(self.stands[question[1]], outcome)
        if not self.questions:
            self._reopen()

    def _answer(self, step: Step, outcome: str) -> None:
        if step.charge == "lost":
            step.charge = {"happened": "answered", "did_not_happen": "refused", "try_again": "again"}[outcome]
        elif step.undo_failed:
            step.undo_failed = False
            step.undone, step.left = outcome == "happened", outcome == "did_not_happen"

    def _reopen(self) -> None:
        self.status, self.questions, self.plan = "open", set(), None
        self.generation += 1

    # -- how it goes on -----------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Goes as far as it gets by itself."""
        if self.status != "open":
            return
        try:
            self._go()
        except Waits as wait:
            self.waits = str(wait)
            return
        except Asks as asks:
            self.status, self.questions = "blocked", asks.questions
            self._tell()
        self.waits = ""

    def _go(self) -> None:
        if self.world.now < self.begins and not (self.generation or self.ending):
            raise Waits("start")
        self.place = self.taken = 0
        if not self.ending:
            try:
                self.result = self.story()
                self.status = "completed"
                return
            except Failed as failed:
                self._stop("failed", str(failed))
        self._wind_up()

    def _stop(self, status: str, error: str) -> None:
        self.status, self.questions, self.ending, self.error = "open", set(), status, error

    def _wind_up(self) -> None:
        """First what was under way ends, then all that was done is undone, newest first."""
        if not self.reopened_to_undo:
            for step in self.stands.values():
                self._end_step(step)
        if self.plan is None:
            done = [step for step in self.stands.values() if step.state in ("committed", "completed")]
            self.plan = [step for step in reversed(done) if not step.undone and not step.left]
        asked: set[Question] = set()
        for step in self.plan:
            if not (step.undone or step.left or step.child):
                try:
                    self._undo(step)
                except Asks as asks:
                    asked |= asks.questions
            elif step.child and not step.undone:
                self._undo_child(step, step.child)
        if any(step.child and not step.undone for step in self.plan):
            raise Waits("child")  # who was asked a question about its undo
        if asked:
            raise Asks(*asked)
        if self.ending == "failed" and not self.reopened_to_undo:
            self._tell()
        for step in self.stands.values():
            step.state = "cancelled" if step.state == "open" else step.state
        self.undo = self._how_much_undone()
        self.status, self.ending, self.reopened_to_undo = self.ending, "", False

    def _end_step(self, step: Step) -> None:
        if step.state == "open" and step.child:
            if step.child.status not in ENDED:
                step.child.cancel()
                step.child.go()
            if step.child.status not in ENDED:
                raise Waits("child")
        if step.charge == "again":
            self._charge(step, again=True)  # it is asked for once more, to be taken back
        if step.charge == "lost":
            raise Asks(("request", step.name))
        if step.charge == "answered" and step.state == "open":
            self._do("refund")
        if step.state == "open" and step.charge:
            step.charge = "settled"  # such a step is shown as open until its run has ended
        elif step.state == "open":
            step.state = "cancelled"

    def _undo(self, step: Step) -> None:
        if not step.undo_failed and "stuck" in self.world.troubles:
            step.undo_failed = True
        if step.undo_failed:
            raise Asks(("undo", step.name))
        self._do(f"un{step.name}")
        step.undone = True

    def _undo_child(self, step: Step, child: "Run") -> None:
        if child.status in ENDED and child.undo != "all" and not step.undo_failed:
            child.take_back()
            child.go()
            step.undo_failed = True  # it is asked once
        if child.status in ENDED:
            step.undone, step.partly, step.undo_failed = True, child.left, False

    @property
    def left(self) -> bool:
        """Whether something of it stays, because a person said so."""
        return any(step.committed and not step.undone for step in self.stands.values())

    def _how_much_undone(self) -> str:
        done = [step for step in self.stands.values() if step.committed]
        if not any(step.undone for step in done):
            return "none"
        return "all" if all(step.undone and not step.partly for step in done) else "partial"

    def _tell(self) -> None:
        """Those of `on_failure`, once per generation."""
        if self.parent is None and self.told < self.generation:
            self.world.deeds.setdefault(self.key, []).append("tell")
            self.told = self.generation

    # -- what stories are made of -------------------------------------------------------------------------------------

    def _step(self, name: str) -> Step:
        if name not in self.stands:
            self.stands[name] = Step(name)
            self.steps.append(self.stands[name])
        return self.stands[name]

    def _do(self, deed: str) -> None:
        self.world.deeds.setdefault(self.key, []).append(f"{deed} {self.city}")

    def _hear(self) -> int:
        self.heard.append(self.world.now)
        return len(self.heard) - 1

    def _outcome(self, step: Step, state: str = "") -> None:
        """The story learns of a step's outcome, for the first time or again."""
        if state:
            step.state, step.place = state, self._hear()
        self.place = max(self.place, step.place)
        if step.state == "failed":
            raise Failed(step.error)

    def _tries(self, step: Step, waits: str, delays: tuple[float, ...], trouble: str, error: str) -> bool:
        """Whether it works now; False when all tries are used up."""
        if self.world.now < step.next_at and not step.gave_up:
            raise Waits(waits)
        if trouble not in self.world.troubles and not step.gave_up:
            step.tries, step.next_at = 0, 0.0
            return True
        step.error = error
        if step.tries < len(delays):
            step.next_at = self.world.now + delays[step.tries]
            step.tries += 1
            raise Waits(waits)
        step.gave_up = True
        return False

    def _charge(self, step: Step, *, again: bool) -> None:
        if "declined" in self.world.troubles:
            step.charge, step.error = "lost" if again else "refused", "Fail"
            return
        self._do("charge again" if again else "charge")
        step.charge, step.error = ("lost", "ConnectionError") if "lost" in self.world.troubles else ("answered", "")

    def _wait(self, name: str, seconds: float | None) -> str | None:
        """The next event, or None if the time passes first. What came before the story waits is there at once."""
        event = self.events[self.taken] if name == "event" and self.taken < len(self.events) else None
        fired = self.fired.get(name) if seconds is not None else None
        if event is None and fired is None:
            if seconds is None or self.world.now < max(self.heard[: self.place + 1]) + seconds:
                raise Waits(name)
            fired = self.fired[name] = self._hear()
        if event is not None and (fired is None or event[1] < max(fired, self.place)):
            self.taken += 1
            self.place = max(self.place, event[1])
            return event[0]
        self.place = max(self.place, fired or 0)
        return None


class Trip(Run):
    """Books, waits for a word for ten minutes at most, pays, packs, waits for another word."""

    def story(self) -> str:
        """What the service does."""
        self._book()
        word = self._wait("event", PATIENCE) or "late"
        if word == "no":
            raise Failed("Fail")
        self._pay()
        self._pack()
        return f"{self.city}: {word}, {self._wait('event', None)}"

    def _book(self) -> None:
        step = self._step("book")
        if step.state == "open":
            if not self._tries(step, "retry", BETWEEN_CALLS, "no line", "ConnectionError"):
                self._outcome(step, "failed")
            self._do("book")
            step.state, step.committed = "committed", True
        if step.state == "committed":
            if not self._tries(step, "delivery", BETWEEN_LETTERS, "full", "RetryLater"):
                if not step.undone and not step.left:
                    self._undo(step)
                self._outcome(step, "failed")
            self._do("letter")
            step.state, step.place = "completed", self._hear()
        self._outcome(step)

    def _pay(self) -> None:
        step = self._step("pay")
        if step.state == "open":
            if step.charge in ("", "again"):
                self._charge(step, again=step.charge == "again")
            if step.charge == "lost":
                raise Asks(("request", "pay"))
            step.committed = step.charge == "answered"
            self._outcome(step, "completed" if step.committed else "failed")
        self._outcome(step)

    def _pack(self) -> None:
        step = self._step("packing")
        if step.child is None:
            step.child = self.world.add(Packing(self.world, self.key, self.city, self.world.now, parent=self))
            step.child.go()
        if step.state == "open":
            if step.child.status not in ENDED:
                raise Waits("child")
            step.committed, step.error = step.child.status == "completed", step.child.error or ""
            self._outcome(step, "completed" if step.committed else "failed")
        self._outcome(step)


class Packing(Run):
    """Packs, then sleeps for a minute."""

    def story(self) -> None:
        """What the service does."""
        step = self._step("pack")
        if step.state == "open":
            self._do("pack")
            step.committed = True
            self._outcome(step, "completed")
        self._outcome(step)
        self._wait("timer", NAP)


OPERATIONS: dict[str, Callable[[Run], None]] = {"cancel": Run.cancel, "retry": Run.retry, "undo": Run.take_back}
TROUBLES = ("no line", "full", "lost", "declined", "stuck")
