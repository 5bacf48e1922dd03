"""Fixtures for the tests of the onboarding example."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.onboarding.standins import StandIns
from examples.onboarding.users import create_tables


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    """The stand-in servers, with the example's environment pointing at them."""
    with StandIns(tmp_path) as world:
        for name, value in world.environment.items():
            monkeypatch.setenv(name, value)
        yield world


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty place for runs and users, with the tables made."""
    create_tables(tmp_path)
    return tmp_path
