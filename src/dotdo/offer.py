"""Definitions whose code is in a worker: actions and effects as workers offer them, with schemas as they came.

They stand in the catalogue beside the server's own, are called like these, and are validated by JSON Schema. What runs
them is not known here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, cast

import msgspec

from dotdo import codec, policy
from dotdo.action import DEFAULT_RETRY, NO_OVERRIDES, Action
from dotdo.catalogue import Catalogue, check_name, described
from dotdo.effect import DEFAULT_RETRY as EFFECT_RETRY
from dotdo.effect import Effect, EffectCall
from dotdo.errors import CalledOutside, DefinitionError, HandlerError, InvalidInput, Problem
from dotdo.policy import Concurrency, Limits, Rate, Retry
from dotdo.records import Definition, Options, RunKind
from dotdo.schema import Parameter, Schema, camel
from dotdo.secret import JSON_SCHEMA as SECRET
from dotdo.worker_protocol import ActionOffer, EffectOffer, Reference, RetryOffer

MOST_PROBLEMS = 20
Found = dict[str, dict[str, dict[int, Any]]]


class NotRetried(HandlerError):
    """A worker's error of a kind that its definition never retries."""

    code = "not_retried"


class OfferedSchema(Schema):
    """Input and output of an offered definition, as JSON Schema. Raises DefinitionError for what is none.

    properties: what an input has that declares none.
    """

    def __init__(
        self, subject: str, input: dict[str, Any], output: dict[str, Any], properties: tuple[str, ...] = ()
    ) -> None:
        self.subject, self._given, self._output_given = subject, input, output
        self.output, self.wire, self.secrets, self.is_plain = Any, "snake", None, True
        self._validates = _validator(f"the input_schema of {subject}", input)
        _validator(f"the output_schema of {subject}", output)
        required = set(cast("list[str]", input.get("required", [])))
        names = list(_properties(input, input)) or list(properties)
        self.parameters = [Parameter(name, Any, name in required) for name in names]
        self.names = frozenset(names)

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments of a call as normalised JSON input. Raises InvalidInput or InvalidValue."""
        if args:
            raise InvalidInput(self.subject, [Problem("$", "takes its parameters by name only")])
        return codec.encode(kwargs, f"The input of {self.subject}")

    def renamed(self, data: bytes) -> bytes:
        """An input with the declared names: `userId` for `user_id`, and the reverse."""
        if not self.names:
            return data
        return codec.encode(_renamed(codec.decode(data), self._given, self._given), f"The input of {self.subject}")

    def accept(self, params: Mapping[str, Any] | bytes) -> bytes:
        """Input from outside: normalised, validated, as JSON. Raises InvalidInput or InvalidValue."""
        data = params if isinstance(params, bytes) else super().accept(params)
        self.check(data)
        return self.renamed(data)

    def check(self, data: bytes) -> None:
        """Raises InvalidInput, with every problem, unless the input fits."""
        if self._validates is not None:
            problems = self._validates(codec.decode(self.renamed(data)))
            if problems:
                raise InvalidInput(self.subject, problems)

    def arguments(self, data: bytes) -> dict[str, Any]:
        """Stored input by parameter."""
        return codec.decode(data)

    def dump(self, result: Any, *, heavy: bool = False) -> tuple[bytes, Any]:
        """A result as JSON, and as what a service receives."""
        data = codec.encode_result(result, f"The result of {self.subject}", heavy=heavy)
        return data, codec.decode(data)

    def load(self, data: bytes | str) -> Any:
        """A stored result as plain JSON values."""
        return codec.decode(data)

    def input_schema(self) -> dict[str, Any]:
        """As it was offered."""
        return self._given

    def output_schema(self) -> dict[str, Any]:
        """As it was offered."""
        return self._output_given


class OfferedAction(Action[..., Any]):
    """An action whose handler is in workers. databases: where its attempts commit, as the workers name them."""

    def __init__(self, offer: ActionOffer, catalogue: Catalogue, databases: tuple[str, ...] = ()) -> None:
        self.offer, self.databases, self.catalogue = offer, databases, catalogue
        self.name, self.version, self.handler = offer.name, offer.version, self._nowhere
        self.subject = described("action", offer.name, offer.version)
        self.schema: OfferedSchema = OfferedSchema(self.subject, offer.input_schema, offer.output_schema)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.is_async = self.takes_context = True
        self.pool = "worker"
        self.retry = _retry_of(offer.retry, DEFAULT_RETRY)
        self.timeout, self.pivot = policy.seconds(offer.timeout, "timeout"), offer.pivot
        self.limits = _limits_of(self.subject, offer, self.schema.names or None)
        self.options, self.overrides = Options(version=offer.version), NO_OVERRIDES
        self.__doc__ = offer.doc
        self.__name__ = self.__qualname__ = offer.name
        self.__module__ = "worker"

    @property
    def undo_action(self) -> Action[..., Any] | None:  # pyright: ignore[reportIncompatibleVariableOverride]  # offered in any order
        """What takes it back."""
        found = self._other(self.offer.undo)
        return found if found is None else found.taking("output", "input")

    @property
    def fallback(self) -> Action[..., Any] | None:  # pyright: ignore[reportIncompatibleVariableOverride]  # offered in any order
        """What is tried when the retries are used up."""
        return self._other(self.offer.fallback)

    @property
    def on_failure(self) -> tuple[Action[..., Any], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # offered in any order
        """What is told when a run of it fails for good."""
        found = [self._other(reference) for reference in self.offer.on_failure]
        return tuple(each.taking("failure") for each in found if each is not None)

    def taking(self, *names: str) -> "OfferedAction":
        """The same, with names of parameters if its schema has none."""
        if self.schema.parameters:
            return self
        twin = cast("OfferedAction", self.with_())
        twin.schema = OfferedSchema(self.subject, self.offer.input_schema, self.offer.output_schema, names)
        return twin

    def definition(self) -> Definition:
        """What listings show of it."""
        return Definition(
            kind="action",
            name=self.name,
            version=self.version,
            doc=self.offer.doc,
            input_schema=self.offer.input_schema,
            output_schema=self.offer.output_schema,
            policy={
                "retry": {
                    "attempts": self.retry.attempts,
                    "delay": self.retry.delay,
                    "max_delay": self.retry.max_delay,
                },
                "timeout": self.timeout,
                **({} if self.limits is None else self.limits.described()),
                "undo": self.offer.undo.name if self.offer.undo else None,
                "fallback": self.offer.fallback.name if self.offer.fallback else None,
                "pivot": self.pivot,
                "on_failure": [item.name for item in self.offer.on_failure],
                "runs_in": "worker",
            },
        )

    def _other(self, reference: Reference | None) -> Any:
        return None if reference is None else self.catalogue.find("action", reference.name, reference.version)

    async def _nowhere(self, *_: Any, **__: Any) -> NoReturn:
        raise CalledOutside(f"The handler of {self.subject} is in a worker; it cannot be called here.")


class ExpectedAction(OfferedAction):
    """An action that no worker has offered yet: a service has called it by name. wanted: the version, if any."""

    def __init__(self, name: str, wanted: int | None, catalogue: Catalogue) -> None:
        super().__init__(ActionOffer(name, wanted or 1), catalogue)
        self.wanted = wanted


class Performs(Protocol):
    """Has something done by a worker."""

    def __call__(self, what: str, effect: "OfferedEffect", call: EffectCall, input: Any, answer: Any) -> Any: ...


class OfferedEffect(Effect[..., Any]):
    """An effect whose functions are in workers. perform: has one of them called."""

    def __init__(self, offer: EffectOffer, perform: Performs) -> None:
        self.offer, self._perform = offer, perform
        self.name, self.version, self.function = offer.name, offer.version, self._call
        self.subject = described("effect", offer.name, offer.version)
        if offer.dedup == "find" and not offer.lookup:
            raise DefinitionError(f'{self.subject}: dedup="find" needs a lookup.')
        self.schema = OfferedSchema(self.subject, offer.input_schema, offer.output_schema)
        self.dedup, self.on_unknown = offer.dedup, offer.on_unknown
        self.key_window = policy.seconds(offer.key_window, "key_window")
        self.retry = _retry_of(offer.retry, EFFECT_RETRY)
        # The worker keeps the time: here it would pass while no worker is there, and nobody could tell what happened.
        self.worker_timeout, self.timeout = policy.seconds(offer.timeout, "timeout"), None
        self.takes_call = self.is_async = True
        self.undo = self._undo if offer.undo else None
        self.lookup = self._look_up if offer.lookup else None
        self.preview = None
        self.__doc__ = offer.doc
        self.__name__, self.__module__ = offer.name, "worker"

    def definition(self) -> Definition:
        """What listings show of it."""
        told = {"dedup": self.dedup, "on_unknown": self.on_unknown, "undo": self.offer.undo, "preview": False}
        return Definition(
            kind="effect",
            name=self.name,
            version=self.version,
            doc=self.offer.doc,
            input_schema=self.offer.input_schema,
            output_schema=self.offer.output_schema,
            policy={**told, "runs_in": "worker"},
        )

    async def _call(self, call: EffectCall, **arguments: Any) -> Any:
        return await self._perform("effect", self, call, arguments, None)

    async def _undo(self, call: EffectCall, answer: Any, input: Any) -> None:
        await self._perform("effect_undo", self, call, input, answer)

    async def _look_up(self, call: EffectCall, input: Any) -> Any:
        return await self._perform("lookup", self, call, input, None)


class Remote:
    """A definition that another node has, as far as calling it goes. Raises DefinitionError for one that takes a
    secret, or whose schema cannot be used."""

    def __init__(self, given: Definition) -> None:
        self.name, self.version = given.name, given.version
        self.kind: RunKind = "service" if given.kind == "service" else "action"
        self.subject = described(self.kind, self.name, self.version)
        self.pivot = bool(given.policy.get("pivot"))
        if _holds_secret(given.input_schema):
            raise DefinitionError(
                f"The {self.subject} takes a secret, which only a node that defines it can seal: call it there, or "
                "define it here, too."
            )
        self.schema = OfferedSchema(self.subject, given.input_schema, {})
        self.on_failure: tuple[Action[..., Any], ...] = ()


class OfferedCatalogue(Catalogue):
    """A catalogue with what workers offer beside what it defines itself, which comes first."""

    def __init__(self, own: Catalogue) -> None:
        self.own = own
        self._offered: Found = {"action": {}, "service": {}, "effect": {}}
        self._both: Found = {}
        self._both_of = -1
        self._offers = 0
        self._has_databases = False
        self.expects = False  # what a service calls and nobody has offered yet may still be offered
        self.has_peers = False  # other nodes may define what a service calls
        super().__init__()

    @property
    def changes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]  # of both
        """How often either has changed."""
        return self.own.changes + self._offers

    @changes.setter
    def changes(self, value: int) -> None:
        """The base class counts its own, of which there are none."""

    @property
    def _found(self) -> Found:  # pyright: ignore[reportIncompatibleVariableOverride]  # of both
        changes = self.own.changes + self._offers
        if changes != self._both_of:
            own = self.own._found  # pyright: ignore[reportPrivateUsage]  # of the same class
            self._both = {
                kind: {name: {**names.get(name, {}), **own[kind].get(name, {})} for name in {**names, **own[kind]}}
                for kind, names in self._offered.items()
            }
            self._both_of = changes
        return self._both

    @_found.setter
    def _found(self, value: Found) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base class begins with an empty one."""

    def add(self, kind: str, name: str, version: int, definition: Any, function: Callable[..., Any]) -> None:
        """Registers a definition of this process."""
        self.own.add(kind, name, version, definition, function)

    def offer(self, kind: str, definition: Any) -> None:
        """Takes what a worker offers, instead of what was offered under the name and version before."""
        self._offered[kind].setdefault(definition.name, {})[definition.version] = definition
        self._offers += 1
        self._has_databases = self._has_databases or bool(getattr(definition, "databases", ()))

    @property
    def has_databases(self) -> bool:
        """Whether attempts commit in databases of workers."""
        return self._has_databases

    def versions(self, kind: str, name: str) -> list[Any]:
        """Every version of a name."""
        return list(self._found[kind].get(name, {}).values())

    def called(self, kind: str, name: str, version: int | None = None) -> Any:
        """What a service means that calls by name. Raises UnknownName for what no worker can be expected to offer."""
        expects = self.has_peers or (self.expects and kind == "action")
        if expects and self.find(kind, name, version) is None:
            check_name(kind, name, version or 1)
            return ExpectedAction(name, version, self)
        return self.get(kind, name, version)

    def expected(self, name: str, version: int, like: Any = None) -> Any | None:
        """A version that this process does not define, if other nodes may. like: another version, for typed calls."""
        if not self.has_peers:
            return None
        expected = ExpectedAction(name, version, self)
        if like is not None:
            expected.schema = like.schema
        return expected

    def find(self, kind: str, name: str, version: int | None = None) -> Any | None:
        """The definition of that name and version (None: the newest), if there is one."""
        # The effects of connectors are in the default catalogue, whichever the application has.
        return (self.own.find(kind, name, version) if kind == "effect" else None) or super().find(kind, name, version)


