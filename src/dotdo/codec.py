"""Values to JSON and back: the one format that the journal, both SDKs and HTTP share.

`encode` refuses what JSON or a store cannot carry (NaN, infinities, NUL characters, lone surrogates, nesting beyond 64,
more than 64 MiB) before anything is written, and says where in the value it is. Nothing read back can import or run
code.
"""

import functools
import hashlib
import inspect
import math
import secrets
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import msgspec

from dotdo import pieces
from dotdo.errors import InvalidValue, SecretExposed
from dotdo.pieces import PIECE
from dotdo.secret import Secret, is_secret, plaintext

MAX_DEPTH = 64
MAX_BYTES = 64 * 1024 * 1024
HEAVY = 16 * 1024  # items or characters: such values may be long in JSON

_REFUSED = "a Secret is never written in the clear; only parameters declared Secret[str] carry one"
# Stands before the text of a Secret until its place in an input is known. Nobody outside this process can know it.
SECRET_MARK = f"\x02{secrets.token_hex(16)}:"


def _encode_other(value: Any) -> Any:
    """Values that msgspec does not know: pydantic models, where the user has pydantic."""
    return _encode_secretly(value, _refuse_secret)


def _encode_secretly(value: Any, of_secret: Callable[[Secret[Any]], str]) -> Any:
    if isinstance(value, Secret):
        return of_secret(cast("Secret[Any]", value))
    dump = getattr(cast("object", type(value)), "model_dump", None)
    if dump is not None:
        # Names of the code, and no computed fields: what is written must fit the model when it is read.
        return dump(value, mode="json", by_alias=False, round_trip=True, context={"dotdo.secret": of_secret})
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not JSON{_mend(value)}")


def _mend(value: object) -> str:
    """What to do about a value that is not JSON, where that is known."""
    if inspect.isawaitable(value):  # a coroutine, a step of a service
        return "; await it, and take what that gives"
    if isinstance(value, Iterator):
        return "; make a list of it"
    return ""


def _refuse_secret(_: Secret[Any]) -> str:
    raise TypeError(_REFUSED)


def _mark_secret(secret: Secret[Any]) -> str:
    return SECRET_MARK + plaintext(secret)


