"""Every route, with every kind of key that must not do: nothing answers, and nothing happens."""

import time
from typing import Any

import httpx2
import pytest
from starlette.routing import Route

from dotdo.server import auth
from dotdo.server.app import make_app
from dotdo.server.routes import OPERATIONS, Operation
from dotdo.tls import trusted
from tests.patience import PATIENCE
from tests.server.running import Running, seen

NEEDING_A_KEY = [each for each in OPERATIONS if each.scope is not None]
OPEN = [each for each in OPERATIONS if each.scope is None]
KINDS = ("none", "not bearer", "malformed", "mistyped", "unknown", "revoked", "expired", "wrong scope", "wrong name")


def ask(server: Running, operation: Operation, headers: dict[str, str]) -> httpx2.Response:
    path = operation.path.replace("{name}", "greet-user" if "action" in operation.id else "approval")
    body: dict[str, Any] = {"params": {"name": "Nobody"}} if operation.body is not None else {}
    with httpx2.Client(base_url=server.url, timeout=60, verify=trusted(server.url)) as http:
        return http.request(
            operation.method,
            path.replace("{id}", "run_0"),
            headers=headers,
            json=body if operation.method == "POST" else None,
        )


def is_named_inside(operation: Operation) -> bool:
    """Whether the scope's name is that of the run (see below), or of what a worker offers (tests/worker)."""
    return "{id}" in operation.path or operation.path.startswith("/v1/worker/")


def headers_for(server: Running, kind: str, operation: Operation) -> dict[str, str]:
    scope = operation.scope or ""
    key = server.key("*")
    if kind == "none":
        return {}
    if kind == "not bearer":
        return {"Authorization": f"Basic {key}"}
    if kind == "malformed":
        key = "do_short"
    elif kind == "mistyped":
        key = key[:-1] + ("0" if key[-1] != "0" else "1")
    elif kind == "unknown":
        from dotdo.keys import new_key

        key = new_key("never saved", ["*"], now=1)[0]
    elif kind == "revoked":
        server.revoke(server.last)
    elif kind == "expired":
        key = server.key("*", expires_at=2)
    elif kind == "wrong scope":
        key = server.key("workers:serve" if not scope.startswith("workers") else "runs:read")
    elif kind == "wrong name":
        key = server.key(f"{scope}:something-else")
    return {"Authorization": f"Bearer {key}"}


def test_no_route_answers_without_a_key_that_allows_it(server: Running):
    answers: dict[tuple[str, str], int] = {}
    for operation in NEEDING_A_KEY:
        for kind in KINDS:
            if kind == "wrong name" and is_named_inside(operation):
                continue
            response = ask(server, operation, headers_for(server, kind, operation))
            answers[operation.id, kind] = response.status_code
            problem = response.json()
            assert response.headers["content-type"] == "application/problem+json"
            assert problem["status"] == response.status_code
            assert problem["request_id"] == response.headers["x-request-id"]
    wanted = {
        (operation.id, kind): 403 if kind.startswith("wrong") else 401
        for operation in NEEDING_A_KEY
        for kind in KINDS
        if not (kind == "wrong name" and is_named_inside(operation))
    }
    assert answers == wanted
    assert len(answers) > 100
    assert "Nobody" not in seen


def test_every_route_that_is_registered_has_a_row_in_the_table():
    """The matrix above is made of the table; so nothing may be registered beside it."""

    async def platform() -> Any:
        raise AssertionError("nobody asks")

    app = make_app(platform)._app  # pyright: ignore[reportPrivateUsage]  # what it consists of is what is tested
    registered: list[tuple[str, str]] = []
    for route in app.router.routes:
        assert isinstance(route, Route), f"{route} is no plain route: its keys are not checked here"
        registered += [(method, route.path) for method in (route.methods or set()) - {"HEAD"}]
    assert sorted(registered) == sorted((each.method, each.path) for each in OPERATIONS)
    assert len({each.id for each in OPERATIONS}) == len(OPERATIONS)


def test_asking_for_the_head_of_an_answer_needs_a_key_as_well(server: Running):
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        for operation in NEEDING_A_KEY:
            if operation.method == "GET":
                path = operation.path.replace("{name}", "greet-user").replace("{id}", "run_0")
                assert http.head(path).status_code == 401, operation.id


def test_open_routes_tell_nothing_but_that_they_are_there(server: Running):
    assert [each.id for each in OPEN] == ["healthz", "readyz"]
    for operation in OPEN:
        response = ask(server, operation, {})
        assert (response.status_code, set(response.json())) == (200, {"status"})


@pytest.mark.parametrize("verb", ["", "/journal", "/stream"])
def test_a_key_for_runs_of_one_name_does_not_open_others(server: Running, verb: str):
    with server.http() as http:
        id = http.post("/v1/actions/greet-user/execute", json={"params": {"name": "Ada"}}).json()["id"]
    with server.http("runs:read:greet-*") as http:
        assert http.get(f"/v1/runs/{id}{verb}").status_code == 200
    with server.http("runs:read:refuse") as http:
        refused = http.get(f"/v1/runs/{id}{verb}")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


def test_the_key_is_the_actor_in_the_journal(server: Running):
    with server.http("actions:execute:greet-*", "runs:read") as http:
        run = http.post("/v1/actions/greet-user/execute", json={"params": {"name": "Ada"}}).json()
        assert run["actor"] == "key:a test"
        entries = http.get(f"/v1/runs/{run['id']}/journal").json()["entries"]
        assert entries[0]["data"]["options"]["actor"] == "key:a test"


def test_last_use_of_a_key_is_written_down_although_nobody_asks_again(server: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auth, "TOUCH_SECONDS", 0.05)
    engine = server.call(server.client.platform())
    with server.http("runs:read") as http:
        assert http.get("/v1/runs").status_code == 200

    async def used_at() -> int | None:
        (key,) = await engine.read(engine.store.list_api_keys)
        return key.used_at

    until = time.monotonic() + PATIENCE
    while (used := server.call(used_at())) is None:
        assert time.monotonic() < until
    assert used <= time.time() * 1000


def test_revoked_key_is_refused_within_seconds(server: Running):
    with server.http("runs:read") as http:
        assert http.get("/v1/runs").status_code == 200
        server.revoke(server.last)
        for _ in range(400):
            if http.get("/v1/runs").status_code == 401:
                break
            http.get("/healthz")
        else:
            # The answer is kept for a second, and that many requests may take less.
            until = time.monotonic() + PATIENCE
            while http.get("/v1/runs").status_code != 401:
                assert time.monotonic() < until
