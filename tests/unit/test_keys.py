"""API keys: their text, and what their scopes allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotdo.errors import DefinitionError
from dotdo.keys import VERBS, allows, check_scope, digest_of, is_well_formed, new_key


def test_key_is_recognised_and_its_record_does_not_have_it():
    text, record = new_key("shop", ["*"], now=5)
    assert text.startswith("do_")
    assert len(text) == 49
    assert is_well_formed(text)
    assert record.digest == digest_of(text)
    assert text not in repr(record)
    assert text.startswith(record.hint)
    assert len(record.hint) == 9


def test_keys_differ():
    assert len({new_key("shop", ["*"], now=5)[0] for _ in range(1000)}) == 1000


@given(st.integers(0, 48), st.sampled_from("0aZ_-\n"))
def test_mistyped_key_is_told_by_its_checksum(place: int, character: str):
    text, _ = new_key("shop", ["*"], now=5)
    if text[place] != character:
        assert not is_well_formed(text[:place] + character + text[place + 1 :])


@pytest.mark.parametrize(
    "scope, resource, verb, name, wanted",
    [
        ("*", "runs", "cancel", "send-mail", True),
        ("actions:execute", "actions", "execute", "send-mail", True),
        ("actions:execute:send-*", "actions", "execute", "send-mail", True),
        ("actions:execute:send-*", "actions", "execute", "charge", False),
        ("actions:execute:send-*", "actions", "execute", "*", False),
        ("actions:execute:send-*", "actions", "execute", None, True),
        ("actions:execute:send-*", "actions", "preview", "send-mail", False),
        ("actions:execute:send-*", "services", "execute", "send-mail", False),
        ("actions:*:send-*", "actions", "preview", "send-mail", True),
        ("*:read", "runs", "read", "*", True),
        ("*:read", "runs", "cancel", "x", False),
        ("actions:execute:send-*", "actions", "execute", "SEND-mail", False),
    ],
)
def test_scope(scope: str, resource: str, verb: str, name: str | None, wanted: bool):
    check_scope(scope)
    assert allows([scope], resource, verb, name) is wanted


@pytest.mark.parametrize(
    "scope", ["", "actions", "actions:", "actions:drop", "action:execute", "runs:execute", "actions:execute:a b", "**"]
)
def test_scope_that_means_nothing_is_refused(scope: str):
    with pytest.raises(DefinitionError, match="is no scope"):
        check_scope(scope)


def test_every_scope_that_there_is_can_be_given():
    for resource, verbs in VERBS.items():
        for verb in verbs:
            check_scope(f"{resource}:{verb}")


def test_key_without_scope_is_refused():
    with pytest.raises(DefinitionError, match="allows nothing"):
        new_key("shop", [], now=5)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101])
def test_name_that_tells_nobody_whose_key_it_is_is_refused(name: str):
    with pytest.raises(DefinitionError, match="cannot be the name of a key: 1 to 100 characters"):
        new_key(name, ["*"], now=5)
