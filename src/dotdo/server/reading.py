"""Reads what a request brings: its body within bounds, strictly; its preferences; its query.

Everything is checked before any work is done, and each refusal says what was wrong.
"""

import asyncio
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from starlette.requests import ClientDisconnect, Request

from dotdo.errors import MAX_SECONDS, DefinitionError
from dotdo.records import HIGHEST_PRIORITY, LOWEST_PRIORITY, Options, Outcome, check_options
from dotdo.server.asked import asked_of
from dotdo.server.problems import FieldProblem, Refused

MAX_BODY = 1024 * 1024
BODY_SECONDS = 30.0
MOST_NUMBER = 10**15 - 1  # in a query
DEFAULT_WAIT, LONGEST_WAIT = 30.0, 60.0
KEY = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")
KEY_SCHEMA = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": '^"?[!#-~][ !#-~]*"?$'}

T = TypeVar("T", bound=msgspec.Struct)

# What the checks of options and texts (records.py, policy.py) refuse, told to readers of the description. Those checks
# make it so, here and for embedded clients alike.
NAME_SCHEMA = {"minLength": 1, "maxLength": 500, "pattern": "^[^\\u0000]*$"}
LABELS_SCHEMA = {"propertyNames": {**NAME_SCHEMA, "pattern": "^[^\\u0000=]*$"}, "additionalProperties": NAME_SCHEMA}
_Name = Annotated[str, msgspec.Meta(extra_json_schema=NAME_SCHEMA)]
_Seconds = Annotated[float, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": MAX_SECONDS})]
# In JSON Schema 2.0 is an integer, too.
_Priority = Annotated[
    float,
    msgspec.Meta(
        multiple_of=1,
        extra_json_schema={"type": "integer", "minimum": LOWEST_PRIORITY, "maximum": HIGHEST_PRIORITY},
    ),
]
_Limit = Annotated[float, msgspec.Meta(extra_json_schema={"exclusiveMinimum": 0})]
_Labels = Annotated[dict[str, _Name], msgspec.Meta(extra_json_schema=LABELS_SCHEMA)]


class RetryNumbers(msgspec.Struct, forbid_unknown_fields=True):
    """Of a Retry, what can be said without code; what is left out stays as the action has it."""

    attempts: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1})] | msgspec.UnsetType | None = msgspec.UNSET
    delay: _Seconds | msgspec.UnsetType = msgspec.UNSET
    factor: Annotated[float, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": 1000})] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    max_delay: _Seconds | msgspec.UnsetType = msgspec.UNSET
    jitter: bool | msgspec.UnsetType = msgspec.UNSET
    max_elapsed: _Limit | msgspec.UnsetType | None = msgspec.UNSET


_Retry = Annotated[
    RetryNumbers,
    msgspec.Meta(
        extra_json_schema={  # without a number of attempts there must be a limit in time
            "if": {"properties": {"attempts": {"type": "null"}}, "required": ["attempts"]},
            "then": {"properties": {"max_elapsed": {"type": "number"}}, "required": ["max_elapsed"]},
        }
    ),
]


class Call(msgspec.Struct, forbid_unknown_fields=True):
    """The body of execute and preview: the input, and what may be said beside it."""

    params: dict[str, Any] = {}
    trail: _Name | None = None
    deadline: _Seconds | None = None
    delay: _Seconds | None = None
    priority: _Priority | None = None
    labels: _Labels = {}
    timeout: _Limit | None = None
    retry: _Retry | None = None


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an event. key: the sender's own; the same one twice is one event."""

    name: _Name
    value: Any = None
    key: _Name | None = None


class Resolution(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an answer to a question: which one, what happened, and the receiver's answer if it did."""

    key: str
    outcome: Outcome
    answer: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """A body that says nothing."""


@contextmanager
def refusing() -> Generator[None]:
    """Refuses the request where a check says what is wrong with a definition, which here is the caller's."""
    try:
        yield
    except DefinitionError as error:
        raise Refused(422, "invalid_input", error.message) from None


async def read_body(request: Request, kind: type[T], most: int = MAX_BODY) -> T:
    """The request's JSON body as a record; no body is an empty object. most: bytes. Raises Refused."""
    data = await _bytes(request, most)
    if not data.strip():
        data = b"{}"
    elif request.headers.get("content-type", "application/json").partition(";")[0].strip() != "application/json":
        detail = "The body must be JSON, with the header Content-Type: application/json."
        raise Refused(415, "unsupported_media_type", detail)
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        place = path.rstrip("`") or "$"
        detail = f"The body does not fit: {text} (at {place})."
        if "unknown field" in text:
            known = (RetryNumbers if place.endswith(".retry") else kind).__struct_fields__
            detail += f" Known: {', '.join(known) or 'none'}."
            if "params" in known:
                detail += ' Parameters stand one level deeper: {"params": {...}}.'
        raise Refused(422, "invalid_input", detail, errors=[FieldProblem(place, text)]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"The body is not JSON: {error}.") from None


async def _bytes(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        text = f"The body did not come within {BODY_SECONDS:g} s."
        headers = {"Connection": "close", "Retry-After": "1"}
        raise Refused(408, "request_timeout", text, retryable=True, headers=headers) from None
    except ClientDisconnect:
        raise Refused(400, "incomplete_body", "The connection ended before the body did.") from None
    return bytes(body)


def _too_large(most: int) -> Refused:
    return Refused(413, "body_too_large", f"The body has more than {most} bytes.", headers={"Connection": "close"})


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header), with or without its quotes."""
    text = request.headers.get("idempotency-key")
    if text is None:
        return None
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not KEY.fullmatch(text):
        raise Refused(
            400, "invalid_idempotency_key", "Idempotency-Key: 1 to 255 printable ASCII characters are needed."
        )
    return text


def preferred_wait(request: Request, default: float) -> float:
    """For how long the caller is ready to wait (seconds), from `Prefer: wait=30` or `respond-async` (RFC 7240)."""
    wait = default
    for part in request.headers.get("prefer", "").split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "respond-async":
            return 0.0
        if name.lower() == "wait":
            try:
                wait = float(value.strip('" '))
            except ValueError:
                wait = -1.0
            if not wait >= 0:  # also NaN
                raise Refused(400, "invalid_prefer", "Prefer: wait= takes a number of seconds, such as wait=30.")
    return min(wait, LONGEST_WAIT)


def query(request: Request, allowed: Mapping[str, Any]) -> dict[str, Any]:
    """The query's parameters, converted; those not given are left out. Raises Refused for others, and for repeated.

    allowed: their types: str, int, a Literal of texts, or dict for one that may be repeated.
    """
    found: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise Refused(400, "invalid_query", f"There is no query parameter {name!r}; known: {known}.")
        if allowed[name] is dict:
            label, separator, value = text.partition("=")
            if not separator:
                raise Refused(400, "invalid_query", f"{name}: NAME=VALUE is needed.")
            found.setdefault(name, {})[label] = value
            continue
        if name in found:
            raise Refused(400, "invalid_query", f"The query parameter {name} was given twice.")
        if allowed[name] is int:
            if not (text.isascii() and text.isdecimal() and len(text.lstrip("0")) < 16):
                raise Refused(400, "invalid_query", f"{name}: a whole number is needed.")
            found[name] = int(text)
        elif (choices := get_args(allowed[name])) and text not in choices:
            raise Refused(400, "invalid_query", f"{name}: one of {', '.join(choices)} is needed.")
        else:
            found[name] = text
    return found


def options_of(request: Request, call: Call, actor: str | None) -> Options:
    """The options of a run, from the body, the query (`version`) and the headers."""
    version = query(request, {"version": int}).get("version")
    if version == 0:
        raise Refused(400, "invalid_query", "version: a whole number from 1 is needed.")
    place = asked_of(request).place
    options = Options(
        key=idempotency_key(request),
        version=version,
        trail=call.trail,
        delay=call.delay,
        deadline=call.deadline,
        priority=None if call.priority is None else int(call.priority),
        labels=call.labels,
        actor=actor,
        timeout=call.timeout,
        retry=None if call.retry is None else msgspec.to_builtins(call.retry),
        traceparent=None if place is None else place.traceparent,
        tracestate=None if place is None else place.tracestate,
    )
    with refusing():
        check_options(options)
    return options
