"""API keys: their text, what a store keeps of one, and what it allows. No I/O.

A key is `do_`, 40 random letters and digits, and a checksum of 6 (so that a scanner, or a typo, is told apart without
asking anybody). Stored is its SHA-256 only: with 238 random bits there is nothing to guess, so nothing to slow down.
"""

import hashlib
import re
import secrets
import zlib
from collections.abc import Iterable
from fnmatch import fnmatchcase

import msgspec

from dotdo.errors import DefinitionError

PREFIX = "do_"
RANDOM, CHECKSUM = 40, 6
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TEXT = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{RANDOM}}})([0-9A-Za-z]{{{CHECKSUM}}})")
_SCOPE = re.compile(r"\*|(?:[a-z]+|\*):(?:[a-z]+|\*)(?::[A-Za-z0-9_.*-]+)?")

# What can be allowed: resources and their verbs.
VERBS: dict[str, tuple[str, ...]] = {
    "actions": ("execute", "preview", "read"),
    "services": ("execute", "preview", "read"),
    "runs": ("read", "cancel", "retry", "undo", "event", "resolve"),
    "metrics": ("read",),
    "workers": ("serve",),
}


_RATE = re.compile(r"([1-9][0-9]{0,8})/(s|m|h|d|second|minute|hour|day)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Rate(msgspec.Struct, frozen=True):
    """How often: so many in that time, which is a second, minute, hour or day."""

    count: int
    seconds: int

    def __str__(self) -> str:
        unit = next(name for name, seconds in _SECONDS.items() if seconds == self.seconds)
        return f"{self.count}/{unit}"


def read_rate(text: str) -> Rate:
    """A rate out of its text, such as `100/s` or `100/second`. Raises DefinitionError."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise DefinitionError(f"{text!r} is no rate. A rate is a number and a time: 100/s, 600/m, 5000/h or 20000/d.")
    return Rate(int(found[1]), _SECONDS[found[2][0]])


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key: everything but its text. Times are ms since 1970."""

    id: str
    name: str
    hint: str  # how its text begins
    digest: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    used_at: int | None = None
    rate: str | None = None  # how many requests, such as 100/s; None: what the server says


def new_key(
    name: str, scopes: Iterable[str], *, now: int, expires_at: int | None = None, rate: str | None = None
) -> tuple[str, ApiKey]:
    """A new key: its text, to be shown once, and its record. Raises DefinitionError for a scope or rate that means
    nothing, and for a name that nobody could be told by."""
    if not (name.strip() and name.isprintable() and len(name) <= 100):
        raise DefinitionError(
            f"{name!r:.80} cannot be the name of a key: 1 to 100 characters that say whose it is, such as shop. It is "
            "the actor of what the key starts."
        )
    if rate is not None:
        read_rate(rate)
    wanted = tuple(scopes)
    for scope in wanted:
        check_scope(scope)
    if not wanted:
        raise DefinitionError("A key without a scope allows nothing. Give it one, such as actions:execute:send-*.")
    body = "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM))
    text = PREFIX + body + _checksum(body)
    record = ApiKey(
        id=f"key_{secrets.token_hex(6)}",
        name=name,
        hint=text[: len(PREFIX) + 6],
        digest=digest_of(text),
        scopes=wanted,
        created_at=now,
        expires_at=expires_at,
        rate=rate,
    )
    return text, record


def digest_of(text: str) -> str:
    """What a store keeps of a key's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_well_formed(text: str) -> bool:
    """Whether a text can be a key at all: its form and its checksum."""
    found = _TEXT.fullmatch(text)
    return found is not None and secrets.compare_digest(found[2], _checksum(found[1]))


def check_scope(scope: str) -> None:
    """Raises DefinitionError unless a scope is `*` or `resource:verb[:pattern]` of what there is."""
    resource, _, rest = scope.partition(":")
    verb = rest.partition(":")[0]
    known = resource == "*" or resource in VERBS
    if not _SCOPE.fullmatch(scope) or not known or not _is_verb(resource, verb, scope):
        resources = "; ".join(f"{name}: {', '.join(verbs)}" for name, verbs in VERBS.items())
        raise DefinitionError(
            f"{scope!r} is no scope. A scope is resource:verb or resource:verb:pattern, such as "
            f"actions:execute:send-*, or * for everything. There are {resources}."
        )


def allows(scopes: Iterable[str], resource: str, verb: str, name: str | None) -> bool:
    """Whether scopes allow a verb on a resource of that name (`*` in a pattern stands for any text).

    name: None asks whether there is any name for which they do; the name of all of them is `*`.
    """
    for scope in scopes:
        wanted, _, rest = scope.partition(":")
        action, _, pattern = rest.partition(":")
        is_named = name is None or pattern in ("", "*") or (name != "*" and fnmatchcase(name, pattern))
        if scope == "*" or (wanted in (resource, "*") and action in (verb, "*") and is_named):
            return True
    return False


def _is_verb(resource: str, verb: str, scope: str) -> bool:
    if scope == "*" or verb == "*":
        return True
    return any(verb in verbs for name, verbs in VERBS.items() if resource in (name, "*"))


def _checksum(body: str) -> str:
    number, text = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM):
        number, digit = divmod(number, len(_ALPHABET))
        text = _ALPHABET[digit] + text
    return text
