"""The HTTP connector against real servers: what is sent, and what each kind of answer means."""

import asyncio
import base64
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    DefinitionError,
    EffectCall,
    Fail,
    FromSecret,
    Retry,
    RetryLater,
    action,
)
from dotdo.connectors import http
from dotdo.connectors.http import Answer, HttpClient, NotSent
from dotdo.errors import CalledOutside
from tests.connectors.servers import HANG_UP, SILENCE, Reply, http_server

JSON = {"Content-Type": "application/json"}


def call(method: str, url: str, *, client: HttpClient | None = None, **options: Any) -> Answer:
    made = EffectCall("run_1.0123.0", "run_1", "call#1", 1, resources={HttpClient: client or HttpClient()})
    return asyncio.run(http.call.plain(made, method, url, **options))


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_call_sends_method_path_key_and_json():
    with http_server() as server:
        call("post", f"{server.url}/orders?dry=1", json={"name": "Ada", "cents": 5}, headers={"X-Test": "1"})
    [request] = server.requests
    assert (request.method, request.path, request.json) == ("POST", "/orders?dry=1", {"name": "Ada", "cents": 5})
    assert request.headers["idempotency-key"] == "run_1.0123.0"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-test"] == "1"


def test_preview_shows_the_call_and_makes_none():
    @action("call-in-a-preview")
    async def order(ctx: AsyncContext, now: bool) -> int:
        if now:
            return (await ctx.request(http.call, method="get", url=f"{server.url}/orders")).status
        http.post(f"{server.url}/orders?dry=1", json={"name": "Ada"}, headers={"X-Test": "1"})
        return 0

    async def main() -> None:
        client = HttpClient(headers={server.url: {"Authorization": "Bearer hush"}})
        async with AsyncDo("sqlite://", resources=[client]) as do:
            staged, requested = await do.preview(order, now=False), await do.preview(order, now=True)
        assert (staged.effects[0].text or "").splitlines() == [
            f"POST {server.url}/orders?dry=1",
            "content-type: application/json",
            "authorization: ***",
            "x-test: 1",
            "",
            '{"name":"Ada"}',
        ]
        assert (requested.status, requested.effects[0].text) == (
            "incomplete",
            f"GET {server.url}/orders\nauthorization: ***",
        )
        assert "hush" not in str(staged) + str(requested)

    with http_server() as server:
        asyncio.run(main())
        assert server.connections == 0


def test_form_is_sent_url_encoded():
    with http_server() as server:
        call("POST", server.url, form={"email": "ada@example.com", "n": 2, "vip": True, "tag": ["a b", "c"]})
    [request] = server.requests
    assert request.body == b"email=ada%40example.com&n=2&vip=true&tag=a+b&tag=c"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"


def test_text_is_sent_as_utf8_under_a_content_type_that_can_be_chosen():
    with http_server() as server:
        call("PUT", server.url, text="ö")
        call("PUT", server.url, text="<ö/>", headers={"Content-Type": "application/xml"})
    assert [request.body.decode() for request in server.requests] == ["ö", "<ö/>"]
    assert [r.headers["content-type"] for r in server.requests] == ["text/plain; charset=utf-8", "application/xml"]


def test_call_without_a_body_sends_none():
    with http_server() as server:
        call("DELETE", server.url)
    assert server.requests[0].body == b""
    assert "content-type" not in server.requests[0].headers


