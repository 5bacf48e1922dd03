"""Secrets are found wherever hints put them, and a definition whose secrets cannot be followed is refused."""

import enum
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Required, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from pydantic.alias_generators import to_camel

from dotdo import Catalogue, DefinitionError, Effect, InvalidInput, Secret, SecretExposed, action
from dotdo.secret_fields import Fields, fields_of

Token = NewType("Token", Secret[str])
T = TypeVar("T")


class Tree(msgspec.Struct):
    children: "list[Tree]"
    other: "Tree | None" = None
    token: Secret[str] | None = None


class Renamed(msgspec.Struct, rename="camel"):
    api_key: Secret[str]


class Tagged(msgspec.Struct, array_like=True, tag=True):
    name: str
    key: Secret[str]


@dataclass
class Login:
    user: str
    password: Secret[str]


class Options(TypedDict):
    key: Required[Annotated[Secret[str], msgspec.Meta(description="the key")]]
    more: NotRequired[dict[str, list[Secret[str]]]]


class Pair(NamedTuple):
    name: str
    key: Secret[str]


class Account(pydantic.BaseModel):
    name: str
    password: Secret[str] = pydantic.Field(alias="pass", validation_alias=pydantic.AliasChoices("pass", "pw"))


class Root(pydantic.RootModel[list[Secret[str]]]):
    pass


class CamelModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=to_camel, populate_by_name=True)
    api_key: Secret[str]


class PathAlias(pydantic.BaseModel):
    password: Secret[str] = pydantic.Field(validation_alias=pydantic.AliasPath("login", 0))


class WithStars(pydantic.BaseModel):
    password: pydantic.SecretStr


class Box(msgspec.Struct, Generic[T]):
    inside: T


@dataclass
class Signed(Generic[T]):
    what: T
    password: Secret[str]


class SignedStruct(msgspec.Struct, Generic[T]):
    what: T
    password: Secret[str]


class SignedDict(TypedDict, Generic[T]):
    what: T
    password: Secret[str]


@dataclass
class Sealed(Generic[T]):
    inside: T


@dataclass
class Twice(Sealed[Secret[str]], Generic[T]):
    """T is another one here than in what it was made of."""

    outside: T


class Letter(TypedDict, Generic[T]):
    text: T


class SecretLetter(Letter[Secret[str]]):
    to: str


class Colour(enum.Enum):
    RED = "red"


FOLLOWED = [
    (Secret, "S"),
    (Secret[str] | None, "S"),
    (Token, "S"),
    (list[Secret[str]], ["S", "S"]),
    (tuple[Secret[str], ...], ["S"]),
    (tuple[str, Secret[str]], ["plain", "S"]),
    (dict[str, Secret[str]], {"a": "S"}),
    (Login, {"user": "plain", "password": "S"}),
    (list[Login] | None, [{"user": "plain", "password": "S"}]),
    (Options, {"key": "S", "more": {"a": ["S"]}}),
    (Pair, ["plain", "S"]),
    (Tagged, ["Tagged", "plain", "S"]),
    (Renamed, {"apiKey": "S"}),
    (Account, {"name": "plain", "password": "S", "pass": "S", "pw": "S"}),
    (Root, ["S"]),
    (CamelModel, {"api_key": "S", "apiKey": "S"}),
    (Signed[int], {"what": "plain", "password": "S"}),
    (SignedStruct[int] | None, {"what": "plain", "password": "S"}),
    (list[SignedDict[int]], [{"what": "plain", "password": "S"}]),
    (Signed[Login], {"what": {"user": "plain", "password": "S"}, "password": "S"}),
    (Box[Secret[str]], {"inside": "S"}),
    (Sealed[Secret[str]], {"inside": "S"}),
    (Twice[int], {"inside": "S", "outside": "plain"}),
    (SecretLetter, {"text": "S", "to": "plain"}),
    (Tree, {"children": [{"children": [], "token": "S"}], "other": {"token": "S", "children": []}, "token": "S"}),
]


