"""Secrets of runs: looked up by name, sealed before they are stored, opened for handlers, hidden in what is written.

A run that meets a secret keeps it in mind (`RunSecrets`) until it leaves memory: errors are journaled without it, and
a result, an answer or a plain input that contains it is refused. A run that meets none has no such object.
"""

import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import msgspec

from dotdo import codec
from dotdo.engine.failing import Block
from dotdo.errors import SecretExposed, SecretUnreadable
from dotdo.journal import Blocked, Data, EventReceived, StagedEffect
from dotdo.records import ErrorRecord, Options, Question
from dotdo.redacting import Hidden, Redactor
from dotdo.schema import Schema
from dotdo.sealing import Keyring, Sealer, masked
from dotdo.secret import Secret
from dotdo.secret_provider import SecretSources

if TYPE_CHECKING:
    from dotdo.engine.engine import Engine

D = TypeVar("D", bound=Data)


class Vault:
    """What the runs of an engine share: where secrets come from, and what seals them."""

    def __init__(self, sources: SecretSources, sealer: Sealer) -> None:
        self.sources, self.sealer = sources, sealer

    def accepted(self, schema: Schema, params: Any, run: str, options: Options) -> tuple[bytes, bytes]:
        """What a caller gives, checked, and then like `at_rest`. Raises InputError."""
        return self.at_rest(schema, schema.accept(params), run, options)

    def at_rest(self, schema: Schema, plain: bytes, run: str, options: Options) -> tuple[bytes, bytes]:
        """A caller's input as it is stored, and what it is compared by. Raises SecretExposed when a secret of it also
        stands in the options, which are stored as they are."""
        secrets = schema.secrets
        if secrets is None:
            return plain, plain
        hidden = Hidden()
        for text in secrets.fields.texts(codec.decode(plain)):
            hidden.add(text)
        if any(hidden.found(text) for text in _texts_of(msgspec.to_builtins(options))):
            raise SecretExposed(
                f"The key, trail, actor or labels of the run contain a secret of the input of {schema.subject}, and "
                "are stored in the clear. Use other ones."
            )
        root = _root(run)
        return secrets.sealed(plain, self.sealer, root), secrets.identity(plain, self.sealer, root)

    def identity(self, schema: Schema, sealed: bytes, run: str) -> bytes:
        """What a stored input is compared by."""
        secrets = schema.secrets
        return sealed if secrets is None else secrets.identity_of_sealed(sealed, self.sealer, _root(run))


def temporary_vault(sources: SecretSources) -> Vault:
    """Seals what does not outlive this process, under keys of its own."""
    keyring = Keyring.new("temporary")
    return Vault(sources, Sealer(lambda: keyring))


class RunSecrets:
    """The secrets that one run has met. Safe to use from any thread."""

    def __init__(self, vault: Vault, run: str) -> None:
        self._vault, self._root = vault, _root(run)
        self._hidden = Redactor(run)
        self.hide = self._hidden.add

    def look_up(self, name: str) -> Secret[str]:
        """The secret of that name. Raises UnknownSecret."""
        secret = self._vault.sources.get(name)
        self.hide(secret.reveal())
        return secret

    def at_rest(self, schema: Schema, plain: bytes) -> tuple[bytes, bytes]:
        """An input as it is stored, and what it is compared by. Raises SecretExposed for a secret in the clear."""
        sealed = identity = plain
        secrets = schema.secrets
        if secrets is not None:
            for text in secrets.fields.texts(codec.decode(plain)):
                self.hide(text)
            sealer = self._vault.sealer
            sealed, identity = secrets.sealed(plain, sealer, self._root), secrets.identity(plain, sealer, self._root)
        self.refuse(sealed, f"The input of {schema.subject}")
        return sealed, identity

    def arguments(self, schema: Schema, data: bytes) -> dict[str, Any]:
        """Stored input as typed arguments of the handler. Raises Block when a secret cannot be opened."""
        assert schema.secrets is not None, "the caller looked"
        return schema.secrets.wrap_lent(schema.arguments(self._opened(schema, data)))

    def plain_input(self, schema: Schema, data: bytes) -> Any:
        """Stored input as plain values, with Secret objects in it. Raises Block when one cannot be opened."""
        assert schema.secrets is not None, "the caller looked"
        return schema.secrets.wrapped(codec.decode(self._opened(schema, data)))

    def refuse(self, data: bytes | str, what: str) -> None:
        """Raises SecretExposed when JSON (or a text) that is to be stored contains a secret of this run."""
        text = data if isinstance(data, str) else data.decode()
        values = [text] if isinstance(data, str) else [text, *_texts_of(codec.decode(data))]
        if any(self._hidden.found(value) for value in values):
            raise SecretExposed(
                f"{what} contains the text of a secret that the run uses, and would be stored in the clear. Leave it "
                "out, or pass it as a parameter that is declared Secret[str]."
            )

    def refuse_completion(self, subject: str, result: bytes, effects: list[StagedEffect]) -> None:
        """Raises SecretExposed when a result contains a secret, or an effect that was staged before it was known."""
        self.refuse(result, f"The result of {subject}")
        for staged in effects:
            self.refuse(bytes(staged.input), f"The input of the effect {staged.effect}, staged by {subject},")

    def shown(self, value: Any) -> Any:
        """Plain JSON values without secrets, sealed or not, for people."""
        return _mapped(masked(value), self._hidden)

    def clean(self, data: D) -> D:
        """An entry's data with `***` for secrets in its error, or in an event from outside."""
        error = getattr(data, "error", None)
        if isinstance(error, ErrorRecord):
            data = msgspec.structs.replace(data, error=self.clean_error(error))
        if isinstance(data, Blocked):
            asked = [self._clean_question(question) for question in data.questions]
            data = cast("D", msgspec.structs.replace(data, questions=asked))
        if isinstance(data, EventReceived):
            value = _mapped(codec.decode(bytes(data.value)), self._hidden)
            data = cast("D", msgspec.structs.replace(data, value=msgspec.Raw(codec.encode_result(value, "event"))))
        return data

    def _clean_question(self, question: Question) -> Question:
        error = None if question.error is None else self.clean_error(question.error)
        text, input = self._hidden.clean(question.text), _mapped(question.input, self._hidden)
        return msgspec.structs.replace(question, text=text, input=input, error=error)

    def clean_error(self, error: ErrorRecord) -> ErrorRecord:
        """The error without secrets."""
        clean = self._hidden.clean
        return msgspec.structs.replace(
            error, type=clean(error.type), message=clean(error.message), traceback=clean(error.traceback)
        )

    def _opened(self, schema: Schema, data: bytes) -> bytes:
        assert schema.secrets is not None, "the caller looked"
        try:
            opened, texts = schema.secrets.opened(data, self._vault.sealer, self._root)
        except SecretUnreadable as error:
            raise Block("secret unreadable", f"{error.message} Then retry the run.") from None
        for text in texts:
            self.hide(text)
        return opened


