"""Fixtures for every test."""

import pytest
from hypothesis import settings

from tests import doors
from tests.postgres import end_server_of, postgres_url
from tests.store.postgres_stores import postgres_store, postgres_template
from tests.stores import each_store, on_postgres, use_postgres

__all__ = ["both_doors", "each_store", "on_postgres", "postgres_store", "postgres_template", "postgres_url"]

# `make test` tries the same examples each time; `make nightly` (--hypothesis-profile=fresh) others, and many more.
settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", max_examples=2_000, print_blob=True)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--store=postgres`: guarantees that are not tried on both by themselves are tried on PostgreSQL."""
    parser.addoption("--store", choices=["sqlite", "postgres"], default="sqlite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about files is not among the tests of `--store=postgres`."""
    if config.getoption("--store") == "postgres":
        others = [item for item in items if item.get_closest_marker("of_files")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the fixtures of the session, which may use the server."""
    end_server_of(session)


@pytest.fixture(autouse=True)
def chosen_store(request: pytest.FixtureRequest) -> None:
    """The kind of store that was asked for on the command line."""
    if request.config.getoption("--store") == "postgres" and "each_store" not in request.fixturenames:
        use_postgres(request, request.getfixturevalue("monkeypatch"))


# Named here, too, because a development install that is older than the plugin does not know it.
pytest_plugins = ["dotdo.testing.plugin", "pytester"]


@pytest.fixture(params=doors.DOORS)
def both_doors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> doors.Door:
    """Runs each test of laboratories and workshops twice: their clients are embedded, or ask a server over HTTP."""
    monkeypatch.setattr(doors, "chosen", request.param)
    return request.param
