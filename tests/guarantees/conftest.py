"""Fixtures of the guarantees; what they give is in onboarding.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dotdo.testing import ManualClock
from examples.onboarding.standins import StandIns
from tests.guarantees.onboarding import Onboarding, Witness


@pytest.fixture(scope="session")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIns]:
    """The mail server and the APIs, in one process for the whole session."""
    with StandIns(tmp_path_factory.mktemp("standins")) as running:
        yield running


@pytest.fixture
def world(standins: StandIns, monkeypatch: pytest.MonkeyPatch) -> Iterator[Witness]:
    """The servers, without faults, with an empty ledger; the environment says where they are."""
    for name, value in standins.environment.items():
        monkeypatch.setenv(name, value)
    yield Witness(standins)
    for server in ("email", "billing", "crm", "slack"):
        standins.tell(server, fail=0)


@pytest.fixture
def clock() -> ManualClock:
    """Backoff takes as long as the test says."""
    return ManualClock()


@pytest.fixture
def onboarding(tmp_path: Path, clock: ManualClock, world: Witness) -> Iterator[Onboarding]:
    """The example's application, with no users yet."""
    running = Onboarding(tmp_path, clock)
    yield running
    running.close()
