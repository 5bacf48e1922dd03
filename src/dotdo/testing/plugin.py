"""The pytest plugin: the fixtures `do` and `do_options`, and the marker `crash_everywhere`.

pytest loads it by itself where dotdo is installed, so it is light: what it needs is imported when a test asks for it.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dotdo.testing.client import TestDo

MARKER = "crash_everywhere"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Makes the option known."""
    parser.addoption(
        "--crash-sample",
        metavar="N",
        help=f"kill each test that is marked with {MARKER} at most so often, or 'all': everywhere, whatever it says",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(sample='all'): dotdo runs the test once undisturbed, then once for each commit and effect, with the "
        "engine of its `do` killed before and after it; it must end in the same state, with the same effects. "
        "sample: at so many points, spread evenly, instead of all.",
    )


@pytest.fixture
def do_options() -> dict[str, Any]:
    """What `do` is opened with: options of `TestDo`, such as sql, resources and catalogue. Override it."""
    return {}


@pytest.fixture
def do(request: pytest.FixtureRequest, do_options: dict[str, Any]) -> "Generator[TestDo]":
    """A client of the test's own: an engine, a store in memory, virtual time and fakes."""
    from dotdo.testing.client import TestDo
    from dotdo.testing.everywhere import trial_of

    trial = trial_of(request.node)
    seed = {} if trial is None else {"seed": request.node.nodeid}
    with TestDo(**seed, **do_options) as client:
        if trial is not None:
            trial.begin(client)
        yield client
        if trial is not None:
            trial.end(client)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a marked test as often as it has points."""
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return None
    from dotdo.testing.everywhere import run_everywhere

    asked = item.config.getoption("--crash-sample")
    # A typing error in the marker must not count as all.
    unknown = [f"({value!r})" for value in marker.args] + [name for name in marker.kwargs if name != "sample"]
    sample = ", ".join(unknown) or marker.kwargs.get("sample", "all")
    run_everywhere(item, nextitem, sample if asked is None or unknown else asked)
    return True
