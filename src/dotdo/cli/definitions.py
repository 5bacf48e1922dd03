"""`dotdo actions` and `dotdo services`: what an application defines, with schemas, policies and versions."""

from collections.abc import Sequence
from typing import Any, cast

import click

from dotdo.catalogue import Catalogue, split_version
from dotdo.cli import Group
from dotdo.cli.loading import load_application
from dotdo.cli.output import Span, json_option, one_line, print_json, print_lines, print_table, say
from dotdo.cli.settings import app_option
from dotdo.records import Definition


@click.group(cls=Group)
def actions() -> None:
    """The actions of the application."""


@click.group(cls=Group)
def services() -> None:
    """The services (durable workflows) of the application."""


def _commands(group: click.Group, kind: str) -> None:
    @group.command("ls")
    @app_option
    @json_option
    def ls(app: str, as_json: bool) -> None:
        """List them."""
        show_list(kind, load_application(app).catalogue, app, as_json=as_json)

    @group.command("show")
    @click.argument("name")
    @app_option
    @json_option
    def show(name: str, app: str, as_json: bool) -> None:
        """Show one: its input, output and policies. NAME@2 is version 2; the newest is shown otherwise."""
        show_one(kind, load_application(app).catalogue, name, as_json=as_json)


_commands(actions, "action")
_commands(services, "service")


def show_list(kind: str, catalogue: Catalogue, app: str, *, as_json: bool) -> None:
    """Prints every definition of a kind."""
    found: list[Definition] = [item.definition() for item in catalogue.all(kind)]
    if as_json:
        print_json(found)
        return
    names = list(dict.fromkeys(item.name for item in found))
    rows: list[list[Span]] = []
    for name in names:
        versions = [item for item in found if item.name == name]
        newest = versions[-1]
        numbers = ", ".join(str(item.version) for item in versions)
        rows.append([(name, "bold"), (numbers, ""), (_signature(newest), ""), (newest.doc.partition("\n")[0], "dim")])
    if rows:
        print_table(["NAME", "VERSIONS", "INPUT", "WHAT IT DOES"], rows)
    else:
        say(f"{app} defines no {kind}s.")


def show_one(kind: str, catalogue: Catalogue, name: str, *, as_json: bool) -> None:
    """Prints one definition. Raises UnknownName."""
    bare, version = split_version(name)
    definition: Definition = catalogue.get(kind, bare, version).definition()
    if as_json:
        print_json(definition)
        return
    versions = [item.version for item in catalogue.all(kind) if item.name == bare]
    lines: list[Sequence[Span]] = [[(f"{bare}@{definition.version}", "bold"), (f"  {kind}", "dim")]]
    if definition.doc:
        lines += [[("  ", ""), (line, "")] for line in definition.doc.splitlines()]
    if len(versions) > 1:
        lines += [[], [("versions  ", "dim"), (", ".join(map(str, versions)), "")]]
    lines += _schema_lines("input", definition.input_schema)
    lines += _schema_lines("output", definition.output_schema)
    lines.append([])
    lines += [
        [("policy    " if number == 0 else "          ", "dim"), (f"{label:<12}", ""), (_policy(value), "")]
        for number, (label, value) in enumerate(definition.policy.items())
    ]
    lines += [[], [("next      ", "dim"), (_example(definition, is_newest=definition.version == versions[-1]), "")]]
    print_lines(lines)


def _example(definition: Definition, *, is_newest: bool) -> str:
    """How it is run: with what must be given, in the form that `dotdo run` takes for it."""
    schema = definition.input_schema
    required = {name: schema["properties"][name] for name in schema.get("required", [])}
    name = definition.name if is_newest else f"{definition.name}@{definition.version}"
    if any(_has_secret(field, schema) for field in required.values()):
        return f"dotdo run {name} - < input.json"  # a secret in a command would end up in the shell's history
    forms = {"array": ":='[...]'", "object": ":='{...}'"}
    given = [f"{parameter}{forms.get(_kind(field, schema), '=...')}" for parameter, field in required.items()]
    return " ".join(["dotdo run", name, *given])


def _has_secret(field: Any, schema: dict[str, Any], seen: tuple[str, ...] = ()) -> bool:
    if isinstance(field, list):
        return any(_has_secret(item, schema, seen) for item in cast("list[Any]", field))
    if not isinstance(field, dict):
        return False
    inside = cast("dict[str, Any]", field)
    reference: str = inside.get("$ref", "").rpartition("/")[2]
    if reference and reference not in seen:
        return _has_secret(schema.get("$defs", {}).get(reference), schema, (*seen, reference))
    return inside.get("writeOnly") is True or any(_has_secret(item, schema, seen) for item in inside.values())


def _kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """What kind of JSON a field takes; empty where there are several."""
    if "$ref" in field:
        return _kind(schema.get("$defs", {}).get(field["$ref"].rpartition("/")[2], {}), schema)
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    if options == [field]:
        return str(field.get("type", ""))
    kinds = {_kind(option, schema) for option in options}
    return kinds.pop() if len(kinds) == 1 else ""


def _signature(definition: Definition) -> str:
    required = definition.input_schema.get("required", [])
    return ", ".join(name if name in required else f"{name}?" for name in definition.input_schema.get("properties", {}))


def _schema_lines(label: str, schema: dict[str, Any]) -> list[Sequence[Span]]:
    """A schema as lines: fields by name and type; `?` marks those that may be left out."""
    if "properties" not in schema:
        text = "nothing" if label == "input" else _type(schema, schema) if schema else "any JSON"
        return [[], [(f"{label:<10}", "dim"), (text, "")]]
    lines: list[Sequence[Span]] = [[]]
    fields: dict[str, Any] = schema["properties"]
    if not fields:
        return [[], [(f"{label:<10}", "dim"), ("nothing", "")]]
    size = max(map(len, fields)) + 1
    for number, (name, field) in enumerate(fields.items()):
        optional = name not in schema.get("required", [])
        default = f" = {one_line(field['default'], 40)}" if "default" in field else ""
        text = f"{name + ('?' if optional else ''):<{size}}  {_type(field, schema)}{default}"
        lines.append([(f"{label if number == 0 else '':<10}", "dim"), (text, "")])
    return lines


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """A field's JSON Schema in a few words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        inner = schema.get("$defs", {}).get(name, {})
        names = ", ".join(inner.get("properties", {}))
        return f"{name} {{{names}}}" if names else f"{name}: {_type(inner, schema)}" if inner else name
    if "enum" in field:
        return " | ".join(one_line(choice, 30) for choice in field["enum"])
    if "anyOf" in field:
        return " | ".join(_type(option, schema) for option in field["anyOf"])
    kind = field.get("type", "any JSON")
    if kind == "array" and isinstance(field.get("items"), dict):
        return f"array of {_type(field['items'], schema)}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"object of {_type(field['additionalProperties'], schema)}"
    return f"{kind} ({field['format']})" if "format" in field else str(kind)


def _policy(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_policy(item)}" for name, item in value.items())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
