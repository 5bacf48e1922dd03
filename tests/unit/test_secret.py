"""A Secret shows as stars, compares by its text, and no JSON is made of it by accident."""

import copy
import json
import pickle
from dataclasses import dataclass

import msgspec
import pydantic
import pytest

from dotdo import FromSecret, Secret
from dotdo.secret import JSON_SCHEMA, is_secret

TEXT = "correct horse"


@dataclass
class Login:
    user: str
    password: Secret[str]


class Account(pydantic.BaseModel):
    password: Secret[str]


def test_it_shows_as_stars_wherever_it_is_printed():
    secret = Secret(TEXT)
    shown = [
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!r:>8}",
        str([secret]),
        str(Login("a", secret)),
    ]
    assert not any(TEXT in text for text in shown)
    assert shown[:3] == ["***"] * 3
    assert f"{secret:>5}" == "  ***"


def test_only_reveal_gives_the_text():
    assert Secret(TEXT).reveal() == TEXT
    assert not hasattr(Secret(TEXT), "__dict__")


def test_equal_texts_are_equal_secrets():
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret("correct horsf")
    assert Secret("é") == Secret("é")
    assert Secret(TEXT) != TEXT
    assert len({Secret(TEXT), Secret(TEXT)}) == 1


def test_only_text_can_be_one_and_the_refusal_does_not_show_it():
    with pytest.raises(TypeError, match="holds text") as caught:
        Secret(12345678)  # type: ignore[type-var]
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize("encode", [json.dumps, msgspec.json.encode])
def test_json_refuses_it(encode):
    with pytest.raises(TypeError):
        encode({"password": Secret(TEXT)})


def test_copies_and_pickles_are_the_same_secret():
    secret = Secret(TEXT)
    for twin in (copy.copy(secret), copy.deepcopy(secret), pickle.loads(pickle.dumps(secret))):  # noqa: S301 - our own
        assert twin == secret


def test_pydantic_models_take_it_and_hide_it():
    account = Account.model_validate_json(json.dumps({"password": TEXT}))
    assert account.password == Secret(TEXT)
    assert Account(password=Secret(TEXT)) == account
    assert TEXT not in account.model_dump_json() + str(account) + str(account.model_dump())
    assert Account.model_json_schema()["properties"]["password"].items() >= JSON_SCHEMA.items()
    with pytest.raises(pydantic.ValidationError):
        Account.model_validate({"password": 5})


@pytest.mark.parametrize("hint, expected", [(Secret, True), (Secret[str], True), (str, False), (list[str], False)])
def test_hints_are_recognised(hint, expected):
    assert is_secret(hint) is expected


def test_from_secret_is_made_when_it_is_used():
    assert FromSecret("KEY", "Bearer {}").resolve(lambda name: Secret(f"{name}!")) == "Bearer KEY!"
    assert FromSecret("KEY").resolve(lambda name: Secret("{}")) == "{}"
