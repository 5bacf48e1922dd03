"""Values to JSON and back: nothing is lost silently, and what cannot be carried is refused with its place."""

import dataclasses
import datetime
import enum
import json
import math
import uuid
from collections import OrderedDict, defaultdict
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotdo import codec
from dotdo.codec import MAX_BYTES, MAX_DEPTH, decode, decoder, digest, encode, encode_result
from dotdo.errors import InputError, InvalidValue

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [reordered(item) for item in value]
    return value


def same(one: Any, other: Any) -> bool:
    """Equal in value and type (1, 1.0 and True are three values, and so are 0.0 and -0.0)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


# -- what is carried --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(PLAIN)
def test_plain_values_come_back_exactly(value: Any):
    assert same(decode(encode_result(value, "it")), value)
    assert same(decode(encode_result(value, "it").decode()), value), "text is read like bytes"


@settings(deadline=None)
@given(PLAIN)
def test_any_json_reader_reads_what_we_write(value: Any):
    assert json.loads(encode(value)) == value


@settings(deadline=None)
@given(PLAIN)
def test_equal_values_have_equal_bytes_whatever_the_order_of_their_keys(value: Any):
    assert encode(reordered(value)) == encode(value)
    assert digest(encode(reordered(value))) == digest(encode(value))


@settings(deadline=None)
@given(PLAIN, PLAIN)
def test_different_values_have_different_bytes(one: Any, other: Any):
    assert (encode(one) == encode(other)) == same(decode(encode(one)), decode(encode(other)))


@settings(deadline=None)
@given(st.recursive(st.integers(), lambda inner: st.dictionaries(st.integers() | TEXT, inner, max_size=3)))
def test_keys_that_are_numbers_are_text_in_json_and_in_one_order(value: Any):
    """A `dict[int, ...]` is an ordinary hint; only two keys that become one are refused."""
    try:
        data = encode(value)
    except InvalidValue as error:
        assert "two keys of one object are the same text" in str(error)  # noqa: PT017 - either outcome is right
        return
    assert data == encode(reordered(value))
    assert decode(data) == json.loads(json.dumps(value))


def test_keys_that_would_become_one_are_refused():
    with pytest.raises(InvalidValue, match="two keys of one object are the same text"):
        encode({1: "a", "1": "b"})


def test_results_keep_the_order_that_the_handler_gave_them():
    assert encode_result({"b": 1, "a": 2}, "it") == b'{"b":1,"a":2}'
    assert encode({"b": 1, "a": 2}) == b'{"a":2,"b":1}'


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**1000, -(10**1000)])
def test_huge_integers_keep_every_digit(number: int):
    assert decode(encode(number)) == number


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Place:
    name: str
    at: Point


class Box(msgspec.Struct):
    width: int
    place: Place | None = None


@pytest.mark.parametrize(
    "value, kind, text",
    [
        (
            datetime.datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
            datetime.datetime,
            '"2030-01-02T03:04:05.000006Z"',
        ),
        (datetime.datetime(2030, 1, 2, 3, 4, 5), datetime.datetime, '"2030-01-02T03:04:05"'),
        (datetime.date(2030, 1, 2), datetime.date, '"2030-01-02"'),
        (datetime.time(3, 4), datetime.time, '"03:04:00"'),
        (datetime.timedelta(days=1, seconds=2), datetime.timedelta, '"P1DT2S"'),
        (uuid.UUID(int=7), uuid.UUID, '"00000000-0000-0000-0000-000000000007"'),
        (Decimal("1.10"), Decimal, '"1.10"'),
        (b"\0\xff", bytes, '"AP8="'),
        (Colour.RED, Colour, '"red"'),
        (Level.HIGH, Level, "3"),
        ((1, "a"), tuple[int, str], '[1,"a"]'),
        ({3, 1, 2}, set[int], "[1,2,3]"),
        (frozenset({"b", "a"}), frozenset[str], '["a","b"]'),
        (Place("home", Point(1, 2)), Place, '{"at":[1,2],"name":"home"}'),
        (Box(3, Place("home", Point(1, 2))), Box, '{"place":{"at":[1,2],"name":"home"},"width":3}'),
        (OrderedDict(b=1, a=2), dict[str, int], '{"a":2,"b":1}'),
        (defaultdict(int, a=1), dict[str, int], '{"a":1}'),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, set | frozenset) else repr(value),
)
def test_values_of_other_types_have_one_form_in_json(value: Any, kind: Any, text: str):
    data = encode(value)
    assert data == text.encode()
    assert decoder(kind).decode(data) == value


# -- pydantic models --------------------------------------------------------------------------------------------------


class Line(pydantic.BaseModel):
    sku: str
    price: Decimal = Decimal("0.00")


class Order(pydantic.BaseModel):
    order_id: uuid.UUID
    placed: datetime.datetime
    lines: list[Line] = []
    note: Any = None


class Strict(pydantic.BaseModel, strict=True):
    at: datetime.datetime
    id: uuid.UUID
    tags: set[str]


class Aliased(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userID")


class Computed(pydantic.BaseModel, extra="forbid"):
    cents: int

    @pydantic.computed_field
    @property
    def euros(self) -> float:
        return self.cents / 100


NOON = datetime.datetime(2030, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    "model",
    [
        Order(order_id=uuid.UUID(int=1), placed=NOON, lines=[Line(sku="a", price=Decimal("1.10"))], note={"x": [1]}),
        Strict(at=NOON, id=uuid.UUID(int=2), tags={"a", "b"}),
        Aliased(userID=5),
        Computed(cents=250),
    ],
    ids=lambda model: type(model).__name__,
)
def test_pydantic_models_come_back_as_they_were(model: pydantic.BaseModel):
    assert decoder(type(model)).decode(encode(model)) == model
    assert decoder(list[type(model)]).decode(encode([model, model])) == [model, model]  # type: ignore[misc]


def test_pydantic_models_are_written_with_the_names_of_the_code():
    assert encode(Aliased(userID=5)) == b'{"user_id":5}'
    assert decoder(Aliased).decode(b'{"userID":5}') == Aliased(userID=5), "its alias is read, too"


def test_every_problem_of_a_pydantic_model_is_told_with_its_place():
    with pytest.raises(msgspec.ValidationError) as caught:
        decoder(dict[str, Order]).decode('{"o":{"order_id":"x","placed":"soon","lines":[{"sku":1}]}}')
    for part in ("order_id:", "placed:", "lines.0.sku:", "`$[...]`"):
        assert part in str(caught.value)


# -- what is refused --------------------------------------------------------------------------------------------------

POISON = [math.nan, math.inf, -math.inf, "nul \0", "\ud800", object(), lambda: None, 1j, range(3)]


@st.composite
def poisoned(draw: st.DrawFn) -> tuple[Any, str]:
    """A value with one thing inside that JSON cannot carry, and the path to it."""
    value: Any = draw(st.sampled_from(POISON))
    path = ""
    for _ in range(draw(st.integers(0, 5))):
        beside = draw(st.lists(PLAIN, max_size=2))
        if draw(st.booleans()):
            path = f"[{len(beside)}]{path}"
            value = [*beside, value]
        else:
            path = f".here{path}"
            value = {**{str(n): item for n, item in enumerate(beside)}, "here": value}
    return value, "$" + path


@settings(deadline=None)
@given(poisoned())
def test_what_json_cannot_carry_is_refused_with_its_place(case: tuple[Any, str]):
    value, path = case
    for carry in (lambda: encode(value, "The input of x"), lambda: encode_result(value, "The input of x")):
        with pytest.raises(InvalidValue) as caught:
            carry()
        told = str(caught.value).removeprefix("The input of x cannot be carried as JSON: ")
        assert told.startswith(path)
        assert told[len(path)] in " :", "this place, and none inside it"


@pytest.mark.parametrize("carry", [encode, lambda value: encode_result(value, "it")])
@pytest.mark.parametrize("key", ["nul \0", "\ud800"])
def test_keys_are_text_too(carry: Any, key: str):
    with pytest.raises(InvalidValue, match=r"\$\.a \(a key\)"):
        carry({"a": {key: 1}})


@pytest.mark.parametrize(
    "value",
    [{(1, 2): 3}, {None: 1}, {True: 1}, {1, "a"}],
    ids=["tuple as a key", "None as a key", "bool as a key", "set"],
)
def test_what_has_no_form_in_json_is_refused(value: Any):
    with pytest.raises(InvalidValue, match="cannot be carried as JSON"):
        encode(value)


@dataclasses.dataclass
class Holder:
    held: Any = None


class Model(pydantic.BaseModel):
    held: Any = None


@pytest.mark.parametrize("poison", POISON[:6], ids=["nan", "inf", "-inf", "NUL", "surrogate", "object"])
@pytest.mark.parametrize(
    "holder",
    [Holder, Model, lambda held: Holder(Model(held=held)), lambda held: {1: [held]}],
    ids=["dataclass", "pydantic", "nested", "dict"],
)
def test_poison_inside_objects_is_refused_too(holder: Any, poison: Any):
    for carry in (encode, lambda value: encode_result(value, "it")):
        with pytest.raises(InvalidValue):
            carry(holder(held=poison))


def test_a_null_or_the_letters_of_an_escape_are_no_poison():
    for value in ([None], "null", "u0000", "\\u0000", "nan", {"NaN": None}, Model(), Holder(Model())):
        encode(value)


NESTS = {"lists": lambda inner: [inner], "tuples": lambda inner: (inner,), "objects": lambda inner: {"a": inner}}


@pytest.mark.parametrize("leaf", [1, "", [], {}], ids=repr)
@pytest.mark.parametrize("nest", sorted(NESTS))
def test_values_may_be_nested_64_levels_deep_and_no_more(nest: str, leaf: Any):
    value, levels = leaf, 0 if leaf in (1, "") else 1
    while levels < MAX_DEPTH:
        value, levels = NESTS[nest](value), levels + 1
    assert decode(encode(value)) == json.loads(json.dumps(value))
    for carry in (encode, lambda deep: encode_result(deep, "it")):
        with pytest.raises(InvalidValue, match="nested deeper than 64 levels"):
            carry(NESTS[nest](value))


def test_wide_values_are_not_deep():
    encode([[[n]] for n in range(10_000)])


@pytest.mark.parametrize("nest", sorted(NESTS))
def test_values_too_deep_for_any_stack_are_refused_and_crash_nothing(nest: str):
    value: Any = None
    for _ in range(50_000):
        value = NESTS[nest](value)
    with pytest.raises(InvalidValue, match="cyclic or nested too deeply"):
        encode(value)


def cyclic(kind: str) -> Any:
    value: Any = {"list": [], "dict": {}, "dataclass": Holder(), "model": Model()}[kind]
    if kind == "list":
        value.append(value)
    elif kind == "dict":
        value["me"] = value
    else:
        value.held = value
    return value


@pytest.mark.parametrize("kind", ["list", "dict", "dataclass", "model"])
def test_cycles_are_refused(kind: str):
    for carry in (encode, lambda value: encode_result(value, "it")):
        with pytest.raises(InvalidValue, match=r"cyclic|[Cc]ircular"):
            carry(cyclic(kind))


def test_values_over_the_limit_are_refused_with_their_size():
    encode("x" * (MAX_BYTES - 2))
    with pytest.raises(InvalidValue, match=r"64\.0 MiB as JSON; at most 64 MiB .* file or object store"):
        encode("x" * (MAX_BYTES - 1))


def test_an_integer_of_too_many_digits_is_refused():
    with pytest.raises(InvalidValue, match="digits"):
        encode(10**5000)


def test_a_refusal_is_an_input_error():
    assert issubclass(InvalidValue, InputError)


# -- safety and digests -----------------------------------------------------------------------------------------------


def test_reading_runs_no_code_and_builds_only_what_was_asked_for():
    hostile = b'{"__class__":"os.system","py/object":"os.system","__reduce__":["os.system",["true"]]}'
    assert decode(hostile) == json.loads(hostile)
    assert type(decode(hostile)) is dict
    with pytest.raises(msgspec.ValidationError, match="not a type that dotdo can read"):
        decoder(type(codec)).decode(b'"os"')


def test_digest_is_short_hex_and_depends_on_every_byte():
    assert digest(b"{}") == "44136fa355b3678a"
    assert digest(b"{}") != digest(b"{ }")
