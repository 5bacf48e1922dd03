"""Type hints as the schema of inputs and outputs: what is taken, what is refused, and every reason why."""

import dataclasses
import datetime
import enum
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
)

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotdo import DefinitionError, InvalidInput
from dotdo.errors import InvalidValue
from dotdo.schema import Schema, camel, normalise, schema_of

POSITIVE = Annotated[int, msgspec.Meta(gt=0)]
UserId = NewType("UserId", int)


class Plan(enum.Enum):
    FREE = "free"
    PAID = "paid"


@dataclasses.dataclass
class Address:
    street_name: str
    zip_code: str | None = None


@dataclasses.dataclass
class User:
    user_id: int
    home_address: Address | None = None
    old_addresses: list[Address] = dataclasses.field(default_factory=list)


class Stats(msgspec.Struct):
    login_count: int
    last_seen: datetime.datetime | None = None


class Flags(TypedDict, total=False):
    is_admin: Required[bool]
    max_logins: POSITIVE
    nick_name: NotRequired[str]


class Child(pydantic.BaseModel):
    first_name: str
    age_years: int = pydantic.Field(ge=0, default=0)


class Family(pydantic.BaseModel):
    family_name: str
    all_children: list[Child] = []


class Point(NamedTuple):
    x: int
    y: int = 0


@dataclasses.dataclass
class Tree:
    node_name: str
    sub_trees: list["Tree"] = dataclasses.field(default_factory=list)


T = TypeVar("T")


@dataclasses.dataclass
class Page(Generic[T]):
    first_item: T
    other_items: list[T] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Book(Page[Address]):
    book_title: str = ""


class Record(msgspec.Struct, Generic[T]):
    the_value: T


class Card(msgspec.Struct, tag=True):
    card_number: int


class Cash(msgspec.Struct, tag="in cash", tag_field="paid_how"):
    paid_by: str


class Coin(msgspec.Struct, tag=True, tag_field="paid_how"):
    paid_by: str
    coin_count: int


class Parcel(pydantic.BaseModel):
    sent_to: Address | Child


def of(function: Callable[..., Any], wire: str = "snake") -> Schema:
    return schema_of("action x@1", function, 0, wire)


def problems(schema: Schema, **params: Any) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        schema.accept(params)
    paths = [problem.path for problem in caught.value.problems]
    assert len(set(paths)) == len(paths), "each place is told once"
    return {problem.path: problem.message for problem in caught.value.problems}


# -- what is taken ----------------------------------------------------------------------------------------------------


def everything(
    text: str,
    number: int,
    ratio: float,
    flag: bool,
    when: datetime.datetime,
    day: datetime.date,
    wait: datetime.timedelta,
    id: uuid.UUID,
    price: Decimal,
    raw: bytes,
    plan: Plan,
    size: Literal["s", "m", 3],
    user: User,
    stats: Stats,
    flags: Flags,
    family: Family,
    point: Point,
    tags: set[str],
    pair: tuple[int, User],
    by_day: dict[int, list[User]],
    key: UserId,
    either: int | str,
    maybe: Optional[Address] = None,  # noqa: UP045 - as older code writes it
    free: Any = None,
    bare: object = None,
): ...


GIVEN: dict[str, Any] = {
    "text": "ä\n",
    "number": 2**70,
    "ratio": 1.5,
    "flag": True,
    "when": datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC),
    "day": datetime.date(2030, 1, 1),
    "wait": datetime.timedelta(hours=1),
    "id": uuid.UUID(int=5),
    "price": Decimal("9.90"),
    "raw": b"\0\1",
    "plan": Plan.PAID,
    "size": 3,
    "user": User(1, Address("Main"), [Address("Old", "1")]),
    "stats": Stats(3),
    "flags": {"is_admin": True, "nick_name": "ada"},
    "family": Family(family_name="L", all_children=[Child(first_name="A")]),
    "point": Point(1, 2),
    "tags": {"a", "b"},
    "pair": (1, User(2)),
    "by_day": {1: [User(3)], 20: []},
    "key": UserId(7),
    "either": "x",
    "free": {"x": [None]},
    "bare": [1],
}


def test_every_kind_of_hint_gives_the_handler_what_the_caller_gave():
    schema = of(everything)
    assert schema.arguments(schema.pack((), GIVEN)) == {**GIVEN, "maybe": None}


