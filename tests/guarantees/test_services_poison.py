"""A run that kills its process is blocked after three crashes; the innocent ones in flight beside it are not (I13)."""

import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from dotdo.engine.history import MAX_CRASHES
from tests.guarantees.crash_services import TABLES
from tests.guarantees.crashing import Crashers, Scene, crashers
from tests.guarantees.invariants import check_store

__all__ = ["crashers"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
        connection.execute(TABLES)
    return tmp_path


@pytest.mark.parametrize("innocents", [0, 5])
def test_poison_is_blocked_after_three_crashes_and_those_beside_it_complete(
    crashers: Crashers, folder: Path, innocents: int
):
    input = {"innocents": innocents}
    for crash in range(3):
        died = crashers.one.run(folder, "poisoned", input)
        assert died.signal == signal.SIGKILL
        assert died.points.count("handler:poison#1") == 1
        if crash == 0:
            assert sum(point.startswith("handler:innocent") for point in died.points) == innocents

    calm = crashers.one.run(folder, "poisoned", input)
    assert calm.signal == 0
    assert calm.run is not None
    assert "handler:poison#1" not in calm.points
    assert calm.run["status"] == "blocked"
    assert "in flight 3 times when its process died, and never got any further" in calm.run["error"]
    assert calm.run["beside"] == ["completed"] * innocents
    check_store(folder / "dotdo.db")

    # It is for a person to say that it may go on.
    still = crashers.one.run(folder, "poisoned", input)
    assert still.run is not None
    assert still.run["status"] == "blocked"
    (folder / "mended").touch()
    mended = crashers.one.run(folder, "poisoned", input)
    assert mended.run is not None
    assert mended.run["status"] == "completed"
    check_store(folder / "dotdo.db")


@pytest.mark.parametrize(
    "service, input, deadly",
    [
        ("onboard-refused", {"name": "ada"}, "handler:remove-user:exit#1"),
        ("rounds", {"number": 0, "last": 1}, "handler:add-user:exit#1"),
        ("mendable", {"name": "ada"}, "handler:tell-sales:exit#1"),
    ],
)
def test_who_was_not_to_blame_is_retried_and_ends_as_if_nothing_had_happened(
    crashers: Crashers, tmp_path: Path, service: str, input: dict[str, Any], deadly: str
):
    """It goes on where it was: forward, in its undo, and in what continues as new."""
    expected = Scene(crashers.one, tmp_path / "undisturbed", service, input).end()
    unlucky = Scene(crashers.one, tmp_path / "unlucky", service, input, pardons=True)
    for _ in range(MAX_CRASHES):
        unlucky.live(deadly)
    state = unlucky.end()
    assert (unlucky.deaths, unlucky.pardoned) == (MAX_CRASHES, 1)
    assert state.untold() == expected.untold()


def test_crashes_are_counted_since_the_run_last_got_somewhere(crashers: Crashers, tmp_path: Path):
    """Seven deaths, but after each of them the run gets a step further: it is no poison."""
    input = {"name": "ada"}
    with crashers.scene(tmp_path / "unlucky", "onboard", input) as scene:
        for point in [
            "handler:add-user:exit#1",
            "sql:after#1",
            "effect:billing:before#1",
            "effect:billing:after#1",
            "handler:tell-sales:exit#1",
            "effect:slack:before#1",
            "effect:slack:after#1",
        ]:
            scene.live(point)
        assert scene.end().status == "completed"
        assert scene.deaths == 7
