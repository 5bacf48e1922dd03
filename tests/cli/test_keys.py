"""`dotdo keys`: a key is shown once, works at once beside a live server, and is refused soon after it was revoked."""

import json
import time
from pathlib import Path

import httpx2
import pytest

from tests.cli.commands import Shell
from tests.patience import PATIENCE
from tests.server.process import serving

APPLICATION = """
from dotdo import action

@action("greet")
async def greet(name: str) -> str:
    return f"Hello, {name}"
"""


def test_key_is_printed_once_and_listed_without_its_text(shell: Shell):
    created = shell.run(
        "keys", "create", "shop", "--scope", "actions:execute:greet", "--expires", "90d", "--rate", "9/m"
    )
    key = created.stdout.strip()
    assert (created.returncode, len(key), key[:3]) == (0, 49, "do_")
    assert "shown this once" in created.stderr
    (listed,) = shell.json("keys", "ls")
    assert (listed["name"], listed["scopes"], listed["rate"]) == ("shop", ["actions:execute:greet"], "9/m")
    assert listed["used_at"] is None
    assert listed["expires_at"] - listed["created_at"] == 90 * 86400 * 1000
    shown = shell.ok("keys", "ls")
    assert "actions:execute:greet" in shown
    assert "9/m" in shown
    assert key not in shown + json.dumps(listed)
    for file in (shell.folder / ".dotdo").iterdir():
        assert key.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "options, told",
    [
        (["--scope", "actions:fly"], "'actions:fly' is no scope"),
        (["--scope", "*", "--rate", "9/w"], "'9/w' is no rate"),
        (["--scope", "*", "--expires", "soon"], "'soon' is no length of time: write it like 30d"),
        (["--scope", "*", "--expires", "9999w"], "more than 100 years"),
        ([], "--scope"),
    ],
)
def test_mistakes_are_told_and_make_no_key(shell: Shell, options: list[str], told: str):
    refused = shell.run("keys", "create", "shop", *options)
    assert refused.returncode != 0
    assert told in refused.stderr
    assert refused.stdout == ""


def test_revoking_what_is_not_there_is_told(shell: Shell):
    nowhere = shell.run("keys", "revoke", "key_0")
    assert (nowhere.returncode, "There is no store" in nowhere.stderr) == (1, True)
    assert not (shell.folder / ".dotdo").exists(), "nothing was made"
    shell.ok("keys", "create", "shop", "--scope", "*")
    refused = shell.run("keys", "revoke", "key_0")
    assert (refused.returncode, "There is no API key 'key_0'" in refused.stderr) == (2, True)


def test_keys_beside_a_live_server(shell: Shell, tmp_path: Path):
    with serving(tmp_path, APPLICATION) as serve:
        url = serve.url()

        def ask(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            body = {"params": {"name": "Ada"}}
            return httpx2.post(
                f"{url}/v1/actions/greet/execute", json=body, headers=headers, timeout=PATIENCE
            ).status_code

        made = shell.json("keys", "create", "shop", "--scope", "actions:execute:*")
        assert ask(made["key"]) == 200, "at once"
        began = time.monotonic()
        shell.ok("keys", "revoke", made["id"])
        while ask(made["key"]) != 401:
            assert time.monotonic() - began < PATIENCE
        serve.signal()
        assert serve.end() == 0
    (listed,) = shell.json("keys", "ls")
    assert listed["revoked_at"] is not None
    assert listed["created_at"] <= listed["used_at"] <= time.time() * 1000, "when it was last used"