def test_the_same_input_is_taken_as_plain_json():
    schema = of(everything)
    data = schema.pack((), GIVEN)
    assert schema.accept(msgspec.json.decode(data)) == data


def test_defaults_are_filled_in_and_need_no_order():
    def handler(a: int = 1, *, b: str, c: list[int] = [1, 2], d: User | None = User(4)): ...  # noqa: B006

    assert of(handler).arguments(b'{"b":"x"}') == {"a": 1, "b": "x", "c": [1, 2], "d": User(4)}


def test_positional_arguments_take_the_names_of_the_parameters():
    def handler(a: int, b: int = 2, *, c: int = 3): ...

    assert of(handler).pack((1,), {"c": 5}) == b'{"a":1,"c":5}'
    assert of(handler).pack((1, 2), {}) == of(handler).pack((), {"b": 2, "a": 1})


def test_parameters_without_hints_take_any_json():
    def handler(anything, other=None): ...

    assert of(handler).arguments(of(handler).accept({"anything": [1, {"x": None}]})) == {
        "anything": [1, {"x": None}],
        "other": None,
    }


def test_callables_of_every_sort_can_be_handlers():
    class Greeter:
        def __call__(self, name: str) -> str:
            return name

        def method(self, name: str) -> str:
            return name

    def greet(greeting: str, name: str) -> str:
        return greeting + name

    for handler in (Greeter(), Greeter().method, functools.partial(greet, "hello")):
        assert list(of(handler).names) == ["name"]
        assert of(handler).output is str


# -- names ------------------------------------------------------------------------------------------------------------


def nested(
    user: User,
    stats: Stats,
    flags: Flags,
    family: Family,
    users: Sequence[User],
    by_name: Mapping[str, User],
    pair: tuple[int, User],
    maybe: list[Address] | None = None,
): ...


CAMEL = {
    "user": {
        "userId": 1,
        "homeAddress": {"streetName": "Main"},
        "oldAddresses": [{"streetName": "Old", "zipCode": "1"}],
    },
    "stats": {"loginCount": 2},
    "flags": {"isAdmin": True, "maxLogins": 3},
    "family": {"familyName": "L", "allChildren": [{"firstName": "A", "ageYears": 3}]},
    "users": [{"userId": 2}, {"user_id": 3}],
    "byName": {"ada_lovelace": {"userId": 4}},
    "pair": [1, {"userId": 5}],
    "maybe": [{"streetName": "X"}],
}


def test_an_input_may_be_camel_case_at_every_level():
    schema = of(nested)
    arguments = schema.arguments(schema.accept(CAMEL))
    assert arguments["user"] == User(1, Address("Main"), [Address("Old", "1")])
    assert arguments["flags"] == {"is_admin": True, "max_logins": 3}
    assert arguments["family"] == Family(family_name="L", all_children=[Child(first_name="A", age_years=3)])
    assert arguments["users"] == [User(2), User(3)]
    assert arguments["by_name"] == {"ada_lovelace": User(4)}, "keys that are data are not names"
    assert arguments["pair"] == (1, User(5))
    assert arguments["maybe"] == [Address("X")]


def test_either_form_of_an_input_is_the_same_input():
    schema = of(nested)
    snake = normalise_by_hand(CAMEL)
    assert "home_address" in snake["user"]
    assert schema.accept(CAMEL) == schema.accept(snake)
    assert schema.accept(dict(reversed(CAMEL.items()))) == schema.accept(snake)


def normalise_by_hand(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            "".join(f"_{c.lower()}" if c.isupper() else c for c in k): normalise_by_hand(v) for k, v in value.items()
        }
    return [normalise_by_hand(item) for item in value] if isinstance(value, list) else value


HOME = {"streetName": "Main", "zipCode": "1"}
NESTED = [
    (str | Address, HOME),
    (int | list[Address] | None, [HOME]),
    (dict[str, list[Address]] | int, {"some_key": [HOME]}),
    (Page[Address], {"firstItem": HOME, "otherItems": [HOME]}),
    (list[Page[int]], [{"firstItem": 1, "otherItems": [2]}]),
    (Page[Page[Address]], {"firstItem": {"firstItem": HOME, "otherItems": []}, "otherItems": []}),
    (Book, {"firstItem": HOME, "otherItems": [], "bookTitle": "x"}),
    (Record[str | Address], {"theValue": HOME}),
    (Card, {"type": "Card", "cardNumber": 1}),
    (Cash | Coin, {"paidHow": "in cash", "paidBy": "Ada"}),
    (list[Cash | Coin | None], [{"paidHow": "Coin", "paidBy": "Ada", "coinCount": 1}, None]),
    (Parcel, {"sentTo": HOME}),
    (Parcel, {"sentTo": {"firstName": "Ada", "ageYears": 1}}),
]


