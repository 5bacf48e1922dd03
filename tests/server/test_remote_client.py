"""A client with a URL behaves as an embedded one; what it cannot know, it says."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from dotdo import AsyncDo, Do
from dotdo.errors import (
    AccessDenied,
    ActionFailed,
    DefinitionError,
    InvalidInput,
    InvalidOperation,
    KeyConflict,
    OutcomeUnknown,
    StillRunning,
    UnknownName,
    Unreachable,
)
from dotdo.records import keyed_run_id
from tests.server.running import Running, approval, catalogue, countdown, greet_user, refuse


@pytest.fixture
def client(server: Running) -> Iterator[Do]:
    with Do(url=server.url, api_key=server.key("*"), catalogue=catalogue) as found:
        yield found


def test_typed_call_by_definition(client: Do):
    assert client.run(greet_user, name="Ada") == {"text": "Hello, Ada"}


def test_call_by_name_gives_the_run(client: Do):
    run = client.action.execute(name="greet-user", params={"name": "Ada", "polite": True})
    assert (run.status, run.result, run.key) == ("completed", {"text": "Good day, Ada"}, None)
    assert client.runs.get(run.id) == run


def test_failure_is_raised_as_when_embedded(client: Do):
    with pytest.raises(ActionFailed, match="refuse failed: not today") as failed:
        client.run(refuse, reason="not today")
    assert (failed.value.error_type, failed.value.step) == ("Fail", "refuse")
    assert client.runs.get(failed.value.run_id or "").status == "failed"


def test_wrong_input_names_every_problem(client: Do):
    with pytest.raises(InvalidInput) as refused:
        client.action("greet-user").invoke(nam="Ada")
    assert {problem.path for problem in refused.value.problems} == {"$.nam", "$.name"}


def test_unknown_names_are_refused(client: Do):
    with pytest.raises(UnknownName, match="Did you mean greet-user"):
        client.action("greet-usr").invoke(name="Ada")
    with pytest.raises(UnknownName):
        client.runs.get("run_0")


def test_key_is_one_run(client: Do):
    first = client.action.execute(name="greet-user", params={"name": "Ada"}, key="signup:1")
    again = client.action.execute(name="greet-user", params={"name": "Ada"}, key="signup:1")
    assert (again.id, again.result, again.key) == (first.id, first.result, "signup:1")
    with pytest.raises(KeyConflict):
        client.action.execute(name="greet-user", params={"name": "Eve"}, key="signup:1")


def test_key_of_a_run_under_way_waits_for_its_end(client: Do):
    handle = client.service("approval", key="a:1").start(name="Ada")
    again = client.service("approval", key="a:1").start(name="Ada")
    assert again.id == handle.id
    handle.send_event("answer", "yes")
    assert again.result(timeout=60) == {"said": "yes", "text": "Hello, Ada"}


def test_service_with_event_progress_journal_and_listing(client: Do):
    handle = client.start(approval, name="Ada")
    assert next(iter(handle.progress())) == {"greeted": "Hello, Ada"}
    with pytest.raises(StillRunning):
        handle.result(timeout=0.1)
    handle.send_event("answer", {"ok": True}, key="once")
    handle.send_event("answer", {"ok": False}, key="once")
    assert handle.result(timeout=60) == {"said": {"ok": True}, "text": "Hello, Ada"}
    kinds = [entry.kind for entry in handle.journal()]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "ended"
    assert kinds.count("event") == 1
    with pytest.raises(InvalidOperation):
        handle.send_event("answer", "late")


def test_erased_run_says_so_over_http(server: Running, client: Do):
    handle = client.start(approval, name="Ada")
    handle.send_event("answer", {"ok": True})
    handle.result(timeout=60)
    with pytest.raises(InvalidOperation, match="erased where the server runs"):
        client.runs.erase(handle.id)
    assert server.call(server.client.runs.erase(handle.id, actor="ada")) >= 1
    run = client.runs.get(handle.id)
    assert (run.status, run.result, run.progress, run.erased_by) == ("completed", None, None, "ada")
    assert {entry.data for entry in handle.journal()[:-1]} == {""}
    assert list(handle.progress()) == []
    with pytest.raises(InvalidOperation, match="there is no result to give"):
        handle.result(timeout=60)
    with pytest.raises(InvalidOperation, match="nothing left to undo it from"):
        client.runs.undo(handle.id)


def test_pages_of_runs_are_read_through(client: Do):
    ids = [client.action.execute(name="greet-user", params={"name": f"N{n}"}).id for n in range(5)]
    assert [run.id for run in client.runs.list(name="greet-user", limit=3)] == ids[:-4:-1]
    third = client.runs.get(ids[2])
    assert [run.id for run in client.runs.list(name="greet-user", before=third)] == ids[1::-1]


def test_runs_are_found_by_their_labels(client: Do):
    for name, tier in (("Ada", "gold"), ("Eve", "tin")):
        client.action.execute(name="greet-user", params={"name": name}, labels={"tier": tier, "of": "a=b"})
    assert [run.result for run in client.runs.list(labels={"tier": "gold", "of": "a=b"})] == [{"text": "Hello, Ada"}]
    assert client.runs.list(labels={"tier": "gold", "of": "c"}) == []


def test_priority_goes_with_the_call(client: Do):
    assert client.action.execute(name="greet-user", params={"name": "Ada"}, priority=10).priority == 10
    handle = client.start(countdown.with_(priority=-3), left=1)
    handle.result(timeout=60)
    first = client.runs.get(handle.id)
    assert (first.priority, handle.get().priority, handle.get().continues) == (-3, -3, first.id)
    with pytest.raises(DefinitionError, match="from -10 to 10"):
        client.action("greet-user", priority=11)


def test_service_that_goes_on_as_new_is_followed_to_its_end(client: Do):
    assert client.run(countdown, left=3) == {"left": 0}
    handle = client.start(countdown, left=3)
    assert list(handle.progress()) == [3, 2, 1, 0]
    assert handle.result(timeout=60) == {"left": 0}
    assert client.runs.get(handle.id).continued_as is not None


def test_preview_takes_no_longer_than_asked(client: Do):
    found = client.action("wait-for-ever", wait=0.2).preview()
    assert found.status == "incomplete"
    assert any("0.2 s" in str(note) for note in found.notes)


def test_cancel_and_retry(client: Do):
    handle = client.start(approval, name="Ada")
    handle.cancel()
    with pytest.raises(Exception, match="cancelled"):
        handle.result(timeout=60)
    client.runs.retry(handle.id)
    handle.send_event("answer", 1)
    assert handle.result(timeout=60)["said"] == 1


def test_preview_does_nothing(client: Do):
    found = client.action("greet-user").preview(name="Ada")
    assert found.result == {"text": "Hello, Ada"}
    assert client.runs.list() == []


def test_wrong_key_is_denied(server: Running):
    with Do(url=server.url, api_key="do_wrong") as client, pytest.raises(AccessDenied, match="no API key"):
        client.action("greet-user").invoke(name="Ada")
    narrow = server.key("actions:execute:other")
    with Do(url=server.url, api_key=narrow) as client, pytest.raises(AccessDenied, match="scope"):
        client.action("greet-user").invoke(name="Ada")


def test_nobody_listening_means_that_nothing_happened():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # and it stays ours, so that nobody else listens there
        with Do(url=f"http://127.0.0.1:{port}") as client, pytest.raises(Unreachable, match="nothing happened"):
            client.action("greet-user").invoke(name="Ada")


class Cutting:
    """A proxy that passes requests on and, so many times, cuts the connection before the answer comes back."""

    def __init__(self, target: str, cuts: int) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self.left, self.cut = cuts, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        handlers: list[threading.Thread] = []
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                break
            handlers.append(threading.Thread(target=self._handle, args=(near,)))
            handlers[-1].start()
        for handler in handlers:
            handler.join()

    def _handle(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._target) as far:
            asking = threading.Thread(target=_pass_on, args=(near, far))
            asking.start()
            while answer := far.recv(65536):
                if self.left:
                    self.left -= 1
                    self.cut += 1
                    break
                near.sendall(answer)
            _end(near)
            _end(far)
            asking.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        return  # cut
    _end(target)


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended already


@pytest.fixture
def cutting(server: Running) -> Iterator[Cutting]:
    proxy = Cutting(server.url, cuts=2)
    yield proxy
    proxy.close()


def test_lost_answer_is_asked_for_again_and_the_run_is_one(server: Running, cutting: Cutting):
    with Do(url=cutting.url, api_key=server.key("*")) as client:
        run = client.action.execute(name="greet-user", params={"name": "Ada"})
    assert cutting.cut == 2
    assert run.result == {"text": "Hello, Ada"}
    with Do(url=server.url, api_key=server.key("*")) as client:
        assert [found.id for found in client.runs.list()] == [run.id]


def test_answers_lost_for_good_are_unknown_and_name_the_run(server: Running, cutting: Cutting):
    cutting.left = 1_000
    key = server.key("*")

    async def ask() -> None:
        async with AsyncDo(url=cutting.url, api_key=key) as client:
            await client.action("greet-user", key="k").invoke(name="Ada")

    with pytest.raises(OutcomeUnknown) as unknown:
        asyncio.run(ask())
    assert unknown.value.run_id == keyed_run_id("greet-user", "k")
    with Do(url=server.url, api_key=key) as client:
        assert client.runs.get(unknown.value.run_id or "").status == "completed"
