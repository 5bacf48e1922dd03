"""Guarantee 7 on PostgreSQL: killed around its commits, in handlers and effects, a run is taken over and ends alike.

A choice of the points of test_killed_anywhere_resumes.py, of each kind some; `pytest --store=postgres` tries them all.
The next process waits until the lease of the killed one is over.
"""

from pathlib import Path

import pytest

from tests.guarantees.crashing import Crashers, Scene, crashers
from tests.guarantees.test_killed_anywhere_resumes import differences

__all__ = ["crashers"]

EACH = 7  # every seventh point


@pytest.mark.parametrize(
    "service, input, first",
    [("onboard", {"name": "ada"}, 3), ("onboard-refused", {"name": "ada"}, 5)],
)
def test_killed_at_points_of_each_kind_it_ends_as_if_nothing_had_happened(
    on_postgres: None, crashers: Crashers, tmp_path: Path, service: str, input: dict[str, object], first: int
):
    undisturbed = Scene(crashers.one, tmp_path / "undisturbed", service, input)
    expected = undisturbed.end()
    assert undisturbed.deaths == 0
    points = undisturbed.points[first::EACH]

    def killed_at(point: str) -> bool:
        with crashers.scene(tmp_path / point.replace(":", "-"), service, input) as scene:
            scene.live(point)
            state = scene.end()
            assert state == expected, f"{point}: {differences(expected, state)}"
            return scene.deaths == 1

    died = crashers.map(killed_at, points)
    # How many commits there are depends on which writes happen to share one, so the last ones may not be reached.
    assert sum(died) >= len(points) - 2
    assert len(points) > 4