@pytest.mark.parametrize("hint, value", NESTED)
def test_camel_case_reaches_into_unions_and_generic_types(hint: Any, value: Any):
    def handler(it_is: Any) -> Any: ...

    handler.__annotations__ = {"it_is": hint, "return": hint}
    schema = of(handler, "camel")
    given = schema.arguments(schema.accept({"itIs": value}))["it_is"]
    data, loaded = schema.dump(given)
    assert msgspec.json.decode(data) == value, "the output is written as the input was"
    assert loaded == given, "and can be read"
    assert schema.accept({"it_is": normalise_by_hand(value)}) == schema.accept({"itIs": value})
    assert schema.accept({"itIs": given}) == schema.pack((given,), {}), "what it is in Python is the same"


def test_all_problems_inside_unions_and_generic_types_are_reported():
    def handler(one: str | Address, page: Page[Address], paid: Cash | Coin): ...

    broken = {"street_name": 1, "zip_code": 2}
    assert problems(
        of(handler), one=broken, page={"first_item": broken, "other_items": [3]}, paid={"paid_how": "Coin"}
    ) == {
        "$.one.street_name": "expected `str`, got `int`",
        "$.one.zip_code": "expected `str | null`, got `int`",
        "$.page.first_item.street_name": "expected `str`, got `int`",
        "$.page.first_item.zip_code": "expected `str | null`, got `int`",
        "$.page.other_items[0]": "expected `object`, got `int`",
        "$.paid.paid_by": "is required",
        "$.paid.coin_count": "is required",
    }
    assert problems(of(handler), one="", page={"first_item": {"street_name": ""}}, paid={"paid_how": "by hand"}) == {
        "$.paid.paid_how": "invalid value 'by hand'"
    }


@pytest.mark.parametrize("hint", [User | Address, Child | Address, Child | Family])
def test_a_union_that_nothing_in_the_json_tells_apart_is_refused_with_what_to_do(hint: Any):
    def handler(it: Any): ...

    handler.__annotations__ = {"it": hint}
    with pytest.raises(DefinitionError, match=r"make each a msgspec\.Struct with tag=True, or let one pydantic model"):
        of(handler)


def test_an_exact_name_comes_before_a_camel_case_one():
    def handler(user_id: int, userId: int): ...

    schema = of(handler)
    assert schema.arguments(schema.accept({"user_id": 1, "userId": 2})) == {"user_id": 1, "userId": 2}


def test_a_name_given_in_both_forms_is_refused_at_every_level():
    found = problems(of(nested), **{**CAMEL, "user": {"userId": 1, "user_id": 1}, "by_name": {}})
    assert found == {
        "$.user.user_id": "was given twice (as user_id and userId)",
        "$.by_name": "was given twice (as by_name and byName)",
    }


@pytest.mark.parametrize(
    "name, expected",
    [
        ("user_id", "userId"),
        ("a", "a"),
        ("x_1", "x1"),
        ("_id", "_id"),
        ("__a_b", "__aB"),
        ("from_", "from"),
        ("ID", "ID"),
    ],
)
def test_camel_case(name: str, expected: str):
    assert camel(name) == expected


@pytest.mark.parametrize("name", ["key", "version", "name", "wait", "self", "params", "input", "args", "kwargs", "cls"])
def test_parameters_may_have_any_name(name: str):
    namespace: dict[str, Any] = {}
    exec(f"def handler({name}: int, other: int = 0): ...", namespace)  # noqa: S102 - a handler with that parameter
    schema = of(namespace["handler"])
    assert schema.arguments(schema.accept({name: 5})) == {name: 5, "other": 0}


# -- every problem of an input ----------------------------------------------------------------------------------------


