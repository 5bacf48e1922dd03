"""Type hints to validation and JSON Schema 2020-12.

A `Schema` is made once from a handler's signature. `pack` turns a call's arguments into the JSON input that is stored,
`arguments` turns stored input into typed arguments for the handler, `load` turns a stored result into the declared
output. Every problem of an input is reported, not only the first.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from dotdo import codec, hints
from dotdo.errors import DefinitionError, InvalidInput, InvalidValue, Problem
from dotdo.hints import Hint, camel
from dotdo.secret import JSON_SCHEMA, is_secret
from dotdo.secret_fields import check_default
from dotdo.secret_input import SecretInput, lend

_SCALARS = frozenset({str, int, bool, type(None)})
_PLAIN_TYPES = (Any, None, type(None), str, int, float, bool, list, dict)


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
        if wire not in ("snake", "camel"):
            raise DefinitionError(f"{subject}: wire={wire!r}: one of snake, camel is needed.")
        self.subject, self.parameters, self.output, self.wire = subject, parameters, output, wire
        self.names = frozenset(parameter.name for parameter in parameters)
        # Outputs that are what JSON decodes to: to be decoded, they need not be read again.
        self.is_plain = wire == "snake" and output in (Any, None, type(None), dict, list, str, int, bool)
        fields: list[Any] = [
            (p.name, p.hint) if p.required else (p.name, p.hint, _field_of(p.default)) for p in parameters
        ]
        try:
            # None for an input that has none, and then nothing is slower for them.
            for parameter in parameters:
                check_default(parameter.name, parameter.default)
            self.secrets = SecretInput.of(subject, {p.name: p.hint for p in parameters}, output)
            # Keyword-only, so that a parameter with a default may stand before one without.
            self._input = msgspec.defstruct("Input", fields, forbid_unknown_fields=True, kw_only=True)
            self._decode_input = codec.decoder(self._input).decode
            self._decode_output = None if output is Any else codec.decoder(output).decode
            _refuse_unreadable([output, *(parameter.hint for parameter in parameters)])
            self._nested = any(hints.has_fields(parameter.hint) for parameter in parameters)
        except TypeError as error:
            raise DefinitionError(f"{subject}: {error}{_mend_of(error)}") from None
        except NameError as error:
            raise DefinitionError(f"{subject}: {_unresolved(error)}") from None

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments of a call as normalised JSON input. Raises InvalidInput or InvalidValue."""
        if args:
            kwargs = self._positional(args, kwargs)
        if self.secrets is not None:
            return self._pack_secrets(self.secrets, kwargs)
        if self._nested or not self.names.issuperset(kwargs):
            kwargs = self._normalise(kwargs)
        return codec.encode(kwargs, f"The input of {self.subject}")

    def _pack_secrets(self, secrets: SecretInput, kwargs: dict[str, Any]) -> bytes:
        what = f"The input of {self.subject}"
        given = codec.marked(kwargs, what)
        try:
            return codec.encode(secrets.take(self.subject, self._normalise(given)), what)
        except InvalidInput as error:
            raise secrets.cleaned(error, given) from None

    def check(self, data: bytes) -> None:
        """Raises InvalidInput, with every problem, unless stored or given input fits."""
        try:
            decoded = self._decode_input(data)
        except Exception:  # a class of the user's may raise anything when it is made
            self._refuse(data)
        else:
            if self.secrets is not None:
                # Whatever hints may say: what became a Secret is where it will be looked for and sealed.
                self.secrets.take(self.subject, codec.marked(msgspec.structs.asdict(decoded), "The input"))

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
        except Exception:  # a class of the user's may raise anything when it is made
            self._refuse(data)
            raise

    def dump(self, result: Any, *, heavy: bool = False) -> tuple[bytes, Any]:
        """A handler's result as JSON, and as what a service receives. heavy: other threads get turns meanwhile. Raises
        InvalidValue if it does not fit."""
        what = f"The result of {self.subject}"
        data = codec.encode_result(result, what, heavy=heavy)
        if type(result) in _SCALARS and (self.output is Any or self.output is type(result)):
            return data, result  # it cannot come back otherwise, and a text may have 64 MiB
        if self.wire == "camel":
            hint = cast("Hint", type(result)) if self.output is Any else self.output
            data = codec.encode_result(_camel_fields(codec.decode(data), hint), what)
        return data, self.load(data)

    def load(self, data: bytes | str) -> Any:
        """A stored result as the declared output. Raises InvalidValue if it does not fit (any more)."""
        try:
            if self._decode_output is None:
                return codec.decode(data)
            if self.wire == "camel":
                data = codec.encode_result(normalise(codec.decode(data), self.output), "result")
            return self._decode_output(data)
        except Exception as error:  # a class of the user's may raise anything when it is made
            hint = getattr(self.output, "__name__", str(self.output))
            raise InvalidValue(
                f"The result of {self.subject} does not fit its return hint {hint}: {_reason(error)}"
            ) from None

    def load_plain(self, value: Any) -> Any:
        """A result as plain JSON values, as the declared output. Raises InvalidValue."""
        return self.load(codec.encode_result(value, "result"))

    def lend_secrets(self, subject: str, schema: "Schema") -> None:
        """The parameter `input` is given the input of another schema, with the secrets in it. Raises DefinitionError
        when it is declared in a way that would show them."""
        hint = next((parameter.hint for parameter in self.parameters if parameter.name == "input"), None)
        if hint is not None:
            self.secrets = lend(subject, schema.secrets, self.secrets, is_loose=not hints.has_fields(hint))

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema 2020-12 of the input."""
        return _json_schema(self._input)

    def output_schema(self) -> dict[str, Any]:
        """JSON Schema 2020-12 of the output."""
        return {} if self.output is Any else _json_schema(self.output)

    def _positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if len(args) > len(self.parameters):
            raise InvalidInput(self.subject, [Problem("$", _too_many(len(self.parameters), len(args)))])
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
        error = InvalidInput(
            self.subject, problems + self._problems(given) or [Problem("$", "does not fit the declared types")]
        )
        raise error if self.secrets is None else self.secrets.cleaned(error, given)

    def _hint(self) -> str:
        return f"; it takes {', '.join(p.name for p in self.parameters) or 'none'}"


def _field_of(default: Any) -> Any:
    """An input's default: shown in the JSON Schema where it is a plain value."""
    if default is None or isinstance(default, bool | int | float | str):
        return msgspec.field(default=default)
    return msgspec.field(default_factory=lambda: default)


