"""What a server logs: one line for each request, and for what handlers say; whose it is, and no secrets."""

import json
import logging
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp

from dotdo.cli.logs import TextFormatter
from dotdo.logs import JsonFormatter
from dotdo.server.app import make_app
from tests.server.process import Serving, serving
from tests.server.test_mounted import serving as uvicorn_serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
APPLICATION = '''
from dotdo import Context, Fail, Secret, action

@action("greet-user", retry=1)
def greet_user(ctx: Context, name: str) -> str:
    """Greets somebody."""
    ctx.log.info("greeting %s", name)
    return f"Hello, {name}"

@action("sign-in", retry=1)
def sign_in(ctx: Context, password: Secret[str]) -> None:
    ctx.log.warning("trying %s", password.reveal())
    raise Fail("wrong password " + password.reveal())
'''
SECRET = "hunter2-but-longer"


def greet(serve: Serving, key: str, **headers: str) -> httpx2.Response:
    with serve.http(key) as http:
        return http.post("/v1/actions/greet-user/execute", json={"params": {"name": "Ada"}}, headers=headers)


def test_lines_of_json_say_which_request_run_step_attempt_actor_and_trace(tmp_path: Path):
    with serving(tmp_path, APPLICATION) as serve:
        key = serve.key()
        headers = {"X-Request-Id": "req-7", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        run = greet(serve, key, **headers).json()["id"]
        with serve.http(key) as http:
            assert http.get("/healthz").status_code == 200
            assert http.get("/v1/runs/run_0%0Ax").status_code == 404
            http.post("/v1/actions/sign-in/execute", json={"params": {"password": SECRET}})
        serve.signal()
        assert serve.end() == 0
    records = serve.records()
    told = next(record for record in records if record["logger"] == "dotdo.action")
    assert {name: told[name] for name in ("level", "message", "run", "step", "attempt", "actor", "trace_id")} == {
        "level": "info",
        "message": "greeting Ada",
        "run": run,
        "step": "greet-user",
        "attempt": 1,
        "actor": "key:shop",
        "trace_id": TRACE,
    }
    access = [record for record in records if record["logger"] == "dotdo.access"]
    assert [(one["method"], one["route"], one["status"]) for one in access] == [
        ("POST", "/v1/actions/{name}/execute", 200),
        ("GET", "/v1/runs/{id}", 404),
        ("POST", "/v1/actions/{name}/execute", 200),
    ], "probes are not worth a line"
    first = access[0]
    assert first["message"] == "POST /v1/actions/greet-user/execute 200"
    about = ("request_id", "run", "actor", "client", "trace_id")
    assert [first[name] for name in about] == ["req-7", run, "key:shop", "127.0.0.1", TRACE]
    assert 0 < first["seconds"] < 20
    assert first["at"].endswith("Z")
    said = "\n".join(serve.lines)
    assert SECRET not in said
    assert "trying ***" in said
    assert key not in said


def test_terminal_gets_lines_for_people(tmp_path: Path):
    with serving(tmp_path, APPLICATION, terminal=True) as serve:
        run = greet(serve, serve.key(), **{"X-Request-Id": "req-7"}).json()["id"]
        line = serve.said("POST /v1/actions/greet-user/execute 200 in ")
        serve.signal()
        serve.end()
    assert f"run={run} actor=key:shop request_id=req-7" in line
    assert not [each for each in serve.lines if each.startswith("{")]
    assert any("greeting Ada" in each and "step=greet-user attempt=1" in each for each in serve.lines)


def record(message: str, *args: Any, **more: Any) -> logging.LogRecord:
    found = logging.LogRecord("dotdo.test", logging.ERROR, "", 0, message, args, more.pop("exc_info", None))
    vars(found).update(more)
    return found


def raised() -> Any:
    try:
        raise ValueError("line one\nline two\x1b[2J")
    except ValueError as error:
        return (ValueError, error, error.__traceback__)


def test_nobody_can_forge_a_line_or_speak_to_the_terminal():
    forged = record("hello %s", '\x1b[2J\n{"level": "info"}', actor="a\x07b", exc_info=raised())
    text = TextFormatter(colours=False).format(forged)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert [line for line in text.splitlines()[1:] if not line.startswith("    ")] == []
    line = JsonFormatter().format(record("hello %s", "\n{}", odd=object, exc_info=raised()))
    assert len(line.splitlines()) == 1
    told = json.loads(line)
    assert (told["message"], told["level"], told["odd"]) == ("hello \n{}", "error", "<class 'object'>")
    assert "ValueError: line one\nline two" in told["exception"]


class Broken:
    """A platform with a bug."""

    async def list_runs(self, filter: Any) -> Any:
        raise RuntimeError("of all things, list index out of range")


def broken() -> ASGIApp:
    async def platform() -> Any:
        return Broken()

    return make_app(platform, open_access=True)


def test_bug_in_a_route_is_told_to_the_log_and_not_to_the_caller(caplog: pytest.LogCaptureFixture):
    with uvicorn_serving(broken()) as url:
        response = httpx2.get(f"{url}/v1/runs", headers={"X-Request-Id": "req-7"}, timeout=60)
        assert httpx2.get(f"{url}/healthz", timeout=60).status_code == 200, "it goes on"
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["code"], problem["request_id"], problem["retryable"]) == ("internal_error", "req-7", False)
    assert "list index" not in response.text
    assert "Traceback" not in response.text
    (told,) = [record for record in caplog.records if record.name == "dotdo.server"]
    assert told.exc_info is not None
    assert "list index out of range" in str(told.exc_info[1])
    assert (told.levelname, vars(told)["request_id"]) == ("ERROR", "req-7")