class KeepsSecrets(Protocol):
    """A run, or what stands for one, whose secrets are kept in mind."""

    secrets: RunSecrets | None

    def keep_secrets(self) -> RunSecrets:
        """The secrets of the run, from now on."""
        ...


# Handlers on several threads may meet a run's first secret at once.
_first_secret = threading.Lock()


class SecretKeeping:
    """The part of a run in memory that keeps its secrets in mind."""

    __slots__ = ()  # an engine has thousands of those that derive from it
    engine: "Engine"
    id: str
    secrets: RunSecrets | None = None

    def keep_secrets(self) -> RunSecrets:
        """The secrets of the run, from now on."""
        if self.secrets is None:
            with _first_secret:
                if self.secrets is None:
                    self.secrets = RunSecrets(self.engine.vault, self.id)
        return self.secrets

    def look_up_secret(self, name: str) -> Secret[str]:
        """The secret of that name, for handlers and effects. Raises UnknownSecret."""
        return self.keep_secrets().look_up(name)

    def cleaned(self, data: D) -> D:
        """What is to be journaled, without the secrets of the run."""
        return data if self.secrets is None else self.secrets.clean(data)


class Unkept:
    """Stands for a run that is only replayed: its secrets are opened for its code, and nothing is written."""

    def __init__(self, vault: Vault, run: str) -> None:
        self._vault, self._run = vault, run
        self.secrets: RunSecrets | None = None

    def keep_secrets(self) -> RunSecrets:
        """The secrets of the run."""
        if self.secrets is None:
            with _first_secret:
                if self.secrets is None:
                    self.secrets = RunSecrets(self._vault, self._run)
        return self.secrets


def arguments_of(keeper: KeepsSecrets, schema: Schema, data: bytes) -> dict[str, Any]:
    """Stored input as typed arguments. Raises Block when a secret of it cannot be opened."""
    return schema.arguments(data) if schema.secrets is None else keeper.keep_secrets().arguments(schema, data)


def plain_input(keeper: KeepsSecrets, schema: Schema, data: bytes) -> Any:
    """Stored input as plain values, with Secret objects in it. Raises Block when one cannot be opened."""
    return codec.decode(data) if schema.secrets is None else keeper.keep_secrets().plain_input(schema, data)


def _root(run: str) -> str:
    return run.partition(".")[0]


def _texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return [text for key, item in pairs for text in (key, *_texts_of(item))]
    if isinstance(value, list | tuple):
        return [text for item in cast("list[Any]", value) for text in _texts_of(item)]
    return []


def _mapped(value: Any, hidden: Hidden) -> Any:
    if isinstance(value, str):
        return hidden.clean(value)
    if isinstance(value, dict):
        return {hidden.clean(key): _mapped(item, hidden) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_mapped(item, hidden) for item in cast("list[Any]", value)]
    return value
