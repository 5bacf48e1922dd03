"""A worker of another time speaks with this server: what it leaves out has a default, what it says more is ignored."""

import time
from typing import Any

import httpx2
import pytest

from dotdo.engine.attempting import effect_key
from tests.patience import PATIENCE
from tests.server.running import Running, running, seen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("server") / "dotdo.db") as found:
        yield found


class Plain:
    """A worker that says as little as the protocol lets it."""

    def __init__(self, server: Running, *scopes: str) -> None:
        self.http = server.http(*scopes)
        self.id = ""

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, verb: str, **body: Any) -> Any:
        return self.http.post(f"/v1/worker/{verb}", json={"worker": self.id, **body} if self.id else body).json()

    def register(self, *names: str, **more: Any) -> "Plain":
        answer = self.post("register", protocol=1, actions=[{"name": name} for name in names], **more)
        self.id = answer["worker"]
        return self


def start(worker: Plain, name: str, **params: Any) -> str:
    answer = worker.http.post(
        f"/v1/actions/{name}/execute", json={"params": params}, headers={"Prefer": "respond-async"}
    )
    return answer.json()["id"]


def end(worker: Plain, run: str) -> Any:
    return worker.http.get(f"/v1/runs/{run}", headers={"Prefer": "wait=20"}).json()


def test_the_least_that_can_be_said_is_enough(server: Running):
    worker = Plain(server).register("least")
    with worker:
        run = start(worker, "least", anything=[1, {"goes": True}])
        (task,) = worker.post("claim", wait=10)["tasks"]
        assert task["input"] == {"anything": [1, {"goes": True}]}
        done = {"task": task["id"], "token": task["token"], "outcome": "completed"}
        assert worker.post("complete", tasks=[done])["results"][0]["state"] == "accepted"
        assert (end(worker, run)["status"], end(worker, run)["result"]) == ("completed", None)


def test_the_log_counts_what_a_worker_has_defined(server: Running, caplog: pytest.LogCaptureFixture):
    """And not what that makes possible besides: other versions that are waited for, attempts to be settled."""
    with caplog.at_level("INFO", logger="dotdo.workers"), Plain(server).register("counted", "counted-too"):
        assert [line for line in caplog.messages if line.endswith("offers 2 definitions")]


def test_what_a_newer_worker_says_more_is_ignored(server: Running):
    worker = Plain(server)
    answer = worker.post(
        "register",
        protocol=1,
        colour="red",
        actions=[{"name": "newer", "region": "eu", "retry": {"attempts": 2, "mood": "good"}}],
    )
    worker.id = answer["worker"]
    with worker:
        run = start(worker, "newer")
        (task,) = worker.post("claim", wait=10, priority=7)["tasks"]
        assert worker.post("heartbeat", tasks=[task["id"]], after=1, load=0.5)["lost"] == []
        done = {"task": task["id"], "token": task["token"], "outcome": "completed", "spent": 3}
        worker.post("complete", tasks=[{**done, "completion": {"result": 4, "notes": ["x"]}}])
        assert end(worker, run)["result"] == 4


def test_a_late_answer_is_refused_and_changes_nothing(server: Running):
    first, second = Plain(server).register("late"), Plain(server)
    with first, second:
        run = start(first, "late")
        (task,) = first.post("claim", wait=10)["tasks"]
        first.post("leave")
        second.register("late")
        (again,) = second.post("claim", wait=10)["tasks"]
        assert (again["attempt"], again["token"] == task["token"]) == (2, False)
        for worker, token in ((first, task["token"]), (second, task["token"]), (second, again["token"][::-1])):
            late = {"task": task["id"], "token": token, "outcome": "completed", "completion": {"result": "late"}}
            assert worker.post("complete", tasks=[late])["results"][0]["state"] == "lease_lost"
            stolen = {**late, "task": again["id"]}
            assert worker.post("complete", tasks=[stolen])["results"][0]["state"] == "lease_lost"
        done = {
            "task": again["id"],
            "token": again["token"],
            "outcome": "completed",
            "completion": {"result": "second"},
        }
        assert second.post("complete", tasks=[done])["results"][0]["state"] == "accepted"
        assert end(second, run)["result"] == "second"


