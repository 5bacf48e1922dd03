"""Limits of actions whose handlers are in workers: the server hands out no task for which there is no slot."""

import asyncio
from typing import Any

import pytest

from dotdo import Catalogue, Concurrency, action
from dotdo.errors import UnsupportedProtocol
from dotdo.worker.worker import Worker
from tests.server.running import Running, running
from tests.worker.test_old_workers import Plain, end, start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with running(tmp_path_factory.mktemp("server") / "dotdo.db") as found:
        yield found


def register(worker: Plain, name: str, **offer: Any) -> Any:
    """Registers with one action: the answer."""
    answer = worker.post("register", protocol=2, concurrency=10, actions=[{"name": name, **offer}])
    worker.id = answer.get("worker", "")
    return answer


def claim(worker: Plain, after: int) -> Any:
    """The next batch that is not empty."""
    while not (batch := worker.post("claim", wait=5, after=after))["tasks"]:
        pass
    return batch


def complete(worker: Plain, task: Any) -> None:
    done = {"task": task["id"], "token": task["token"], "outcome": "completed", "completion": {"result": 1}}
    assert worker.post("complete", tasks=[done])["results"][0]["state"] == "accepted"


def waits_for_limit(worker: Plain, run: str) -> None:
    """Returns once the run waits for a slot."""
    while (worker.http.get(f"/v1/runs/{run}").json()["waiting_for"] or {}).get("kind") != "limit":
        pass


def test_no_more_tasks_at_a_time_than_the_limit_and_the_urgent_first(server: Running):
    with Plain(server) as worker:
        assert register(worker, "one-by-one", concurrency=[{"limit": 1}])["protocol"] == 2
        runs = [start(worker, "one-by-one")]
        batch = claim(worker, 0)
        for priority in (-1, 3):
            body = {"params": {}, "priority": priority}
            headers = {"Prefer": "respond-async"}
            answer = worker.http.post("/v1/actions/one-by-one/execute", json=body, headers=headers)
            runs.append(answer.json()["id"])
            waits_for_limit(worker, runs[-1])
        told = worker.http.get("/metrics").text
        assert 'dotdo_limit_slots{action="one-by-one"} 1\n' in told
        assert 'dotdo_limit_waiting{action="one-by-one",limit="concurrency"} 2\n' in told
        order: list[str] = []
        while True:
            [task] = batch["tasks"]
            order.append(task["run"])
            complete(worker, task)
            if len(order) == len(runs):
                break
            batch = claim(worker, batch["batch"])
        assert order == [runs[0], runs[2], runs[1]]
        assert [end(worker, run)["status"] for run in runs] == ["completed"] * 3


def test_limit_of_a_key_is_for_each_of_its_values_however_it_is_written(server: Running):
    schema = {"type": "object", "properties": {"user_id": {"type": "string"}}, "additionalProperties": False}
    with Plain(server) as worker:
        register(worker, "per-user", input_schema=schema, concurrency=[{"limit": 1, "key": "user_id"}])
        first = start(worker, "per-user", user_id="ada")
        batch = claim(worker, 0)
        again = start(worker, "per-user", userId="ada")
        waits_for_limit(worker, again)
        other = start(worker, "per-user", userId="ben")
        after = claim(worker, batch["batch"])
        assert [task["run"] for task in after["tasks"]] == [other]
        complete(worker, batch["tasks"][0])
        last = claim(worker, after["batch"])
        assert [task["run"] for task in last["tasks"]] == [again]
        for task in (*after["tasks"], *last["tasks"]):
            complete(worker, task)
        assert end(worker, first)["status"] == "completed"


def test_rate_holds_and_listings_say_the_limits(server: Running):
    with Plain(server) as worker:
        register(worker, "two-an-hour", rate=[{"limit": "2/hour", "key": None}])
        runs = [start(worker, "two-an-hour") for _ in range(3)]
        given: list[Any] = []
        batch = 0
        while len(given) < 2:
            found = claim(worker, batch)
            batch, given = found["batch"], given + found["tasks"]
        [left] = set(runs) - {task["run"] for task in given}
        waits_for_limit(worker, left)
        for task in given:
            complete(worker, task)
        [listed] = worker.http.get("/v1/actions/two-an-hour").json()["definitions"]
        assert listed["policy"]["rate"] == [{"limit": "2/hour"}]
        worker.http.post(f"/v1/runs/{left}/cancel")


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"concurrency": [{"limit": 0}]}, "a whole number from 1 to"),
        ({"concurrency": [{"limit": 1, "key": "no key"}]}, "the name of a parameter is needed"),
        ({"concurrency": [{"limit": 1}, {"limit": 2}]}, "two limits in concurrency= are for the same"),
        ({"rate": [{"limit": "often"}]}, "often"),
        (
            {"rate": [{"limit": "1/s", "key": "colour"}], "input_schema": {"properties": {"size": {}}}},
            "its key is no parameter; there are size",
        ),
    ],
    ids=repr,
)
def test_limits_that_cannot_be_are_refused(server: Running, limits: dict[str, Any], message: str):
    with Plain(server) as worker:
        refused = register(worker, "unsound", **limits)
        assert (refused["status"], refused["code"]) == (422, "invalid_definition"), refused
        assert message in refused["detail"]


def limited() -> Catalogue:
    """An application with limits."""
    catalogue = Catalogue()

    @action("counted", concurrency=[3, Concurrency(1, key="name")], rate="9/minute", catalogue=catalogue)
    def counted(name: str) -> None: ...

    return catalogue


def test_server_that_knows_no_limits_refuses_a_worker_with_some_and_says_so(
    server: Running, monkeypatch: pytest.MonkeyPatch
):
    """One of version 1 would ignore what it does not know."""
    monkeypatch.setattr("dotdo.engine.workers.PROTOCOL", 1)

    async def work() -> None:
        await Worker(server.url, server.key("workers:serve"), catalogue=limited()).run()

    with pytest.raises(UnsupportedProtocol, match=r"not 2.* Version 2 is for concurrency= and rate= of counted"):
        asyncio.run(work())


def test_worker_tells_the_limits_of_its_application(server: Running):
    offers = Worker(server.url, "do_x", catalogue=limited()).offers
    assert offers.limited == ["counted"]
    [offer] = offers.actions
    assert [(each.limit, each.key) for each in offer.concurrency] == [(3, None), (1, "name")]
    assert [(each.limit, each.key) for each in offer.rate] == [("9/minute", None)]
