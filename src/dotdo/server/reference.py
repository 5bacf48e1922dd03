"""`/reference`: the description of the API as one page of HTML for people.

It needs nothing from anywhere else and runs no script; its policy (Content-Security-Policy) lets a browser do nothing
but show it. Texts come from definitions, and are escaped.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec
from starlette.responses import HTMLResponse

_REF = "#/components/schemas/"
_REFERENCE, _LINK = re.compile(r"#/components/schemas/([\w.-]+)"), r'<a href="#schema-\1">\1</a>'
_KINDS: dict[str, Any] = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}  # in examples
_CODE = re.compile(r"`([^`]+)`")
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --dim: light-dark(#555, #aaa);
  --get: light-dark(#0a6b3d, #5fd39a); --post: light-dark(#0b4fa8, #7db4ff); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  overflow-wrap: anywhere; }
h1 { margin: 0 0 .5rem; } h2 { margin: 2rem 0 .25rem; } h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
nav a { display: inline-block; margin-right: 1rem; }
details.op { border-bottom: 1px solid var(--line); padding: .5rem 0; }
details.op[open] { padding-bottom: 1rem; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 3.2rem; font-size: .8rem; letter-spacing: .03em; }
summary b.get { color: var(--get); } summary b.post { color: var(--post); }
summary .says, .dim { color: var(--dim); } summary .says { display: block; padding-left: 1rem; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .875em; }
pre { overflow: auto; max-height: 24rem; padding: .75rem; margin: .25rem 0; background: var(--soft);
  border-radius: .4rem; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; }
td { padding: .25rem .75rem .25rem 0; vertical-align: top; border-top: 1px solid var(--line); }
td:first-child { width: 30%; }
@media (max-width: 34rem) { td { display: block; border: 0; padding: 0; } td:first-child { width: auto;
  border-top: 1px solid var(--line); padding-top: .35rem; } td:last-child { padding-bottom: .35rem; } }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page(document: dict[str, Any]) -> HTMLResponse:
    """The page of an OpenAPI document."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(_group(path), []).append(_operation(document, path, method, operation))
    order = sorted(groups, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    schemas = document["components"]["schemas"]
    groups["Schemas"] = [_schema(name, schemas[name]) for name in sorted(schemas)]
    order.append("Schemas")
    parts = [f'<h2 id="{_place(name)}">{_e(name)}</h2>' + "\n".join(groups[name]) for name in order]
    links = "".join(f'<a href="#{_place(name)}">{_e(name)}</a>' for name in order)
    info = document["info"]
    return HTMLResponse(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(info['title'])}: reference</title><style>{_STYLE}</style></head><body>"
        f"<h1>{_e(info['title'])}</h1><p>{_text(info['description'])}</p>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"<nav>{links}</nav>" + "\n".join(parts) + "</body></html>\n",
        headers=HEADERS,
    )


def _place(group: str) -> str:
    return group.lower().replace(" ", "-")


_ORDER = ["Your actions", "Your services", "Actions", "Services", "Runs", "Workers", "Health and description"]


def _group(path: str) -> str:
    start = path.removeprefix("/v1/").partition("/")[0]
    if start in ("actions", "services"):
        is_own = path.endswith("/execute") and "{name}" not in path
        return f"Your {start}" if is_own else start.capitalize()
    return {"runs": "Runs", "worker": "Workers"}.get(start, "Health and description")


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f'<p class="dim">{_text(operation["description"])}</p>' if operation.get("description") else ""]
    rows = [(f"{one['name']} ({one['in']})", one.get("description", "")) for one in operation["parameters"]]
    body: dict[str, Any] | None = _content(operation.get("requestBody", {}))
    params = _params(document, body)
    if params is not None:
        parts += ["<h3>Input</h3>", _table(list(_fields(document, params))), _example(document, path, params)]
    if rows:
        parts += ["<h3>Query and headers</h3>", _table(rows)]
    if body is not None:
        parts += ["<h3>Body</h3>", _json(body)]
    for status, given in operation["responses"].items():
        schema = _content(given)
        if status != "default":
            parts.append(f"<h3>Answer {_e(status)}</h3>{_e(given.get('description', ''))}")
            parts.append(_json(schema) if schema else "")
    return (
        f'<details class="op"><summary><b class="{_e(method)}">{_e(method.upper())}</b> <code>{_e(path)}</code> '
        f'<span class="says">{_text(operation["summary"])}</span></summary>' + "".join(parts) + "</details>"
    )


def _schema(name: str, schema: Any) -> str:
    shown = f'<details class="op" id="schema-{_e(name)}"><summary><code>{_e(name)}</code>'
    about = _object(schema).get("description", "").partition("\n")[0]
    return f'{shown} <span class="says">{_text(about)}</span></summary>{_json(schema)}</details>'


def _params(document: dict[str, Any], body: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema of an own operation's input, if it is one with fields."""
    found = _followed(document, _object(_object(body).get("properties")).get("params"))
    return found if found.get("properties") else None


def _fields(document: dict[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    needed = schema.get("required", [])
    for name, field in schema["properties"].items():
        said = [_kind(field), "" if name in needed else "optional", _followed(document, field).get("description", "")]
        yield name, ", ".join(text for text in said if text)


def _example(document: dict[str, Any], path: str, schema: Mapping[str, Any]) -> str:
    """What to type, with the parameters that are needed."""
    needed = [name for name in schema["properties"] if name in schema.get("required", [])]
    kinds = {name: str(_followed(document, schema["properties"][name]).get("type")) for name in needed}
    given = {name: _KINDS.get(kind, "...") for name, kind in kinds.items()}
    body = msgspec.json.encode({"params": given}).decode()
    command = f"curl $URL{path} -H \"Authorization: Bearer $KEY\" \\\n  -H 'Content-Type: application/json' -d '{body}'"
    return f"<pre>{_e(command)}</pre>"


def _kind(given: Any) -> str:
    field = _object(given)
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2].rpartition(".")[2]
    if "anyOf" in field:
        return " or ".join(kind for kind in map(_kind, field["anyOf"]) if kind)
    if "enum" in field:
        return "one of " + ", ".join(map(str, field["enum"]))
    kind = str(field.get("format") or field.get("type") or "")
    return f"{kind} of {_kind(field['items'])}" if kind == "array" and field.get("items") else kind


def _followed(document: dict[str, Any], schema: Any) -> dict[str, Any]:
    """The schema, or what it refers to."""
    found = _object(schema)
    name = str(found.get("$ref", ""))
    return document["components"]["schemas"].get(name.removeprefix(_REF), {}) if name.startswith(_REF) else found


def _object(schema: Any) -> dict[str, Any]:
    """The schema, if it is an object, and not `true`."""
    return cast("dict[str, Any]", schema) if isinstance(schema, dict) else {}


def _content(holder: Mapping[str, Any]) -> Any:
    return next((each.get("schema") for each in holder.get("content", {}).values()), None)


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{_e(name)}</code></td><td>{_text(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>"


def _json(value: Any) -> str:
    text = _e(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    return f"<pre>{_REFERENCE.sub(_LINK, text)}</pre>"


def _text(text: str) -> str:
    """Prose, in which code stands between backticks."""
    return _CODE.sub(r"<code>\1</code>", _e(text))


def _e(text: Any) -> str:
    return html.escape(str(text))
