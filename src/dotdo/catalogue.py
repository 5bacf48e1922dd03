"""The set of definitions by kind, name and version.

Definitions register themselves in the default catalogue unless they are given another one. Versions of one name live
side by side; the newest is taken where none is asked for.
"""

import difflib
import hashlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import msgspec

from dotdo.errors import DefinitionError, DuplicateDefinition, UnknownName

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")


class Snapshot(msgspec.Struct, frozen=True):
    """The newest version of every name at one time; runs keep the one that they started with."""

    id: str
    newest: dict[str, int]


class Catalogue:
    """Definitions by kind (`action`, `service`, `effect`), name and version."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, dict[int, Any]]] = {"action": {}, "service": {}, "effect": {}}
        self._places: dict[tuple[str, str, int], tuple[object, str]] = {}
        self.changes = 0

    def add(self, kind: str, name: str, version: int, definition: Any, function: Callable[..., Any]) -> None:
        """Registers a definition. Raises DuplicateDefinition when the name and version are taken."""
        check_name(kind, name, version)
        code, place = _code_of(function)
        found = self._places.get((kind, name, version))
        # The same lines compiled again are a module imported twice (a script and its import), not a second definition.
        if found is not None and (found[1] != place or found[0] is code):
            raise DuplicateDefinition(
                f"{described(kind, name, version)} is already defined at {found[1]}; this one is at {place}. Give it "
                f"another name, a catalogue of its own, or version={version + 1} to keep both."
            )
        other = "service" if kind == "action" else "action" if kind == "service" else None
        if other and name in self._found[other]:
            raise DuplicateDefinition(f"{name} is already the name of {other}s; a {kind} needs another name.")
        self._found[kind].setdefault(name, {})[version] = definition
        self._places[kind, name, version] = code, place
        self.changes += 1

    def get(self, kind: str, name: str, version: int | None = None) -> Any:
        """The definition of that name and version (None: the newest). Raises UnknownName, with what is near."""
        found = self.find(kind, name, version)
        if found is None:
            raise UnknownName(self._unknown(kind, name, version))
        return found

    def called(self, kind: str, name: str, version: int | None = None) -> Any:
        """What a service means that calls by name. Raises UnknownName."""
        return self.get(kind, name, version)

    def expected(self, name: str, version: int, like: Any = None) -> Any | None:
        """Stands for a version that is not defined here and may be elsewhere. None: it may not."""
        return None

    def find(self, kind: str, name: str, version: int | None = None) -> Any | None:
        """Like `get`, but None when there is no such definition."""
        versions = self._found[kind].get(name)
        if not versions:
            # Connectors register their effects in the default catalogue; who has one of their own uses them, too.
            is_own = kind == "effect" and self is not default_catalogue
            return default_catalogue.find(kind, name, version) if is_own else None
        return versions.get(max(versions) if version is None else version)

    def newest(self, kind: str, name: str) -> int | None:
        """The newest version of a name."""
        versions = self._found[kind].get(name)
        return max(versions) if versions else None

    def all(self, kind: str) -> list[Any]:
        """Every definition of a kind, by name and version."""
        return [versions[v] for _, versions in sorted(self._found[kind].items()) for v in sorted(versions)]

    def kind_of(self, name: str) -> str | None:
        """`action` or `service`, whichever goes by that name."""
        return next((kind for kind in ("action", "service") if name in self._found[kind]), None)

    def snapshot(self) -> Snapshot:
        """The newest versions, under the digest that names them."""
        newest = {name: max(v) for kind in ("action", "service") for name, v in self._found[kind].items()}
        newest = dict(sorted(newest.items()))
        return Snapshot(hashlib.sha256(msgspec.json.encode(newest)).hexdigest()[:16], newest)

    def _unknown(self, kind: str, name: str, version: int | None) -> str:
        versions = self._found[kind].get(name)
        if versions:
            known = ", ".join(map(str, sorted(versions)))
            return f"There is no {described(kind, name, version or 0)}; known versions: {known}."
        other = self.kind_of(name)
        if other:
            return f"{name} is {_with_article(other)}, not {_with_article(kind)}."
        near = difflib.get_close_matches(name, self._found[kind], n=3)
        if near:
            return f"There is no {kind} {name!r}. Did you mean {' or '.join(near)}?"
        known = ", ".join(sorted(self._found[kind])[:20])
        return f"There is no {kind} {name!r}. " + (
            f"Known: {known}." if known else f"No {kind} is defined; import the module that defines it first."
        )


default_catalogue = Catalogue()


def described(kind: str, name: str, version: int) -> str:
    """How messages name a definition: `action send-welcome-email@2`."""
    return f"{kind} {name}@{version}"


def split_version(name: str) -> tuple[str, int | None]:
    """`send-welcome-email@2` as its name and version. Raises UnknownName when the version is not a number,
    DefinitionError for what is no name at all."""
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
        raise DefinitionError(
            f"{name!r:.80} is no name, such as 'charge' or 'charge@2'. A definition is called itself: "
            "`await charge(...)` in a service, client.run(charge, ...) elsewhere."
        )
    head, at, version = name.partition("@")
    if not at:
        return name, None
    if not version.isdecimal():
        raise UnknownName(f"{name!r}: a version is a whole number, as in {head}@2.")
    return head, int(version)


def catalogue_of(given: Catalogue | None) -> Catalogue:
    """What a `catalogue=` argument means. Raises DefinitionError."""
    if given is None:
        return default_catalogue
    if not isinstance(given, Catalogue):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without type checkers
        raise DefinitionError(f"catalogue={given!r:.80}: a Catalogue is needed, such as shop = Catalogue().")
    return given


def _with_article(kind: str) -> str:
    return f"{'a' if kind == 'service' else 'an'} {kind}"


def check_name(kind: str, name: str, version: int) -> None:
    """Raises DefinitionError unless a definition can be called so."""
    if callable(name):  # the decorator stands there without its parentheses
        raise DefinitionError(
            f'@{kind} needs a name for {getattr(name, "__qualname__", repr(name))}: write @{kind}("send-mail"), for '
            "example. Journals and other processes know it by this name."
        )
    if not (isinstance(name, str) and NAME.fullmatch(name)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(
            f"{name!r} cannot be the name of {kind}s: letters, digits, '-', '_' and '.', at most 100, a letter first."
        )
    if type(version) is not int or version < 1:
        raise DefinitionError(f"{kind} {name}: version={version!r}; a version is a whole number from 1.")


def _code_of(function: Callable[..., Any]) -> tuple[object, str]:
    """A function's code, below its decorators, and where that stands."""
    bare = inspect.unwrap(function)
    code = getattr(bare, "__code__", None)
    return (bare, repr(bare)) if code is None else (code, f"{code.co_filename}:{code.co_firstlineno}")