def test_a_worker_offers_only_what_its_key_allows(server: Running):
    narrow = Plain(server, "workers:serve:billing-*", "actions:execute:*", "runs:read")
    with narrow:
        refused = narrow.post("register", protocol=1, actions=[{"name": "billing-pay"}, {"name": "hr-hire"}])
        assert (refused["status"], refused["code"]) == (403, "forbidden")
        assert "workers:serve:hr-hire" in refused["detail"]
        narrow.register("billing-pay")
        assert narrow.post("claim")["tasks"] == []
    with server.http("workers:serve", "runs:read") as other:
        # The session belongs to the key that it was begun with.
        assert server.last.name == "a test"
        stolen = other.post("/v1/worker/claim", json={"worker": "wrk_" + "0" * 24})
        assert stolen.json()["code"] == "unknown_worker"


@pytest.mark.parametrize(
    "offer, message",
    [
        ({"name": "approval"}, "is the name of a service"),
        ({"name": "no name"}, "cannot be the name of actions"),
        ({"name": "x", "version": 0}, "a version is a whole number from 1"),
        ({"name": "x", "timeout": -1}, "timeout=-1"),
        ({"name": "x", "retry": {"attempts": 0}}, "at least 1 is needed"),
        ({"name": "x", "input_schema": {"type": "nothing"}}, "is no JSON Schema"),
        ({"name": "x", "input_schema": {"$ref": "http://127.0.0.1:9/secret.json"}}, "nothing is fetched"),
        (
            {
                "name": "x",
                "input_schema": {"properties": {"a": {"type": "string", "format": "password", "writeOnly": True}}},
            },
            "secret",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "offer",
)
def test_unsound_offers_are_refused_as_a_whole(server: Running, offer: dict[str, Any], message: str):
    worker = Plain(server)
    with worker:
        refused = worker.post("register", protocol=1, actions=[{"name": "sound-but-not-taken"}, offer])
        assert (refused["status"], refused["code"]) == (422, "invalid_definition"), refused
        assert message in refused["detail"]
        listed = worker.http.get("/v1/actions").json()["definitions"]
        assert "sound-but-not-taken" not in {each["name"] for each in listed}


def test_a_batch_that_was_lost_on_its_way_comes_again(server: Running):
    worker = Plain(server).register("again")
    with worker:
        start(worker, "again")
        lost = worker.post("claim", after=0, wait=10)
        assert worker.post("claim", after=0) == lost
        assert worker.post("claim", after=lost["batch"]) == {"batch": 1, "tasks": [], "cancelled": []}
        # What a worker has been given and does not name is tried again.
        assert worker.post("heartbeat", tasks=[], after=1)["lost"] == []
        (again,) = worker.post("claim", after=1, wait=10)["tasks"]
        assert again["attempt"] == 2


def test_a_worker_that_hangs_up_is_given_nothing(server: Running):
    gone, here = Plain(server).register("hangs-up"), Plain(server)
    with gone, here:
        with pytest.raises(httpx2.ReadTimeout):
            gone.http.post("/v1/worker/claim", json={"worker": gone.id, "wait": 20}, timeout=1.5)
        until = time.monotonic() + PATIENCE
        while "dotdo_http_requests_in_flight 1\n" not in here.http.get("/metrics").text:
            assert time.monotonic() < until
        here.register("hangs-up")
        start(here, "hangs-up")
        assert len(here.post("claim", wait=10)["tasks"]) == 1


def test_a_preview_ends_with_a_note_where_a_worker_would_begin(server: Running):
    with Plain(server).register("unforeseen") as worker:
        answer = worker.http.post("/v1/actions/unforeseen/preview", json={"params": {}})
        assert answer.status_code == 200
        assert "runs in a worker" in answer.text
        assert worker.post("claim")["tasks"] == []


def test_what_one_run_stages_is_no_other_runs(server: Running):
    with Plain(server).register("stages") as worker:
        runs = [start(worker, "stages"), start(worker, "stages")]
        given: list[Any] = []
        batch = 0
        while len(given) < len(runs):
            answer = worker.post("claim", wait=10, after=batch)
            batch = answer["batch"]
            given += answer["tasks"]
        for number, task in enumerate(given):
            key = effect_key(task["run"], task["step"], "note", 0, task["epoch"])
            staged = [{"effect": "note", "version": 1, "key": key, "input": {"text": "once"}}] if number == 0 else []
            done = {
                "task": task["id"],
                "token": task["token"],
                "outcome": "completed",
                "completion": {"effects": staged},
            }
            assert worker.post("complete", tasks=[done])["results"][0]["state"] == "accepted"
        assert [end(worker, run)["status"] for run in runs] == ["completed", "completed"]
        assert seen.count("once") == 1
