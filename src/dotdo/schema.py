"""Type hints to validation and JSON Schema 2020-12.

A `Schema` is made once from a handler's signature. `pack` turns a call's arguments into the JSON input that is stored,
`arguments` turns stored input into typed arguments for the handler, `load` turns a stored result into the declared
output. Every problem of an input is reported, not only the first.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from dotdo import codec
from dotdo.errors import DefinitionError, InvalidInput, InvalidValue, Problem

Hint = Any


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a handler."""

    name: str
    hint: Hint
    required: bool
    default: Any = None


class Schema:
    """Input and output of one definition.

    subject: how messages name it, such as `action send-welcome-email@1`. parameters: without the context.
    wire: `snake` keeps names as they are, `camel` writes outputs in camelCase.
    """

    def __init__(self, subject: str, parameters: list[Parameter], output: Hint, wire: str = "snake") -> None:
        self.subject, self.parameters, self.output, self.wire = subject, parameters, output, wire
        self.names = frozenset(parameter.name for parameter in parameters)
        fields: list[Any] = [
            (p.name, p.hint) if p.required else (p.name, p.hint, _field_of(p.default)) for p in parameters
        ]
        try:
            # Keyword-only, so that a parameter with a default may stand before one without.
            self._input = msgspec.defstruct("Input", fields, forbid_unknown_fields=True, kw_only=True)
            self._decode_input = codec.decoder(self._input).decode
            self._decode_output = None if output is Any else codec.decoder(output).decode
        except TypeError as error:
            raise DefinitionError(f"{subject}: {error}") from None
        self._nested = any(_has_fields(parameter.hint) for parameter in parameters)

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments of a call as normalised JSON input. Raises InvalidInput or InvalidValue."""
        if args:
            kwargs = self._positional(args, kwargs)
        if self._nested or not self.names.issuperset(kwargs):
            kwargs = self._normalise(kwargs)
        return codec.encode(kwargs, f"The input of {self.subject}")

    def check(self, data: bytes) -> None:
        """Raises InvalidInput, with every problem, unless stored or given input fits."""
        try:
            self._decode_input(data)
        except (msgspec.ValidationError, ValueError, TypeError):
            self._refuse(data)

    def accept(self, params: Mapping[str, Any] | bytes) -> bytes:
        """Input from outside: normalised, validated, as JSON. Bytes are taken as what `pack` made.

        Raises InvalidInput or InvalidValue.
        """
        if isinstance(params, bytes):
            self.check(params)
            return params
        if not isinstance(params, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # it comes from outside
            raise InvalidInput(self.subject, [Problem("$", "an object of parameters by name is needed")])
        data = self.pack((), dict(params))
        self.check(data)
        return data

    def arguments(self, data: bytes) -> dict[str, Any]:
        """Stored input as typed keyword arguments of the handler."""
        try:
            return msgspec.structs.asdict(self._decode_input(data))
        except (msgspec.ValidationError, ValueError, TypeError):
            self._refuse(data)
            raise

    def dump(self, result: Any) -> tuple[bytes, Any]:
        """A handler's result as JSON, and as what a service receives. Raises InvalidValue if it does not fit."""
        what = f"The result of {self.subject}"
        if self.wire == "camel":
            result = _camel_keys(codec.to_builtins(result))
        data = codec.encode_result(result, what)
        try:
            return data, self.load(data)
        except (msgspec.ValidationError, ValueError) as error:
            hint = getattr(self.output, "__name__", str(self.output))
            raise InvalidValue(f"{what} does not fit its return hint {hint}: {error}") from None

    def load(self, data: bytes | str) -> Any:
        """A stored result as the declared output."""
        if self._decode_output is None:
            return codec.decode(data)
        if self.wire == "camel":
            data = codec.encode_result(normalise(codec.decode(data), self.output), "result")
        return self._decode_output(data)

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema 2020-12 of the input."""
        return _json_schema(self._input)

    def output_schema(self) -> dict[str, Any]:
        """JSON Schema 2020-12 of the output."""
        return {} if self.output is Any else _json_schema(self.output)

    def hint_of(self, name: str) -> Hint | None:
        """The hint of a parameter, by its name or camelCase name."""
        return next((p.hint for p in self.parameters if name in (p.name, camel(p.name))), None)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > len(self.parameters):
            raise InvalidInput(
                self.subject, [Problem("$", f"takes {len(self.parameters)} arguments, {len(args)} were given")]
            )
        named = {parameter.name: value for parameter, value in zip(self.parameters, args, strict=False)}
        twice = named.keys() & kwargs.keys()
        if twice:
            raise InvalidInput(self.subject, [Problem(f"$.{name}", "was given twice") for name in sorted(twice)])
        return {**named, **kwargs}

    def _normalise(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        fields = {p.name: p.hint for p in self.parameters}
        problems: list[Problem] = []
        result = _rename(kwargs, fields, "$", problems)
        if problems:
            # Other problems of the same input are reported with these.
            known = {name: value for name, value in result.items() if name in fields}
            problems += self._problems(known)
            raise InvalidInput(self.subject, problems)
        return result

    def _problems(self, given: dict[str, Any]) -> list[Problem]:
        problems = [
            Problem(f"$.{p.name}", "is required") for p in self.parameters if p.required and p.name not in given
        ]
        for parameter in self.parameters:
            if parameter.name in given:
                problems += _problems(given[parameter.name], parameter.hint, f"$.{parameter.name}")
        return problems

    def _refuse(self, data: bytes) -> None:
        given: dict[str, Any] = codec.decode(data)
        problems = [Problem(f"$.{n}", "is not a parameter" + self._hint()) for n in given if n not in self.names]
        raise InvalidInput(
            self.subject, problems + self._problems(given) or [Problem("$", "does not fit the declared types")]
        )

    def _hint(self) -> str:
        return f"; it takes {', '.join(p.name for p in self.parameters) or 'none'}"


def _field_of(default: Any) -> Any:
    """An input's default: shown in the JSON Schema where it is a plain value."""
    if default is None or isinstance(default, bool | int | float | str):
        return msgspec.field(default=default)
    return msgspec.field(default_factory=lambda: default)


