"""Fixtures for every test."""

import pytest

from tests import doors
from tests.postgres import postgres_url
from tests.store.postgres_stores import postgres_store, postgres_template

__all__ = ["both_doors", "postgres_store", "postgres_template", "postgres_url"]

# Named here, too, because a development install that is older than the plugin does not know it.
pytest_plugins = ["dotdo.testing.plugin", "pytester"]


@pytest.fixture(params=doors.DOORS)
def both_doors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> doors.Door:
    """Runs each test of laboratories and workshops twice: their clients are embedded, or ask a server over HTTP."""
    monkeypatch.setattr(doors, "chosen", request.param)
    return request.param
