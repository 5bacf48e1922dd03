"""A test that is killed everywhere: run once undisturbed, then once for each point, and compared.

Each time its fixtures are made anew. What is compared is what callers and the outside world see: each run with its
result, each step with its outcome, and the set of effects that happened. Counts of attempts may differ, and do.
"""

import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec
import pytest
from _pytest.runner import runtestprotocol

from dotdo.codec import encode_result
from dotdo.testing.client import TestDo
from dotdo.testing.killing import Point

TRIES = 3  # trials of one point that may come by elsewhere
SHOWN = 5
ABSENT = "(absent)"

Effects = dict[str, list[str]]


class Trial:
    """One time that the test is run. point: where it is killed; None for the undisturbed one."""

    def __init__(self, point: Point | None, undisturbed: "Trial | None" = None) -> None:
        self.point, self._undisturbed = point, undisturbed
        self.began = self.killed = False
        self.died_at = ""
        self.state: dict[str, dict[str, Any]] | None = None
        self.effects: Effects = {}
        self.asked: set[str] = set()
        self.points: list[Point] = []

    def begin(self, client: TestDo) -> None:
        """The test has its client."""
        self.began = True
        client.points.deadly = self.point
        if self._undisturbed is not None:
            client.expect(self._undisturbed.asked)

    def end(self, client: TestDo) -> None:
        """The test is over."""
        self.state = client.state()
        self.killed, self.died_at, self.points = client.was_killed, client.points.died_at, client.points.passed
        self.asked = client.asked
        for one in client.sent():
            if not (self.killed and one.step.startswith("on_failure:")):
                what = f"{'undo of ' if one.takes_back else ''}{one.effect} of {one.step}"
                input = encode_result(one.input, "input").decode()
                self.effects.setdefault(f"{what} (key {one.key})", []).append(input)

    def called_again(self, other: "Trial") -> str:
        """Which effects were called more often than undisturbed, in words: what a test that counts calls trips over."""
        again = [name for name, inputs in self.effects.items() if len(inputs) > len(other.effects.get(name, inputs))]
        return "".join(
            f"\nThe effect {name} was called again under its key, as its receiver would see it after a crash. If the "
            "test counts calls, let it compare sets: {one.key for one in do.sent(...)}."
            for name in again[:SHOWN]
        )

    def differences(self, other: "Trial") -> list[str]:
        """What came out otherwise than in the undisturbed trial, in words."""
        assert self.state is not None, "it has ended"
        assert other.state is not None, "it has ended"
        found: list[str] = []
        for run in [*other.state, *(run for run in self.state if run not in other.state)]:
            found += _differences(run, other.state.get(run), self.state.get(run))
        expected = {key for key in other.effects if "of on_failure:" not in key}
        found += [f"the effect {effect} is missing" for effect in sorted(expected - self.effects.keys())]
        found += [f"there is another effect: {effect}" for effect in sorted(self.effects.keys() - other.effects.keys())]
        for effect in sorted(expected & self.effects.keys()):
            inputs, before = self.effects[effect], other.effects[effect]
            if set(inputs) != set(before):
                found.append(f"the effect {effect} was given {inputs[-1]}, not {before[-1]}")
        return found


TRIAL = pytest.StashKey[Trial]()


def trial_of(item: Any) -> Trial | None:
    """The trial that a test is run for, if it is marked."""
    return item.stash.get(TRIAL, None)


