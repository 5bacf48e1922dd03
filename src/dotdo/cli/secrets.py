"""`dotdo secrets`: the keys that secret inputs are encrypted under. No command prints a key or a secret."""

import os

import click

from dotdo.cli import Group
from dotdo.cli.output import json_option, mark, print_json, print_table, say
from dotdo.cli.settings import store_option
from dotdo.embedding import key_path
from dotdo.errors import StoreUnusable
from dotdo.secret_keys import VARIABLE, key_file, load_keyring
from dotdo.secret_keys import rotate as rotate_keys


@click.group(cls=Group)
def secrets() -> None:
    """The keys that secret inputs are encrypted under.

    They are in DOTDO_SECRET_KEYS, or in the file beside the store that ends in .secret-keys. Keep a copy of them, apart
    from the copies of the store.
    """


@secrets.command("keys", short_help="List the ids of the keys, the newest first.")
@store_option
@json_option
def keys(store: str, as_json: bool) -> None:
    """List the ids of the keys, the newest first: it encrypts, all of them decrypt."""
    path = key_path(store)
    keyring = load_keyring(path, make=False)
    where = VARIABLE if os.environ.get(VARIABLE) else str(key_file(path or ""))
    if as_json:
        print_json({"where": where, "keys": list(keyring.keys)})
        return
    rows = [[(id, "bold"), ("encrypts" if id == keyring.newest else "decrypts", "")] for id in keyring.keys]
    print_table(["KEY", "USE"], rows)
    say(f"(in {where})")


@secrets.command("rotate", short_help="Make a new key for what is encrypted from now on.")
@store_option
def rotate(store: str) -> None:
    """Make a new key for what is encrypted from now on; what is stored stays readable under the old ones.

    An engine that runs goes on under its key until it is started again.
    """
    if os.environ.get(VARIABLE):
        raise StoreUnusable(
            f"The keys are in {VARIABLE}, which only you can change: put NEW-ID:KEY before them, where KEY is what "
            "`openssl rand -hex 32` prints, and, if there is none yet, compare:KEY behind them, with the KEY that was "
            "there first. Then start the application again."
        )
    path = key_path(store)
    if path is None:
        raise StoreUnusable("A temporary store (sqlite://) has keys of its own, which are gone with it.")
    keyring = rotate_keys(path)
    say(f"{mark('✓', '+')} The key {keyring.newest} encrypts from now on (in {key_file(path)}).")
    say("Start the application again for it to be used, and copy the file to where you keep your keys.")