def schema_of(subject: str, function: Callable[..., Any], skip: int, wire: str = "snake") -> Schema:
    """The schema of a function, leaving out its first `skip` parameters (the context or call)."""
    hints = hints_of(subject, function)
    parameters: list[Parameter] = []
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"{subject}: the parameter {parameter} cannot be passed by name; "
                "declare each input as an ordinary parameter."
            )
        required = parameter.default is parameter.empty
        hint = hints.get(parameter.name, Any)
        parameters.append(Parameter(parameter.name, hint, required, None if required else parameter.default))
    output = hints.get("return", Any)
    return Schema(subject, parameters, output, wire)


def hints_of(subject: str, function: Callable[..., Any]) -> dict[str, Hint]:
    """The resolved type hints of a function."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"{subject}: a type hint could not be resolved: {error}. Types used in hints must be importable at "
            "module level (not local to a function, nor only under TYPE_CHECKING)."
        ) from None


def camel(name: str) -> str:
    """`user_id` as `userId`."""
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


def _camel_keys(value: object) -> object:
    if isinstance(value, dict):
        return {camel(str(key)): _camel_keys(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_camel_keys(item) for item in cast("list[Any]", value)]
    return value


def normalise(value: Any, hint: Hint) -> Any:
    """Plain JSON values with camelCase names of declared fields turned into the declared names."""
    return _rename_nested(value, hint, "$", [])


def _rename(given: dict[str, Any], fields: Mapping[str, Hint], path: str, problems: list[Problem]) -> dict[str, Any]:
    by_camel = {camel(name): name for name in fields}
    result: dict[str, Any] = {}
    for key, value in given.items():
        name = key if key in fields else by_camel.get(key)
        if name is None:
            known = ", ".join(fields) or "none"
            problems.append(Problem(f"{path}.{key}", f"is not a parameter; known are: {known}"))
            continue
        if name in result:
            problems.append(Problem(f"{path}.{name}", f"was given twice (as {name} and {camel(name)})"))
        result[name] = _rename_nested(value, fields[name], f"{path}.{name}", problems)
    return result


def _rename_nested(value: object, hint: Hint, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        fields = _fields(hint)
        given = cast("dict[str, Any]", value)
        if fields is not None:
            return _rename(given, {name: field for name, (field, _) in fields.items()}, path, problems)
        inner = _inner(hint, dict)
        if inner is not None:
            return {k: _rename_nested(v, inner, f"{path}.{k}", problems) for k, v in given.items()}
    elif isinstance(value, list):
        inner = _inner(hint, list)
        if inner is not None:
            items = cast("list[Any]", value)
            return [_rename_nested(item, inner, f"{path}[{n}]", problems) for n, item in enumerate(items)]
    return cast("object", value)


def _plain(hint: Hint) -> Hint:
    """The hint without Annotated and None."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [item for item in typing.get_args(hint) if item is not type(None)]
        if len(inner) == 1:
            return _plain(inner[0])
    return hint


