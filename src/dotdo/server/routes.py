"""The full table of routes: what each is, who may use it, and what goes in and out. The app, its description (OpenAPI)
and the tests of access are made of it."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dotdo.preview import Preview
from dotdo.server import executing, health, openapi, runs, streaming, working
from dotdo.server.reading import Call, Event, Resolution
from dotdo.server.shapes import Definitions, Journal, Page, RunShape
from dotdo.worker_protocol import (
    Batch,
    Beat,
    Claim,
    Complete,
    Done,
    Heartbeat,
    OfWorker,
    Register,
    Registered,
    RequestCall,
    RequestState,
    Results,
)

Endpoint = Callable[[Request], Awaitable[Response]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One route and method. scope: what a key must allow, as resource:verb; None for what needs no key. named: the
    scope's pattern is matched against a name, of the route or of its run."""

    id: str
    method: str
    path: str
    endpoint: Endpoint
    summary: str
    scope: str | None
    named: bool = False
    body: Any = None
    answer: Any = None
    status: int = 200
    media_type: str = "application/json"


def _calls(kind: str) -> list[Operation]:
    a = "an action" if kind == "action" else "a service"
    return [
        Operation(
            id=f"list_{kind}s",
            method="GET",
            path=f"/v1/{kind}s",
            endpoint=executing.list_definitions,
            summary=f"List {kind}s",
            scope=f"{kind}s:read",
            answer=Definitions,
        ),
        Operation(
            id=f"get_{kind}",
            method="GET",
            path=f"/v1/{kind}s/{{name}}",
            endpoint=executing.show_definition,
            summary=f"Show {a}, every version",
            scope=f"{kind}s:read",
            named=True,
            answer=Definitions,
        ),
        Operation(
            id=f"execute_{kind}",
            method="POST",
            path=f"/v1/{kind}s/{{name}}/execute",
            endpoint=executing.execute,
            summary=f"Run {a}",
            scope=f"{kind}s:execute",
            named=True,
            body=Call,
            answer=RunShape,
        ),
        Operation(
            id=f"preview_{kind}",
            method="POST",
            path=f"/v1/{kind}s/{{name}}/preview",
            endpoint=executing.preview,
            summary=f"Tell what a run of {a} would do",
            scope=f"{kind}s:preview",
            named=True,
            body=Call,
            answer=Preview[Any],
        ),
    ]


def _steering(verb: str, endpoint: Endpoint, summary: str) -> Operation:
    return Operation(
        id=f"{verb}_run",
        method="POST",
        path=f"/v1/runs/{{id}}/{verb}",
        endpoint=endpoint,
        summary=summary,
        scope=f"runs:{verb}",
        named=True,
        answer=RunShape,
        status=202,
    )


def _worker(verb: str, endpoint: Endpoint, summary: str, body: Any, answer: Any) -> Operation:
    return Operation(
        id=f"worker_{verb}",
        method="POST",
        path=f"/v1/worker/{verb}",
        endpoint=endpoint,
        summary=summary,
        scope="workers:serve",
        body=body,
        answer=answer,
    )


OPERATIONS: list[Operation] = [
    *_calls("action"),
    *_calls("service"),
    Operation(
        id="list_runs",
        method="GET",
        path="/v1/runs",
        endpoint=runs.list_runs,
        summary="List runs, newest first",
        scope="runs:read",
        answer=Page,
    ),
    Operation(
        id="get_run",
        method="GET",
        path="/v1/runs/{id}",
        endpoint=runs.get_run,
        summary="Show a run",
        scope="runs:read",
        named=True,
        answer=RunShape,
    ),
    Operation(
        id="get_journal",
        method="GET",
        path="/v1/runs/{id}/journal",
        endpoint=runs.get_journal,
        summary="Read a run's journal",
        scope="runs:read",
        named=True,
        answer=Journal,
    ),
    Operation(
        id="stream_journal",
        method="GET",
        path="/v1/runs/{id}/stream",
        endpoint=streaming.stream,
        summary="Follow a run's journal (server-sent events)",
        scope="runs:read",
        named=True,
        media_type="text/event-stream",
    ),
    _steering("cancel", runs.cancel, "Cancel a run; what it did is undone"),
    _steering("retry", runs.retry, "Open a failed, cancelled or blocked run again"),
    _steering("undo", runs.undo, "Take back what an ended run did"),
    Operation(
        id="resolve_run",
        method="POST",
        path="/v1/runs/{id}/resolve",
        endpoint=runs.resolve,
        summary="Answer a question of a blocked run",
        scope="runs:resolve",
        named=True,
        body=Resolution,
        answer=RunShape,
        status=202,
    ),
    Operation(
        id="send_event",
        method="POST",
        path="/v1/runs/{id}/events",
        endpoint=runs.send_event,
        summary="Send an event to a run",
        scope="runs:event",
        named=True,
        body=Event,
        answer=RunShape,
        status=202,
    ),
    _worker("register", working.register, "A worker has come, and offers definitions", Register, Registered),
    _worker("claim", working.claim, "Tasks for a worker, as soon as there are some", Claim, Batch),
    _worker("complete", working.complete, "A worker tells how tasks ended", Complete, Results),
    _worker("request", working.request, "A handler in a worker asks for an effect's answer", RequestCall, RequestState),
    _worker("heartbeat", working.heartbeat, "A worker is alive", Heartbeat, Beat),
    _worker("drain", working.drain, "A worker takes no more actions", OfWorker, Done),
    _worker("leave", working.leave, "A worker goes", OfWorker, Done),
    Operation(
        id="healthz",
        method="GET",
        path="/healthz",
        endpoint=health.healthz,
        summary="Whether the process answers",
        scope=None,
        answer=dict[str, str],
    ),
    Operation(
        id="readyz",
        method="GET",
        path="/readyz",
        endpoint=health.readyz,
        summary="Whether runs can be accepted now",
        scope=None,
        answer=dict[str, str],
    ),
    Operation(
        id="metrics",
        method="GET",
        path="/metrics",
        endpoint=health.metrics,
        summary="Counters for Prometheus",
        scope="metrics:read",
        media_type="text/plain",
    ),
    Operation(
        id="openapi",
        method="GET",
        path="/openapi.json",
        endpoint=openapi.document,
        summary="This description",
        scope="actions:read",
        answer=dict[str, Any],
    ),
    Operation(
        id="reference",
        method="GET",
        path="/reference",
        endpoint=openapi.reference,
        summary="This description as a page",
        scope="actions:read",
        media_type="text/html",
    ),
]
