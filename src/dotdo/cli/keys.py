"""`dotdo keys`: API keys of the HTTP API. A key is shown once, when it is made; the store has its digest only."""

import time

import click

from dotdo.cli import Group
from dotdo.cli.output import clock_time, json_option, mark, print_json, print_table, say
from dotdo.cli.settings import duration, store_option
from dotdo.embedding import open_reader, open_writer
from dotdo.errors import UnknownName
from dotdo.keys import ApiKey, new_key


@click.group("keys", cls=Group)
def keys() -> None:
    """API keys: make one, list them, revoke one."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="RESOURCE:VERB[:PATTERN]",
    help="What it allows, such as actions:execute:send-*; repeat for more; * allows everything.",
)
@click.option(
    "--expires", type=duration, metavar="TIME", help="When it expires, from now: 90d, 12h, 45min.  [default: never]"
)
@click.option(
    "--rate", metavar="RATE", help="How many requests it may make: 100/s, 600/m, 5000/h.  [default: as the server says]"
)
@store_option
@json_option
def create(
    name: str, scopes: tuple[str, ...], expires: float | None, rate: str | None, store: str, as_json: bool
) -> None:
    """Make a key and print it. NAME says whose it is; it is the actor of what the key starts.

    \b
    dotdo keys create shop --scope 'actions:execute:send-*' --scope runs:read --expires 90d
    """
    now = int(time.time() * 1000)
    expires_at = None if expires is None else now + int(1000 * expires)
    text, key = new_key(name, scopes, now=now, expires_at=expires_at, rate=rate)
    writer = open_writer(store)
    try:
        writer.save_api_key(key)
    finally:
        writer.close()
    if as_json:
        print_json({"key": text, **_shown(key)})
        return
    click.echo(text)
    say(f"{mark('✓', '+')} Made {key.id} for {name}. The key above is shown this once; keep it as a secret.")


@keys.command("ls", short_help="List the keys, and when each was last used.")
@store_option
@json_option
def ls(store: str, as_json: bool) -> None:
    """List the keys: whose they are, what they allow, and when they were last used."""
    reader = open_reader(store)
    try:
        found = reader.list_api_keys()
    finally:
        reader.close()
    if as_json:
        print_json([_shown(key) for key in found])
        return
    rows = [
        [
            (key.id, "bold"),
            (key.name, ""),
            (f"{key.hint}...", "dim"),
            (" ".join(key.scopes), ""),
            (key.rate or "", ""),
            (_state(key), ""),
            ("never" if key.used_at is None else clock_time(key.used_at), "dim"),
        ]
        for key in found
    ]
    print_table(["ID", "NAME", "KEY", "SCOPES", "RATE", "STATE", "LAST USED"], rows)
    if not found:
        say("There are no keys. Make one: dotdo keys create NAME --scope 'actions:execute:*'")


@keys.command("revoke")
@click.argument("id")
@store_option
def revoke(id: str, store: str) -> None:
    """Revoke a key: a server refuses it within seconds, for good."""
    open_reader(store).close()  # else a store would be made where there is none
    writer = open_writer(store)
    try:
        known = writer.revoke_api_key(id, int(time.time() * 1000))
    finally:
        writer.close()
    if not known:
        raise UnknownName(f"There is no API key {id!r}; `dotdo keys ls` lists them.")
    say(f"{mark('✓', '+')} Revoked {id}.")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    expired = key.expires_at <= time.time() * 1000
    return f"{'expired' if expired else 'until'} {clock_time(key.expires_at)}"


def _shown(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "scopes": list(key.scopes),
        "rate": key.rate,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "used_at": key.used_at,
    }
