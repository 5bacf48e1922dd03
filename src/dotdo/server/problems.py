"""Problem documents (RFC 9457): what every refusal and failure of the API looks like.

A client needs to know one thing most of all: did it happen? `4xx` means refused, nothing happened; a run in the answer
means done; `503` and a lost connection mean unknown, ask again with the same key. No stack trace leaves the server.
"""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from dotdo.errors import (
    DotdoError,
    InputError,
    InvalidInput,
    InvalidOperation,
    InvalidValue,
    KeyConflict,
    LeaseLost,
    StoreError,
    UnknownName,
    UnknownWorker,
)

MEDIA_TYPE = "application/problem+json"
# By kind of error, the first that fits: status, and whether the same request may succeed later.
_STATUSES: tuple[tuple[type[DotdoError], int, bool], ...] = (
    (InvalidInput, 422, False),
    (InvalidValue, 422, False),
    (KeyConflict, 422, False),
    (UnknownName, 404, False),
    (InvalidOperation, 409, False),
    (InputError, 400, False),
    (UnknownWorker, 410, False),
    (LeaseLost, 409, False),
    (StoreError, 503, True),
)
_TITLES = {
    400: "The request was refused",
    401: "A valid API key is needed",
    403: "The API key does not allow this",
    404: "There is no such thing",
    405: "The method is not allowed here",
    406: "The answer cannot have that form",
    408: "The request did not come in time",
    409: "The state of the run does not allow this",
    410: "The worker's session is over",
    413: "The body is too large",
    414: "The address is too long",
    415: "The body is not JSON",
    422: "The input is not valid",
    429: "Too many requests",
    431: "The headers are too large",
    500: "Something went wrong",
    503: "The platform cannot answer now",
}


class FieldProblem(msgspec.Struct, frozen=True):
    """One problem of the input: `path` such as `$.params.email`."""

    path: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457, with what our clients need beside it. `code` is stable; `run` names the run that it is about."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    request_id: str
    errors: list[FieldProblem] = []
    run: str | None = None


class Refused(Exception):
    """Raised anywhere in a request's handling: answers with this problem. headers: more headers of the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        retryable: bool = False,
        errors: list[FieldProblem] | None = None,
        run: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.retryable = status, code, detail, retryable
        self.errors, self.run, self.headers = errors or [], run, dict(headers or {})


def refused_by(error: DotdoError) -> Refused | None:
    """What an error of the platform is over HTTP; None for one that is the server's own failure."""
    for kind, status, retryable in _STATUSES:
        if isinstance(error, kind):
            problems = error.problems if isinstance(error, InvalidInput) else ()
            errors = [FieldProblem("$.params" + each.path.removeprefix("$"), each.message) for each in problems]
            headers = {"Retry-After": "1"} if status == 503 else None
            return Refused(status, error.code, error.message, retryable=retryable, errors=errors, headers=headers)
    return None


def answer(refused: Refused, request_id: str) -> Response:
    """The response."""
    body = msgspec.json.encode(problem(refused, request_id))
    return Response(body, refused.status, refused.headers, MEDIA_TYPE)


def problem(refused: Refused, request_id: str) -> Problem:
    """The problem document."""
    return Problem(
        type=f"urn:dotdo:error:{refused.code}",
        title=_TITLES.get(refused.status, "The request was refused"),
        status=refused.status,
        detail=refused.detail,
        code=refused.code,
        retryable=refused.retryable,
        request_id=request_id,
        errors=refused.errors,
        run=refused.run,
    )
