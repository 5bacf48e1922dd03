"""Fixtures for every test."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests import doors
from tests.postgres import end_server_of, postgres_url
from tests.store.postgres_stores import postgres_store, postgres_template
from tests.stores import each_store, on_postgres, use_postgres

__all__ = ["both_doors", "each_store", "on_postgres", "postgres_store", "postgres_template", "postgres_url"]

ROOT = Path(__file__).parents[1]

# `make test` tries the same examples each time; `make nightly` (--hypothesis-profile=fresh) others, and many more.
settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", max_examples=2_000, print_blob=True)
settings.load_profile("same")


# What one file alone keeps a worker busy with for longest: `make test` begins with these, so that none of them is begun
# when the other workers have nothing left to do.
LONGEST = (
    "tests/guarantees/test_killed_anywhere_resumes.py",
    "tests/guarantees/test_undo_survives_kill.py",
    "tests/simulation/test_simulation.py",
    "tests/testing/test_crash_everywhere.py",
    "tests/guarantees/test_every_service_killed_everywhere.py",
    "tests/repo/test_documentation_samples.py",
    "tests/guarantees/test_lost_workers_lose_nothing.py",
    "tests/cli/test_runs.py",
    "tests/cli/test_run.py",
    "tests/simulation/test_simulation_on_nodes.py",
    "tests/guarantees/test_secrets_appear_nowhere.py",
    "tests/guarantees/test_killed_server_keeps_its_promises.py",
    "tests/server/test_description_holds.py",
    "tests/server/test_many_readers.py",
    "tests/guarantees/test_five_thousand_runs_at_once.py",
    "tests/guarantees/test_continue_as_new.py",
    "tests/guarantees/test_take_over.py",
    "tests/worker/test_python_worker.py",
    "tests/model/test_model.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--store=postgres`: guarantees that are not tried on both by themselves are tried on PostgreSQL."""
    parser.addoption("--store", choices=["sqlite", "postgres"], default="sqlite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about files is not among the tests of `--store=postgres`. The longest files come first."""
    rank = {ROOT / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
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