@pytest.mark.parametrize("hint, value", FOLLOWED)
def test_each_place_is_found_and_no_other(hint: Any, value: Any):
    fields = fields_of({"it": hint})
    assert fields is not None
    changed = fields.change({"it": value, "else": "S"}, lambda text: f"<{text}>")
    assert changed == {"it": msgspec.json.decode(msgspec.json.encode(value).replace(b'"S"', b'"<S>"')), "else": "S"}


@pytest.mark.parametrize("hint", [str, Any, int | None, list[dict[str, Any]], Literal["a"], Colour, Box[str], object])
def test_hints_without_secrets_have_none(hint: Any):
    assert fields_of({"it": hint}) is None


@pytest.mark.parametrize(
    "hint, problem",
    [
        (Secret[int], "a secret is text"),  # pyright: ignore[reportInvalidTypeArguments]
        (dict[Secret[str], int], "cannot be followed"),
        (PathAlias, "whose alias is a path"),
        (WithStars, "use dotdo.Secret"),
    ],
)
def test_what_cannot_be_followed_is_refused(hint: Any, problem: str):
    with pytest.raises(TypeError, match=problem):
        fields_of({"it": hint})


class WithDefault(msgspec.Struct):
    password: Secret[str] = Secret("in the code")


@dataclass
class DataWithDefault:
    password: Secret[str] = Secret("in the code")  # noqa: RUF009 - what is refused


class ModelWithDefault(pydantic.BaseModel):
    password: Secret[str] = Secret("in the code")


@pytest.mark.parametrize("hint", [WithDefault, DataWithDefault, ModelWithDefault])
def test_a_secret_in_the_code_is_refused(hint: Any):
    with pytest.raises(TypeError, match="password has a Secret as its default"):
        fields_of({"it": hint})
    with pytest.raises(DefinitionError, match="password has a Secret as its default"):

        @action("sign-in", catalogue=Catalogue())
        def sign_in(password: Secret[str] = Secret("in the code")) -> None: ...


def test_a_definition_that_returns_a_secret_is_refused():
    with pytest.raises(DefinitionError, match="returns a Secret"):

        @action("leak", catalogue=Catalogue())
        def leak() -> Login: ...  # type: ignore[empty-body]