@pytest.mark.parametrize(
    "method, url, options, problem",
    [
        ("GE T", "http://localhost", {}, "not an HTTP method"),
        ("GET", "localhost/path", {}, "is wrong"),
        ("GET", "ftp://localhost", {}, "is wrong"),
        ("GET", "/path", {}, "is wrong"),
        ("GET", "http://localhost:99999", {}, "is wrong"),
        ("GET", "http://local host", {}, "is wrong"),
        ("GET", "http://localhost/a\r\nX: y", {}, "is wrong"),
        ("GET", "http://user:secret@localhost", {}, "holds a password"),
        ("GET", "http://localhost", {"headers": {"X Y": "1"}}, "header 'X Y' is wrong"),
        ("GET", "http://localhost", {"headers": {"X": "1\r\nY: 2"}}, "header 'X' is wrong"),
        ("GET", "http://localhost", {"headers": {"idempotency-key": "1"}}, "effect's own key"),
        ("POST", "http://localhost", {"json": 1, "text": "1"}, "Only one"),
    ],
)
def test_call_that_cannot_work_is_refused_for_good(method: str, url: str, options: dict[str, Any], problem: str):
    with pytest.raises(Fail, match=problem) as caught:
        call(method, url, **options)
    assert "secret" not in str(caught.value)


# -- what is answered --------------------------------------------------------------------------------------------------


def test_answer_has_status_headers_of_interest_and_json():
    headers = {**JSON, "ETag": '"1"', "Location": "/orders/1", "Set-Cookie": "a=b", "X-Other": "no"}
    with http_server() as server:
        server.replies = [Reply(201, b'{"id": 1}', headers)]
        answer = call("POST", server.url)
    kept = {"content-type": "application/json", "etag": '"1"', "location": "/orders/1"}
    assert answer == Answer(201, kept, {"id": 1})


@pytest.mark.parametrize(
    "body, kind, expected",
    [
        (b'{"a": [1, null]}', "application/problem+json; charset=utf-8", {"a": [1, None]}),
        (b'{"a"', "application/json", '{"a"'),
        (b"NaN", "application/json", "NaN"),
        (b'"\\u0000"', "application/json", '"\\u0000"'),
        (b"[" * 200 + b"]" * 200, "application/json", "[" * 200 + "]" * 200),
        (b"[" * 50 + b"]" * 50, "application/json", json.loads("[" * 50 + "]" * 50)),
        (b'{"a": 1}', "text/plain", '{"a": 1}'),
        ("ö".encode("latin-1"), "text/plain; charset=latin-1", "ö"),
        ("ö".encode(), 'text/plain; charset="no-such"', "ö"),
        (b"a\xff\0b", "application/octet-stream", "a\ufffd\ufffdb"),
        (b"", "application/json", None),
    ],
)
def test_body_is_decoded_json_or_else_text(body: bytes, kind: str, expected: Any):
    with http_server() as server:
        server.replies = [Reply(200, body, {"Content-Type": kind})]
        assert call("GET", server.url).body == expected


def test_long_body_is_cut_at_one_mebibyte_and_says_so():
    with http_server() as server:
        server.replies = [Reply(200, b"x" * 5_000_000, JSON), Reply(200, b"x" * 1024 * 1024)]
        long, fitting = call("GET", server.url), call("GET", server.url)
    assert (len(long.body), long.truncated) == (1024 * 1024, True)
    assert (len(fitting.body), fitting.truncated) == (1024 * 1024, False)


def test_compressed_answers_are_not_asked_for():
    with http_server() as server:
        call("GET", server.url)
        assert server.requests[0].headers["accept-encoding"] == "identity"
        server.replies = [Reply(200, gzip.compress(b'{"a": 1}'), {**JSON, "Content-Encoding": "gzip"})]
        assert call("GET", server.url).body == {"a": 1}


# -- what refusals mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
def test_refusal_is_final_and_shows_status_and_body(status: int):
    with http_server() as server:
        server.replies = [Reply(status, b"No such customer." + b"x" * 1000)]
        with pytest.raises(Fail) as caught:
            call("POST", f"{server.url}/orders?token=secret")
    assert caught.value.message.startswith(f"POST {server.url}/orders was answered with {status}: No such customer.x")
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_busy_or_broken_server_may_be_asked_again(status: int):
    with http_server() as server:
        server.replies = [Reply(status, b"")]
        with pytest.raises(RetryLater, match=f"answered with {status}: no body") as caught:
            call("POST", server.url)
    assert caught.value.after is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_final_and_not_followed(status: int):
    with http_server() as server:
        server.replies = [Reply(status, b"", {"Location": "/elsewhere?token=secret"})]
        with pytest.raises(Fail, match=r"a redirect to /elsewhere, which is not followed"):
            call("POST", server.url)
        assert len(server.requests) == 1


