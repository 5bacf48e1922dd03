"""The parameters of `dotdo run`: words such as `name=Ada`, `tags:=["a"]`, `-` or `@input.json` to an input by name."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click
import msgspec

from dotdo.errors import InvalidInput, Problem
from dotdo.schema import Schema, camel


def read_parameters(words: Sequence[str], schema: Schema) -> dict[str, Any]:
    """The input that words stand for; a whole input first, then single parameters over it. Raises UsageError.

    `name=value` is text where the parameter takes text, else JSON where it is JSON; the schema judges the rest.
    `name:=json` is JSON. `-` reads a whole JSON input from stdin, `@file` from a file.
    """
    given: dict[str, Any] = {}
    single: dict[str, Any] = {}
    for word in words:
        if word == "-":
            given |= _object(sys.stdin.read(), "stdin")
        elif word.startswith("@"):
            given |= _object(_text_of(Path(word[1:])), word[1:])
        else:
            name, value = _parameter(word, schema)
            if name in single:
                raise click.UsageError(f"{name} is given twice.")
            single[name] = value
    return given | single


def check_parameters(params: dict[str, Any], words: Sequence[str], schema: Schema) -> None:
    """Raises InvalidInput; where a word that is no JSON was taken for text, it says how JSON is given."""
    try:
        schema.accept(params)
    except InvalidInput as error:
        texts = {word.partition("=")[0] for word in words if "=" in word}
        texts = {name for name in texts if isinstance(params.get(name), str) and not takes_text(schema, name)}
        raise InvalidInput(error.subject, [_with_hint(problem, texts) for problem in error.problems]) from None


def _with_hint(problem: Problem, texts: set[str]) -> Problem:
    name = problem.path.removeprefix("$.")
    return Problem(problem.path, f"{problem.message}; JSON is given as {name}:='...'") if name in texts else problem


def _parameter(word: str, schema: Schema) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals or not name.strip(":"):
        shown = repr(word) if schema.secrets is None else "A word"  # which may be the secret itself
        raise click.UsageError(f"{shown} is no parameter: give NAME=VALUE, NAME:=JSON, @FILE or - (stdin).")
    if name.endswith(":"):
        return name[:-1], _json(value, f"{name[:-1]}:=", f" Text is given as {name[:-1]}=..., without the colon.")
    if takes_text(schema, name):
        return name, value
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


def takes_text(schema: Schema, name: str) -> bool:
    """Whether a parameter's JSON is a text (str, datetime, UUID, an enum of texts...) or null; unknown names count."""
    inputs = schema.input_schema()
    properties = cast("dict[str, dict[str, Any]]", inputs.get("properties", {}))
    for declared, found in properties.items():
        if name in (declared, camel(declared)):
            return _is_text(found, cast("dict[str, Any]", inputs.get("$defs", {})))
    return True


def _is_text(schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    if "$ref" in schema:
        return _is_text(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    choices: list[Any] = schema.get("enum", [])
    if choices:
        return all(isinstance(choice, str) or choice is None for choice in choices)
    options = cast("list[dict[str, Any]]", schema.get("anyOf", []))
    if options:
        others = [option for option in options if option.get("type") != "null"]
        return bool(others) and all(_is_text(option, definitions) for option in others)
    return schema.get("type") == "string"


def _object(text: str, where: str) -> dict[str, Any]:
    value = _json(text, where)
    if not isinstance(value, dict):
        raise click.UsageError(f"{where} must hold a JSON object of parameters by name.")
    return cast("dict[str, Any]", value)


def _json(text: str, where: str, hint: str = "") -> Any:
    if not text.strip():
        raise click.UsageError(f"{where} is empty; JSON is needed.{hint}")
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise click.UsageError(f"{where} is not JSON: {error}.{hint}") from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeError as error:
        raise click.UsageError(f"{path} is not text: {error}.") from None


def labels_of(given: tuple[str, ...]) -> dict[str, str]:
    """Labels by name, out of `name=value`. Raises UsageError."""
    pairs = [label.partition("=") for label in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise click.UsageError(f"--label {name}: write it as name=value.")
    return {name: value for name, _, value in pairs}
