"""Every service of the guarantees and the docs, killed at every commit and effect, ends as if nothing had happened.

Each lives two lives: it is told what it waits for until it has ended, and then steered by an operator; or it is
cancelled as soon as it rests. `make test` kills each at a few points, `make nightly` (--crash-sample=all) at all.
"""

import contextlib
import re
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import apsw
import pytest

from dotdo import Handle, Run
from dotdo.connectors.email import Mailer
from dotdo.errors import InvalidOperation
from dotdo.testing import TestDo
from dotdo.testing.killing import Point
from tests.guarantees import every_service
from tests.guarantees.crash_services import TABLES
from tests.guarantees.documented import shown_services
from tests.guarantees.every_service import Case, CrashWorld, OpenWorld, ServerWorld
from tests.guarantees.invariants import check_store
from tests.guarantees.replays import check_replays

ROUNDS = 12
ENDED = ("completed", "failed", "cancelled")
NEEDS_SQL = ("ctx.sql", "ctx.database", "ctx.session")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both lives of every service; one of them, when there is only a sample of points."""
    if "life" in metafunc.fixturenames:
        races = metafunc.function.__name__ == "test_service_of_races_killed_everywhere"
        lives = [(case, life) for case in every_service.cases() for life in ("operated", "cancelled")]
        lives = [
            (case, life) for case, life in lives if (case.races or f"{case.id}-{life}" in every_service.DOUBTS) == races
        ]
        if metafunc.config.getoption("--crash-sample") != "all":
            lives = [
                (case, life) for case, life in lives if (crc32(case.id.encode()) % 4 == 0) == (life == "cancelled")
            ]
        metafunc.parametrize("case, life", lives, ids=[f"{case.id}-{life}" for case, life in lives])


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The store is a file, whatever others are tried on; points of processes are none here."""
    monkeypatch.delenv("DOTDO_TEST_SERVER", raising=False)
    monkeypatch.setattr("tests.guarantees.crash_services.point", lambda name: None)
    monkeypatch.setenv("DOTDO_TEST_TOLD", str(tmp_path / "told"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def do_options(case: Case, tmp_path: Path) -> dict[str, Any]:
    """What the service needs."""
    return options(case, tmp_path)


def options(case: Case, folder: Path) -> dict[str, Any]:
    """What a client for the service is opened with, on a new database in the folder, if it uses any."""
    sql: str | None = None
    source = every_service.source(case.module)
    if any(word in source for word in NEEDS_SQL):
        with closing(apsw.Connection(str(folder / "app.db"))) as connection:
            connection.execute(f"{TABLES}; create table notes (text text); create table done (how text)")
            connection.execute("create table orders (id integer primary key, item text)")
        sql = f"sqlite:///{folder / 'app.db'}"
    mailer = Mailer("smtp://localhost:1", sender="hello@example.com")
    return {
        "catalogue": case.make(),
        "sql": sql,
        "resources": [OpenWorld(), CrashWorld(folder), ServerWorld(), mailer],
    }


@pytest.mark.crash_everywhere(sample=2)
def test_service_killed_everywhere(do: TestDo, case: Case, life: str):
    lead(do, case, life)


def test_service_of_races_killed_everywhere(case: Case, life: str, tmp_path: Path, pytestconfig: pytest.Config):
    """Whatever it comes to: all invariants hold, and it replays."""

    def trial(number: int, point: Point | None) -> list[Point]:
        folder = tmp_path / f"{number}"
        folder.mkdir()
        with TestDo(seed=case.id, **options(case, folder)) as do:
            do.points.deadly = point
            lead(do, case, life)
            return do.points.passed if point is None or do.was_killed else []

    points = trial(0, None)
    every = 1 if pytestconfig.getoption("--crash-sample") == "all" else max(1, len(points) // 3)
    chosen = points[crc32(case.id.encode()) % every :: every]
    died = sum(bool(trial(number, point)) for number, point in enumerate(chosen, 1))
    assert died, "it was killed nowhere"


def lead(do: TestDo, case: Case, life: str) -> None:
    """One life of a service, and the invariants of all its runs at the end."""
    run = do.service(case.service).start(**case.input)
    do.settle()
    if life == "cancelled":
        with contextlib.suppress(InvalidOperation):  # it has ended already
            run.cancel()
        do.settle()
    else:
        live(do, run)
        operate(do, run)
    store = Path(f"{do._tested._folder}/dotdo.db")
    check_store(store)
    check_replays(store, do._tested._catalogue)
    ended = [id for id, state in do.state().items() if state["status"] in ENDED]
    assert not [step for id in ended for step in do.steps(id.split()[1]) if step.state == "open"]


def live(do: TestDo, run: Handle[Any]) -> None:
    """Time passes, and whoever waits for an event is sent one, until the run has ended or nothing helps."""
    for number in range(ROUNDS):
        do.settle()
        if run.get().status in (*ENDED, "blocked"):
            return
        waiting = [one for one in do.runs.list() if one.waiting_for is not None and one.waiting_for.kind == "event"]
        if waiting:
            one = min(waiting, key=lambda one: one.id)
            do.runs.send_event(one.id, awaited(one), f"word {number}", key=f"{number}")
        elif (due := do.clock.next_due()) is not None:
            do.advance((due - do.clock.now()) / 1000)
        else:
            break
    do.settle()


def awaited(run: Run) -> str:
    """The name of the event, or one of them, that a run waits for."""
    assert run.waiting_for is not None
    found = re.findall(r"'([^']+)'", run.waiting_for.text)
    assert found, run.waiting_for
    return found[0]


def operate(do: TestDo, run: Handle[Any]) -> None:
    """What completed is undone, what failed is retried, and everything else is cancelled."""
    status = run.get().status
    if status == "completed":
        do.runs.undo(run.id)
    elif status == "failed":
        do.runs.retry(run.id)
    else:
        run.cancel()
    live(do, run)
    do.settle()


# -- no silent omissions ---------------------------------------------------------------------------------------------


def test_every_service_is_killed_or_left_out_for_a_reason():
    cases = {(case.module, case.service) for case in every_service.cases()}
    for shown in shown_services():
        assert (shown.page, shown.service.name) in cases or every_service.is_left_out(shown.page, shown.service.name)
    for module in every_service.modules():
        for service in every_service.services_at_top(module):
            assert (module, service.name) in cases or every_service.is_left_out(module, service.name)
        for place in every_service.definers(module):
            name = place.partition(":")[2]
            is_case_of_a_test = name.startswith("test_")
            assert place in every_service.FACTORIES or every_service.is_left_out(module, name) or is_case_of_a_test, (
                place
            )
    assert len(cases) > 150
    assert sum(module.endswith(".md") for module, _ in cases) > 15


def test_every_reason_is_still_needed():
    defined = {
        *(f"{shown.page}:{shown.service.name}" for shown in shown_services()),
        *every_service.modules(),
        *(
            f"{module}:{one.name}"
            for module in every_service.modules()
            for one in every_service.services_at_top(module)
        ),
        *(place for module in every_service.modules() for place in every_service.definers(module)),
    }
    made = {f"{case.module}:{case.service}" for case in every_service.cases()}
    assert every_service.RACES.keys() <= made, every_service.RACES.keys() - made
    for table in (every_service.LEFT_OUT, every_service.INPUTS, every_service.FACTORIES):
        assert table.keys() <= defined, table.keys() - defined