def test_expected_statuses_replace_those_of_success():
    with http_server() as server:
        server.replies = [Reply(404, b'"gone"'), Reply(503), Reply(200)]
        assert call("DELETE", server.url, expect=[404]) == Answer(404, {"content-type": "application/json"}, "gone")
        assert call("DELETE", server.url, expect=[503]).status == 503
        with pytest.raises(Fail, match="answered with 200"):
            call("DELETE", server.url, expect=[404])


def test_status_can_be_declared_worth_another_try():
    with http_server() as server:
        server.replies = [Reply(409, b"in progress")]
        with pytest.raises(RetryLater, match="409: in progress"):
            call("POST", server.url, retry_on=[409])


@pytest.mark.parametrize(
    "value, low, high",
    [
        ("7", 7, 7),
        ("0", 0, 0),
        (timedelta(minutes=10), 500, 600),
        (timedelta(minutes=-10), 0, 0),
        ("99999999", 86400, 86400),
    ],
)
def test_retry_after_says_when(value: str | timedelta, low: float, high: float):
    if isinstance(value, timedelta):  # as a date
        value = format_datetime(datetime.now(UTC) + value, usegmt=True)
    with http_server() as server:
        server.replies = [Reply(429, b"", {"Retry-After": value})]
        with pytest.raises(RetryLater) as caught:
            call("GET", server.url)
    assert caught.value.after is not None
    assert low <= caught.value.after <= high


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "9" * 400, ""])
def test_retry_after_that_makes_no_sense_is_left_to_the_policy(value: str):
    with http_server() as server:
        server.replies = [Reply(503, b"", {"Retry-After": value})]
        with pytest.raises(RetryLater) as caught:
            call("GET", server.url)
    assert caught.value.after is None


def test_network_errors_name_the_call_and_may_be_tried_again():
    with http_server() as server:
        server.replies = [Reply(behaviour=HANG_UP)]
        with pytest.raises(ConnectionError, match=f"POST {server.url}/a: "):
            call("POST", f"{server.url}/a?token=secret")
    with pytest.raises(ConnectionError, match=f"GET {server.url}/a: "):
        call("GET", f"{server.url}/a")


def test_what_was_certainly_not_made_is_told_from_what_nobody_knows():
    """Certain: refused, or nothing was sent. Everything after the first byte has left is unknown."""
    with http_server() as server:
        certain = [Reply(408), Reply(425), Reply(429), Reply(503, b"", {"Retry-After": "1"})]
        unknown = [Reply(500), Reply(502), Reply(503), Reply(504)]
        server.replies = [*certain, *unknown]
        for _ in certain:
            with pytest.raises(RetryLater) as caught:
                call("POST", server.url)
            assert not caught.value.unknown
        for _ in unknown:
            with pytest.raises(RetryLater) as caught:
                call("POST", server.url)
            assert caught.value.unknown
        for behaviour, error, timeout in ((HANG_UP, ConnectionError, 60), (SILENCE, TimeoutError, 1)):
            server.replies = [Reply(behaviour=behaviour)]
            with pytest.raises(error) as lost:
                call("POST", server.url, timeout=timeout)
            assert not isinstance(lost.value, RetryLater)
    for url in (server.url, "http://does-not-exist.invalid", server.url.replace("http:", "https:")):
        with pytest.raises(NotSent) as not_sent:
            call("POST", url)
        assert not not_sent.value.unknown


