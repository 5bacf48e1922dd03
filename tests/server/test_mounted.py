"""`client.asgi()`: the API inside other applications, under a prefix, on a real uvicorn; and the client beside it."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import fastapi
import httpx2
import pytest
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path as django_path
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from dotdo import AsyncDo, Catalogue, DefinitionError, Do, action, service, wait_for_event
from dotdo.embedding import open_writer
from dotdo.keys import new_key
from tests.patience import PATIENCE

catalogue = Catalogue()


@action("greet-user", catalogue=catalogue)
async def greet_user(name: str) -> str:
    return f"Hello, {name}"


@service("approval", catalogue=catalogue)
async def approval(name: str) -> Any:
    return await wait_for_event("answer")


def django_index(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"the host")


urlpatterns = [django_path("", django_index)]


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Generator[str]:
    """A uvicorn with that application on a thread of its own; its URL."""
    ready, failed = threading.Event(), []

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready.set()

    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, **options)
    server = Server(config)

    def work() -> None:
        try:
            server.run()
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="uvicorn")
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        assert not failed, failed
        assert server.started
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def key_of(store: Path) -> str:
    """A key that allows everything, as `dotdo keys create` makes it."""
    text, record = new_key("shop", ["*"], now=int(time.time() * 1000))
    writer = open_writer(str(store))
    try:
        writer.save_api_key(record)
    finally:
        writer.close()
    return text


async def host_page(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("the host")


def in_fastapi(client: Any) -> Any:
    app = fastapi.FastAPI()

    @app.get("/", response_class=fastapi.responses.PlainTextResponse)
    async def page() -> str:  # pyright: ignore[reportUnusedFunction]  # FastAPI calls it
        return "the host"

    app.mount("/do", client.asgi())
    return app


def in_starlette(client: Any) -> Any:
    return Starlette(routes=[Route("/", host_page), Mount("/do", app=client.asgi())])


def in_django(client: Any) -> Any:
    if not settings.configured:  # another test of this process may have done it
        settings.configure(SECRET_KEY="s")
    override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"]).enable()  # for each request to come
    return Starlette(routes=[Mount("/do", app=client.asgi()), Mount("/", app=get_asgi_application())])


HOSTS: dict[str, Callable[[Any], Any]] = {"FastAPI": in_fastapi, "Starlette": in_starlette, "Django": in_django}


@pytest.mark.parametrize("make", [Do, AsyncDo], ids=["Do", "AsyncDo"])
@pytest.mark.parametrize("host", HOSTS)
def test_api_under_a_prefix_of_another_application(tmp_path: Path, host: str, make: Any):
    store = tmp_path / "dotdo.db"
    client = make(str(store), catalogue=catalogue)
    with serving(HOSTS[host](client)) as url, httpx2.Client(base_url=url, timeout=PATIENCE) as http:
        assert http.get("/").text == "the host"
        assert http.get("/do/readyz").json() == {"status": "ready"}, "it opens with the first request"
        refused = http.post("/do/v1/actions/greet-user/execute", json={"params": {"name": "Eve"}})
        assert (refused.status_code, refused.json()["code"]) == (401, "missing_key")
        http.headers["Authorization"] = f"Bearer {key_of(store)}"
        done = http.post("/do/v1/actions/greet-user/execute", json={"params": {"name": "Ada"}})
        assert (done.status_code, done.json()["result"], done.json()["kind"]) == (200, "Hello, Ada", "action")
        headers = {"Prefer": "respond-async", "Idempotency-Key": "a"}
        body = {"params": {"name": "Ada"}}
        accepted = http.post("/do/v1/services/approval/execute", json=body, headers=headers)
        where = f"/do/v1/runs/{accepted.json()['id']}"
        assert (accepted.status_code, accepted.headers["location"]) == (202, where)
        assert http.get(where).json()["kind"] == "service"
        conflict = http.post("/do/v1/services/approval/execute", json=body, headers=headers)
        assert (conflict.status_code, conflict.headers["location"]) == (409, where)
        assert where in conflict.json()["detail"]
        assert http.get("/do/openapi.json").json()["servers"] == [{"url": "/do"}]
        page = http.get("/do/reference").text
        assert 'href="openapi.json"' in page, "relative to the page"
        assert http.get("/do/v1/nothing").json()["code"] == "not_found"
        if isinstance(client, Do):
            assert client.run(greet_user, name="Grace") == "Hello, Grace", "the client itself goes on working"
            client.handle(accepted.json()["id"]).send_event("answer", 7)
        else:
            http.post(f"{where}/events", json={"name": "answer", "value": 7})
        ended = http.get(where, headers={"Prefer": "wait=20"}).json()
        assert (ended["status"], ended["result"]) == ("completed", 7)
    if isinstance(client, Do):
        assert client.run(greet_user, name="Grace") == "Hello, Grace", "also when the server has ended"
        client.close()


def test_host_may_use_the_client_in_its_own_routes_and_close_it(tmp_path: Path):
    client = AsyncDo(str(tmp_path / "dotdo.db"), catalogue=catalogue)
    ended: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: fastapi.FastAPI) -> AsyncGenerator[None]:
        async with client:
            yield
        ended.append("closed")

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.post("/signup")
    async def signup(name: str) -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]  # FastAPI calls it
        return {"said": await client.run(greet_user, name=name)}

    app.mount("/do", client.asgi(open_access=True))
    with serving(app) as url, httpx2.Client(base_url=url, timeout=PATIENCE) as http:
        assert http.post("/signup?name=Ada").json() == {"said": "Hello, Ada"}
        (run,) = http.get("/do/v1/runs").json()["runs"]
        assert run["result"] == "Hello, Ada"
        # A client of its own in another program, by the URL of the mount.
        with Do(url=f"{url}/do") as remote:
            assert remote.runs.get(run["id"]).result == "Hello, Ada"
            handle = remote.service("approval").start(name="Ada")
            handle.send_event("answer", "yes")
            assert handle.result(timeout=PATIENCE) == "yes"
    assert ended == ["closed"]


def test_served_by_itself_it_opens_at_the_start_and_drains_at_the_end(tmp_path: Path):
    store = tmp_path / "dotdo.db"
    client = AsyncDo(str(store), catalogue=catalogue)
    with serving(client.asgi(open_access=True)) as url:
        assert store.exists(), "opened by the start, not by a request"
        assert httpx2.get(f"{url}/v1/actions", timeout=PATIENCE).status_code == 200

    async def use() -> None:
        with pytest.raises(Exception, match="closed"):
            await client.platform()

    asyncio.run(use())


def test_root_path_of_a_proxy_is_honoured(tmp_path: Path):
    client = Do(str(tmp_path / "dotdo.db"), catalogue=catalogue)
    with client, serving(client.asgi(open_access=True), root_path="/v1/apps") as url:
        body = {"params": {"name": "Ada"}}
        found = httpx2.post(f"{url}/v1/actions/greet-user/execute", json=body, timeout=PATIENCE)
        assert (found.status_code, found.json()["kind"]) == (200, "action"), "a prefix that looks like ours is none"
        assert httpx2.get(f"{url}/openapi.json", timeout=PATIENCE).json()["servers"] == [{"url": "/v1/apps"}]


def test_closed_client_says_so_over_http(tmp_path: Path):
    client = Do(str(tmp_path / "dotdo.db"), catalogue=catalogue)
    with serving(Starlette(routes=[Mount("/do", app=client.asgi(open_access=True))])) as url:
        assert httpx2.get(f"{url}/do/readyz", timeout=PATIENCE).status_code == 200
        client.close()
        found = httpx2.get(f"{url}/do/v1/runs", timeout=PATIENCE)
        assert (found.status_code, found.json()["code"], found.headers["retry-after"]) == (503, "client_closed", "1")
        until = time.monotonic() + PATIENCE  # what was found a second ago still counts
        while (ready := httpx2.get(f"{url}/do/readyz", timeout=PATIENCE)).status_code == 200:
            assert time.monotonic() < until
        assert ready.json()["code"] == "not_ready"
        assert httpx2.get(f"{url}/do/healthz", timeout=PATIENCE).status_code == 200


def test_client_of_a_server_has_no_api_of_its_own():
    with pytest.raises(DefinitionError, match=r"asks the server at http://127\.0\.0\.1:1"):
        Do(url="http://127.0.0.1:1").asgi()