def _inner(hint: Hint, container: type) -> Hint | None:
    hint = _plain(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if container is dict and isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2:
        return args[1]
    if container is list and origin in (list, set, frozenset, tuple) and args and (len(args) == 1 or args[1] is ...):
        return args[0]
    return None


def _fields(hint: Hint) -> dict[str, tuple[Hint, bool]] | None:
    """Field hints and whether each is required, for dataclasses, TypedDicts and Structs; else None."""
    plain = _plain(hint)
    if not isinstance(plain, type):
        return None
    hint = cast("Any", plain)
    if issubclass(hint, msgspec.Struct):
        return {field.encode_name: (field.type, field.required) for field in msgspec.structs.fields(hint)}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        missing = dataclasses.MISSING
        return {
            field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
            for field in dataclasses.fields(hint)
            if field.init
        }
    if typing.is_typeddict(hint):
        required: frozenset[str] = getattr(hint, "__required_keys__", frozenset())
        return {name: (field, name in required) for name, field in typing.get_type_hints(hint).items()}
    return None


def _has_fields(hint: Hint) -> bool:
    hint = _plain(hint)
    return _fields(hint) is not None or any(_has_fields(inner) for inner in typing.get_args(hint))


def _problems(value: Any, hint: Hint, path: str) -> list[Problem]:
    """Every problem of plain JSON values against a hint; goes into fields and items one by one."""
    fields = _fields(hint)
    if fields is not None and isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        found = [
            Problem(f"{path}.{n}", "is required") for n, (_, needed) in fields.items() if needed and n not in given
        ]
        for name, (field, _) in fields.items():
            if name in given:
                found += _problems(given[name], field, f"{path}.{name}")
        return found or _problem_of_whole(value, hint, path)
    inner = _inner(hint, list) if isinstance(value, list) else _inner(hint, dict) if isinstance(value, dict) else None
    if inner is not None:
        items = (
            [(f"{path}[{n}]", item) for n, item in enumerate(cast("list[Any]", value))]
            if isinstance(value, list)
            else [(f"{path}.{key}", item) for key, item in cast("dict[str, Any]", value).items()]
        )
        found = [problem for at, item in items for problem in _problems(item, inner, at)]
        return found or _problem_of_whole(value, hint, path)
    return _problem_of_whole(value, hint, path)


def _problem_of_whole(value: Any, hint: Hint, path: str) -> list[Problem]:
    try:
        codec.decoder(hint).decode(codec.encode(value))
    except (msgspec.ValidationError, ValueError, TypeError, InvalidValue) as error:
        text, _, inside = str(error).partition(" - at `")
        place = path + inside.rstrip("`")[1:] if inside else path
        return [Problem(place, text[:1].lower() + text[1:])]
    return []


def _json_schema(kind: Any) -> dict[str, Any]:
    (schema,), definitions = msgspec.json.schema_components(
        [kind], schema_hook=_schema_of_other, ref_template="#/$defs/{name}"
    )
    top = schema.pop("$ref", None)
    if top is not None:
        schema.update(definitions.pop(top.rsplit("/", 1)[-1]))
    return {**schema, "$defs": definitions} if definitions else schema


def _schema_of_other(kind: type) -> dict[str, Any]:
    make = getattr(kind, "model_json_schema", None)
    return make() if make is not None else {}