def marked(value: Any, what: str) -> Any:
    """The value as plain JSON values, with the text of each Secret behind SECRET_MARK. Raises InvalidValue."""
    try:
        return msgspec.to_builtins(
            value, enc_hook=lambda other: _encode_secretly(other, _mark_secret), str_keys=True, order="sorted"
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidValue(f"{what} cannot be carried as JSON: {error}") from None


def _decode_other(kind: type, value: Any) -> Any:
    if kind is object:
        return value  # a hint `object` takes any JSON
    if is_secret(kind):
        if type(value) is not str:
            raise ValueError(f"Expected `str`, got `{type(value).__name__}`")
        return Secret(value)
    if is_model(kind):
        try:
            # As JSON, so that strict models take the texts that dates and ids are written as.
            return cast("Any", kind).model_validate_json(_encode_plain(value), **_by_name(kind))
        except ValueError as error:  # pydantic's ValidationError; msgspec adds the path of the value
            parts = [".".join(map(str, place)) + ": " + message for place, message in _problems_of(error)]
            raise ValueError("; ".join(parts) or str(error)) from None
    raise TypeError(unreadable(kind))


def unreadable(kind: object) -> str:
    """What is said of a hint that nothing can read from JSON."""
    return (
        f"{kind!r} is not a type that dotdo can read from JSON. Take what JSON has, a dataclass, a TypedDict, a "
        "msgspec.Struct, a pydantic model, an Enum, or a date, datetime, Decimal or UUID."
    )


def is_model(kind: object) -> bool:
    """Whether a type is a pydantic model."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json") and hasattr(kind, "model_fields")


def model_problems(kind: Any, value: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """Every problem of plain values against a pydantic model: where, and what."""
    try:
        kind.model_validate_json(_encode_plain(value), **_by_name(kind))
    except ValueError as error:
        return _problems_of(error) or [((), str(error))]
    return []


@functools.cache
def _by_name(kind: Any) -> dict[str, bool]:
    # Aliases are for other writers of the model; ours are the names of the code (from pydantic 2.11 on).
    knows = "by_name" in inspect.signature(kind.model_validate_json).parameters
    return {"by_name": True, "by_alias": True} if knows else {}


def _problems_of(error: ValueError) -> list[tuple[tuple[str | int, ...], str]]:
    found = cast("list[dict[str, Any]]", getattr(error, "errors", list)())
    return [(tuple(item.get("loc", ())), str(item.get("msg", ""))) for item in found]


_TOO_DEEP = "it is cyclic or nested too deeply"

_encoder = msgspec.json.Encoder(enc_hook=_encode_other, order="sorted")
_plain_encoder = msgspec.json.Encoder(enc_hook=_encode_other)
_encode, _encode_plain = _encoder.encode, _plain_encoder.encode


def encode(value: Any, what: str = "value") -> bytes:
    """The value as JSON bytes; object keys sorted, so equal values give equal bytes.

    what: how error messages name the value. Raises InvalidValue with the place of what cannot be carried.
    """
    try:
        data = _encode_sorted(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        _explain(value, what, error)
    if len(data) > 2 * MAX_DEPTH or b"null" in data or b"u0000" in data:
        _check(value, data, what)
    return data


def _encode_sorted(value: Any) -> bytes:
    try:
        return _encode(value)
    except TypeError as error:
        if "str keys" not in str(error):
            raise
        # The keys of a dict[int, ...] are text in JSON; msgspec sorts only what is text already.
        plain = msgspec.to_builtins(value, enc_hook=_encode_other, str_keys=True, order="sorted")
        data = _encode(plain)
        if len(data) != len(_encode_plain(value)):
            raise TypeError("two keys of one object are the same text") from None
        return data


def encode_result(value: Any, what: str, *, heavy: bool = False) -> bytes:
    """Like `encode`, but object keys stay in the order that the handler gave them. heavy: other threads get turns."""
    try:
        data = pieces.encode(value, _encode_plain) if heavy else _encode_plain(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        _explain(value, what, error)
    if len(data) > 2 * MAX_DEPTH or b"null" in data or b"u0000" in data:
        _check(value, data, what)
    return data


def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """A decoder of JSON bytes into `kind`."""
    return msgspec.json.Decoder(kind, dec_hook=_decode_other)


def decode(data: bytes | str | msgspec.Raw) -> Any:
    """JSON to plain Python values."""
    return msgspec.json.decode(data) if len(data) <= PIECE or isinstance(data, str) else pieces.decode(data)


def to_builtins(value: Any) -> Any:
    """The value as dicts, lists, strings and numbers. Raises what msgspec raises for a value that is not JSON."""
    return msgspec.to_builtins(value, enc_hook=_encode_other, str_keys=True)


def digest(data: bytes) -> str:
    """The short digest that names an input inside a step's identity: 64 bits of SHA-256, as hex."""
    return hashlib.sha256(data).hexdigest()[:16]


_SIZED = frozenset((str, bytes, list, tuple, dict))


def is_heavy(value: Any) -> bool:
    """Whether turning a value into JSON is worth a thread: a guess by its sizes, one level deep."""
    # Asked for every input and output, so without calls of its own for each part.
    kind = value.__class__
    if kind not in _SIZED:
        return False
    if len(value) > HEAVY:
        return True
    if kind is str or kind is bytes:
        return False
    for part in value.values() if kind is dict else value:  # noqa: SIM110 - a generator would cost more than this does
        if type(part) in _SIZED and len(part) > HEAVY:
            return True
    return False


def _check(value: Any, data: bytes, what: str) -> None:
    if len(data) > MAX_BYTES:
        raise InvalidValue(
            f"{what} is {len(data) / 1048576:.1f} MiB as JSON; at most {MAX_BYTES // 1048576} MiB are carried. "
            "Put it into a file or object store and pass its address."
        )
    # Cheap tests first: only a `null` can have been a NaN, and only many brackets can be deep.
    if _has(data, b"null") or _has(data, b"u0000") or _count(data, b"[") + _count(data, b"{") > MAX_DEPTH:
        try:
            problem = _find(_builtins_lenient(value), "$", 0)
        except RecursionError:  # since Python 3.14, the stack that encoding needs may be there, and this one not
            problem = _TOO_DEEP
        if problem:
            raise InvalidValue(f"{what} cannot be carried as JSON: {problem}")


def _has(data: bytes, part: bytes) -> bool:
    if len(data) <= PIECE:
        return part in data
    starts = range(0, len(data), PIECE)
    return any(data.find(part, start, start + PIECE + len(part) - 1) >= 0 for start in starts)


def _count(data: bytes, byte: bytes) -> int:
    if len(data) <= PIECE:
        return data.count(byte)
    return sum(data.count(byte, start, start + PIECE) for start in range(0, len(data), PIECE))


def _builtins_lenient(value: Any) -> Any:
    # Keeps floats as they are (msgspec's and pydantic's own JSON turn NaN into null).
    return msgspec.to_builtins(value, enc_hook=_show_floats, str_keys=True)


def _show_floats(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return decode(bytes(value))
    dump = getattr(cast("object", type(value)), "model_dump", None)
    return None if dump is None else dump(value, by_alias=False)  # what else it holds has been encoded already


def _find(value: Any, path: str, depth: int) -> str | None:
    """The first thing in plain values that JSON or a store cannot carry, in words."""
    if depth >= MAX_DEPTH and isinstance(value, dict | list | tuple | set | frozenset):
        return f"{path[:200]} is nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}, which is not a JSON number"
    if isinstance(value, str):
        return _find_in_text(value, path)
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            problem = _find_in_text(str(key), f"{path} (a key)") or _find(item, f"{path}.{key}", depth + 1)
            if problem:
                return problem
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(cast("list[Any]", value)):
            problem = _find(item, f"{path}[{index}]", depth + 1)
            if problem:
                return problem
    elif not isinstance(value, int | None):
        return _find_other(value, path, depth)
    return None


def _find_in_text(text: str, path: str) -> str | None:
    if "\0" in text:
        return f"{path} contains a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{path} contains a lone surrogate, which is not Unicode text"
    return None


def _find_other(value: Any, path: str, depth: int) -> str | None:
    try:
        plain = to_builtins(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return f"{path}: {error}"
    return _find(plain, path, depth) if type(plain) is not type(value) else None


def _explain(value: Any, what: str, error: Exception) -> NoReturn:
    if isinstance(error, RecursionError):
        raise InvalidValue(f"{what} cannot be carried as JSON: {_TOO_DEEP}") from None
    try:
        problem = _find(value, "$", 0)
    except RecursionError:
        problem = _TOO_DEEP
    if _REFUSED in str(error):
        raise SecretExposed(f"{what} holds a Secret: {problem or error}.") from None
    raise InvalidValue(f"{what} cannot be carried as JSON: {problem or error}") from None
