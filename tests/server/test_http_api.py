"""What the API answers: runs, repeated requests, waits, pages, streams that resume, and problem documents."""

import gzip
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from dotdo.server.reading import MAX_BODY
from tests.patience import PATIENCE
from tests.server.running import Running, seen


@pytest.fixture
def http(server: Running) -> Iterator[httpx2.Client]:
    with server.http() as client:
        yield client


def greet(http: httpx2.Client, name: str = "Ada", **headers: str) -> httpx2.Response:
    return http.post("/v1/actions/greet-user/execute", json={"params": {"name": name}}, headers=headers)


def approve(http: httpx2.Client, **headers: str) -> dict[str, Any]:
    headers = {"Prefer": "respond-async", **headers}
    response = http.post("/v1/services/approval/execute", json={"params": {"name": "Ada"}}, headers=headers)
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/runs/{response.json()['id']}"
    return response.json()


# -- executing --------------------------------------------------------------------------------------------------------


def test_action_by_name_answers_with_its_run(http: httpx2.Client):
    response = greet(http)
    run = response.json()
    assert (response.status_code, run["status"], run["result"]) == (200, "completed", {"text": "Hello, Ada"})
    assert http.get(f"/v1/runs/{run['id']}").json() == run


def test_failed_run_is_an_answer_and_tells_no_traceback(http: httpx2.Client):
    response = http.post("/v1/actions/refuse/execute", json={"params": {"reason": "no"}})
    run = response.json()
    assert (response.status_code, run["status"]) == (200, "failed")
    assert run["error"] == {"type": "Fail", "message": "no", "action": "refuse", "step": "refuse"}
    journal = http.get(f"/v1/runs/{run['id']}/journal").text
    assert "attempt_failed" in journal
    assert "Traceback" not in journal
    assert "traceback" not in journal


def test_repeated_key_gives_the_first_answer_again(http: httpx2.Client):
    first = greet(http, "Ada", **{"Idempotency-Key": '"k-1"'})
    again = greet(http, "Ada", **{"Idempotency-Key": "k-1"})
    assert again.json() == first.json()
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    other = greet(http, "Eve", **{"Idempotency-Key": "k-1"})
    assert (other.status_code, other.json()["code"]) == (422, "key_conflict")
    assert "Eve" not in seen


def test_key_of_a_run_under_way_conflicts_until_it_ends(http: httpx2.Client):
    run = approve(http, **{"Idempotency-Key": "a-1"})
    body = {"params": {"name": "Ada"}}
    conflict = http.post("/v1/services/approval/execute", json=body, headers={"Idempotency-Key": "a-1"})
    assert (conflict.status_code, conflict.json()["code"], conflict.json()["run"]) == (409, "still_running", run["id"])
    http.post(f"/v1/runs/{run['id']}/events", json={"name": "answer", "value": 1})
    assert http.get(f"/v1/runs/{run['id']}", headers={"Prefer": "wait=20"}).json()["status"] == "completed"
    done = http.post("/v1/services/approval/execute", json=body, headers={"Idempotency-Key": "a-1"})
    assert (done.status_code, done.json()["id"]) == (200, run["id"])


def test_wait_that_is_over_answers_with_where_to_look(http: httpx2.Client):
    body = {"params": {"name": "Ada"}}
    response = http.post("/v1/services/approval/execute", json=body, headers={"Prefer": "wait=0.05"})
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=0.05")
    until = time.monotonic() + PATIENCE  # that may be before the run has come to its event
    while (http.get(response.headers["location"]).json()["waiting_for"] or {}).get("kind") != "event":
        assert time.monotonic() < until


