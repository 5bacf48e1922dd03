"""Where `ctx.secret(name)` finds its values: the environment, files as Docker and Kubernetes mount them, or anything
that implements `SecretProvider`. Values are asked for at each use and never stored.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from dotdo.errors import DefinitionError, UnknownSecret
from dotdo.secret import Secret

NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,199}")
# Keys of dotdo itself, which no handler has any business with.
RESERVED = frozenset({"DOTDO_SECRET_KEYS", "DOTDO_AUDIT_KEY"})
LARGEST_FILE = 1024 * 1024


@runtime_checkable
class SecretProvider(Protocol):
    """Something that knows secrets by name."""

    def get(self, name: str) -> str | None:
        """The secret of that name; None when there is none. Called from any thread, and on the event loop for
        `async def` handlers, so it must be quick: one that asks over a network keeps what it was told for a while."""
        ...


class EnvironmentSecrets:
    """Secrets out of environment variables.

    prefix: stands before each name: with `prefix="SHOP_"`, `ctx.secret("STRIPE_KEY")` is `SHOP_STRIPE_KEY`.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def get(self, name: str) -> str | None:
        """The variable's value; None when it is not set."""
        variable = self.prefix + name
        return None if variable in RESERVED else os.environ.get(variable)

    def __repr__(self) -> str:
        return f"environment variables{f' that begin with {self.prefix}' if self.prefix else ''}"


class FileSecrets:
    """Secrets out of the files of a folder, one each, as Docker and Kubernetes mount them.

    folder: by default /run/secrets. One line break at the end of a file does not count. Files are read at each use, so
    a secret that is rotated is the new one at once.
    """

    def __init__(self, folder: str | os.PathLike[str] = "/run/secrets") -> None:
        self.folder = Path(folder)

    def get(self, name: str) -> str | None:
        """What the file of that name says; None when there is no such file. Raises DefinitionError for one that cannot
        be read."""
        try:
            with open(self.folder / name, encoding="utf-8", newline="") as file:
                text = file.read(LARGEST_FILE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise DefinitionError(f"The secret {name!r} cannot be read from {self.folder}: {reason}.") from None
        if len(text) > LARGEST_FILE:
            raise DefinitionError(f"The secret {name!r} in {self.folder} is larger than 1 MiB; that is no secret.")
        return text.removesuffix("\n").removesuffix("\r")

    def __repr__(self) -> str:
        return f"files in {self.folder}"


class _Given:
    """Secrets given as a mapping."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    def __repr__(self) -> str:
        return "the mapping given as secrets="


Given = SecretProvider | Mapping[str, str] | Sequence[SecretProvider | Mapping[str, str]]


class SecretSources:
    """The providers of a client, asked in order."""

    def __init__(self, given: Given | None) -> None:
        each = [EnvironmentSecrets()] if given is None else given if isinstance(given, Sequence) else [given]
        self._providers = [_provider(one) for one in each]

    def get(self, name: str) -> Secret[str]:
        """The secret of that name. Raises UnknownSecret, which names no other one."""
        if not NAME.fullmatch(name):
            raise UnknownSecret(
                f"{name!r:.80} cannot be the name of a secret: letters, digits, '_', '-' and '.', at most 200."
            )
        for provider in self._providers:
            text = provider.get(name)
            if text is not None:
                return Secret(text)
        where = "; ".join(_described(provider) for provider in self._providers) or "nothing, as secrets=[] says"
        raise UnknownSecret(f"There is no secret {name!r}. Looked for in: {where}.")


def _described(provider: SecretProvider) -> str:
    """Where a provider looks. Only ours are printed: another one's `repr` may show anything."""
    ours = isinstance(provider, EnvironmentSecrets | FileSecrets | _Given)
    return repr(provider) if ours else type(provider).__name__


def _provider(given: object) -> SecretProvider:
    if isinstance(given, Mapping):
        return _Given(given)  # pyright: ignore[reportUnknownArgumentType]  # users without type checkers
    if not isinstance(given, SecretProvider):
        raise DefinitionError(
            f"secrets= was given {type(given).__name__}: something with a method get(name), such as "
            "EnvironmentSecrets() or FileSecrets(), or a mapping of names to texts, is needed."
        )
    return given