def test_all_problems_are_reported_each_with_its_place():
    found = problems(
        of(everything),
        **{
            "number": "5",
            "ratio": "1",
            "flag": 1,
            "when": "soon",
            "day": "2030-13-01",
            "wait": 5,
            "id": "x",
            "price": "cheap",
            "raw": 5,
            "plan": "gold",
            "size": "xl",
            "user": {"user_id": "1", "home_address": {"zip_code": 1}, "old_addresses": [{"street_name": "a"}, {}]},
            "stats": {"last_seen": "x"},
            "flags": {"max_logins": 0, "nick_name": 5},
            "family": {"all_children": [{"first_name": 1}, {"first_name": "B", "age_years": -1}]},
            "point": ["a"],
            "tags": ["a", 5],
            "pair": ["a", {"user_id": None}],
            "by_day": {"1": [{"user_id": "x"}], "2": "none"},
            "key": "7",
            "either": 1.5,
            "unknown": 1,
        },
    )
    assert set(found) == {
        *("$.text", "$.number", "$.ratio", "$.flag", "$.when", "$.day", "$.wait", "$.id", "$.price", "$.raw"),
        *("$.plan", "$.size", "$.key", "$.either", "$.unknown", "$.tags[1]", "$.point[0]"),
        *("$.user.user_id", "$.user.home_address.street_name", "$.user.home_address.zip_code"),
        *("$.user.old_addresses[1].street_name", "$.stats.login_count", "$.stats.last_seen"),
        *("$.flags.is_admin", "$.flags.max_logins", "$.flags.nick_name"),
        *("$.family.family_name", "$.family.all_children[0].first_name", "$.family.all_children[1].age_years"),
        *("$.pair[0]", "$.pair[1].user_id", "$.by_day.1[0].user_id", "$.by_day.2"),
    }
    assert found["$.text"] == "is required"
    assert found["$.number"] == "expected `int`, got `str`"
    assert found["$.plan"] == """invalid enum value 'gold'; known are: "free", "paid\""""
    assert found["$.flags.max_logins"] == "expected `int` >= 1"
    assert "greater than or equal to 0" in found["$.family.all_children[1].age_years"]


def test_undeclared_parameters_and_fields_are_refused_by_name():
    def handler(user: User, note: str = ""): ...

    assert problems(of(handler), user={"userId": 1, "shoeSize": 44}, colour="red") == {
        "$.user.shoeSize": "is not a parameter; known are: user_id, home_address, old_addresses",
        "$.colour": "is not a parameter; known are: user, note",
    }


def test_keys_that_do_not_fit_are_told():
    def handler(by_day: dict[int, str]): ...

    assert problems(of(handler), by_day={"monday": "x"}) == {"$.by_day": "expected `int`, got `str`"}


def test_a_wrong_number_of_arguments_is_an_invalid_input():
    def handler(a: int, b: int = 0): ...

    for args, kwargs, message in (
        ((1, 2, 3), {}, "takes 2 arguments, 3 were given"),
        ((1,), {"a": 2}, r"\$\.a: was given twice"),
    ):
        with pytest.raises(InvalidInput, match=message):
            of(handler).pack(args, kwargs)


@pytest.mark.parametrize("given", [None, [1], "text", 5])
def test_an_input_that_is_no_object_is_refused(given: Any):
    with pytest.raises(InvalidInput, match="an object of parameters by name is needed"):
        of(lambda x: None).accept(given)


def test_stored_input_that_fits_no_longer_is_refused_with_every_problem():
    """A run keeps its version, but a version's hints may be edited against the rules."""
    schema = of(nested)
    for read in (schema.arguments, schema.check):
        with pytest.raises(InvalidInput) as caught:
            read(b'{"user":{"user_id":"x"},"gone":1}')
        paths = {problem.path for problem in caught.value.problems}
        assert {"$.gone", "$.user.user_id", "$.stats", "$.pair"} <= paths


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["user_id", "userId", "street_name", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*CAMEL, "x"]), SHAPES))
def test_no_input_from_outside_raises_anything_but_a_refusal(params: dict[str, Any]):
    schema = of(nested)
    try:
        data = schema.accept(params)
    except InvalidInput as error:
        places = {problem.path[:1] for problem in error.problems if problem.message}
        assert places == {"$"}
    except InvalidValue as error:
        why = error.message
        assert "cannot be carried as JSON: $" in why
    else:
        assert schema.accept(msgspec.json.decode(data)) == data
        schema.arguments(data)


# -- outputs ----------------------------------------------------------------------------------------------------------


