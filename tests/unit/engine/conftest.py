"""Fixtures of the engine's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workshop import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """A workshop of the test's own."""
    workshop = Workshop(tmp_path)
    yield workshop
    workshop.close()