def _retry_of(offer: RetryOffer | None, default: Retry) -> Retry:
    if offer is None:
        return msgspec.structs.replace(default, never_on=NotRetried)
    return Retry(**msgspec.structs.asdict(offer), never_on=NotRetried)


def _limits_of(subject: str, offer: ActionOffer, names: frozenset[str] | None) -> Limits | None:
    """Raises DefinitionError. names: of the parameters; None where anything goes."""
    concurrency = [Concurrency(each.limit, each.key) for each in offer.concurrency]
    return policy.limits_of(subject, names, concurrency, [Rate(each.limit, each.key) for each in offer.rate])


# -- JSON Schema -------------------------------------------------------------------------------------------------------


def _validator(what: str, schema: dict[str, Any]) -> Callable[[Any], list[Problem]] | None:
    """What finds the problems of a value; None for a schema that takes anything. Raises DefinitionError."""
    if not schema:
        return None
    if _holds_secret(schema):
        raise DefinitionError(
            f"{what} has a secret: secret inputs do not leave the server. Look secrets up in the worker (ctx.secret)."
        )
    try:
        import jsonschema_rs
    except ModuleNotFoundError:
        raise DefinitionError(
            "Schemas of workers and other nodes need jsonschema-rs: pip install 'dotdo[server]' or 'dotdo[postgres]'."
        ) from None

    def refuse(uri: str) -> NoReturn:
        raise ValueError(f"{uri} is outside of the schema, and nothing is fetched for one")

    try:
        validator = jsonschema_rs.Draft202012Validator(schema, retriever=refuse)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        message = str(getattr(error, "message", error)).partition("\n")[0]
        raise DefinitionError(f"{what} is no JSON Schema: {message}.") from None

    def validate(value: Any) -> list[Problem]:
        problems: list[Problem] = []
        for error in validator.iter_errors(value):
            path, kind = _path(error.instance_path), error.kind
            if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
                problems.append(Problem(f"{path}.{kind.property}", "is required"))
            elif isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
                problems += [Problem(f"{path}.{name}", "is not a parameter") for name in kind.unexpected]
            else:
                problems.append(Problem(path, error.message))
            if len(problems) >= MOST_PROBLEMS:
                break
        return problems

    return validate