def test_a_result_is_checked_against_its_hint():
    def handler() -> User: ...

    data, loaded = of(handler).dump({"user_id": 1})
    assert (data, loaded) == (b'{"user_id":1}', User(1))
    with pytest.raises(InvalidValue, match=r"The result of action x@1 does not fit its return hint User: .*user_id"):
        of(handler).dump({"user_id": "1"})


@pytest.mark.parametrize("wire", ["snake", "camel"])
def test_a_result_that_is_no_json_is_refused(wire: str):
    cycle: list[Any] = []
    cycle.append(cycle)
    for result in (object(), cycle, float("nan"), {"a": {1j}}, (n for n in range(3))):
        with pytest.raises(InvalidValue, match="The result of action x@1 cannot be carried as JSON"):
            of(lambda: None, wire).dump(result)


@dataclasses.dataclass
class Report:
    for_user: User
    login_counts: dict[str, int]
    per_user: dict[str, Stats]
    family_tree: Family
    flag_list: list[Flags]
    any_thing: Any = None


REPORT = Report(
    User(1, Address("Main")),
    {"ada_lovelace": 3},
    {"user_1": Stats(2)},
    Family(family_name="L", all_children=[Child(first_name="A")]),
    [{"is_admin": True}],
    {"some_key": 1},
)


def test_camel_case_outputs_rename_fields_and_leave_data_alone():
    def handler() -> Report: ...

    data, loaded = of(handler, "camel").dump(REPORT)
    assert loaded == REPORT, "a service gets what the action returned"
    assert msgspec.json.decode(data) == {
        "forUser": {"userId": 1, "homeAddress": {"streetName": "Main", "zipCode": None}, "oldAddresses": []},
        "loginCounts": {"ada_lovelace": 3},
        "perUser": {"user_1": {"loginCount": 2, "lastSeen": None}},
        "familyTree": {"familyName": "L", "allChildren": [{"firstName": "A", "ageYears": 0}]},
        "flagList": [{"isAdmin": True}],
        "anyThing": {"some_key": 1},
    }


class Loose(pydantic.BaseModel, extra="allow"):
    """A model that takes fields which nobody declared."""

    own_field: int


def test_fields_that_nobody_declared_keep_their_names():
    def handler(loose_one: Loose) -> Loose: ...  # type: ignore[empty-body]

    given = Loose.model_validate({"own_field": 1, "their_field": 2})
    data, loaded = of(handler, "camel").dump(given)
    assert data == b'{"ownField":1,"their_field":2}'
    assert loaded == given
    assert of(handler).accept({"looseOne": {"ownField": 1, "their_field": 2}}) == of(handler).pack((given,), {})


def test_without_a_return_hint_the_result_itself_says_what_its_fields_are():
    def handler(): ...

    assert of(handler, "camel").dump(User(1))[0] == b'{"userId":1,"homeAddress":null,"oldAddresses":[]}'
    assert of(handler, "camel").dump({"ada_lovelace": 1})[0] == b'{"ada_lovelace":1}'


def test_a_stored_output_with_fields_of_an_older_version_can_be_read():
    def handler() -> Stats: ...

    for wire in ("snake", "camel"):
        assert of(handler, wire).load('{"login_count":1,"retired_field":5}') == Stats(1)


def test_normalise_turns_names_of_the_wire_into_names_of_the_code():
    assert normalise({"userId": 1, "homeAddress": {"streetName": "x"}}, User) == {
        "user_id": 1,
        "home_address": {"street_name": "x"},
    }
    assert normalise({"userId": 1}, Any) == {"userId": 1}


def test_problem_says_what_fits_where_there_are_few_choices_or_one_form():
    class Size(enum.Enum):
        SMALL = "s"
        LARGE = "l"

    def pack(size: Size | None, board: Literal["half", "full"], on: datetime.date, at: datetime.datetime) -> None: ...

    with pytest.raises(InvalidInput) as refused:
        of(pack).accept({"size": "xl", "board": "none", "on": "tomorrow", "at": "noon"})
    assert [problem.message for problem in refused.value.problems] == [
        """invalid enum value 'xl'; known are: "s", "l\"""",
        """invalid enum value 'none'; known are: "half", "full\"""",
        "invalid RFC3339 encoded date, such as 2030-01-31",
        "invalid RFC3339 encoded datetime, such as 2030-01-31T12:00:00Z",
    ]