# -- refusing ---------------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
BODIES: list[tuple[str, dict[str, Any], int, str]] = [
    ("not JSON", {"content": b"{", "headers": JSON}, 400, "invalid_json"),
    ("not UTF-8", {"content": b'{"params": {"name": "\xff"}}', "headers": JSON}, 400, "invalid_json"),
    ("NaN", {"content": b'{"params": {"name": NaN}}', "headers": JSON}, 400, "invalid_json"),
    ("a list", {"json": []}, 422, "invalid_input"),
    ("an unknown field", {"json": {"param": {"name": "Ada"}}}, 422, "invalid_input"),
    ("an unknown parameter", {"json": {"params": {"name": "Ada", "nmae": 1}}}, 422, "invalid_input"),
    ("a wrong type", {"json": {"params": {"name": 7}}}, 422, "invalid_input"),
    ("nothing", {}, 422, "invalid_input"),
    (
        "another media type",
        {"content": b"name=Ada", "headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported_media_type",
    ),
    ("too much", {"content": b" " * (MAX_BODY + 1), "headers": JSON}, 413, "body_too_large"),
    (
        "compressed",
        {"content": gzip.compress(b"{}"), "headers": {**JSON, "Content-Encoding": "gzip"}},
        400,
        "invalid_json",
    ),
    ("a lone surrogate", {"content": b'{"params": {"name": "\\ud800"}}', "headers": JSON}, 400, "invalid_json"),
    ("a NUL", {"json": {"params": {"name": "a\0b"}}}, 422, "invalid_value"),
    (
        "a bad key",
        {"json": {"params": {"name": "A"}}, "headers": {"Idempotency-Key": "x" * 256}},
        400,
        "invalid_idempotency_key",
    ),
    ("no deadline", {"json": {"params": {"name": "A"}, "deadline": -1}}, 422, "invalid_input"),
    ("too high a priority", {"json": {"params": {"name": "A"}, "priority": 11}}, 422, "invalid_input"),
    ("half a priority", {"json": {"params": {"name": "A"}, "priority": 0.5}}, 422, "invalid_input"),
    ("an empty trail", {"json": {"params": {"name": "A"}, "trail": ""}}, 422, "invalid_input"),
    (
        "a label that no filter can name",
        {"json": {"params": {"name": "A"}, "labels": {"a=b": "c"}}},
        422,
        "invalid_input",
    ),
    ("no time for an attempt", {"json": {"params": {"name": "A"}, "timeout": 0}}, 422, "invalid_input"),
    ("no attempts", {"json": {"params": {"name": "A"}, "retry": {"attempts": 0}}}, 422, "invalid_input"),
    ("an unknown word of Retry", {"json": {"params": {"name": "A"}, "retry": {"tries": 1}}}, 422, "invalid_input"),
    ("a bad wait", {"json": {"params": {"name": "A"}}, "headers": {"Prefer": "wait=-1"}}, 400, "invalid_prefer"),
]


@pytest.mark.parametrize("what, request_, status, code", BODIES, ids=[each[0] for each in BODIES])
def test_bad_request_is_a_problem_and_leaves_no_run(
    http: httpx2.Client, what: str, request_: dict[str, Any], status: int, code: str
):
    response = http.post("/v1/actions/greet-user/execute", **request_)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"urn:dotdo:error:{code}"
    assert problem["detail"]
    assert http.get("/v1/runs").json()["runs"] == []


@pytest.mark.parametrize(
    "body, known",
    [
        ({"parms": {}}, "Known: params, trail, deadline, delay, priority, labels, timeout, retry. Parameters stand"),
        ({"params": {}, "retry": {"tries": 1}}, "Known: attempts, delay, factor, max_delay, jitter, max_elapsed."),
    ],
)
def test_unknown_field_is_refused_with_the_known_ones(http: httpx2.Client, body: dict[str, Any], known: str):
    detail = http.post("/v1/actions/greet-user/execute", json=body).json()["detail"]
    assert known in detail


STEERING = {
    "cancel": ({}, "none"),
    "retry": ({}, "none"),
    "undo": ({}, "none"),
    "resolve": ({"key": "k", "outcome": "did_not_happen"}, "key, outcome, answer"),
    "events": ({"name": "answer", "value": True}, "name, value, key"),
}


@pytest.mark.parametrize("verb", STEERING)
def test_run_is_not_steered_by_what_says_something_unknown(http: httpx2.Client, verb: str):
    body, known = STEERING[verb]
    run = approve(http)
    path = f"/v1/runs/{run['id']}/{verb}"
    wrong_query = http.post(path, params={"wiat": 3}, json=body)
    assert (wrong_query.status_code, wrong_query.json()["code"]) == (400, "invalid_query")
    wrong_field = http.post(path, json={**body, "raeson": "x"})
    assert (wrong_field.status_code, wrong_field.json()["code"]) == (422, "invalid_input")
    assert wrong_field.json()["detail"].endswith(f"Known: {known}.")
    assert http.get(f"/v1/runs/{run['id']}").json()["status"] == run["status"]


def test_every_problem_of_an_input_is_listed(http: httpx2.Client):
    response = http.post("/v1/actions/greet-user/execute", json={"params": {"polite": "very"}})
    assert {each["path"] for each in response.json()["errors"]} == {"$.params.name", "$.params.polite"}


def test_too_deep_a_value_is_refused(http: httpx2.Client):
    deep: Any = "x"
    for _ in range(70):
        deep = [deep]
    response = http.post("/v1/runs/run_0/events", json={"name": "e", "value": deep})
    assert response.status_code in (404, 422)
    run = approve(http)
    response = http.post(f"/v1/runs/{run['id']}/events", json={"name": "answer", "value": deep})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_value")


@pytest.mark.parametrize(
    "path, status, code",
    [
        ("/v1/actions/greet-usr", 404, "unknown_name"),
        ("/v1/runs/run_0", 404, "unknown_name"),
        ("/v1/nothing", 404, "not_found"),
        ("/v1/runs?limit=0", 400, "invalid_query"),
        ("/v1/runs?limit=1&limit=2", 400, "invalid_query"),
        ("/v1/runs?stauts=failed", 400, "invalid_query"),
        ("/v1/runs?status=done", 400, "invalid_query"),
        ("/v1/runs?undo=some", 400, "invalid_query"),
        ("/v1/runs?cursor=no", 400, "invalid_cursor"),
        ("/v1/actions/greet-user/execute", 405, "method_not_allowed"),
    ],
)
def test_wrong_address_or_query(http: httpx2.Client, path: str, status: int, code: str):
    response = http.get(path)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_request_id_of_the_caller_is_kept_if_it_is_sound(http: httpx2.Client):
    assert http.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert http.get("/healthz", headers={"X-Request-Id": "a b"}).headers["x-request-id"].startswith("req_")


# -- reading ----------------------------------------------------------------------------------------------------------


def test_pages_lead_through_all_runs(http: httpx2.Client):
    ids = [greet(http, f"N{n}").json()["id"] for n in range(5)]
    found: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": 2, "name": "greet-user", **({"cursor": cursor} if cursor else {})}
        page = http.get("/v1/runs", params=query).json()
        found += [run["id"] for run in page["runs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == ids[::-1]


def read_events(
    http: httpx2.Client, id: str, last: str | None = None, stop_at: int | None = None
) -> list[tuple[str, str]]:
    """Ids and kinds of a stream's events, to its end or up to an entry."""
    found: list[tuple[str, str]] = []
    headers = {"Last-Event-ID": last} if last is not None else {}
    with http.stream("GET", f"/v1/runs/{id}/stream", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        number = ""
        for line in response.iter_lines():
            if line.startswith("id: "):
                number = line[4:]
            elif line.startswith("event: "):
                found.append((number, line[7:]))
                if stop_at is not None and number == str(stop_at):
                    return found
    return found


def test_stream_follows_a_run_and_resumes_where_it_broke_off(http: httpx2.Client, server: Running):
    run = approve(http)
    first = read_events(http, run["id"], stop_at=2)
    assert [kind for _, kind in first] == ["accepted", "completed"]
    found: list[tuple[str, str]] = []

    def read() -> None:
        with server.http() as again:
            found.extend(read_events(again, run["id"], last="2"))

    reader = threading.Thread(target=read)
    reader.start()
    http.post(f"/v1/runs/{run['id']}/events", json={"name": "answer", "value": 1})
    reader.join(PATIENCE)
    kinds = [kind for _, kind in found if kind != "claimed"]  # if it had left memory before its event came
    assert kinds == ["published", "event", "ended", "end"]
    assert [number for number, _ in found[:-1]] == [str(number) for number in range(3, 2 + len(found))]


def test_readiness_tells_the_truth(http: httpx2.Client, server: Running):
    assert http.get("/readyz").json() == {"status": "ready"}


def test_metrics_count_requests_by_route(http: httpx2.Client):
    greet(http)
    text = http.get("/metrics").text
    assert 'dotdo_http_requests_total{method="POST",route="/v1/actions/{name}/execute",status="200"} 1' in text
    assert 'dotdo_runs{status="completed"} 1' in text


def test_description_has_every_route_and_every_definition(http: httpx2.Client):
    document = http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {"/v1/runs/{id}/stream", "/v1/actions/greet-user/execute", "/v1/services/approval/execute"} <= set(
        document["paths"]
    )
    own = document["paths"]["/v1/actions/greet-user/execute"]["post"]
    params = own["requestBody"]["content"]["application/json"]["schema"]["properties"]["params"]
    assert params["required"] == ["name"]
    assert own["summary"] == "Greets somebody."
    page = http.get("/reference")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/actions/greet-user/execute" in page.text
    assert "http://" not in page.text.replace("http://127", "")
    assert "<script" not in page.text


def references(value: Any) -> Iterator[str]:
    """Every `$ref` of a document."""
    if isinstance(value, list):
        for each in value:
            yield from references(each)
    elif isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)


def test_every_reference_in_the_description_leads_somewhere(http: httpx2.Client):
    document = http.get("/openapi.json").json()
    found = set(references(document))
    assert {"#/components/schemas/action.price-order.input.Line", "#/components/schemas/RunShape"} <= found
    for reference in found:
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]
    line = document["components"]["schemas"]["action.price-order.input.Line"]
    assert line["properties"]["parts"]["items"] == {"$ref": "#/components/schemas/action.price-order.input.Line"}


def test_run_that_went_on_as_another_is_answered_as_itself(http: httpx2.Client):
    first = http.post("/v1/services/countdown/execute", json={"params": {"left": 2}}).json()
    assert (first["status"], first["result"]) == ("completed", None)
    again = http.get(f"/v1/runs/{first['id']}", headers={"Prefer": "wait=20"}).json()
    assert again == first
    second = http.get(f"/v1/runs/{first['continued_as']}", headers={"Prefer": "wait=20"}).json()
    third = http.get(f"/v1/runs/{second['continued_as']}", headers={"Prefer": "wait=20"}).json()
    assert (third["continues"], third["result"]) == (second["id"], {"left": 0})


def test_preview_ends_with_the_time_that_was_given(http: httpx2.Client):
    found = http.post("/v1/actions/wait-for-ever/preview", json={}, headers={"Prefer": "wait=0.2"})
    assert found.status_code == 200
    assert found.json()["status"] != "completed"
    assert "0.2 s" in found.text
