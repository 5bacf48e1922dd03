"""A worker that is killed, frozen or cut off loses its lease: its steps go to another one, and its SQL counts once.

Real processes: a server, and workers with one application database between them.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.worker.processes import SHORT, Cable, Stage, eventually, on_stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with on_stage(tmp_path, SHORT) as found:
        yield found


# Where the first worker dies, and how often the handler begins in all.
PLACES = {
    "in the handler": 2,
    "after its statements": 2,
    "before its commit": 2,
    "after its commit": 1,
    "before it tells": 1,
    "with what it tells in its hands": 1,
    "after the answer": 1,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_worker_killed_anywhere_has_its_step_done_once(stage: Stage, place: str):
    first = stage.work("first", DIES=place)
    run = stage.execute("write-note", note="once")["id"]
    assert first.wait(PATIENCE) == -signal.SIGKILL  # the fault has fired
    stage.work("second")
    ended = stage.ended(run)
    assert (ended["status"], stage.notes()) == ("completed", ["once"])
    assert len(stage.seen("begins once")) == PLACES[place]
    assert ended["result"]["worker"] == ("second" if PLACES[place] == 2 else "first")
    # The letter goes under one key, however often.
    assert len(set(stage.seen("letter once"))) == 1


def test_a_completion_of_the_handlers_own_counts_though_its_worker_died(stage: Stage):
    first = stage.work("first", DIES="after its own commit")
    run = stage.execute("own-transaction", note="own")["id"]
    assert first.wait(PATIENCE) == -signal.SIGKILL
    stage.work("second")
    assert (stage.ended(run)["result"], stage.notes()) == ("own", ["own"])
    assert stage.entries(run)[-2:] == [("completed", 1), ("ended", 0)]


def test_a_frozen_worker_that_wakes_up_commits_nothing(stage: Stage):
    first = stage.work("first")
    run = stage.execute("write-note", note="once", wait_for="go on", freezes=True)["id"]
    eventually(lambda: stage.seen("begins once"))
    first.send_signal(signal.SIGSTOP)
    stage.work("second")
    ended = stage.ended(run)
    assert (ended["status"], ended["result"]["worker"], stage.notes()) == ("completed", "second", ["once"])
    assert ("lost", 1) in stage.entries(run)
    stage.let("go on")
    first.send_signal(signal.SIGCONT)
    # It finds out, begins a new session, and works on.
    eventually(lambda: stage.log("first").count(" actions of ") == 2, stage.log("first"))
    assert "the session of this worker is over" in stage.log("first")
    assert stage.notes() == ["once"]
    again = stage.execute("write-note", wait=20, note="two")
    assert again["status"] == "completed"
    assert stage.notes() == ["once", "two"]


def test_a_worker_that_is_cut_off_is_refused_when_it_comes_back(stage: Stage):
    cable = Cable(stage.url)
    stage.work("first", url=cable.url)
    run = stage.execute("write-note", note="once", wait_for="go on", freezes=True)["id"]
    eventually(lambda: stage.seen("begins once"))
    cable.cut()
    stage.work("second")
    ended = stage.ended(run)
    assert (ended["status"], ended["result"]["worker"]) == ("completed", "second")
    stage.let("go on")
    cable.mend()
    eventually(lambda: stage.log("first").count(" actions of ") == 2, stage.log("first"))
    assert stage.notes() == ["once"]
    assert len(stage.seen("begins once")) == 2
    cable.close()


def test_a_server_killed_while_a_worker_works_gets_the_work_done_once(stage: Stage):
    stage.work("only")
    run = stage.execute("write-note", note="once", wait_for="go on")["id"]
    eventually(lambda: stage.seen("begins once"))
    assert stage.server is not None
    port = int(stage.url.rpartition(":")[2])
    stage.server.kill()
    stage.server.wait()
    stage.let("go on")
    # What it had in its hands when the server died, nobody takes any more; but its commit counts, or never will.
    stage.serve(port=port)
    ended = stage.ended(run)
    assert (ended["status"], stage.notes()) == ("completed", ["once"])
    assert len(set(stage.seen("letter once"))) == 1
    assert stage.log("only").count(" actions of ") == 2


def test_requests_are_answered_once_though_their_worker_dies(stage: Stage):
    first = stage.work("first", DIES="before its commit")
    run = stage.execute("find-customer", name="ada")["id"]
    assert first.wait(PATIENCE) == -signal.SIGKILL
    stage.work("second")
    assert stage.ended(run)["result"] == "c-ada"
    assert stage.seen("customer") == ["customer ada"]  # the second attempt was given the answer of the first
    assert stage.notes() == ["c-ada"]
