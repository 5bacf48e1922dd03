"""`/openapi.json` (OpenAPI 3.1) and `/reference`: the description of the API, from the routes and the definitions.

Every action and service appears as an operation of its own, with its own input and output.
"""

import hashlib
import re
from typing import TYPE_CHECKING, Any, cast, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dotdo.records import Definition, Status, Undo
from dotdo.server.problems import Problem
from dotdo.server.reading import KEY_SCHEMA, MOST_NUMBER, query
from dotdo.server.reference import page
from dotdo.server.serving import actor, answer, platform

if TYPE_CHECKING:
    from dotdo.server.routes import Operation

_REF = "#/components/schemas/{name}"
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": MOST_NUMBER}
_QUERIES: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "list_runs": [
        ("status", {"type": "string", "enum": list(get_args(Status))}, "Only runs in this state."),
        ("undo", {"type": "string", "enum": list(get_args(Undo))}, "Only runs of which that much is undone."),
        ("name", {"type": "string"}, "Only runs of this action or service."),
        ("trail", {"type": "string"}, "Only runs of this trail."),
        ("parent", {"type": "string"}, "Only children of this run."),
        (
            "label",
            {"type": "array", "items": {"type": "string", "pattern": "="}},
            "Only runs with this label, NAME=VALUE; repeatable.",
        ),
        ("since", _NUMBER, "Only runs accepted since then, ms since 1970."),
        ("limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}, "How many on a page."),
        ("cursor", {"type": "string"}, "`next` of the page before."),
    ],
    "get_journal": [("after", _NUMBER, "Only entries after this number.")],
    "stream_journal": [("after", _NUMBER, "Only entries after this number.")],
}
_CARRIED = {"anyOf": [{"$ref": _REF.format(name="EntryShape")}, {"type": "object", "maxProperties": 0}]}
_ENTRY = {"contentMediaType": "application/json", "contentSchema": _CARRIED}
_EVENT = {  # one of a stream: an entry; or `end`, with an empty object
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", **_ENTRY},
        "retry": {"type": "integer"},
    },
}
_TEXTS: dict[str, dict[str, Any]] = {"text/event-stream": _EVENT}
_VALUES = frozenset({"const", "default", "enum", "example", "examples"})  # of a schema: data, not schemas
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})  # of a schema: schemas by name
_VERSION = ("version", {**_NUMBER, "minimum": 1}, "Which version; by default the newest.")
_WAIT = "Seconds to wait for the end (`wait=30`), or `respond-async`."
_KEY = "The caller's name for this one request: the same key and input again is the same run."


async def document(request: Request) -> Response:
    """GET /openapi.json."""
    await actor(request, "actions", "read", "*")
    query(request, {})
    return answer(await _describe(request))


async def reference(request: Request) -> Response:
    """GET /reference: the same as a page that needs nothing from anywhere else."""
    await actor(request, "actions", "read", "*")
    query(request, {})
    return page(await _describe(request))


async def _describe(request: Request) -> dict[str, Any]:
    from dotdo.server.routes import OPERATIONS  # they name the endpoints above

    behind = await platform(request)
    found = [*await behind.definitions("action"), *await behind.definitions("service")]
    return describe(OPERATIONS, found, request.scope.get("root_path", ""))


def describe(operations: "list[Operation]", definitions: list[Definition], base: str = "") -> dict[str, Any]:
    """The OpenAPI document of routes and definitions."""
    kinds = [kind for each in operations for kind in (each.body, each.answer) if kind is not None]
    schemas, own = msgspec.json.schema_components([*kinds, Problem], ref_template=_REF, schema_hook=_any)
    shown = iter(schemas)
    components: dict[str, Any] = dict(own)
    paths: dict[str, Any] = {}
    for each in operations:
        body = next(shown) if each.body is not None else None
        given = next(shown) if each.answer is not None else _TEXTS.get(each.media_type, {"type": "string"})
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, body, given)
    for definition in newest(definitions):
        path = f"/v1/{definition.kind}s/{definition.name}/execute"
        paths[path] = {"post": _own_operation(definition, components)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dotdo",
            "version": "1",
            "description": "Atomic actions and durable services. Every refusal is a problem document (RFC 9457) with a "
            "stable `code`: 4xx means that nothing happened.",
        },
        "servers": [{"url": base or "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key: do_..."}},
        },
    }


def newest(definitions: list[Definition]) -> list[Definition]:
    """Of each name the newest version."""
    found: dict[str, Definition] = {}
    for each in definitions:
        if each.name not in found or each.version > found[each.name].version:
            found[each.name] = each
    return list(found.values())


