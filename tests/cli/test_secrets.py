"""Secrets on the command line: keys are listed and rotated but never shown, and runs show stars."""

from pathlib import Path

import pytest

from tests.cli.commands import Shell

CANARY = "correct-horse-battery"
APPLICATION = """
from dotdo import Context, FileSecrets, Secret, action

secrets = FileSecrets("given")

@action("sign-in", retry=1)
def sign_in(ctx: Context, user: str, password: Secret[str], fail: bool = False) -> str:
    if fail:
        raise ValueError(f"{password.reveal()} and {ctx.secret('API_KEY').reveal()}")
    return user
"""


@pytest.fixture
def door(shell: Shell) -> Shell:
    """A folder with an application that takes a secret."""
    shell.write("app.py", APPLICATION)
    shell.write("given/API_KEY", "staple-staple\n")
    return shell


def key_file(shell: Shell) -> Path:
    return shell.folder / ".dotdo" / "dotdo.db.secret-keys"


def test_a_run_takes_it_and_no_command_shows_it(door: Shell):
    done = door.run("run", "sign-in", "-", input=f'{{"user": "ada", "password": "{CANARY}"}}')
    assert done.returncode == 0, done.stderr
    door.run("run", "sign-in", "user=ada", f"password={CANARY}", "fail:=true")
    shown = [
        door.ok("runs", "ls"),
        *(door.ok("runs", "show", "latest", *options) for options in ((), ("-v",), ("--json",))),
        door.ok("audit", "verify", "--json"),
        door.ok("actions", "show", "sign-in"),
        done.stdout + done.stderr,
    ]
    assert not any(CANARY in text or "staple" in text or "dotdo-secret:" in text for text in shown)
    assert "ValueError: *** and ***" in shown[1]
    assert '"password": "***"' in shown[2]
    assert "string (password)" in shown[5]


def test_a_wrong_word_is_not_repeated(door: Shell):
    done = door.run("run", "sign-in", "user=ada", CANARY)
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    assert "give NAME=VALUE" in done.stderr
    done = door.run("run", "sign-in", f"pasword={CANARY}", "--json")
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr


def test_a_preview_shows_stars_and_makes_no_key(door: Shell):
    done = door.run("run", "sign-in", "user=ada", f"password={CANARY}", "fail:=true", "--preview", "--json")
    assert "*** and ***" in done.stdout
    assert not any(text in done.stdout + done.stderr for text in (CANARY, "staple", "dotdo-secret:"))
    assert not key_file(door).exists()


def test_keys_are_rotated_and_listed_without_being_shown(door: Shell):
    missing = door.run("secrets", "keys")
    assert missing.returncode == 1
    assert "nothing was sealed in this store yet" in missing.stderr

    door.ok("run", "sign-in", "user=ada", f"password={CANARY}", "--key", "k")
    (first,) = door.json("secrets", "keys")["keys"]
    rotated = door.run("secrets", "rotate")
    assert rotated.returncode == 0, rotated.stderr
    newest, old = door.json("secrets", "keys")["keys"]
    assert old == first
    assert door.ok("secrets", "keys") == f"{newest}\tencrypts\n{old}\tdecrypts\n"
    assert key_file(door).stat().st_mode & 0o777 == 0o600

    keys = [line.partition(":")[2] for line in key_file(door).read_text().splitlines()]
    assert len(keys) == 3
    assert not any(key in rotated.stdout + rotated.stderr for key in keys)
    door.ok("run", "sign-in", "user=ada", f"password={CANARY}", "--key", "k")  # the same run: it compares as before
    assert len(door.json("runs", "ls")) == 1
    door.ok("run", "sign-in", "user=ada", f"password={CANARY}")
    assert f"dotdo-secret:1:{newest}:".encode() in (door.folder / ".dotdo" / "dotdo.db").read_bytes()


def test_keys_from_the_environment_are_not_the_commands_to_change(door: Shell):
    keys = "mine:" + "ab" * 32
    door.ok("run", "sign-in", "user=ada", f"password={CANARY}", DOTDO_SECRET_KEYS=keys)
    assert door.ok("secrets", "keys", DOTDO_SECRET_KEYS=keys) == "mine\tencrypts\n"
    refused = door.run("secrets", "rotate", DOTDO_SECRET_KEYS=keys)
    assert refused.returncode == 1
    assert "openssl rand -hex 32" in refused.stderr
    assert not key_file(door).exists()


def test_wrong_keys_are_refused_without_being_shown(door: Shell):
    done = door.run("run", "sign-in", "user=ada", f"password={CANARY}", DOTDO_SECRET_KEYS="hunter2hunter2")
    assert done.returncode == 1
    assert "key 1 is not of the form ID:KEY" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
