"""A real server on a real socket, in a process of its own thread: see `running`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.running import Running, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server that wants keys."""
    with running(tmp_path / "dotdo.db") as found:
        yield found