def schema_of(subject: str, function: Callable[..., Any], skip: int, wire: str = "snake") -> Schema:
    """The schema of a function, leaving out its first `skip` parameters (the context or call)."""
    found = hints_of(subject, function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(f"{subject}: a generator cannot be a handler; return all values, such as in a list.")
    parameters: list[Parameter] = []
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"{subject}: the parameter {parameter} cannot be passed by name; "
                "declare each input as an ordinary parameter."
            )
        required = parameter.default is parameter.empty
        hint = found.get(parameter.name, Any)
        parameters.append(Parameter(parameter.name, hint, required, None if required else parameter.default))
    output = found.get("return", Any)
    return Schema(subject, parameters, output, wire)


def hints_of(subject: str, function: Callable[..., Any]) -> dict[str, Hint]:
    """The resolved type hints of a function."""
    if not callable(function):
        raise DefinitionError(f"{subject}: {function!r} cannot be called; a function is needed.")
    if isinstance(getattr(function, "schema", None), Schema):
        raise DefinitionError(f"{subject}: {function!r} is a definition itself; the bare function is needed.")
    bare: Any = function.func if isinstance(function, functools.partial) else function
    if not (inspect.isroutine(bare) or inspect.isclass(bare)):
        bare = bare.__call__  # of an object that can be called
    try:
        return typing.get_type_hints(bare, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise DefinitionError(f"{subject}: {_unresolved(error)}") from None


def _mend_of(error: TypeError) -> str:
    """What to do about a hint that msgspec cannot read, where that is not in what it says."""
    if "unions" not in str(error):
        return ""
    return (
        ". Nothing in the JSON would tell these apart: make each a msgspec.Struct with tag=True, or let one pydantic "
        "model (or RootModel) hold the union."
    )


def _unresolved(error: Exception) -> str:
    return (
        f"a type hint could not be resolved: {error}. Types used in hints must be importable at module level (not "
        "local to a function, nor only under TYPE_CHECKING)."
    )


def _camel_fields(value: Any, hint: Hint) -> Any:
    """Plain values with the names of declared fields in camelCase; keys that are data stay as they are."""
    if not isinstance(value, dict | list):
        return value
    hint = hints.hint_of(cast("object", value), hint)
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        fields = hints.fields(hint) or hints.model_fields(hint)
        if fields is not None:
            declared = {name: field for name, (field, _) in fields.items()}
            return {
                camel(key) if key in declared else key: _camel_fields(item, declared.get(key, Any))
                for key, item in given.items()
            }
        inner = hints.inner(hint, dict)
        return given if inner is None else {key: _camel_fields(item, inner) for key, item in given.items()}
    return [_camel_fields(item, inner) for item, inner in hints.items(cast("list[Any]", value), hint)]


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
    if not isinstance(value, dict | list):
        return value
    hint = hints.hint_of(cast("object", value), hint)
    if isinstance(value, dict):
        fields = hints.fields(hint)
        given = cast("dict[str, Any]", value)
        if fields is not None:
            return _rename(given, {name: field for name, (field, _) in fields.items()}, path, problems)
        model = hints.model_fields(hint)
        if model is not None:
            # What else there is, such as an alias, is the model's to judge.
            by_camel = {camel(name): name for name in model if camel(name) not in model}
            named = {by_camel.get(k, k): v for k, v in given.items()}
            return {k: _rename_nested(v, model.get(k, (Any,))[0], f"{path}.{k}", problems) for k, v in named.items()}
        inner = Any if (found := hints.inner(hint, dict)) is None else found
        return {k: _rename_nested(v, inner, f"{path}.{k}", problems) for k, v in given.items()}
    each = enumerate(hints.items(cast("list[Any]", value), hint))
    return [_rename_nested(item, inner, f"{path}[{n}]", problems) for n, (item, inner) in each]


def _problems(value: Any, hint: Hint, path: str) -> list[Problem]:
    """Every problem of plain JSON values against a hint; goes into fields and items one by one."""
    meant = hints.hint_of(value, hint)
    fields = hints.fields(meant)
    found: list[Problem] = []
    if fields is not None and isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        found = [
            Problem(f"{path}.{n}", "is required") for n, (_, needed) in fields.items() if needed and n not in given
        ]
        for name, (field, _) in fields.items():
            if name in given:
                found += _problems(given[name], field, f"{path}.{name}")
        return found or _problem_of_whole(value, hint, path)
    if codec.is_model(meant) and value is not None:
        return [Problem(_at(path, place), _lower(text)) for place, text in codec.model_problems(meant, value)]
    if isinstance(value, list):
        for n, (item, inner) in enumerate(hints.items(cast("list[Any]", value), meant)):
            found += _problems(item, inner, f"{path}[{n}]")
    elif isinstance(value, dict):
        inner = hints.inner(meant, dict)
        for key, item in cast("dict[str, Any]", value).items():
            found += _problems(item, Any if inner is None else inner, f"{path}.{key}")
    return found or _problem_of_whole(value, hint, path)


def _at(path: str, place: tuple[str | int, ...]) -> str:
    return path + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)