def test_silent_server_is_left_after_the_timeout():
    with http_server() as server:
        for of_client in (False, True):
            seconds, told = 0.05, "no connection"
            while "no connection" in told:  # on a slow machine time may be over before anything was sent
                server.replies, seconds = [Reply(behaviour=SILENCE)], 2 * seconds
                with pytest.raises((TimeoutError, NotSent)) as caught:
                    call(
                        "GET",
                        server.url,
                        client=HttpClient(timeout=seconds if of_client else 60),
                        timeout=None if of_client else seconds,
                    )
                told = str(caught.value)
            assert isinstance(caught.value, TimeoutError)
            assert told == f"GET {server.url}: no complete answer within {seconds:g} s."


# -- the client --------------------------------------------------------------------------------------------------------


def test_headers_go_to_their_base_url_only():
    headers = {
        "https://api.example.com": {"Authorization": "A"},
        "https://api.example.com/v2/": {"authorization": "B", "X": "1"},
    }
    client = HttpClient(headers=headers)
    assert client.headers_for("https://api.example.com") == {"authorization": "A"}
    assert client.headers_for("https://api.example.com:443/v1/a?b") == {"authorization": "A"}
    assert client.headers_for("https://API.example.com/v2") == {"authorization": "B", "x": "1"}
    assert client.headers_for("https://api.example.com/v2/a") == {"authorization": "B", "x": "1"}
    assert client.headers_for("https://api.example.com/v22") == {"authorization": "A"}
    for other in ("http://api.example.com", "https://api.example.com:8443", "https://api.example.com.evil.org/v2"):
        assert client.headers_for(other) == {}


def test_headers_of_a_call_win_over_those_of_the_client():
    with http_server() as server:
        client = HttpClient(headers={server.url: {"Authorization": "Bearer client", "X-From": "client"}})
        call("GET", server.url, client=client, headers={"x-from": "call"})
    assert server.requests[0].headers["authorization"] == "Bearer client"
    assert server.requests[0].headers["x-from"] == "call"


def test_wrong_headers_are_refused_when_the_client_is_made():
    with pytest.raises(DefinitionError, match=r"HttpClient\(headers=\.\.\.\): The URL 'api' is wrong"):
        HttpClient(headers={"api": {}})
    with pytest.raises(DefinitionError, match="header 'X' is wrong"):
        HttpClient(headers={"https://api.example.com": {"X": "\n"}})


def test_open_client_keeps_connections_and_bounds_them():
    async def scenario() -> None:
        async with HttpClient(connections=3) as client:
            made = [EffectCall(str(index), "run_1", "s", 1, resources={HttpClient: client}) for index in range(20)]
            await asyncio.gather(*(http.call.plain(one, "POST", server.url) for one in made))
            assert server.connections <= 3

    with http_server() as server:
        asyncio.run(scenario())
        assert {request.headers["idempotency-key"] for request in server.requests} == {str(n) for n in range(20)}


def test_cookies_of_an_answer_are_not_sent_back():
    async def scenario() -> None:
        async with HttpClient() as client:
            made = EffectCall("key", "run_1", "s", 1, resources={HttpClient: client})
            await http.call.plain(made, "GET", server.url)
            await http.call.plain(made, "GET", server.url)

    with http_server() as server:
        server.replies = [Reply(200, b"", {"Set-Cookie": "session=1; Path=/"})]
        asyncio.run(scenario())
        assert "cookie" not in server.requests[1].headers


def test_client_in_use_refuses_a_second_one():
    async def scenario() -> None:
        async with HttpClient() as client:
            with pytest.raises(DefinitionError, match="one of its own"):
                async with client:
                    pass

    asyncio.run(scenario())


def test_url_is_sent_as_it_was_given():
    """It may be signed; only what cannot stand in a URL is escaped."""
    given = ["/a%2Fb/%7Ec?sig=a%2fb%3D+c&d[]=1", "/ö?é=<|>", "", "?a=%", "/x?u=http://b/c#part"]
    sent = ["/a%2Fb/%7Ec?sig=a%2fb%3D+c&d[]=1", "/%C3%B6?%C3%A9=%3C|%3E", "/", "/?a=%", "/x?u=http://b/c"]
    with http_server() as server:
        for path in given:
            call("GET", f"{server.url}{path}")
    assert [request.path for request in server.requests] == sent


