"""What a schema makes of a signature: its JSON Schema 2020-12, or a refusal of what cannot work."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
import pydantic
import pytest

from dotdo import DefinitionError
from dotdo.schema import schema_of


@dataclasses.dataclass
class Address:
    street: str
    zip: str | None = None


@dataclasses.dataclass
class Tree:
    name: str
    kids: list["Tree"] = dataclasses.field(default_factory=list)


class Input(msgspec.Struct):
    """Named like the schema's own top."""

    x: int


class Line(pydantic.BaseModel):
    sku: str
    wanted: int = pydantic.Field(gt=0, default=1)


class Order(pydantic.BaseModel):
    lines: list[Line]
    parent: "Order | None" = None


def placed(home: Address, old: list[Address], size: Literal["s", "m"] = "m", note: str | None = None) -> Address: ...  # type: ignore[empty-body]
def grown(tree: Tree) -> Tree: ...  # type: ignore[empty-body]
def named(input: Input, more: list[Input]) -> Input: ...  # type: ignore[empty-body]
def ordered(order: Order, others: dict[str, Order]) -> Order: ...  # type: ignore[empty-body]
def free(a, b: Any = None, c: object = None, d: dict[str, Any] | None = None): ...


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from references(item)


@pytest.mark.parametrize("function", [placed, grown, named, ordered, free])
def test_every_reference_leads_to_a_definition(function: Any):
    schema = schema_of("action x@1", function, 0)
    for exported in (schema.input_schema(), schema.output_schema()):
        for reference in references(exported):
            place = exported
            for part in reference.removeprefix("#/").split("/"):
                place = place[part]
            assert "properties" in place, reference
        msgspec.json.encode(exported)


def test_input_schema_says_what_is_needed_and_what_the_defaults_are():
    assert schema_of("action x@1", placed, 0).input_schema() == {
        "title": "Input",
        "type": "object",
        "properties": {
            "home": {"$ref": "#/$defs/Address"},
            "old": {"type": "array", "items": {"$ref": "#/$defs/Address"}},
            "size": {"enum": ["m", "s"], "default": "m"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["home", "old"],
        "additionalProperties": False,
        "$defs": {
            "Address": {
                "title": "Address",
                "type": "object",
                "properties": {
                    "street": {"type": "string"},
                    "zip": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                },
                "required": ["street"],
            }
        },
    }


def test_output_schema_is_that_of_the_return_hint():
    exported = schema_of("action x@1", placed, 0).output_schema()
    assert (exported["title"], exported["required"]) == ("Address", ["street"])
    assert "$defs" not in exported
    assert schema_of("action x@1", free, 0).output_schema() == {}


def test_a_type_that_holds_itself_keeps_its_definition():
    exported = schema_of("action x@1", grown, 0).output_schema()
    assert exported["properties"]["kids"]["items"] == {"$ref": "#/$defs/Tree"}
    assert exported["$defs"]["Tree"]["title"] == "Tree"


def test_pydantic_models_bring_their_constraints():
    exported = schema_of("action x@1", ordered, 0).input_schema()
    assert exported["$defs"]["Line"]["properties"]["wanted"]["exclusiveMinimum"] == 0


# -- definitions that cannot work -------------------------------------------------------------------------------------


class Opaque:
    """A class of the user's that has no form in JSON."""


def opaque_input(x: Opaque): ...
def opaque_inside(x: dict[str, list[Opaque]]): ...
def opaque_output() -> Opaque: ...
def function_input(x: Callable[[], int]): ...
def two_records(x: Address | Tree): ...
def unknown_hint(x: "Nowhere"): ...  # type: ignore[name-defined]  # noqa: F821
def unknown_attribute(x: "dataclasses.nothing"): ...  # type: ignore[name-defined]
def broken_hint(x: "int |"): ...  # type: ignore[syntax]  # noqa: F722
def positional_only(x: int, /): ...
def any_number(*x: int): ...
def any_names(**x: int): ...


@pytest.mark.parametrize(
    "function, message",
    [
        (opaque_input, r"Opaque'> is not a type that dotdo can read from JSON"),
        (opaque_inside, r"Opaque'> is not a type that dotdo can read from JSON"),
        (opaque_output, r"Opaque'> is not a type that dotdo can read from JSON"),
        (function_input, "Callable'> is not a type that dotdo can read from JSON"),
        (two_records, "unions may not contain more than one"),
        (unknown_hint, "'Nowhere' is not defined.*importable at module level"),
        (unknown_attribute, "has no attribute 'nothing'.*importable at module level"),
        (broken_hint, "a type hint could not be resolved"),
        (positional_only, "the parameter x: int cannot be passed by name"),
        (any_number, r"the parameter \*x: int cannot be passed by name"),
        (any_names, r"the parameter \*\*x: int cannot be passed by name"),
        (5, "5 cannot be called"),
    ],
)
def test_what_cannot_work_is_refused_at_its_definition(function: Any, message: str):
    with pytest.raises(DefinitionError, match=rf"action x@1: .*{message}"):
        schema_of("action x@1", function, 0)


def test_hints_that_only_a_function_knows_are_refused():
    @dataclasses.dataclass
    class Local:
        x: int

    @dataclasses.dataclass
    class Outer:
        local: "Local"

    def direct(x: "Local"): ...
    def inside(x: Outer): ...

    for handler in (direct, inside):
        with pytest.raises(DefinitionError, match=r"'Local' is not defined.*importable at module level"):
            schema_of("action x@1", handler, 0)


def test_an_unknown_wire_form_is_refused():
    with pytest.raises(DefinitionError, match="wire='kebab': one of snake, camel"):
        schema_of("action x@1", lambda: None, 0, "kebab")