def test_without_cryptography_a_secret_input_is_refused_where_it_is_defined(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dotdo.sealing.find_spec", lambda name: None)
    with pytest.raises(DefinitionError, match=r'pip install "dotdo\[secrets\]"'):

        @action("sign-in", catalogue=Catalogue())
        def sign_in(password: Secret[str]) -> None: ...


def test_a_fallback_must_keep_the_same_secrets():
    catalogue = Catalogue()

    @action("fallback", catalogue=catalogue)
    def fallback(password: str) -> None: ...

    with pytest.raises(DefinitionError, match="its fallback fallback must declare the same"):

        @action("sign-in", fallback=fallback, catalogue=catalogue)
        def sign_in(password: Secret[str]) -> None: ...


class PlainLogin(msgspec.Struct):
    password: str


class SecretLogin(msgspec.Struct):
    password: Secret[str]


def test_an_undo_must_not_declare_a_secret_plain():
    @action("sign-in", catalogue=Catalogue())
    def sign_in(password: Secret[str]) -> str: ...  # type: ignore[empty-body]

    with pytest.raises(DefinitionError, match="password of its input holds a Secret"):

        @sign_in.undo
        def sign_out(done: str, input: PlainLogin) -> None: ...


def test_an_undo_may_declare_it_or_leave_it_open():
    for hint in (SecretLogin, dict[str, Any], Any):

        @action("sign-in", catalogue=Catalogue())
        def sign_in(password: Secret[str]) -> str: ...  # type: ignore[empty-body]

        def sign_out(done: str, input: Any) -> None: ...

        sign_out.__annotations__["input"] = hint
        undo = sign_in.undo(sign_out)
        assert undo.schema.secrets is not None
        assert undo.schema.secrets.fields.texts({"done": "x", "input": {"password": "S"}}) == ["S"]


# -- inputs of callers -----------------------------------------------------------------------------------------------


@action("sign-in", catalogue=Catalogue())
def sign_in(login: Login, note: str = "", mode: Literal["a", "b"] = "a") -> None: ...


def push(keys: list[Secret[str]], text: str) -> None: ...


def test_texts_and_secret_objects_are_taken_alike():
    given = [
        sign_in.schema.pack((Login("ada", Secret("hunter22")),), {}),
        sign_in.schema.accept({"login": {"user": "ada", "password": "hunter22"}}),
        sign_in.schema.accept({"login": {"user": "ada", "password": Secret("hunter22")}}),
    ]
    assert given == [b'{"login":{"password":"hunter22","user":"ada"}}'] * 3
    assert sign_in.schema.arguments(given[0])["login"].password == Secret("hunter22")


def test_inputs_of_effects_are_taken_alike():
    effect = Effect("push", push, catalogue=Catalogue())
    assert effect.schema.pack((), {"keys": ["one", Secret("two")], "text": "x"}) == b'{"keys":["one","two"],"text":"x"}'


@pytest.mark.parametrize(
    "params, path",
    [
        ({"login": {"user": Secret("hunter22"), "password": "x"}}, "$.login.user"),
        ({"login": {"user": "ada", "password": "x"}, "note": Secret("hunter22")}, "$.note"),
    ],
)
def test_a_secret_in_a_plain_place_is_refused_with_its_place(params: dict[str, Any], path: str):
    with pytest.raises(SecretExposed) as caught:
        sign_in.schema.accept(params)
    assert path in str(caught.value)
    assert "hunter22" not in str(caught.value)


@action("plain", catalogue=Catalogue())
def plain(text: str, more: Any = None) -> None: ...


@pytest.mark.parametrize(
    "value",
    [Secret("hunter22"), [{"a": Secret("hunter22")}], Account.model_validate({"name": "a", "pass": "hunter22"})],
)
def test_an_input_without_secrets_takes_none(value: Any):
    with pytest.raises(SecretExposed) as caught:
        plain.schema.accept({"text": "x", "more": value})
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"login": {"user": 5, "password": "hunter22"}},
        {"login": {"user": "ada", "password": ["hunter22"]}},
        {"login": {"user": "ada", "password": {"hunter22": "hunter22"}}},
        {"login": {"user": "ada", "pasword": "hunter22"}},
        {"login": "hunter22"},
        {"login": [Secret("hunter22")]},
        {"login": {"user": "ada", "password": "hunter22"}, "mode": "hunter22"},
        {"login": {"user": "ada", "password": Secret("hunter22")}, "other": 1},
    ],
)
def test_an_invalid_input_is_refused_without_its_secrets(params: dict[str, Any]):
    with pytest.raises((InvalidInput, SecretExposed)) as caught:
        sign_in.schema.accept(params)
    assert "hunter22" not in str(caught.value)


def test_a_secret_that_was_not_followed_is_refused_when_it_comes(monkeypatch: pytest.MonkeyPatch):
    """The last line: hints may put a Secret where the search did not look."""
    assert sign_in.schema.secrets is not None
    monkeypatch.setattr(sign_in.schema.secrets, "fields", Fields())
    with pytest.raises(SecretExposed, match=r"\$\.login\.password.* not\s+in a way that can be followed") as caught:
        sign_in.schema.accept({"login": {"user": "ada", "password": "hunter22"}})
    assert "hunter22" not in str(caught.value)


class Strict(pydantic.BaseModel):
    password: Secret[str]

    @pydantic.field_validator("password")
    @classmethod
    def long_enough(cls, value: Secret[str]) -> Secret[str]:
        raise ValueError(f"{value.reveal()} is too short")


def test_a_check_of_ones_own_cannot_show_it_either():
    @action("strict", catalogue=Catalogue())
    def strict(account: Strict) -> None: ...

    with pytest.raises(InvalidInput, match=r"\*\*\* is too short"):
        strict.schema.accept({"account": {"password": "hunter22"}})


def test_schemas_show_a_password_to_write():
    properties = sign_in.schema.input_schema()["$defs"]["Login"]["properties"]
    assert properties["password"] == {"type": "string", "format": "password", "writeOnly": True}
