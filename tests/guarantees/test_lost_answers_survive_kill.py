"""A process that dies at any moment of a call leaves a lost answer, and that is never guessed either.

The office files a form as often as it is handed in, so every form that the ledger has twice is a wrong guess. What the
run asks, a person answers as the ledger knows it.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.guarantees.crashing import Crashers, Scene, crashers

__all__ = ["crashers"]

NAME = {"name": "ada"}


def points_of(scene: Scene) -> list[str]:
    """Around each call, and after each commit and handler between the first call and the last."""
    calls = [number for number, point in enumerate(scene.points) if point.startswith("effect:forms")]
    between = scene.points[calls[0] - 2 : calls[-1] + 3]
    return [point for point in between if point.startswith(("effect:", "commit:after", "handler:"))]


@pytest.mark.parametrize("service", ["files-forms", "files-in-vain"])
def test_no_form_is_handed_in_twice_wherever_the_process_dies(crashers: Crashers, tmp_path: Path, service: str):
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", service, NAME)
    expected = undisturbed.end()
    forms = {what for _, what, _ in expected.effects}
    assert expected.status == ("completed" if service == "files-forms" else "failed")
    assert len(forms) == (4 if service == "files-forms" else 2)

    def killed_at(point: str) -> tuple[int, int]:
        with crashers.scene(tmp_path / point.replace(":", "-"), service, NAME) as scene:
            scene.live(point)
            state, asked = end_of(scene)
            assert (state.status, state.undo, state.result) == (expected.status, expected.undo, expected.result), point
            assert state.users == expected.users, point
            # The ledger: each form exactly once; what was taken out is what had been handed in.
            handed_in = [what for _, what, _ in state.effects if not what.startswith("take out")]
            assert sorted(handed_in) == sorted(form for form in forms if not form.startswith("take out")), point
            assert len(state.effects) == len(expected.effects), point
            return scene.deaths, asked

    points = points_of(undisturbed)
    ends = crashers.map(killed_at, points)
    deaths, asked = (sum(counts) for counts in zip(*ends, strict=True))
    assert deaths >= len(points) - 2  # parallel steps may pass a point in another order
    assert asked >= 2, "nobody was asked: no answer was lost where only a person can tell"


def end_of(scene: Scene) -> tuple[Any, int]:
    """How the run has ended, and how much was asked."""
    died = scene.live()
    assert died.run is not None
    return scene.end(), died.run["asked"]
