"""W3C Trace Context over HTTP: in with a request, out with answers and with calls to other systems."""

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.routing import Mount

from dotdo import AsyncContext, AsyncDo, Do, action
from dotdo.connectors import http as http_calls
from tests.server.running import Running, catalogue, running
from tests.server.test_mounted import serving

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{CALLER}-01"


@action("call-over-there", catalogue=catalogue, retry=1)
async def call_over_there(ctx: AsyncContext, url: str, key: str) -> str | None:
    """Calls an action of another server, at once."""
    body = {"params": {"name": "Ada"}}
    answer = await ctx.request(
        http_calls.call,
        method="POST",
        url=f"{url}/v1/actions/greet-user/execute",
        json=body,
        headers={"Authorization": f"Bearer {key}"},
    )
    assert answer.body["status"] == "completed"
    return ctx.traceparent


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    found = TracerProvider()
    found.add_span_processor(SimpleSpanProcessor(spans))
    return found


def test_place_in_a_trace_goes_through_a_server_that_makes_no_spans(server: Running, tmp_path: Path):
    body = {"params": {"name": "Ada"}}
    with server.http() as http:
        done = http.post(
            "/v1/actions/greet-user/execute", json=body, headers={"traceparent": GIVEN, "tracestate": "a=1"}
        )
        assert done.headers["traceparent"] == GIVEN
        first = http.get(f"/v1/runs/{done.json()['id']}/journal").json()["entries"][0]["data"]["options"]
        assert (first["traceparent"], first["tracestate"]) == (GIVEN, "a=1")
        unsound = http.post("/v1/actions/greet-user/execute", json=body, headers={"traceparent": "00-1-2-3"})
        assert (unsound.status_code, "traceparent" in unsound.headers) == (200, False)
        assert "traceparent" not in http.get("/healthz").headers
        # and on to another server, by a call that a handler makes
        with running(tmp_path / "other.db") as other:
            there = {"url": other.url, "key": other.key("*")}
            done = http.post(
                "/v1/actions/call-over-there/execute", json={"params": there}, headers={"traceparent": GIVEN}
            )
            assert done.json()["result"] == GIVEN, done.text
            with other.http() as others:
                (run,) = others.get("/v1/runs").json()["runs"]
                first = others.get(f"/v1/runs/{run['id']}/journal").json()["entries"][0]["data"]["options"]
                assert first["traceparent"] == GIVEN


def test_request_run_and_the_call_to_another_server_are_one_trace(
    tmp_path: Path, provider: TracerProvider, spans: InMemorySpanExporter
):
    with (
        running(tmp_path / "one.db", tracer_provider=provider) as one,
        running(tmp_path / "other.db", tracer_provider=provider) as other,
        one.http() as http,
    ):
        params = {"url": other.url, "key": other.key("*")}
        done = http.post("/v1/actions/call-over-there/execute", json={"params": params}, headers={"traceparent": GIVEN})
        assert done.json()["status"] == "completed", done.text
        refused = http.get("/v1/runs/run_0", headers={"traceparent": GIVEN})
        assert refused.status_code == 404
        assert http.get("/healthz").status_code == 200
    found = {span.name: span for span in reversed(spans.get_finished_spans()) if span.context}
    requests = [span for span in spans.get_finished_spans() if span.kind == SpanKind.SERVER]
    # That of the other server ends on a thread of its own, before or after the caller of this one is answered.
    by_path = {str((span.attributes or {})["url.path"]): span for span in requests}
    outer, inner = by_path["/v1/actions/call-over-there/execute"], by_path["/v1/actions/greet-user/execute"]
    missing = by_path["/v1/runs/run_0"]
    assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans() if span.context} == {TRACE}
    assert sorted(span.name for span in requests) == ["GET /v1/runs/{id}"] + ["POST /v1/actions/{name}/execute"] * 2
    assert outer.context is not None
    assert done.headers["traceparent"] == f"00-{TRACE}-{outer.context.span_id:016x}-01"
    assert outer.parent is not None
    assert f"{outer.parent.span_id:016x}" == CALLER
    told = dict(outer.attributes or {})
    assert told["http.request.method"] == "POST"
    assert told["http.route"] == "/v1/actions/{name}/execute"
    assert told["url.path"] == "/v1/actions/call-over-there/execute"
    assert told["http.response.status_code"] == 200
    assert told["dotdo.run.id"] == done.json()["id"]
    effect, context = found["effect http.call"], found["effect http.call"].context
    assert context is not None
    assert inner.parent is not None
    assert inner.parent.span_id == context.span_id, "the other server goes on from the effect's span"
    assert effect.kind == SpanKind.CLIENT
    assert (missing.attributes or {})["http.response.status_code"] == 404
    assert missing.status.status_code == StatusCode.UNSET, "what the caller did wrong is no error of the server"


def test_client_with_a_url_hands_its_trace_on(server: Running, provider: TracerProvider):
    with Do(url=server.url, api_key=server.key("*")) as remote:
        with provider.get_tracer("shop").start_as_current_span("signup") as signup:
            run = remote.action.execute(name="greet-user", params={"name": "Ada"})
        here = signup.get_span_context()
        with server.http() as http:
            first = http.get(f"/v1/runs/{run.id}/journal").json()["entries"][0]["data"]["options"]
        assert first["traceparent"] == f"00-{here.trace_id:032x}-{here.span_id:016x}-01"


def test_span_of_the_host_is_kept_and_no_second_one_made(
    tmp_path: Path, provider: TracerProvider, spans: InMemorySpanExporter
):
    client = AsyncDo(str(tmp_path / "dotdo.db"), catalogue=catalogue, tracer_provider=provider)
    api = Starlette(routes=[Mount("/do", app=client.asgi(open_access=True))])

    async def instrumented(scope: object, receive: object, send: object) -> None:
        with provider.get_tracer("host").start_as_current_span("host"):
            await api(scope, receive, send)  # type: ignore[arg-type]

    import httpx2

    with serving(instrumented, lifespan="off") as url:
        done = httpx2.post(f"{url}/do/v1/actions/greet-user/execute", json={"params": {"name": "Ada"}}, timeout=60)
    names = [span.name for span in spans.get_finished_spans()]
    assert "start greet-user" in names
    assert not [name for name in names if name.startswith("POST")]
    (host,) = [span for span in spans.get_finished_spans() if span.name == "host"]
    assert host.context is not None
    assert done.headers["traceparent"][3:35] == f"{host.context.trace_id:032x}"
