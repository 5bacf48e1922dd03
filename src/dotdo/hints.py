"""What stands inside a type hint: the fields of a class, the items of a list, the values of a mapping.

It is followed through Annotated, NewType, `type X = ...`, generic classes, whose parameters have what they were given,
and unions, where the value decides. Nothing here judges or changes a value.
"""

import dataclasses
import enum
import functools
import inspect
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, cast

import msgspec

from dotdo import codec

Hint = Any
Fields = dict[str, tuple[Hint, bool]]


def plain(hint: Hint) -> Hint:
    """The hint without Annotated, NewType, the name of a type alias, and None."""
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif hasattr(hint, "__value__"):  # `type Login = ...`, from Python 3.12 on
            hint = hint.__value__
        elif len(alternatives(hint)) == 1:
            hint = alternatives(hint)[0]
        else:
            return hint


def alternatives(hint: Hint) -> list[Hint]:
    """What a union offers beside None; of any other hint nothing."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return []
    return [item for item in typing.get_args(hint) if item is not type(None)]


def choices(hint: Hint) -> list[Any]:
    """The values that an enum or Literal takes, as JSON has them, also in a union; of any other hint none."""
    hint = plain(hint)
    offered = alternatives(hint)
    if offered:
        return [value for one in offered for value in choices(one)]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    return list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else []


def hint_of(value: object, hint: Hint) -> Hint:
    """The plain hint of a value: of a union, the alternative that is meant, or Any where that cannot be told."""
    hint = plain(hint)
    offered = alternatives(hint)
    if not offered:
        return hint
    # One that can be meant by its kind is meant, so that its problems are told; of several the names decide.
    found = [choice for choice in (hint_of(value, one) for one in offered) if _may_be(value, choice)]
    if len(found) > 1:
        found = [choice for choice in found if _has_names_of(value, choice)]
    return found[0] if found else Any


def inner(hint: Hint, container: type) -> Hint | None:
    """What the values of a mapping (`dict`) or the items of a list are; None when the hint does not say."""
    hint = plain(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(origin, type) or not args:
        return None
    is_mapping = issubclass(origin, Mapping)
    if container is dict:
        return args[1] if is_mapping and len(args) == 2 else None
    is_even = issubclass(origin, Collection) and not is_mapping and (len(args) == 1 or args[1] is ...)
    return args[0] if is_even else None


def items(values: list[Any], hint: Hint) -> list[tuple[Any, Hint]]:
    """Each item of an array with its own hint."""
    each = inner(hint, list)
    args = typing.get_args(plain(hint))
    if each is None and typing.get_origin(plain(hint)) is tuple and len(args) == len(values):
        return list(zip(values, args, strict=True))
    return [(value, Any if each is None else each) for value in values]


def model_fields(hint: Hint) -> Fields | None:
    """The same as `fields`, for pydantic models."""
    model = plain(hint)
    if not codec.is_model(model):
        return None
    return {name: (field.annotation, field.is_required()) for name, field in model.model_fields.items()}


def fields(hint: Hint) -> Fields | None:
    """Field hints and whether each is required, for dataclasses, TypedDicts and Structs; else None."""
    hint = plain(hint)
    if isinstance(hint, type):
        return _fields_of_class(hint)
    return None if class_of(hint) is None else _fields(hint)


def _fields(hint: Hint) -> Fields | None:
    kind = cast("Any", class_of(hint))
    if issubclass(kind, msgspec.Struct):
        found = {field.encode_name: (field.type, field.required) for field in msgspec.structs.fields(hint)}
        tag = kind.__struct_config__.tag_field
        return found if tag is None else {tag: (Any, False), **found}
    if dataclasses.is_dataclass(kind):
        hints, missing = class_hints(hint), dataclasses.MISSING
        return {
            field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
            for field in dataclasses.fields(kind)
            if field.init
        }
    if typing.is_typeddict(kind):
        required: frozenset[str] = kind.__required_keys__
        return {name: (_without_qualifiers(field), name in required) for name, field in class_hints(hint).items()}
    return None


# Each value of each call asks, and resolving hints takes 50 us. Not for `Box[A | B]`, which is equal to `Box[B | A]`.
_fields_of_class = functools.lru_cache(maxsize=1_024)(_fields)


def has_fields(hint: Hint) -> bool:
    """Whether a hint names fields, itself or inside."""
    hint = plain(hint)
    if codec.is_model(hint) or fields(hint) is not None:
        return True
    return any(has_fields(one) for one in typing.get_args(hint))


def class_of(hint: Hint) -> type[Any] | None:
    """The class that a hint names: of `Box[int]` it is Box. None for what is no class, and for lists and the like."""
    if isinstance(hint, type):
        return cast("type[Any]", hint)
    origin: Any = typing.get_origin(hint)
    if not isinstance(origin, type):
        return None
    kind = cast("type[Any]", origin)
    marks = ("__dataclass_fields__", "__attrs_attrs__", "__total__", "__struct_config__")
    return kind if any(hasattr(kind, mark) for mark in marks) else None


def class_hints(hint: Hint) -> dict[str, Hint]:
    """The hints of a class and its bases, in which the parameters of generic classes have what they were given."""
    kind = cast("Any", typing.get_origin(hint) or hint)
    given: dict[Any, Hint] = dict(zip(getattr(kind, "__parameters__", ()), typing.get_args(hint), strict=False))
    inherited: dict[str, Hint] = {}
    # Class by class: two of them may use one and the same TypeVar for different things.
    for base in reversed(kind.__dict__.get("__orig_bases__", kind.__bases__)):
        if class_of(base) is not None:
            inherited |= class_hints(_given(base, given))
    own, resolved = inspect.get_annotations(kind), typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        own = [name for name in own if name not in inherited]  # it repeats those, with parameters that are not its own
    return inherited | {name: _given(resolved[name], given) for name in own if name in resolved}


def _given(hint: Hint, given: Mapping[Any, Hint]) -> Hint:
    if isinstance(hint, typing.TypeVar):
        return given.get(hint, Any if hint.__bound__ is None else hint.__bound__)
    parameters: tuple[Any, ...] = () if isinstance(hint, type) else getattr(hint, "__parameters__", ())
    return cast("Any", hint)[tuple(_given(one, given) for one in parameters)] if parameters else cast("Any", hint)


def _may_be(value: object, hint: Hint) -> bool:
    """Whether an object or array can be meant by a hint, as far as its kind goes."""
    origin = typing.get_origin(hint) or hint
    if isinstance(value, dict):
        is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
        return is_mapping or fields(hint) is not None or model_fields(hint) is not None
    return isinstance(value, list) and isinstance(origin, type) and issubclass(origin, Collection) and origin is not str


def _has_names_of(value: object, hint: Hint) -> bool:
    known = fields(hint) or model_fields(hint)
    if known is None or not isinstance(value, dict):
        return True
    given = cast("dict[str, Any]", value)
    config: Any = getattr(class_of(hint), "__struct_config__", None)
    if config is not None and config.tag is not None:
        return given.get(config.tag_field, given.get(camel(config.tag_field))) == config.tag
    names = {name for name in known if name in given or camel(name) in given}
    return len(names) == len(given) and all(name in names for name, (_, required) in known.items() if required)


def _without_qualifiers(hint: Hint) -> Hint:
    while typing.get_origin(hint) in (typing.Required, typing.NotRequired):
        hint = typing.get_args(hint)[0]
    return hint


def camel(name: str) -> str:
    """`user_id` as `userId`; leading underscores stay."""
    bare = name.lstrip("_")
    head, *rest = bare.split("_")
    return name[: len(name) - len(bare)] + head + "".join(part[:1].upper() + part[1:] for part in rest)
