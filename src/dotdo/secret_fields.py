"""Where an input has secrets: found once in its type hints, then followed through plain JSON values.

`fields_of` returns None for hints without `Secret`, so an input without secrets costs one test. Where a `Secret` stands
in a hint in a way that cannot be followed, the definition is refused: nothing secret may be stored in the clear.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import msgspec

from dotdo import codec
from dotdo.hints import class_hints, class_of
from dotdo.secret import Secret, is_secret

Hint = Any
Change = Callable[[str], Any]


class Fields:
    """The places of secrets in a value: itself, or inside its fields, its items (all, or by place), or its values; or
    those of any of its alternatives."""

    def __init__(self) -> None:
        self.is_secret = False
        self.fields: dict[str, Fields] = {}
        self.items: Fields | None = None
        self.places: list[Fields | None] = []
        self.values: Fields | None = None
        self.alternatives: list[Fields] = []

    def change(self, value: Any, change: Change) -> Any:
        """A copy of plain JSON values in which the text at each place is what `change` makes of it."""
        return _change([self], value, change)

    def texts(self, value: Any) -> list[str]:
        """The texts at the places of secrets."""
        found: list[str] = []
        self.change(value, found.append)
        return found

    def shape(self) -> object:
        """What two of them are compared by; None when there is no secret in it."""
        return _shape(self, ())

    def inside(self) -> "list[Fields]":
        """What it consists of."""
        each = [*self.fields.values(), self.items, self.values, *self.places, *self.alternatives]
        return [field for field in each if field is not None]

    def of_key(self, key: str) -> "Fields | None":
        """What is under a key of an object."""
        return self.fields.get(key) or self.values

    def reaches(self, path: str) -> bool:
        """Whether there is a secret at a path such as `order.customer_id`, or in what is there."""
        nodes = [self]
        for key in path.split("."):
            nodes = [*nodes, *(alternative for node in nodes for alternative in node.alternatives)]
            nodes = [field for field in (node.of_key(key) for node in nodes) if field is not None]
        return any(_reaches_secret(node) for node in nodes)

    def of_place(self, place: int) -> "Fields | None":
        """What is at a place in an array."""
        return self.places[place] if place < len(self.places) else self.items


def fields_of(hints: Mapping[str, Hint]) -> Fields | None:
    """The places of secrets in an object with fields of these hints; None when there are none.

    Raises TypeError for a Secret that cannot be followed.
    """
    top, search = Fields(), _Search()
    for name, hint in hints.items():
        field = search.of(hint)
        if field is not None:
            top.fields[name] = field
    search.check()
    top.fields = {name: field for name, field in top.fields.items() if _reaches_secret(field)}
    return top if top.fields else None


def _change(nodes: list[Fields], value: Any, change: Change) -> Any:
    nodes = [*nodes, *(alternative for node in nodes for alternative in node.alternatives)]
    if isinstance(value, str):
        return change(value) if any(node.is_secret for node in nodes) else value
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        return {key: _inside([node.of_key(key) for node in nodes], item, change) for key, item in given.items()}
    if isinstance(value, list):
        items = enumerate(cast("list[Any]", value))
        return [_inside([node.of_place(place) for node in nodes], item, change) for place, item in items]
    return value


def _inside(found: list[Fields | None], value: Any, change: Change) -> Any:
    nodes = [node for node in found if node is not None]
    return _change(nodes, value, change) if nodes else value


def _reaches_secret(fields: Fields) -> bool:
    seen: set[int] = set()
    waiting = [fields]
    while waiting:
        one = waiting.pop()
        if one.is_secret:
            return True
        if id(one) not in seen:
            seen.add(id(one))
            waiting += one.inside()
    return False


class _Search:
    """One search through hints. A type may refer to itself, so each is looked at once, and some are judged last."""

    def __init__(self) -> None:
        self._known: dict[Any, Fields] = {}
        self._unfollowed: list[tuple[str, Fields]] = []

    def of(self, hint: Hint) -> Fields | None:
        """What is in a hint; None for what holds nothing."""
        if is_secret(hint):
            return _checked_secret(hint)
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Annotated, typing.Required, typing.NotRequired):
            return self.of(args[0])
        if isinstance(hint, typing.NewType):
            return self.of(hint.__supertype__)
        if hasattr(hint, "__value__"):  # `type Login = ...`, from Python 3.12 on
            return self.of(hint.__value__)
        if class_of(hint) is not None:
            return self._of_class(hint)
        if origin is None:
            return None
        return self._of_generic(hint, origin, args)

    def check(self) -> None:
        """Raises TypeError for secrets that cannot be followed."""
        for where, fields in self._unfollowed:
            if _reaches_secret(fields):
                raise TypeError(f"a Secret inside {where} cannot be followed; declare it as a field of a class")

    def _of_generic(self, hint: Hint, origin: Any, args: tuple[Any, ...]) -> Fields | None:
        each = [None if arg is ... else self.of(arg) for arg in args]
        found = [inside for inside in each if inside is not None]
        if not found:
            return None
        fields = Fields()
        if origin in (typing.Union, types.UnionType):
            if len(found) == 1:
                return found[0]
            fields.alternatives = found
        elif not isinstance(origin, type):
            return None  # such as Literal
        elif origin is tuple and args[-1] is not ...:
            fields.places = each
        elif issubclass(origin, Mapping) and len(each) == 2 and each[0] is None:
            fields.values = each[1]
        elif issubclass(origin, Collection) and not issubclass(origin, Mapping):
            fields.items = each[0]
        else:
            fields.alternatives = found
            self._unfollowed.append((str(hint), fields))
        return fields

    def _of_class(self, hint: Any) -> Fields | None:
        if hint in self._known:
            return self._known[hint]
        if hint in (str, int, float, bool, type(None), object):
            return None
        kind = cast("Any", class_of(hint))  # of `Login[int]` it is Login
        if kind.__module__.partition(".")[0] == "pydantic" and kind.__name__ in ("SecretStr", "SecretBytes"):
            raise TypeError(f"pydantic's {kind.__name__} is written as stars, so it is lost; use dotdo.Secret")
        fields = self._known[hint] = Fields()
        if tuple in kind.__mro__ and hasattr(kind, "_fields"):
            fields.places = [self.of(hint) for hint in typing.get_type_hints(kind, include_extras=True).values()]
        elif codec.is_model(kind):
            self._add_model(kind, fields)
            if getattr(kind, "__pydantic_root_model__", False):
                fields.alternatives = list(fields.fields.values())  # it is written as its root, without a name
        elif issubclass(kind, msgspec.Struct):
            self._add_struct(hint, kind.__struct_config__, fields)
        elif dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or hasattr(kind, "__attrs_attrs__"):
            for name, inside in class_hints(hint).items():
                self._add(fields, name, inside, getattr(kind, name, None))
        return fields

    def _add(self, fields: Fields, name: str, hint: Hint, default: object = None) -> None:
        check_default(name, default)
        inside = self.of(hint)
        if inside is not None:
            fields.fields[name] = inside

    def _add_struct(self, hint: Any, config: Any, fields: Fields) -> None:
        found = msgspec.structs.fields(hint)
        if config.array_like:
            # A tag, if it has one, comes first.
            tag = [] if config.tag is None else [None]
            fields.places = [*tag, *(self.of(field.type) for field in found)]
        for field in found:
            self._add(fields, field.encode_name, field.type, field.default)

    def _add_model(self, kind: Any, fields: Fields) -> None:
        for name, field in kind.model_fields.items():
            inside = self.of(field.annotation)
            if inside is None:
                continue
            check_default(name, field.default)
            fields.fields[name] = inside
            aliases = _aliases(field)
            fields.fields.update(dict.fromkeys((alias for alias in aliases if isinstance(alias, str)), inside))
            if not all(isinstance(alias, str) for alias in aliases):
                self._unfollowed.append((f"{kind.__name__}.{name}, whose alias is a path,", inside))


def check_default(name: str, default: object) -> None:
    """Raises TypeError for a default that is a Secret."""
    if isinstance(default, Secret):
        raise TypeError(f"{name} has a Secret as its default, and so in the code; look it up by name instead")


def _checked_secret(hint: Hint) -> Fields:
    args = typing.get_args(hint)
    if args not in ((), (str,)):
        raise TypeError(f"Secret[{getattr(args[0], '__name__', args[0])}]: a secret is text, Secret[str]")
    fields = Fields()
    fields.is_secret = True
    return fields


def _aliases(field: Any) -> list[Any]:
    """The other names under which a pydantic model reads a field."""
    given = [choice for alias in (field.alias, field.validation_alias) for choice in getattr(alias, "choices", [alias])]
    return [alias for alias in given if alias is not None]


def _shape(fields: Fields | None, above: tuple[int, ...]) -> object:
    if fields is None:
        return None
    if id(fields) in above:
        return len(above) - above.index(id(fields))  # how far up it refers to itself
    if not _reaches_secret(fields):
        return None
    above = (*above, id(fields))
    named = {name: shape for name, field in fields.fields.items() if (shape := _shape(field, above)) is not None}
    rest = [[_shape(one, above) for one in group] for group in ([fields.items, fields.values], fields.places)]
    return fields.is_secret, named, rest, [_shape(one, above) for one in fields.alternatives]