def _path(parts: list[str | int]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _holds_secret(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_holds_secret, cast("list[Any]", schema)))
    if not isinstance(schema, dict):
        return False
    given = cast("dict[str, Any]", schema)
    if all(given.get(name) == value for name, value in SECRET.items()):
        return True
    return any(map(_holds_secret, given.values()))


def _resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """A schema, or what its reference within the whole one means."""
    if not isinstance(schema, dict):
        return {}
    found = cast("dict[str, Any]", schema)
    reference = found.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return found
    place: Any = root
    for part in reference[2:].split("/"):
        place = cast("dict[str, Any]", place).get(part) if isinstance(place, dict) else None
    return cast("dict[str, Any]", place) if isinstance(place, dict) else {}


def _properties(schema: Any, root: dict[str, Any]) -> Mapping[str, Any]:
    found = _resolved(schema, root).get("properties")
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _renamed(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    """Plain values with the declared names: `userId` for `user_id` and the reverse."""
    if isinstance(value, list):
        items = _resolved(schema, root).get("items")
        return [_renamed(item, items, root) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    given = cast("dict[str, Any]", value)
    declared = _properties(schema, root)
    if not declared:
        return given
    by_camel = {camel(name): name for name in declared}
    result: dict[str, Any] = {}
    for key, item in given.items():
        name = key if key in declared else by_camel.get(camel(key), key)
        name = key if name in given and name != key else name  # both were given: the schema refuses one of them
        result[name] = _renamed(item, declared.get(name), root)
    return result
