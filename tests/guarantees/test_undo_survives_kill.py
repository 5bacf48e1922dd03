"""Guarantee 9: undo survives SIGKILL in its middle: each committed undoable step is undone once, newest first (I10)."""

import random
from pathlib import Path

from tests.guarantees.crashing import Crashers, Scene, crashers
from tests.guarantees.test_killed_anywhere_resumes import differences, end_alike

__all__ = ["crashers"]


def test_refused_onboarding_killed_at_every_point_is_undone_once(crashers: Crashers, tmp_path: Path):
    died = end_alike(crashers, tmp_path, "onboard-refused", {"name": "ada"}, least_commits=20)
    undoing = ["handler:remove-user:enter#1", "handler:remove-user:exit#1", "handler:remove-user:exit#2"]
    undoing += ["handler:close-billing:enter#1", "handler:close-billing:exit#1", "effect:billing:after#2"]
    assert {*undoing} <= {*died}


def test_undisturbed_it_undoes_all_that_can_be_newest_first(crashers: Crashers, tmp_path: Path):
    """What the others are compared with is right itself."""
    scene = Scene(crashers.one, tmp_path / "undisturbed", "onboard-refused", {"name": "ada"})
    state = scene.end()
    assert (state.status, state.undo, state.users) == ("failed", "all", [])
    assert state.transactions == ["add ada", "add partner", "remove ada", "remove partner", "welcome ada"]
    told = [(one.system, one.what) for one in crashers.ledger.arrivals(str(scene.folder))]
    assert told[-2:] == [("billing", "close billing-1"), ("mail", "refused admin")]
    assert ("slack", "ada is here") in told


def test_undo_killed_twice_in_its_middle(crashers: Crashers, tmp_path: Path):
    input = {"name": "ada"}
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", "onboard-refused", input)
    expected = undisturbed.end()
    middle = undisturbed.points[undisturbed.points.index("handler:remove-user:enter#1") :]
    chance = random.Random(9)
    pairs = [(chance.choice(middle), f"commit:{chance.choice(['before', 'after'])}#{n % 6 + 6}") for n in range(20)]

    def killed_twice(number: int) -> int:
        with crashers.scene(tmp_path / f"{number}", "onboard-refused", input) as scene:
            for point in pairs[number]:
                scene.live(point)
            state = scene.end()
            assert state == expected, f"{pairs[number]}: {differences(expected, state)}"
            return scene.deaths

    deaths = crashers.map(killed_twice, range(len(pairs)))
    assert max(deaths) == 2
    assert sum(deaths) >= len(pairs)


def test_tree_of_runs_killed_after_every_commit_of_its_undo(crashers: Crashers, tmp_path: Path):
    input = {"refused": True}
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", "family", input)
    expected = undisturbed.end()
    assert (expected.status, expected.undo, expected.users) == ("failed", "all", [])
    assert len(expected.transactions) == 10
    begins = undisturbed.points.index("handler:remove-user:enter#1")
    points = [point for point in undisturbed.points[begins:] if point.startswith(("commit:after", "sql:after"))]

    def killed_at(point: str) -> bool:
        with crashers.scene(tmp_path / point.replace(":", "-"), "family", input) as scene:
            scene.live(point)
            state = scene.end()
            assert state == expected, f"{point}: {differences(expected, state)}"
            return scene.deaths == 1

    assert sum(crashers.map(killed_at, points)) >= len(points) - 4
