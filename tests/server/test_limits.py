"""Limits are met before any work is done: what is too large, too slow, too often or too much at once is refused, with
when to come again; and memory stays bounded."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from dotdo.errors import DefinitionError
from dotdo.keys import Rate, read_rate
from dotdo.server import around, connections, reading, serving, streaming
from dotdo.server.connections import MAX_HEAD, MAX_HEADERS, MAX_URL
from dotdo.server.problems import Refused
from dotdo.server.rates import Rates
from tests.patience import PATIENCE
from tests.server.process import serving as process
from tests.server.running import Running, running, seen

EXECUTE = "/v1/actions/greet-user/execute"


@contextlib.contextmanager
def connected(server: Running) -> Generator[socket.socket]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as found:
        yield found


def answer(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and problem of what comes, read to the connection's end."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


def head_of(server: Running, *lines: str, method: str = "POST", path: str = EXECUTE) -> bytes:
    key = f"Authorization: Bearer {server.key('*')}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", key, *lines, "", ""]).encode()


def no_run(server: Running) -> bool:
    with server.http() as http:
        return http.get("/v1/runs").json()["runs"] == []


# -- heads and bodies -------------------------------------------------------------------------------------------------

HEADS: dict[str, tuple[bytes, int, str]] = {
    "one long header": (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD + 1), 431, "headers_too_large"),
    "a long header that ends": (
        b"GET /healthz HTTP/1.1\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n",
        431,
        "headers_too_large",
    ),
    "many headers": (
        b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        431,
        "headers_too_large",
    ),
    "a long address": (b"GET /" + b"x" * (MAX_URL + 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "url_too_long"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "invalid_request"),
}


@pytest.mark.parametrize("name", HEADS)
def test_head_that_is_too_large_is_refused(server: Running, name: str):
    sent, status, code = HEADS[name]
    with connected(server) as connection:
        connection.sendall(sent)
        found, headers, problem = answer(connection)
    assert (found, problem["code"], problem["status"]) == (status, code, status)
    assert headers["content-type"] == "application/problem+json"
    assert problem["request_id"].startswith("req_")
    assert httpx2.get(f"{server.url}/healthz", timeout=PATIENCE).status_code == 200


def test_head_just_below_the_limits_is_taken(server: Running):
    headers = {f"X-{n}": "y" * 200 for n in range(MAX_HEADERS - 10)}
    assert httpx2.get(f"{server.url}/healthz", headers=headers, timeout=PATIENCE).status_code == 200


def healthy(connection: socket.socket) -> bool:
    """Whether a request on this connection is answered, and not refused."""
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("name", ["a head", "a second head", "nothing"])
def test_slow_head_ends_its_connection(server: Running, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    if name == "nothing":
        with connected(server) as connection:
            assert connection.recv(1) == b""
        return
    found = None
    while found is None:  # on a slow machine we may be too late ourselves: then it hangs up, as if nothing had come
        with connected(server) as connection, contextlib.suppress(ConnectionError):
            if name == "a head" or healthy(connection):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
                found = answer(connection) if connection.recv(1, socket.MSG_PEEK) else None
    status, headers, problem = found
    assert (status, problem["code"], problem["retryable"], headers["retry-after"]) == (
        408,
        "request_timeout",
        True,
        "1",
    )


def test_slow_body_is_refused_and_nothing_has_happened(server: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "BODY_SECONDS", 0.2)
    with connected(server) as connection:
        connection.sendall(head_of(server, "Content-Type: application/json", "Content-Length: 100") + b'{"params": ')
        status, headers, problem = answer(connection)
    assert (status, problem["code"], headers["connection"]) == (408, "request_timeout", "close")
    assert no_run(server)


def test_body_that_trickles_on_after_its_answer_ends_the_connection(server: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "WHOLE_SECONDS", 1.0)
    with connected(server) as connection:
        connection.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
        with contextlib.suppress(ConnectionError):
            until = time.monotonic() + PATIENCE
            while connection.recv(65536) != b"":
                assert time.monotonic() < until


def test_size_is_refused_before_the_body_is_sent_and_the_key_before_both(server: Running):
    length = f"Content-Length: {50 * 1024 * 1024}"
    with connected(server) as connection:
        connection.sendall(head_of(server, "Content-Type: application/json", length))
        assert answer(connection)[2]["code"] == "body_too_large"
    with connected(server) as connection:
        connection.sendall(f"POST {EXECUTE} HTTP/1.1\r\nHost: x\r\n{length}\r\nConnection: close\r\n\r\n".encode())
        assert answer(connection)[0] == 401


# -- how often --------------------------------------------------------------------------------------------------------


def test_rate_of_a_key_is_met_before_its_body_is_looked_at(server: Running):
    key = server.key("*", rate="3/m")
    seen.clear()
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE) as http:
        answers = [http.post(EXECUTE, json={"params": {"name": "Ada"}}) for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 200]
        assert [one.headers["ratelimit"].split(";")[1] for one in answers] == ["r=2", "r=1", "r=0"]
        assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=60'
        refused = http.post(EXECUTE, content=b"not even JSON")
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (429, "rate_limited", True)
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert http.get("/healthz").status_code == 200, "probes need no key, and count for none"
    assert seen == ["Ada"] * 3
    with server.http() as other:
        assert other.get("/v1/runs").status_code == 200, "another key has a rate of its own: none"


def test_steering_a_run_counts_once(server: Running):
    """Its key is looked at twice: before the run is known, and then with its name."""
    with server.http() as http:
        id = http.post(EXECUTE, json={"params": {"name": "Ada"}}).json()["id"]
    key = server.key("*", rate="2/h")
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE) as http:
        assert [http.get(f"/v1/runs/{id}").status_code for _ in range(3)] == [200, 200, 429]


def test_server_has_a_rate_for_keys_without_one(tmp_path: Path):
    with running(tmp_path / "dotdo.db", rate=Rate(2, 3600)) as server:
        with server.http("runs:read") as http:
            assert [http.get("/v1/runs").status_code for _ in range(3)] == [200, 200, 429]
        key = server.key("*", rate="5/h")
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=server.url, headers=headers, timeout=PATIENCE) as http:
            assert [http.get("/v1/runs").status_code for _ in range(5)] == [200] * 5


def test_bucket_fills_evenly(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("dotdo.server.rates.time.monotonic", lambda: now[0])
    rates = Rates(Rate(10, 1))

    def take() -> int:
        try:
            rates.take("key_1", None)
        except Refused:
            return 0
        return 1

    taken = sum(take() for _ in range(50))
    assert taken == 10, "at once, what the bucket holds"
    for _ in range(100):
        now[0] += 0.0625
        taken += take()
    assert taken == 10 + 62, "then as many as it says"
    now[0] += 3600
    assert sum(take() for _ in range(50)) == 10, "no more are saved up"


@pytest.mark.parametrize("text", ["", "0/s", "10", "10/", "/s", "-1/s", "1.5/s", "10/w", "10 / s", "1e3/s"])
def test_rate_that_means_nothing_is_refused(text: str):
    with pytest.raises(DefinitionError, match="is no rate"):
        read_rate(text)


# -- how many at once -------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(server: Running) -> Iterator[Any]:
    """A run, and long-polls for it that have been begun by threads."""
    threads: list[threading.Thread] = []
    with server.http() as http:
        body = {"params": {"name": "Ada"}}
        run = http.post("/v1/services/approval/execute", json=body, headers={"Prefer": "respond-async"}).json()["id"]

        def poll(key: str) -> None:
            headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=20"}
            httpx2.get(f"{server.url}/v1/runs/{run}", headers=headers, timeout=60)

        def begin(key: str) -> None:
            before = in_flight()
            threads.append(threading.Thread(target=poll, args=(key,)))
            threads[-1].start()
            until = time.monotonic() + PATIENCE
            while in_flight() == before:
                assert time.monotonic() < until

        def in_flight() -> int:
            text = http.get("/metrics").text.split("\ndotdo_http_requests_in_flight ")[1]
            return int(text.split()[0])

        yield run, begin
        monkeypatched = server.key("*")
        headers = {"Authorization": f"Bearer {monkeypatched}"}
        sent = httpx2.post(f"{server.url}/v1/runs/{run}/events", json={"name": "answer"}, headers=headers, timeout=60)
        assert sent.status_code == 202
    for thread in threads:
        thread.join(PATIENCE)


def test_too_many_requests_at_once_are_turned_away(server: Running, waiting: Any, monkeypatch: pytest.MonkeyPatch):
    _, begin = waiting
    begin(server.key("*"))
    with monkeypatch.context() as patch:
        patch.setattr(around, "MOST_AT_ONCE", 1)
        refused = httpx2.get(f"{server.url}/healthz", timeout=PATIENCE)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")
    assert httpx2.get(f"{server.url}/healthz", timeout=PATIENCE).status_code == 200


def test_one_key_cannot_take_all_places(server: Running, waiting: Any, monkeypatch: pytest.MonkeyPatch):
    run, begin = waiting
    greedy = server.key("*", name="greedy")
    begin(greedy)
    with monkeypatch.context() as patch:
        patch.setattr(serving, "MOST_OF_ONE", 1)
        url, headers = f"{server.url}/v1/runs/{run}", {"Authorization": f"Bearer {greedy}"}
        refused = httpx2.get(url, headers=headers, timeout=PATIENCE)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")
        other = {"Authorization": f"Bearer {server.key('*', name='modest')}"}
        assert httpx2.get(url, headers=other, timeout=PATIENCE).status_code == 200


def test_streams_of_a_key_are_bounded_and_a_closed_one_makes_room(
    server: Running, waiting: Any, monkeypatch: pytest.MonkeyPatch
):
    run, _ = waiting
    monkeypatch.setattr(streaming, "MOST_STREAMS", 2)
    with server.http() as http:
        path = f"/v1/runs/{run}/stream"
        with http.stream("GET", path) as one, http.stream("GET", path) as two:
            begun = [one.iter_bytes(), two.iter_bytes()]
            assert [b"retry" in next(each) for each in begun] == [True, True]
            with http.stream("GET", path) as refused:
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        until = time.monotonic() + PATIENCE
        while True:
            with http.stream("GET", path) as again:
                if again.status_code == 200:
                    break
            assert time.monotonic() < until


def test_runs_are_refused_while_too_many_are_under_way(server: Running):
    engine = server.call(server.client.platform())
    with server.http() as http:
        engine.capacity = 0
        refused = http.post(EXECUTE, content=b"not even JSON")
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "overloaded", "1")
        engine.capacity = 20_000
        assert http.post(EXECUTE, json={"params": {"name": "Ada"}}).status_code == 200
        assert len(http.get("/v1/runs").json()["runs"]) == 1


def test_too_many_connections_are_told_so(server: Running, monkeypatch: pytest.MonkeyPatch):
    with connected(server) as first:
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        made = connections.Connection.__init__

        def init(self: Any, *args: Any, limit: int, **kwargs: Any) -> None:
            made(self, *args, limit=1, **kwargs)

        monkeypatch.setattr(connections.Connection, "__init__", init)
        with connected(server) as second:
            status, headers, problem = answer(second)
        assert (status, problem["code"], headers["retry-after"]) == (503, "overloaded", "1")


# -- memory -----------------------------------------------------------------------------------------------------------

TALKATIVE = '''
from dotdo import publish, service, wait_for_event

@service("talk")
async def talk(times: int) -> None:
    """Publishes megabytes."""
    for number in range(times):
        publish({"number": number, "text": "x" * 16_000})
    await wait_for_event("enough")
'''
READERS, ENTRIES = 40, 600


def test_readers_who_never_read_cost_bounded_memory(tmp_path: Path):
    with process(tmp_path, TALKATIVE, "--open") as serve:
        url = serve.url()
        with serve.http() as http:
            headers = {"Prefer": "respond-async"}
            body = {"params": {"times": ENTRIES}}
            run = http.post("/v1/services/talk/execute", json=body, headers=headers).json()["id"]
            until = time.monotonic() + PATIENCE
            while len(http.get(f"/v1/runs/{run}/journal", params={"after": ENTRIES}).json()["entries"]) == 0:
                assert time.monotonic() < until
            host, _, port = url.removeprefix("http://").partition(":")
            server = psutil.Process(serve.process.pid)
            before = server.memory_info().rss
            with contextlib.ExitStack() as stack:
                for _ in range(READERS):
                    connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE))
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.sendall(f"GET /v1/runs/{run}/stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                for _ in range(50):  # the server is asked meanwhile, and answers
                    assert http.get("/healthz").status_code == 200
                    assert http.get(f"/v1/runs/{run}").status_code == 200
                grown = server.memory_info().rss - before
            unread = READERS * ENTRIES * 16_000
            assert unread > 350e6
            assert grown < 120e6, f"{grown / 1e6:.0f} MB for {unread / 1e6:.0f} MB that nobody reads"


def test_reader_who_never_reads_is_cut_off(server: Running, monkeypatch: pytest.MonkeyPatch):
    with server.http() as http:
        body = {"params": {"name": "x" * 1_000_000}}
        run = http.post(EXECUTE, json=body).json()["id"]
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.2)  # only now: who reads a megabyte may be held up for as long
    with connected(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError):  # it may be cut off before it has asked for all of that
            for _ in range(30):  # answers of a megabyte each, none of which is read
                connection.sendall(head_of(server, method="GET", path=f"/v1/runs/{run}/journal"))
        until = time.monotonic() + PATIENCE
        while open_connections(server):
            assert time.monotonic() < until


def open_connections(server: Running) -> int:
    """Connections to the server that this process, which is both ends, still has open on the server's side."""
    port = int(server.url.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return sum(one.laddr.port == port and one.status == "ESTABLISHED" for one in found if one.laddr)