def run_everywhere(item: pytest.Item, nextitem: pytest.Item | None, sample: Any) -> None:
    """Runs a marked test everywhere and reports it once: as it went undisturbed, or the first time that went wrong.

    sample: at most how often it is killed, at points spread evenly over all there are; "all" for each of them.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    undisturbed = Trial(None)
    reports = _run(item, undisturbed)
    if all(report.passed for report in reports):
        reports = _run_killed(item, undisturbed, reports, sample)
    # What the trials shared, such as fixtures of the module, goes when no trial needs it any more.
    last = _end_shared(item, nextitem)
    if last.failed:
        reports = [*(report for report in reports if report.when != "teardown"), last]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _run_killed(
    item: pytest.Item, undisturbed: Trial, reports: list[pytest.TestReport], sample: Any
) -> list[pytest.TestReport]:
    if not undisturbed.began:
        return _failed(reports, "The test is marked with crash_everywhere, but does not ask for the fixture `do`.")
    if sample != "all" and not (str(sample).isdecimal() and int(sample)):
        return _failed(
            reports,
            f"crash_everywhere: {sample!r} is not how often to kill; say sample=, with a number from 1 on or 'all'.",
        )
    kills, seconds = 0, 0.0
    seed = zlib.crc32(item.nodeid.encode())
    passed = undisturbed.points
    points = Walk(passed) if sample == "all" else Sample(passed, int(sample), seed)
    for point in points:
        trial = Trial(point, undisturbed)
        again = _run(item, trial)
        seconds += sum(report.duration for report in again)
        points.learn(trial.points, fired=trial.killed)
        kills += trial.killed
        where = f"killed {trial.died_at}" if trial.killed else "killed nowhere"
        if not all(report.passed for report in again):
            told = f"It passed undisturbed. It failed when it was {where}.{trial.called_again(undisturbed)}"
            for report in again:
                report.sections.append(("dotdo", told))
            return again
        differences = trial.differences(undisturbed)
        if differences:
            return _failed(reports, _told(where, differences))
    if not kills:
        return _failed(reports, "The test is marked with crash_everywhere, but starts no run that could be killed.")
    for report in reports:
        if report.when == "call":
            report.duration += seconds
            report.user_properties.append(("crash_everywhere", kills))
            report.sections.append(("dotdo", f"It ended alike after each of {kills} kills."))
    return reports


class Walk:
    """Every point: those that the undisturbed trial has passed, and those that any other passes before it is killed.

    Which writes share a commit, and which branch is first, may differ each time. So a point is known by its place, and
    tried again when a trial has not come by it.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self._todo = deque(dict.fromkeys(points))
        self._known = set(points)
        self._tries = Counter[Point]()

    def __iter__(self) -> Iterator[Point]:
        while self._todo:
            self._current = self._todo.popleft()
            yield self._current

    def learn(self, passed: Sequence[Point], *, fired: bool) -> None:
        """What the trial of the latest point has passed, and whether it was killed there."""
        new = [point for point in dict.fromkeys(passed) if point not in self._known]
        self._known.update(new)
        self._todo.extend(new)
        if not fired:
            self._tries[self._current] += 1
            if self._tries[self._current] < TRIES:
                self._todo.append(self._current)


class Sample:
    """So many of the points that the undisturbed trial passed, evenly spread; others for other seeds.

    When the last of them has fired nowhere, because writes came to share commits, there is one more.
    """

    def __init__(self, points: Sequence[Point], size: int, seed: int) -> None:
        self._points, self._size, self._seed = points, size, seed
        self._any_fired = False

    def __iter__(self) -> Iterator[Point]:
        count = min(self._size, len(self._points))
        chosen = [(self._seed + number * len(self._points) // count) % len(self._points) for number in range(count)]
        for number in chosen:
            yield self._points[number]
        if not self._any_fired:
            yield Point("commit", 1, "before")

    def learn(self, passed: Sequence[Point], *, fired: bool) -> None:
        """Whether the trial of the latest point was killed there."""
        self._any_fired |= fired


def _end_shared(item: Any, nextitem: pytest.Item | None) -> pytest.TestReport:
    def teardown() -> None:
        item.session._setupstate.teardown_exact(nextitem)

    call = pytest.CallInfo[None].from_call(teardown, when="teardown")
    return item.ihook.pytest_runtest_makereport(item=item, call=call)


def _run(item: Any, trial: Trial) -> list[pytest.TestReport]:
    item.stash[TRIAL] = trial
    item._report_sections = []  # what is logged and printed in one trial is not shown for another
    item._initrequest()  # its fixtures are made anew; pytest has no public word for that
    return runtestprotocol(item, log=False, nextitem=item.parent)  # what belongs to its module, or to more, stays


def _failed(reports: list[pytest.TestReport], text: str) -> list[pytest.TestReport]:
    for report in reports:
        if report.when == "call":
            report.outcome, report.longrepr = "failed", text
    return reports


def _told(where: str, differences: list[str]) -> str:
    lines = [f"When it was {where}, the test ended otherwise than undisturbed:"]
    lines += [f"  {difference}" for difference in differences[:SHOWN]]
    if len(differences) > SHOWN:
        lines.append(f"  and {len(differences) - SHOWN} more differences")
    return "\n".join(lines)


def _differences(run: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    if before is None or after is None:
        return [f"the run {run} {'is there after the kill only' if before is None else 'is missing after the kill'}"]
    found: list[str] = []
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(name, ABSENT), after.get(name, ABSENT)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            was, now = cast("dict[str, Any]", was), cast("dict[str, Any]", now)
            parts = [part for part in was if was[part] != now[part]]
            found += [f"{run}: {name}: {part}: {_shown(now[part])} instead of {_shown(was[part])}" for part in parts]
        else:
            found.append(f"{run}: {name}: {_shown(now)} instead of {_shown(was)}")
    return found


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=repr).decode()
    return text if len(text) <= 300 else f"{text[:300]}..."
