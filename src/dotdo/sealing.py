"""Secrets at rest: sealed under a key that is kept outside the store, and compared without being opened.

A sealed text is a token: `dotdo-secret:1:<key id>:<fingerprint>:<nonce and ciphertext>`. The cipher is AES-256-GCM with
a random nonce, and is bound to the key's id, the fingerprint, and the root run, so that a token that is moved to
another run does not open. The fingerprint is an HMAC of the root and the text under a key of its own, which rotation
does not change: equal texts in one tree of runs have equal fingerprints, under whatever key they were sealed.
"""

import base64
import binascii
import hmac
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import msgspec

from dotdo.errors import DefinitionError, SecretUnreadable, StoreUnusable
from dotdo.secret import HIDDEN

PREFIX = "dotdo-secret:1:"
TOKEN = re.compile(r"dotdo-secret:1:([A-Za-z0-9._-]{1,40}):([A-Za-z0-9_-]{22}):([A-Za-z0-9_-]{38,})")
KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,40}")
COMPARE = "compare"
KEY_BYTES, NONCE_BYTES = 32, 12


class Keyring(msgspec.Struct, frozen=True):
    """The keys of a store by id: the first one seals, all of them open, `comparing` makes fingerprints."""

    keys: dict[str, bytes]
    comparing: bytes

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return next(iter(self.keys))

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self.keys)}>"

    @classmethod
    def new(cls, id: str) -> "Keyring":
        """A keyring of one new key."""
        return cls({id: os.urandom(KEY_BYTES)}, os.urandom(KEY_BYTES))

    def rotated(self, id: str) -> "Keyring":
        """This keyring with a new key before the others. Raises StoreUnusable when the id is taken."""
        if id in self.keys:
            raise StoreUnusable(f"There is a key {id!r} already; give the new one another id.")
        return Keyring({id: os.urandom(KEY_BYTES), **self.keys}, self.comparing)

    def text(self) -> str:
        """As a key file: one key a line, the newest first."""
        lines = [f"{id}:{key.hex()}" for id, key in self.keys.items()]
        return "\n".join([*lines, f"{COMPARE}:{self.comparing.hex()}"]) + "\n"


def parse_keyring(text: str, where: str) -> Keyring:
    """A keyring from `id:hex` words, the newest first; they stand on lines or between commas. Raises StoreUnusable.

    The key `compare` makes fingerprints. A keyring of a single key may leave it out: then that key does both.
    """
    found: dict[str, bytes] = {}
    for number, word in enumerate(text.replace(",", "\n").split(), 1):
        id, colon, key = word.partition(":")
        if not colon or not KEY_ID.fullmatch(id) or not re.fullmatch(r"[0-9a-fA-F]{64}", key):
            raise StoreUnusable(
                f"{where}: key {number} is not of the form ID:KEY, where ID is letters, digits, '.', '_' or '-', and "
                "KEY is 64 hexadecimal digits (such as `openssl rand -hex 32` prints)."
            )
        if id in found:
            raise StoreUnusable(f"{where}: two keys have the id {id!r}.")
        found[id] = bytes.fromhex(key)
    comparing = found.pop(COMPARE, None)
    if not found:
        raise StoreUnusable(f"{where}: there is no key to seal with; give one as ID:KEY.")
    if comparing is None and len(found) > 1:
        raise StoreUnusable(
            f"{where}: of several keys, one must be named {COMPARE}, by which secrets are compared whatever key they "
            f"are sealed under. It never changes: add {COMPARE}: with the KEY that was there first."
        )
    return Keyring(found, next(iter(found.values())) if comparing is None else comparing)


class Sealer:
    """Seals and opens under a keyring, which is loaded at first use, and once more for a key that is not in it.

    load: gives the keyring. Raises DefinitionError without the `cryptography` package, StoreUnusable for wrong keys.
    """

    def __init__(self, load: Callable[[], Keyring]) -> None:
        self._load = load
        self._keyring: Keyring | None = None
        self._ciphers: dict[str, Any] = {}

    def seal(self, text: str, root: str) -> str:
        """A new token of a text."""
        keyring = self._keys()
        id, mark = keyring.newest, self.fingerprint(text, root)
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher(id).encrypt(nonce, text.encode(), _bound_to(id, mark, root))
        return f"{PREFIX}{id}:{mark}:{_base64(nonce + sealed)}"

    def open(self, token: str, root: str) -> str:
        """The text of a token. Raises SecretUnreadable when its key is missing or it was changed or moved."""
        found = TOKEN.fullmatch(token)
        if found is None:
            raise SecretUnreadable("A stored secret is not of the form that this version of dotdo reads.")
        id, mark, body = found[1], found[2], found[3]
        if id not in self._keys().keys:
            self._keyring = None  # it may have been rotated since
            if id not in self._keys().keys:
                raise SecretUnreadable(
                    f"A stored secret of {root} was sealed under the key {id!r}, which is not among this process's "
                    f"keys ({', '.join(self._keys().keys)}). Add it to DOTDO_SECRET_KEYS or to the key file."
                )
        from cryptography.exceptions import InvalidTag

        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            return self._cipher(id).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], _bound_to(id, mark, root)).decode()
        except (InvalidTag, binascii.Error):
            raise SecretUnreadable(
                f"A stored secret of {root} does not open under its key {id!r}: it was changed, or moved here from "
                "another run, or the key of that id is another one. Run `dotdo audit verify`."
            ) from None

    def fingerprint(self, text: str, root: str) -> str:
        """What is equal for equal texts in one tree of runs, and tells nothing else without the key."""
        # A key of its own, also where one key of the keyring is both to seal and to compare.
        key = hmac.digest(self._keys().comparing, b"dotdo fingerprints", "sha256")
        return _base64(hmac.digest(key, f"{root}|{text}".encode(), "sha256")[:16])

    def _keys(self) -> Keyring:
        if self._keyring is None:
            self._keyring = self._load()
        return self._keyring

    def _cipher(self, id: str) -> Any:
        cipher = self._ciphers.get(id)
        if cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            cipher = self._ciphers[id] = AESGCM(self._keys().keys[id])
        return cipher


def fingerprint_of(token: str) -> str | None:
    """The fingerprint in a token; None for what is none."""
    found = TOKEN.fullmatch(token)
    return None if found is None else found[2]


def check_installed(subject: str) -> None:
    """Raises DefinitionError unless secrets can be sealed here."""
    if find_spec("cryptography") is None:
        raise DefinitionError(f'{subject}: a Secret input needs cryptography: pip install "dotdo[secrets]".')


def masked(value: Any) -> Any:
    """Plain JSON values for people: `***` for each token."""
    if isinstance(value, str):
        return TOKEN.sub(HIDDEN, value) if PREFIX in value else value
    if isinstance(value, dict):
        return {key: masked(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [masked(item) for item in cast("list[Any]", value)]
    return value


def _bound_to(id: str, mark: str, root: str) -> bytes:
    return f"{PREFIX}{id}|{mark}|{root}".encode()


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