def _reason(error: Exception) -> str:
    is_ours = isinstance(error, msgspec.ValidationError | msgspec.DecodeError | InvalidValue)
    return str(error) if is_ours else f"{error} ({type(error).__name__})"


def _too_many(taken: int, given: int) -> str:
    return f"takes {taken} argument{'' if taken == 1 else 's'}, {given} {'was' if given == 1 else 'were'} given"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _problem_of_whole(value: Any, hint: Hint, path: str) -> list[Problem]:
    try:
        codec.decoder(hint).decode(codec.encode(value))
    except Exception as error:  # also what a class of the user's raises when it is made
        text, _, inside = _reason(error).partition(" - at `")
        inside = inside.removeprefix("key` in `")  # of a key, msgspec tells the object that has it
        text = _lower(text) + ("" if inside else _what_fits(text, hint))
        return [Problem(path + inside.rstrip("`")[1:] if inside else path, text)]
    return []


def _what_fits(text: str, hint: Hint) -> str:
    """What a caller may write instead, where msgspec's reason does not say it."""
    if text.startswith("Invalid enum value"):
        known = [codec.encode(each).decode() for each in hints.choices(hint)]
        return f"; known are: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}" if known else ""
    return next((f", such as {example}" for what, example in _EXAMPLES if text.endswith(what)), "")


_EXAMPLES = (
    ("encoded datetime", "2030-01-31T12:00:00Z"),
    ("encoded date", "2030-01-31"),
    ("encoded time", "12:00:00"),
)


def _refuse_unreadable(given: list[Hint]) -> None:
    """Raises TypeError for a type inside the hints that nothing can read from JSON."""
    declared = [hint for hint in given if hint not in _PLAIN_TYPES]
    if declared:
        msgspec.json.schema_components(declared, schema_hook=_schema_of_other)


def _json_schema(kind: Any) -> dict[str, Any]:
    models: dict[str, Any] = {}

    def schema_of_other(other: type) -> dict[str, Any]:
        found = _schema_of_other(other)
        models.update(found.pop("$defs", {}))  # pydantic's references are to the whole schema's definitions, too
        return found

    (schema,), definitions = msgspec.json.schema_components(
        [kind], schema_hook=schema_of_other, ref_template="#/$defs/{name}"
    )
    definitions.update(models)
    top = schema.pop("$ref", None)
    if top is not None:
        schema.update(definitions[top.rsplit("/", 1)[-1]])
        if f'"{top}"' not in str(codec.encode_result([schema, definitions], "schema")):
            del definitions[top.rsplit("/", 1)[-1]]  # nothing inside refers to it
    return {**schema, "$defs": definitions} if definitions else schema


def _schema_of_other(kind: type) -> dict[str, Any]:
    if kind is object:
        return {"description": "any JSON"}
    if is_secret(kind):
        return dict(JSON_SCHEMA)
    if codec.is_model(kind):
        return cast("Any", kind).model_json_schema(by_alias=False)
    raise TypeError(codec.unreadable(kind))