def _operation(each: "Operation", body: dict[str, Any] | None, given: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = []
    if "{id}" in each.path:
        parameters.append(_ID)
    if "{name}" in each.path:
        parameters.append(_NAME)
    parameters += [_query(*one) for one in _QUERIES.get(each.id, [])]
    if each.path.endswith(("/execute", "/preview")):
        parameters.append(_query(*_VERSION))
    if each.path.endswith("/execute"):
        parameters += [_header("Idempotency-Key", _KEY, KEY_SCHEMA), _header("Prefer", _WAIT)]
    if each.id == "get_run":
        parameters.append(_header("Prefer", _WAIT))
    found = _described(each.id, each.summary, parameters, given, each.status, each.media_type, each.scope)
    if each.body is not None:
        found["requestBody"] = _body(body, needed=any(one.required for one in msgspec.structs.fields(each.body)))
    return found


def _own_operation(definition: Definition, components: dict[str, Any]) -> dict[str, Any]:
    """An action's or service's own operation, with its own input and output. The types they name become components."""
    name, kind = definition.name, definition.kind
    takes = _hoisted(definition.input_schema, f"{kind}.{name}.input", components)
    gives = _hoisted(definition.output_schema, f"{kind}.{name}.output", components)
    any_call: dict[str, Any] = components["Call"]
    call = {
        **any_call,
        "properties": {**any_call["properties"], "params": takes},
        "required": ["params"] if definition.input_schema.get("required") else [],
    }
    run = {
        "allOf": [
            {"$ref": _REF.format(name="RunShape")},
            {"type": "object", "properties": {"result": {"anyOf": [gives, {}]}}},
        ]
    }
    parameters = [_query(*_VERSION), _header("Idempotency-Key", _KEY, KEY_SCHEMA), _header("Prefer", _WAIT)]
    summary = definition.doc.partition("\n")[0] or f"Run the {kind} {name}"
    found = _described(
        f"execute_{kind}_{name}", summary, parameters, run, 200, "application/json", f"{kind}s:execute:{name}"
    )
    return {**found, "requestBody": _body(call, needed=bool(call["required"]))}


_DEFINED_THERE = "#/$defs/"


def _hoisted(schema: dict[str, Any], prefix: str, components: dict[str, Any]) -> dict[str, Any]:
    """A schema whose `$defs` were moved to the document's components, as `#` now means the document."""
    places = {name: _REF.format(name=f"{prefix}.{_component(name)}") for name in schema.get("$defs", {})}

    def moved(value: Any, *, is_map: bool = False) -> Any:  # is_map: by names of the user's, not by keywords
        match value:
            case str() if value.startswith(_DEFINED_THERE):
                return places.get(value.removeprefix(_DEFINED_THERE).replace("~1", "/").replace("~0", "~"), value)
            case list():
                return [moved(each) for each in cast("list[Any]", value)]
            case dict():
                entries = cast("dict[str, Any]", value).items()
                return {
                    name: each if name in _VALUES and not is_map else moved(each, is_map=name in _MAPS and not is_map)
                    for name, each in entries
                }
            case _:
                return value

    for name, each in schema.get("$defs", {}).items():
        components[places[name].rpartition("/")[2]] = moved(each)
    return moved({name: each for name, each in schema.items() if name != "$defs"})


def _component(name: str) -> str:
    """A name as OpenAPI allows it for a component; others are told apart by a digest of theirs."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return plain if plain == name else f"{plain}.{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _described(
    id: str,
    summary: str,
    parameters: list[dict[str, Any]],
    given: dict[str, Any],
    status: int,
    media_type: str,
    scope: str | None,
) -> dict[str, Any]:
    answers: dict[str, Any] = {str(status): {"description": "Done.", "content": {media_type: {"schema": given}}}}
    if id.startswith("execute"):
        answers["202"] = {"description": "Accepted; it goes on.", "content": {media_type: {"schema": given}}}
    answers["default"] = {
        "description": "Refused, or failed.",
        "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}},
    }
    found: dict[str, Any] = {"operationId": id, "summary": summary, "parameters": parameters, "responses": answers}
    if scope is not None:
        found["security"] = [{"key": []}]
        found["description"] = f"Needs the scope `{scope}`."
    return found


def _body(schema: Any, *, needed: bool) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}, "required": needed}


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _header(name: str, text: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": text, "schema": schema or {"type": "string"}}


def _any(_: type) -> dict[str, Any]:
    return {}
