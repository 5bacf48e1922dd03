"""`dotdo worker app.py`: handlers in a process that reaches the platform over HTTP only. All of it is real."""

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.patience import PATIENCE
from tests.worker.processes import APP, Stage, eventually, on_stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server with a worker; what the tests do there is told apart by its notes."""
    with on_stage(tmp_path_factory.mktemp("stage")) as found:
        found.work("first", A_TOKEN="tok-very-secret-indeed")
        yield found


def test_a_service_of_the_server_calls_an_action_of_a_worker(stage: Stage):
    run = stage.execute("of-the-server", wait=20, kind="services", note="called")
    assert run["result"] == {"note": "called", "worker": "first"}
    assert "called" in stage.notes()
    (letter,) = stage.seen("letter called")
    assert run["id"] in letter  # the effect's key is of the run
    # Once the server has it durably, the worker deletes the row of the attempt.
    eventually(lambda: not stage.rows(f"select * from dotdo_applied where run = '{run['id']}'"))


def test_input_is_checked_before_anything_happens(stage: Stage):
    url = f"{stage.url}/v1/actions/write-note/execute"
    refused = httpx2.post(url, json={"params": {"note": 5, "colour": "red"}}, timeout=PATIENCE)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_input")
    assert {each["path"] for each in refused.json()["errors"]} == {"$.params.note", "$.params.colour"}
    assert stage.execute("write-note", wait=20, note="camel", waitFor="")["status"] == "completed"


def test_a_failure_for_good_undoes_what_was_requested(stage: Stage):
    run = stage.execute("find-customer", wait=20, name="eve", refuse=True)
    assert (run["status"], run["error"]["type"], run["error"]["message"]) == ("failed", "Fail", "not this one")
    assert (stage.seen("customer eve"), stage.seen("gone c-eve")) == (["customer eve"], ["gone c-eve"])
    assert "c-eve" not in stage.notes()


def test_an_ended_run_is_undone_by_the_undo_in_the_worker(stage: Stage):
    run = stage.execute("write-note", wait=20, note="regretted")
    assert "regretted" in stage.notes()
    assert httpx2.post(f"{stage.url}/v1/runs/{run['id']}/undo", timeout=PATIENCE).status_code == 202
    eventually(lambda: stage.run(run["id"])["undo"] == "all")
    assert "regretted" not in stage.notes()
    assert stage.seen("erased regretted") == ["erased regretted"]


def test_a_cancellation_reaches_the_handler(stage: Stage):
    run = stage.execute("wait-long")["id"]
    eventually(lambda: stage.seen("waits"))
    assert httpx2.post(f"{stage.url}/v1/runs/{run}/cancel", timeout=PATIENCE).status_code == 202
    eventually(lambda: stage.seen("was cancelled"))
    assert stage.ended(run)["status"] == "cancelled"


def test_a_timeout_ends_the_attempt_and_its_context(stage: Stage):
    run = stage.execute("stubborn", wait=20)
    assert (run["status"], run["error"]["type"]) == ("failed", "AttemptTimedOut")
    stage.let("enough")
    assert eventually(lambda: stage.seen("told")) == ["told AttemptOver"]


def test_secrets_come_from_the_workers_environment_and_leave_it_nowhere(stage: Stage):
    run = stage.execute("spy", wait=20)
    assert run["error"]["message"] == "it is ***"
    assert "very-secret" not in stage.log("first") + stage.log("server")
    assert b"very-secret" not in (stage.folder / "dotdo.db-wal").read_bytes()


def test_a_commit_of_the_handlers_own_counts(stage: Stage):
    assert stage.execute("own-transaction", wait=20, note="by hand")["result"] == "by hand"
    assert stage.notes().count("by hand") == 1


def test_versions_are_run_by_the_workers_that_offer_them(stage: Stage):
    second = stage.work("second", GREETS="2")
    said = {version: stage.execute("greet", wait=20, version=version, name="Ada")["result"] for version in (1, 2)}
    assert said == {1: "Hello, Ada", 2: "Good day, Ada"}
    assert stage.execute("greet", wait=20, name="Ada")["result"] == "Good day, Ada"  # the newest
    second.send_signal(signal.SIGTERM)
    assert second.wait(PATIENCE) == 0
    waiting = stage.execute("greet", name="Ada")
    assert "none that is connected offers the action greet@2" in stage.until_it_waits(waiting["id"], "worker")
    stage.work("third", GREETS="2")
    assert stage.ended(waiting["id"])["result"] == "Good day, Ada"


def test_draining_loses_nothing(stage: Stage):
    draining = stage.work("draining", GREETS="3", more=("--concurrency", "4"))
    first, *others = [process for process in stage.processes[1:] if process is not draining]
    for process in (first, *others):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    begun = [stage.execute("write-note", note=f"slow {n}", wait_for="drained")["id"] for n in range(3)]
    eventually(lambda: len(stage.seen("begins slow")) == 3)
    draining.send_signal(signal.SIGTERM)
    eventually(lambda: "Draining" in stage.log("draining"))
    later = stage.execute("write-note", wait=0.5, note="later")
    assert later["status"] in ("running", "waiting")  # a worker that drains takes nothing new
    stage.let("drained")
    assert draining.wait(PATIENCE) == 0
    assert all(("committed", 1) in stage.entries(id) for id in begun)
    assert "begins later" not in "".join(stage.seen())
    stage.work("afterwards")  # what they have staged is for others
    assert [stage.ended(id)["status"] for id in begun] == ["completed"] * 3
    assert len(stage.seen("begins slow")) == 3
    assert len(stage.seen("letter slow")) == 3
    assert stage.ended(later["id"])["status"] == "completed"


def test_offers_survive_a_restart_and_the_step_waits_for_a_worker(stage: Stage):
    for process in stage.processes[1:]:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    port = int(stage.url.rpartition(":")[2])
    waiting = stage.execute("of-the-server", kind="services", note="patient")
    stage.until_it_waits(waiting["id"], "worker")
    assert stage.server is not None
    stage.server.send_signal(signal.SIGTERM)
    assert stage.server.wait(PATIENCE) == 0
    stage.serve(port=port)
    again = stage.execute("write-note", note="after the restart")
    for run in (waiting, again):
        stage.until_it_waits(run["id"], "worker")
    stage.work("at last")
    assert stage.ended(waiting["id"])["result"]["note"] == "patient"
    assert stage.ended(again["id"])["status"] == "completed"


def test_a_service_may_call_what_nobody_has_offered_yet(tmp_path: Path):
    with on_stage(tmp_path) as fresh:
        waiting = fresh.execute("of-the-server", kind="services", note="early")
        text = fresh.until_it_waits(waiting["id"], "worker")
        assert text.startswith("a worker: none has ever offered the action write-note")
        port = int(fresh.url.rpartition(":")[2])
        assert fresh.server is not None
        fresh.server.kill()
        fresh.server.wait()
        fresh.serve(port=port)
        fresh.work("first")
        assert fresh.ended(waiting["id"])["result"] == {"note": "early", "worker": "first"}


def test_what_is_wrong_is_said_at_once(stage: Stage):
    (stage.folder / "services.py").write_text("import dotdo\n\n\n@dotdo.service('alone')\nasync def alone(): ...\n")
    for command, message in (
        (["worker", str(stage.folder / "services.py"), "--url", stage.url], "nothing that a worker could run"),
        (["worker", str(APP), "--url", "nowhere"], "an address such as https://do.example.com is needed"),
    ):
        process = stage._start(f"wrong-{len(stage.processes)}", command, {})  # pyright: ignore[reportPrivateUsage]
        assert process.wait(PATIENCE) == 2
        assert message in " ".join(stage.log("wrong").split())
