"""The keys that seal secrets, kept outside the store: in DOTDO_SECRET_KEYS, or in a file beside the store that is made
once, when the first secret is sealed, and that only its owner can read.
"""

import logging
import os
import secrets
import time
from pathlib import Path

from dotdo.errors import StoreUnusable
from dotdo.sealing import Keyring, parse_keyring

VARIABLE = "DOTDO_SECRET_KEYS"
SUFFIX = ".secret-keys"

log = logging.getLogger("dotdo.store")


def load_keyring(path: str | None, *, make: bool = True) -> Keyring:
    """The keyring of the store at a path; of a store in memory, one that is gone with it. Raises StoreUnusable.

    make: whether a missing file is made.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return parse_keyring(given, VARIABLE)
    if path is None:
        return Keyring.new(new_id())
    file = key_file(path)
    try:
        return _read(file)
    except FileNotFoundError:
        if not make:
            raise StoreUnusable(f"There is no key file {file}: nothing was sealed in this store yet.") from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(file, Keyring.new(new_id()))
        try:
            os.link(draft, file)  # another process may have been first, and then its keys count
            log.info("made the key file %s; keep a copy of it elsewhere", file)
        except FileExistsError:
            log.debug("another process made the key file %s", file)
        finally:
            draft.unlink()
        _sync_folder(file.parent)
        return _read(file)
    except OSError as error:
        raise StoreUnusable(f"The key file {file} cannot be made: {error}.") from None


def check_keyring(path: str | None) -> None:
    """Raises StoreUnusable for keys that are there and wrong, so that this is told before anything needs them."""
    if os.environ.get(VARIABLE) or (path is not None and key_file(path).exists()):
        load_keyring(path, make=False)


def rotate(path: str) -> Keyring:
    """Puts a new key first into the file beside a store, or makes the file. Raises StoreUnusable."""
    file = key_file(path)
    keyring = load_keyring(path).rotated(new_id())
    try:
        draft = _draft(file, keyring)
        draft.replace(file)
        _sync_folder(file.parent)
    except OSError as error:
        raise StoreUnusable(f"The key file {file} cannot be written: {error}.") from None
    return keyring


def key_file(path: str) -> Path:
    """The key file of the store at a path."""
    return Path(path + SUFFIX)


def new_id() -> str:
    """An id for a new key: the day, and something that makes it unlike others."""
    return time.strftime("%Y%m%d-", time.gmtime()) + secrets.token_hex(2)


def _read(file: Path) -> Keyring:
    try:
        if os.name == "posix" and file.stat().st_mode & 0o077:
            log.warning(
                "the key file %s can be read by others than its owner: chmod 600 it, then rotate the keys", file
            )
        return parse_keyring(file.read_text(encoding="ascii"), str(file))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnusable(f"The key file {file} cannot be read: {error}.") from None


def _draft(file: Path, keyring: Keyring) -> Path:
    # Under a name of its own first: a crash in the middle must not leave a file with half of the keys.
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
        out.write(keyring.text())
        out.flush()
        os.fsync(out.fileno())
    return draft


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
