"""`Secret`: a text that must not be seen, such as a password or an API key.

In memory it shows as `***` wherever it is printed, and JSON refuses it; `reveal()` gives the text. As an input of an
action, service or effect (`Secret[str]`) it is stored encrypted. A `FromSecret` stands for a secret that is looked up
by its name at the moment of its use.
"""

import hmac
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from dotdo.errors import DefinitionError

T = TypeVar("T", bound=str, covariant=True)

HIDDEN = "***"
JSON_SCHEMA = {"type": "string", "format": "password", "writeOnly": True}

_listeners: list[Callable[[str], None]] = []


class Secret(Generic[T]):
    """A text that shows as `***`. Two are equal when their texts are, compared in constant time."""

    __slots__ = ("_text",)
    _text: T

    def __init__(self, text: T) -> None:
        if type(text) is not str:
            raise TypeError(f"A Secret holds text (str), not {type(text).__name__}.")
        self._text = text

    def reveal(self) -> T:
        """The text itself. Whatever is journaled or logged by dotdo from here on, it hides this text in it."""
        for listener in _listeners:
            listener(self._text)
        return self._text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes_of(self._text), _bytes_of(plaintext(cast("Secret[Any]", other))))

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __repr__(self) -> str:
        return HIDDEN

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(HIDDEN, spec)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Pydantic models may have Secret fields: they take text, and show `***` when they are dumped."""
        from pydantic_core import core_schema

        from_text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema(strict=True))
        return core_schema.json_or_python_schema(
            json_schema=from_text,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(Secret), from_text]),
            serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return dict(JSON_SCHEMA)


class FromSecret(msgspec.Struct, frozen=True):
    """A value that is made of a secret when it is needed: `FromSecret("STRIPE_KEY", "Bearer {}")`.

    name: of the secret, as of `ctx.secret`. form: where it goes in, in place of `{}`. Connectors take it for a
    password or header, so that nothing secret stands in the code.
    """

    name: str
    form: str = "{}"

    def __post_init__(self) -> None:
        if "{}" not in self.form:
            raise DefinitionError(
                f"FromSecret({self.name!r:.80}, ...): its form has no {{}}, where the secret goes in, as in "
                "'Bearer {}'."
            )

    def resolve(self, lookup: Callable[[str], Secret[str]]) -> str:
        """The value, in the clear."""
        return self.form.replace("{}", lookup(self.name).reveal())


def plaintext(secret: Secret[Any]) -> str:
    """The text of a secret for dotdo itself: nobody is told that it was revealed."""
    return secret._text  # pyright: ignore[reportPrivateUsage]


def when_revealed(listener: Callable[[str], None]) -> None:
    """Has a function told of each text that user code reveals."""
    _listeners.append(listener)


def is_secret(hint: object) -> bool:
    """Whether a type hint is `Secret` or `Secret[str]`."""
    return hint is Secret or getattr(hint, "__origin__", None) is Secret


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _dump(secret: Secret[Any], info: Any) -> str:
    """How pydantic writes a secret. Its context is what codec gives: what to do instead of hiding it."""
    context = cast("dict[str, Callable[[Secret[Any]], str]]", info.context or {})
    instead = context.get("dotdo.secret")
    return HIDDEN if instead is None else instead(secret)
