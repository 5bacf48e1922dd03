"""Secret inputs of remote callers: sealed before they are stored, and in no answer, journal, log or file."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dotdo import Context, Do, Fail, Secret, action
from dotdo.errors import ActionFailed, InvalidInput, KeyConflict
from tests.server.running import Running, catalogue

CANARY, OTHER = "correct-horse-battery", "staple-of-another-kind"
SIGN_IN = "/v1/actions/sign-in-over-http/execute"
taken: list[str] = []


@action("sign-in-over-http", catalogue=catalogue, retry=1)
def sign_in(ctx: Context, user: str, password: Secret[str], fail: bool = False) -> str:
    """Takes a secret."""
    taken.append(password.reveal())
    ctx.log.info("trying %s", password.reveal())
    if fail:
        raise Fail(f"wrong password {password.reveal()}")
    return user


@pytest.fixture
def nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Texts to look through when the test has ended; with the log, and every file of the store."""
    caplog.set_level(logging.DEBUG)
    taken.clear()
    texts: list[str] = []
    yield texts
    texts += [caplog.text, *(str(vars(record)) for record in caplog.records)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "dotdo.db"], "there is a store to look through"
    for canary in (CANARY, OTHER):
        assert not any(canary in text for text in texts)
        assert [path for path in files if canary.encode() in path.read_bytes()] == []


def sent(http: httpx2.Client, texts: list[str], params: Any, status: int, **headers: str) -> Any:
    response = http.post(SIGN_IN, json={"params": params}, headers=headers)
    texts += [response.text, str(response.headers)]
    assert response.status_code == status, response.text
    return response.json()


def test_secret_in_a_request_reaches_its_handler_and_nobody_else(server: Running, nowhere: list[str]):
    with server.http() as http:
        run = sent(http, nowhere, {"user": "Ada", "password": CANARY}, 200)
        assert (run["status"], run["result"], taken) == ("completed", "Ada", [CANARY])
        failed = sent(http, nowhere, {"user": "Ada", "password": CANARY, "fail": True}, 200)
        assert (failed["status"], failed["error"]["message"]) == ("failed", "wrong password ***")
        for id in (run["id"], failed["id"]):
            journal = http.get(f"/v1/runs/{id}/journal").text
            assert '"password"' in journal
            nowhere += [journal, http.get(f"/v1/runs/{id}").text]
            with http.stream("GET", f"/v1/runs/{id}/stream") as stream:
                nowhere.append(stream.read().decode())
        nowhere.append(http.get("/v1/runs").text)
        preview = http.post("/v1/actions/sign-in-over-http/preview", json={"params": {"user": "A", "password": OTHER}})
        assert preview.json()["status"] == "completed"
        nowhere.append(preview.text)


def test_same_key_is_compared_without_knowing_the_secret(server: Running, nowhere: list[str]):
    with server.http() as http:
        given = {"user": "Ada", "password": CANARY}
        first = sent(http, nowhere, given, 200, **{"Idempotency-Key": "k"})
        assert sent(http, nowhere, given, 200, **{"Idempotency-Key": "k"})["id"] == first["id"]
        other = sent(http, nowhere, {**given, "password": OTHER}, 422, **{"Idempotency-Key": "k"})
        assert other["code"] == "key_conflict"
    assert taken == [CANARY]


REFUSED: dict[str, tuple[Any, int]] = {
    "another field is wrong": ({"user": 7, "password": CANARY}, 422),
    "the secret is in a wrong field": ({"user": "Ada", "pasword": CANARY}, 422),
    "the secret is in a list": ({"user": "Ada", "password": [CANARY]}, 422),
    "a NUL is in it": ({"user": "Ada", "password": f"{CANARY}\0"}, 422),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_does_not_repeat_the_secret(server: Running, nowhere: list[str], name: str):
    params, status = REFUSED[name]
    with server.http() as http:
        sent(http, nowhere, params, status)
        cut = http.post(
            SIGN_IN, content=f'{{"params": {{"password": "{CANARY}"', headers={"Content-Type": "application/json"}
        )
        assert cut.status_code == 400
        nowhere.append(cut.text)
        assert http.get("/v1/runs").json()["runs"] == []
    assert taken == []


def test_client_with_a_url_takes_secrets(server: Running, nowhere: list[str]):
    with Do(url=server.url, api_key=server.key("*"), catalogue=catalogue) as client:
        assert client.run(sign_in, user="Ada", password=Secret(CANARY)) == "Ada"
        with pytest.raises(ActionFailed) as failed:
            client.run(sign_in, user="Ada", password=Secret(CANARY), fail=True)
        nowhere.append(str(failed.value))
        with pytest.raises(InvalidInput) as refused:
            client.action("sign-in-over-http").invoke(user=1, password=CANARY)
        nowhere.append(str(refused.value))
        client.run(sign_in.with_(key="k"), user="Ada", password=Secret(CANARY))
        with pytest.raises(KeyConflict):
            client.run(sign_in.with_(key="k"), user="Ada", password=Secret(OTHER))
    assert set(taken) == {CANARY}
