"""Large JSON in pieces is what the JSON library makes of the whole, wherever a piece ends."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dotdo import pieces

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text('a"\\\n\x01é😀')
PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS
VALUES = PLAIN | st.lists(PLAIN, max_size=4) | st.dictionaries(TEXTS, PLAIN | st.dictionaries(TEXTS, PLAIN, max_size=4))


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 3)


@settings(max_examples=500, deadline=None)
@given(VALUES)
def test_pieces_are_the_whole(value: object) -> None:
    whole = msgspec.json.encode(value)

    assert pieces.encode(value, msgspec.json.encode) == whole
    assert pieces.decode(whole) == value
    assert pieces.decode(msgspec.Raw(whole)) == value


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_texts_that_others_escaped(text: str) -> None:
    escaped = '"' + "".join(f"\\u{unit:04x}" for unit in memoryview(text.encode("utf-16-le")).cast("H")) + '"'

    assert pieces.decode(escaped.encode()) == text


@pytest.mark.parametrize(
    "data", [b'"abcdefgh', b'{"a": "bcdefgh"', b'{"a": "bcdefgh",}', b'"abc\\', b'"ab"c"', b'"abc\\"', b'"abcd']
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        pieces.decode(data)


def test_text_of_escapes_only_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "NEARBY", 20)
    whole = msgspec.json.encode("\n" * 100 + "é" * 100)

    assert pieces._end_of_piece(memoryview(whole)[1:-1], 0) == len(whole) - 2
    assert pieces.decode(whole) == "\n" * 100 + "é" * 100


def test_what_cannot_be_carried_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        pieces.encode("abcd\ud800", msgspec.json.encode)
    with pytest.raises(TypeError):
        pieces.encode({"a": object()}, msgspec.json.encode)