def test_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch):
    with http_server() as server:
        monkeypatch.setenv("http_proxy", server.url)
        call("POST", "http://does-not-exist.invalid/a", json=1)
    assert [request.path for request in server.requests] == ["http://does-not-exist.invalid/a"]


def test_proxy_may_want_a_password_and_is_not_for_all_hosts(monkeypatch: pytest.MonkeyPatch):
    with http_server() as server, http_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("://", "://user:p%40ss@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        call("GET", f"{server.url}/a")
        call("GET", "http://does-not-exist.invalid/b", headers={"Authorization": "Bearer token"})
    assert [request.path for request in server.requests] == ["/a"]
    [proxied] = proxy.requests
    assert proxied.headers["proxy-authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"
    assert (proxied.path, proxied.headers["authorization"]) == ("http://does-not-exist.invalid/b", "Bearer token")


def test_passwords_that_the_user_keeps_for_other_programs_are_not_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with http_server() as server:
        call("GET", server.url)
        call("GET", server.url, headers={"Authorization": "Bearer token"})
    assert [request.headers.get("authorization") for request in server.requests] == [None, "Bearer token"]


def test_call_visits_no_thread():
    """A visit costs as much as the call itself."""

    class Executor(ThreadPoolExecutor):
        visits = 0

        def submit(self, *given: Any, **more: Any) -> Any:
            self.visits += 1
            return super().submit(*given, **more)

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(executor)
        async with HttpClient() as client:
            made = EffectCall("key", "run_1", "s", 1, resources={HttpClient: client})
            await http.call.plain(made, "POST", server.url, json=1)

    executor = Executor()
    with http_server() as server:
        asyncio.run(scenario())
    assert (len(server.requests), executor.visits) == (1, 0)


def test_error_of_the_library_does_not_show_the_query():
    with http_server() as server:
        server.replies = [Reply(200, b"", {"X-Large": "x" * 100_000})]
        with pytest.raises(ConnectionError, match=f"GET {server.url}/a: .*too long|Got more than") as caught:
            call("GET", f"{server.url}/a?token=secret")
    assert "secret" not in str(caught.value)


def test_kept_connection_that_was_closed_is_certain_for_what_is_idempotent_only():
    """The server hangs up on the second request of a connection: PUT is sent again at once, of a POST nobody knows."""

    async def scenario() -> None:
        async with HttpClient(connections=1) as client:
            made = EffectCall("key", "run_1", "s", 1, resources={HttpClient: client})
            await http.call.plain(made, "GET", server.url)
            await http.call.plain(made, "PUT", server.url)
            assert server.connections == 2
            server.replies = [Reply(behaviour=HANG_UP)]
            with pytest.raises(ConnectionError) as caught:
                await http.call.plain(made, "POST", server.url)
            assert not isinstance(caught.value, RetryLater)

    with http_server() as server:
        server.replies = [Reply(), Reply(behaviour=HANG_UP)]
        asyncio.run(scenario())
        assert [request.method for request in server.requests] == ["GET", "PUT", "PUT", "POST"]
        assert {request.headers["idempotency-key"] for request in server.requests} == {"key"}


# -- in handlers, on the real engine -----------------------------------------------------------------------------------


@action("test-http.stage")
def stage(url: str, then_raise: bool = False) -> list[str]:
    staged = [
        http.post(url, json={"n": 1}),
        http.put(url, form={"n": 2}),
        http.patch(url, text="3", headers={"X-N": "3"}),
        http.delete(url, expect=[200, 404]),
    ]
    if then_raise:
        raise Fail("changed my mind")
    return [one.id for one in staged]


@action("test-http.request", retry=Retry(attempts=2, delay=0))
async def request(ctx: AsyncContext, url: str) -> dict[str, Any]:
    answer = await ctx.request(http.call, method="POST", url=url, json={"n": 1})
    if ctx.attempt == 1:
        raise RuntimeError("after the answer")
    return {"status": answer.status, "body": answer.body}


def run(name: str, *resources: Any, store: str = "sqlite://", secrets: Any = None, **params: Any) -> Any:
    async def scenario() -> Any:
        async with AsyncDo(store, resources=resources, secrets=secrets) as client:
            return await client.action(name).invoke(**params)

    return asyncio.run(scenario())


def test_staged_calls_leave_after_the_commit_under_their_keys():
    with http_server() as server:
        ids = run("test-http.stage", url=server.url)
    sent = {request.method: request for request in server.requests}
    assert [sent[method].headers["idempotency-key"] for method in ("POST", "PUT", "PATCH", "DELETE")] == ids
    assert (sent["POST"].body, sent["PUT"].body, sent["PATCH"].body) == (b'{"n":1}', b"n=2", b"3")
    assert sent["PATCH"].headers["x-n"] == "3"
    assert len(set(ids)) == 4


def test_handler_that_raises_calls_nobody():
    with http_server() as server:
        with pytest.raises(ActionFailed, match="changed my mind"):
            run("test-http.stage", url=server.url, then_raise=True)
        assert server.requests == []


def test_staged_call_that_cannot_work_fails_the_attempt_at_once():
    with pytest.raises(ActionFailed, match="The URL 'nowhere' is wrong") as caught:
        run("test-http.stage", url="nowhere")
    assert caught.value.attempts == 1


def test_answer_of_a_request_is_replayed_to_the_next_attempt():
    with http_server() as server:
        server.replies = [Reply(201, b'{"id": 7}')]
        assert run("test-http.request", url=server.url) == {"status": 201, "body": {"id": 7}}
        assert len(server.requests) == 1


def test_headers_of_the_client_are_in_no_file_of_the_store(tmp_path: Path):
    with http_server() as server:
        client = HttpClient(headers={server.url: {"Authorization": "Bearer very-secret"}})
        run("test-http.stage", client, store=f"sqlite:///{tmp_path / 'dotdo.db'}", url=server.url)
        assert {request.headers["authorization"] for request in server.requests} == {"Bearer very-secret"}
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert server.url.encode() in stored
    assert b"very-secret" not in stored


def test_a_header_may_be_made_of_a_secret(tmp_path: Path):
    text = "echoed-to-whom-it-may-concern"
    with http_server() as server:
        server.replies = [Reply(400, f"{'x' * 488}{text}".encode()), Reply(200)]
        client = HttpClient(headers={server.url: {"Authorization": FromSecret("API_KEY", "Bearer {}")}})
        assert text not in repr(client.headers_for(server.url))
        store = f"sqlite:///{tmp_path / 'dotdo.db'}"
        with pytest.raises(ActionFailed) as caught:
            run("test-http.stage", client, store=store, secrets={"API_KEY": text}, url=server.url)
        run("test-http.stage", client, store=store, secrets={"API_KEY": text}, url=server.url)
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {text}"}
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    # The server's answer is cut in the middle of it.
    assert text[:12] not in str(caught.value)
    assert text[:12].encode() not in stored


def test_a_secret_that_cannot_be_a_header_is_refused_without_showing_it():
    client = HttpClient(headers={"https://api.example.com": {"Authorization": FromSecret("API_KEY")}})
    made = EffectCall("k", "run_1", "s", 1, resources={HttpClient: client}, secrets={"API_KEY": "two\nlines"})
    with pytest.raises(DefinitionError, match="The secret 'API_KEY' cannot be in the header") as caught:
        asyncio.run(http.call.plain(made, "GET", "https://api.example.com/x"))
    assert "lines" not in str(caught.value).replace("line breaks", "")


def test_staging_outside_a_handler_is_refused():
    with pytest.raises(CalledOutside, match="outside a handler"):
        http.post("http://localhost")
