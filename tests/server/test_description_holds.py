"""The description of the API is true: schemathesis sends what it allows and what it forbids, to every operation, and
holds the answers against it, with all of its checks; also in sequences, and without a key.

DOTDO_EXAMPLES is how many requests are drawn per operation: few in `make test`, many at night; the seed is the same.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dotdo import Catalogue, Fail, Retry, action, service, wait_for_event
from dotdo.server import executing, reading, working
from tests.guarantees.ledger import ROOT
from tests.server.running import Running, running

HERE = Path(__file__).parent
EXAMPLES = os.environ.get("DOTDO_EXAMPLES", "2")
catalogue = Catalogue()


@action("add-up", retry=Retry(attempts=2, delay=0), catalogue=catalogue)
async def add_up(numbers: list[int], name: str | None = None) -> dict[str, int]:
    """Adds numbers up."""
    if not numbers:
        raise Fail("There are none.")
    return {"sum": sum(numbers)}


@service("ask", catalogue=catalogue)
async def ask(question: str, choices: dict[str, float] | None = None) -> str:
    """Waits a moment for an event."""
    await add_up(numbers=[len(question)])
    try:
        return str(await wait_for_event("answer", timeout=0.02))
    except TimeoutError:
        return "nobody answered"


@pytest.mark.timeout(0 if "DOTDO_EXAMPLES" in os.environ else 300)
def test_every_answer_is_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executing, "DEFAULT_WAIT", 0.02)
    monkeypatch.setattr(reading, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(working, "POLL_SECONDS", 0.02)
    with running(tmp_path / "dotdo.db", catalogue=catalogue) as server:
        told = _schemathesis(server, tmp_path)
    assert told.returncode == 0, told.stdout[-10_000:] + told.stderr[-3000:]
    for phase in ("Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in told.stdout
    assert "Tested: " in told.stdout


def _description(server: Running) -> dict[str, Any]:
    """As it is served, but without Idempotency-Key: of two requests under one key the second is rightly refused."""
    with server.http() as http:
        document = http.get("/openapi.json").json()
    left_out = 0
    for methods in document["paths"].values():
        for each in methods.values():
            kept = [one for one in each["parameters"] if one["name"] != "Idempotency-Key"]
            left_out += len(each["parameters"]) - len(kept)
            each["parameters"] = kept
    assert left_out == 4, "execute by name and of each definition"
    return document


def _schemathesis(server: Running, folder: Path) -> "subprocess.CompletedProcess[str]":
    key = server.key("*")
    description = folder / "openapi.json"
    description.write_text(json.dumps(_description(server)))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(HERE / "schemathesis.toml"), "--no-color"),
        *("run", str(description), "--url", server.url, "--header", f"Authorization: Bearer {key}"),
        *("--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"),
        *("--max-examples", EXAMPLES, "--seed", "1", "--continue-on-failure", "--request-timeout", "10"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
