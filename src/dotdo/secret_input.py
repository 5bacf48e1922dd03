"""The secrets of one definition's input, on their way from a caller to the store and back.

A caller's input comes with its secrets marked; `take` accepts them where the hints say `Secret`, and nowhere else. What
is stored has a token in place of each (sealing.py); `opened` puts the texts back. Errors show none of them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, cast

from dotdo import codec
from dotdo.errors import DefinitionError, InvalidInput, Problem, SecretExposed
from dotdo.redacting import Hidden
from dotdo.sealing import Sealer, check_installed, fingerprint_of
from dotdo.secret import Secret
from dotdo.secret_fields import Fields, fields_of

_ECHO = re.compile(r"(Invalid enum value) .*", re.S)


class SecretInput:
    """Where an input has secrets. lent: parameters whose own hint says nothing, such as the `input: dict` of an undo;
    their secrets are given to the handler as Secret objects inside."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.lent: set[str] = set()

    @classmethod
    def of(cls, subject: str, hints: Mapping[str, Any], output: Any) -> Self | None:
        """The secrets in these hints; None when there are none. Raises TypeError for those that cannot be."""
        fields = fields_of(hints)
        if fields_of({"output": output}) is not None:
            raise TypeError("it returns a Secret; a result is stored, so nothing secret may be in it")
        if fields is None:
            return None
        check_installed(subject)
        return cls(fields)

    def take(self, subject: str, marked: dict[str, Any]) -> dict[str, Any]:
        """Plain JSON values without the marks. Raises SecretExposed for a Secret in any other place."""
        taken = self.fields.change(marked, lambda text: text.removeprefix(codec.SECRET_MARK))
        exposed = [path for path, text in _texts(taken, "$") if codec.SECRET_MARK in text]
        if exposed:
            raise SecretExposed(
                f"The input of {subject} has a Secret at {', '.join(exposed)}, which is not declared Secret[str] (or "
                "not in a way that can be followed), and so would be stored in the clear."
            )
        return taken

    def sealed(self, data: bytes, sealer: Sealer, root: str) -> bytes:
        """Plain JSON input as it is stored."""
        return self._changed(data, lambda text: sealer.seal(text, root))

    def identity(self, data: bytes, sealer: Sealer, root: str) -> bytes:
        """What two plain inputs of one tree of runs are compared by."""
        return self._changed(data, lambda text: sealer.fingerprint(text, root))

    def identity_of_sealed(self, data: bytes, sealer: Sealer, root: str) -> bytes:
        """The same of an input as it is stored."""
        return self._changed(data, lambda text: fingerprint_of(text) or sealer.fingerprint(text, root))

    def opened(self, data: bytes, sealer: Sealer, root: str) -> tuple[bytes, list[str]]:
        """Stored input in the clear, and its secrets. What was stored before it was declared a Secret is no token."""
        found: list[str] = []

        def open(text: str) -> str:
            found.append(text if fingerprint_of(text) is None else sealer.open(text, root))
            return found[-1]

        return self._changed(data, open), found

    def check_sealed(self, subject: str, data: bytes) -> None:
        """Raises SecretExposed for an input that is about to be stored as a caller gave it: a bug of the engine."""
        if any(fingerprint_of(text) is None for text in self.fields.texts(codec.decode(data))):
            raise SecretExposed(f"The input of {subject} was to be stored with a secret in the clear.")

    def wrapped(self, value: Any) -> Any:
        """Plain JSON values with Secret objects in the places of secrets."""
        return self.fields.change(value, Secret)

    def wrap_lent(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Typed arguments in which lent parameters hold Secret objects, too."""
        for name in self.lent & arguments.keys():
            arguments[name] = self.fields.fields[name].change(arguments[name], Secret)
        return arguments

    def cleaned(self, error: InvalidInput, given: Any) -> InvalidInput:
        """The error without any secret of the input that it is about."""
        hidden = Hidden()
        for text in self.fields.texts(given):
            hidden.add(text.removeprefix(codec.SECRET_MARK))

        def clean(text: str) -> str:
            return hidden.clean(_ECHO.sub(r"\1", text).replace(codec.SECRET_MARK, ""))

        return InvalidInput(error.subject, [Problem(clean(one.path), clean(one.message)) for one in error.problems])

    def _changed(self, data: bytes, change: Callable[[str], str]) -> bytes:
        return codec.encode(self.fields.change(codec.decode(data), change), "input")


def lend(subject: str, secrets: SecretInput | None, undo: SecretInput | None, *, is_loose: bool) -> SecretInput | None:
    """The secrets of an undo that is given the `input` of an action with these. Raises DefinitionError when the undo
    declares a field plain that is secret there.

    is_loose: its hint for `input` names no fields, such as a dict; then it is given Secret objects in there.
    """
    if secrets is None:
        return undo
    own = undo.fields.fields.get("input") if undo is not None and "input" not in undo.lent else None
    if own is None and is_loose:
        lent = undo or SecretInput(Fields())
        lent.fields.fields.setdefault("input", Fields()).alternatives.append(secrets.fields)
        lent.lent.add("input")
        return lent
    plain = [name for name, field in secrets.fields.fields.items() if _shape(own, name) != field.shape()]
    if plain:
        raise DefinitionError(
            f"{subject}: {', '.join(plain)} of its input holds a Secret, and so must the `input` of its undo."
        )
    return undo


def _shape(fields: Fields | None, name: str) -> object:
    field = None if fields is None else fields.of_key(name)
    return None if field is None else field.shape()


def check_same(subject: str, other: str, secrets: "SecretInput | None", others: "SecretInput | None") -> None:
    """Raises DefinitionError unless two inputs that are to be the same have the same secrets."""
    ours = secrets.fields.shape() if secrets else None
    if ours != (others.fields.shape() if others else None):
        raise DefinitionError(f"{subject}: {other} must declare the same parameters as Secret[str].")


def _texts(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield from _texts(key, f"{path} (a key)")
            yield from _texts(item, f"{path}.{key.replace(codec.SECRET_MARK, '')}")
    elif isinstance(value, list):
        for place, item in enumerate(cast("list[Any]", value)):
            yield from _texts(item, f"{path}[{place}]")
