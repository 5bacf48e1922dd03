"""Runs that come to a halt with something under way: a bug in their service blocks them, or a child of theirs fails.
Operators cancel, retry and undo them meanwhile. Few seeds have one; without these a run that waits for a person would
hardly ever be cancelled, nor would a run fail while it has something to settle and nothing to undo.
"""

import random
from typing import Any

from tests.simulation.durations import skewed
from tests.simulation.world import EFFECTS

LIKELY, STUBBORN, WEARY = 0.08, 0.04, 0.03
FIRST = 200  # the first number of a step: other plans of the case have smaller ones
SOON = 120.0  # seconds in which most operators come
Errand = tuple[str, float]


def draw(seed: int) -> tuple[list[Any], list[Errand]] | None:
    """The plan of such a run, which few seeds have, and what operators do to it: which deed, how long after its
    beginning."""
    chance = random.Random(f"halting {seed}")
    if chance.random() > LIKELY:
        return None
    return (_with_a_bug if chance.random() < 0.7 else _with_a_child_that_fails)(chance)


def _with_a_bug(chance: random.Random) -> tuple[list[Any], list[Errand]]:
    """Blocked, some work done and some under way, until somebody cancels it: a retry comes upon the same bug."""
    begun = [_begun(chance, FIRST + 10 + n) for n in range(chance.randint(0, 2))]
    done = [_done(chance, FIRST + n) for n in range(chance.choice((0, 0, 0, 1, 2)))]
    bug = {"bug": begun, "after": chance.choice((0.01, 0.2, 3.0))}
    likely = (("cancel", 0.5), ("retry", 0.4), ("undo", 0.3), ("again", 0.3))
    if chance.random() < 0.2:
        return [{"child": [*done, bug]}], _errands(chance, likely)
    impatient = [("cancel when told", 0.0)] if chance.random() < 0.7 else []
    return [*done, bug], impatient + _errands(chance, likely)


def _with_a_child_that_fails(chance: random.Random) -> tuple[list[Any], list[Errand]]:
    """The child has nothing to undo, and what it has sent, or is doing, must be settled first."""
    refused = {"do": "plain", "n": FIRST, "refuses": True, "seconds": round(skewed(chance, 0.3), 3)}
    others = [_sending(chance, FIRST + 1 + n) for n in range(chance.randint(1, 2))]
    plan = [_done(chance, FIRST + 10), {"try": {"child": [{"beside": [refused, *others]}]}}]
    likely = (("cancel", 0.1), ("retry", 0.4), ("undo", 0.5), ("again", 0.3))
    return plan[chance.randint(0, 1) :], _errands(chance, likely)


def draw_stubborn(seed: int) -> tuple[list[Any], list[Errand]] | None:
    """The plan of a run that must be undone, and whose undo fails for good: as often as a person has it tried again, or
    only at first."""
    chance = random.Random(f"stubborn {seed}")
    if chance.random() > STUBBORN:
        return None
    stubborn = {"do": "undoable", "n": FIRST + 31, "stubborn": chance.choice((1, 1, 99))}
    stops = chance.choice(({"do": "plain", "n": FIRST + 33, "refuses": True}, {"event": "never"}))
    plan = [
        {"do": "undoable", "n": FIRST + 30},
        chance.choice((stubborn, {"child": [stubborn, {"do": "stocked", "n": FIRST + 32}]})),
        stops,
    ]
    cancels = 1.0 if "event" in stops else 0.2
    return plan, _errands(chance, (("cancel", cancels), ("retry", 0.4), ("undo", 0.4), ("again", 0.3)))


def _errands(chance: random.Random, likely: tuple[Errand, ...]) -> list[Errand]:
    def comes() -> float:
        return 0.2 + SOON * chance.random() ** 2

    return [(kind, comes()) for kind, often in (*likely, ("read", 1)) if chance.random() < often]


def _done(chance: random.Random, n: int) -> Any:
    """What the run has committed before."""
    return {"do": chance.choice(("plain", "undoable", "stocked")), "n": n}


def _begun(chance: random.Random, n: int) -> Any:
    """What is under way when the run comes to its halt."""
    waiting = {"sleep": 30.0}
    return chance.choice(
        (
            {"child": [waiting]},
            {"child": [waiting]},
            {"child": [{"do": "stocked", "n": n}, waiting]},
            {"do": "undoable", "n": n, "seconds": 3.0},
            _sending(chance, n),
            waiting,
        )
    )


def _sending(chance: random.Random, n: int) -> Any:
    return {"do": "plain", "n": n, chance.choice(("stage", "stage", "request")): [chance.choice(list(EFFECTS))]}


def draw_weary(seed: int) -> list[Any] | None:
    """A plan in which an action uses up its retries, and its service goes on or not."""
    chance = random.Random(f"weary {seed}")
    if chance.random() > WEARY:
        return None
    tired: Any = {"do": chance.choice(("plain", "undoable", "stocked")), "n": FIRST + 90, "fails": 99}
    return [_done(chance, FIRST + 80), tired if chance.random() < 0.5 else {"try": tired}]
