"""Large JSON in pieces: the interpreter is let go in between.

The JSON library works on a whole value in one call, during which no other thread of the process can run: for a text of
64 MB, 50 to 80 ms for each direction. So the large texts of a value, at its top or directly in its object, are turned
into JSON and back bit by bit. What the pieces make together is what the library makes of the whole.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec

PIECE = 256 * 1024  # characters or bytes
NEARBY = 1024  # bytes
# The longest that stands for one character: the two escapes of a surrogate pair.
_ESCAPES = 12

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode(value: Any, encode_part: Callable[[Any], bytes]) -> bytes:
    """The value as JSON; object keys stay in their order. Raises what encode_part raises."""
    if type(value) is str:
        return b"".join(_encode_text(value, encode_part))
    if type(value) is not dict or not value or not all(type(key) is str for key in cast("dict[Any, Any]", value)):
        return encode_part(value)
    found, before = list[bytes](), b"{"
    for key, part in cast("dict[str, Any]", value).items():
        found += (before, encode_part(key), b":")
        found += _encode_text(part, encode_part) if type(part) is str else (encode_part(part),)
        before = b","
    return b"".join([*found, b"}"])


def decode(data: bytes | msgspec.Raw) -> Any:
    """JSON as plain Python values. Raises msgspec.DecodeError."""
    view = memoryview(data)
    first, last = bytes(view[:1]), bytes(view[-1:])
    if first == last == b'"':
        return _decode_text(view)
    if first != b"{":
        return msgspec.json.decode(data)
    # The library finds the ends of the members in half of the time; they are decoded one by one.
    members = _members.decode(data)
    return {key: decode(part) if len(part) > PIECE else msgspec.json.decode(part) for key, part in members.items()}


def _encode_text(text: str, encode_part: Callable[[Any], bytes]) -> Iterator[bytes]:
    yield b'"'
    for start in range(0, len(text), PIECE):
        yield encode_part(text[start : start + PIECE])[1:-1]
    yield b'"'


def _decode_text(view: memoryview) -> str:
    inside, found, start = view[1:-1], list[str](), 0
    while start < len(inside):
        end = _end_of_piece(inside, start)
        found.append(msgspec.json.decode(b'"%b"' % inside[start:end], type=str))
        start = end
    return "".join(found)


def _end_of_piece(inside: memoryview, start: int) -> int:
    """Where a piece may end: neither within an escape sequence nor within a character of several bytes. If there is no
    such place nearby, because of many escapes, the piece is all that is left."""
    for end in range(start + PIECE, min(start + PIECE + NEARBY, len(inside))):
        if inside[end] & 0xC0 != 0x80 and b"\\" not in bytes(inside[max(start, end - _ESCAPES) : end]):
            return end
    return len(inside)
