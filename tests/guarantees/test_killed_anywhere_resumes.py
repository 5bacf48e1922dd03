"""Guarantee 7: SIGKILL before and after every commit, and in every handler and effect: the run resumes and ends alike.

The end state and the set of effects equal those of the undisturbed run; SQL is applied once for each committed step
(I7), each effect has one key and a journaled intent (I6, I8), and every journal is whole (I4, I5, I10 to I12).
"""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.guarantees.crashing import Crashers, Scene, State, crashers

__all__ = ["crashers"]

STEPS = ("handler:add-user", "handler:open-billing", "handler:welcome", "handler:tell-sales")


def end_alike(pool: Crashers, folder: Path, service: str, input: dict[str, object], least_commits: int) -> list[str]:
    """Kills the service at each of its points, once; returns those at which it died, in every scene."""
    undisturbed = Scene(pool.one, folder / "undisturbed", service, input)
    expected = undisturbed.end()
    assert undisturbed.deaths == 0

    def killed_at(point: str) -> str | None:
        with pool.scene(folder / point.replace(":", "-"), service, input) as scene:
            scene.live(point)
            state = scene.end()
            assert state == expected, f"{point}: {differences(expected, state)}"
            return point if scene.deaths else None

    died = [point for point in pool.map(killed_at, undisturbed.points) if point]
    by_name = Counter(point.partition("#")[0] for point in died)
    planned = Counter(point.partition("#")[0] for point in undisturbed.points)
    # How many commits there are depends on which writes happen to share one; all other points are the same each time.
    commits = ("commit:before", "commit:after")
    assert {name: by_name[name] for name in planned if name not in commits} == {
        name: count for name, count in planned.items() if name not in commits
    }
    for name in commits:  # the last ones may be missing, here and there: not every scene has so many
        assert {f"{name}#{number}" for number in range(1, least_commits + 1)} <= {*died}
    return died


def differences(expected: State, found: State) -> dict[str, tuple[object, object]]:
    """Where two states differ."""
    names = expected.__dataclass_fields__
    pairs = {name: (getattr(expected, name), getattr(found, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def test_onboarding_killed_at_every_point_ends_as_if_nothing_had_happened(crashers: Crashers, tmp_path: Path):
    died = end_alike(crashers, tmp_path, "onboard", {"name": "ada"}, least_commits=12)
    for step in STEPS:
        assert f"{step}:enter#1" in died
        assert f"{step}:exit#1" in died
    assert {"effect:billing:before#1", "effect:billing:after#1", "effect:slack:after#1", "effect:mail:after#2"} <= {
        *died
    }
    assert {"sql:before#2", "sql:after#1", "sql:after#2"} <= {*died}


def test_onboarding_killed_twice_ends_as_if_nothing_had_happened(crashers: Crashers, tmp_path: Path):
    input = {"name": "ada"}
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", "onboard", input)
    expected = undisturbed.end()
    chance = random.Random(7)
    pairs = [(chance.choice(undisturbed.points), chance.choice(undisturbed.points)) for _ in range(20)]
    # An attempt cut off before its commit is settled; the next one is cut off after its commit.
    pairs += [("handler:add-user:exit#1", "sql:after#1"), ("handler:welcome:exit#1", "sql:after#1")] * 2

    def killed_twice(number: int) -> int:
        with crashers.scene(tmp_path / f"{number}", "onboard", input) as scene:
            for point in pairs[number]:
                scene.live(point)
            state = scene.end()
            assert state == expected, f"{pairs[number]}: {differences(expected, state)}"
            return scene.deaths

    deaths = crashers.map(killed_twice, range(len(pairs)))
    assert max(deaths) == 2
    assert sum(deaths) >= len(pairs)


@pytest.mark.parametrize(
    "service, input, status",
    [
        ("family", {"refused": False}, "completed"),  # parents and children
        (
            "mendable",
            {"name": "ada"},
            "completed",
        ),  # fails, is undone, retried, completes, and is undone by an operator
        ("steered", {"name": "ada"}, "cancelled"),  # is sent an event, and cancelled
    ],
)
def test_other_lives_killed_after_every_commit_end_as_if_nothing_had_happened(
    crashers: Crashers, tmp_path: Path, service: str, input: dict[str, object], status: str
):
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", service, input)
    expected = undisturbed.end()
    assert expected.status == status
    points = [point for point in undisturbed.points if point.startswith("commit:after")]

    def killed_at(point: str) -> bool:
        with crashers.scene(tmp_path / point.replace(":", "-"), service, input) as scene:
            scene.live(point)
            state = scene.end()
            assert state == expected, f"{point}: {differences(expected, state)}"
            return scene.deaths == 1

    died = crashers.map(killed_at, points)
    assert all(died[:-4])  # how many commits there are depends on which writes happen to share one
    assert len(points) > 15


def test_cancelled_left_and_late_steps_are_settled_whenever_the_process_dies(crashers: Crashers, tmp_path: Path):
    """What becomes of these steps is a matter of time; but SQL is applied for each that is committed, and no other."""
    points = Scene(crashers.one, tmp_path / "undisturbed", "hurries", {})
    points.end()

    def killed_at(point: str) -> bool:
        with crashers.scene(tmp_path / point.replace(":", "-"), "hurries", {}) as scene:
            scene.live(point)
            assert scene.end().status == "completed"
            return scene.deaths == 1

    died = crashers.map(killed_at, points.points[::2])
    assert sum(died) > len(died) * 0.7


@pytest.mark.parametrize("service", ["onboard", "family"])
def test_control_an_undisturbed_run_is_the_same_each_time(crashers: Crashers, tmp_path: Path, service: str):
    input = {"name": "ada"} if service == "onboard" else {"refused": False}
    first, second = (Scene(crashers.one, tmp_path / name, service, input).end() for name in ("first", "second"))
    assert first == second
    assert first.effects
