"""I1: a run whose id was answered is there after any crash: the process dies the moment after it has the answer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dotdo import Catalogue, Do, action
from tests.guarantees.invariants import check_store
from tests.guarantees.ledger import ROOT

catalogue = Catalogue()

SYNC = """
import os, signal, sys
from dotdo import Do
from tests.guarantees.test_answered_runs_survive_kill import catalogue, greet

client = Do(sys.argv[1], catalogue=catalogue)
answered = client.start(greet, "Ada").id
os.write(1, answered.encode())
os.kill(os.getpid(), signal.SIGKILL)
"""

ASYNC = """
import asyncio, os, signal, sys
from dotdo import AsyncDo
from tests.guarantees.test_answered_runs_survive_kill import catalogue, greet

async def main():
    client = AsyncDo(sys.argv[1], catalogue=catalogue)
    answered = (await client.start(greet, "Ada")).id
    os.write(1, answered.encode())
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@action("greet", catalogue=catalogue)
async def greet(name: str) -> str:
    return f"Hello, {name}"


@pytest.mark.parametrize("program", [SYNC, ASYNC], ids=["Do", "AsyncDo"])
def test_run_whose_id_was_answered_is_there_after_sigkill_and_goes_on(tmp_path: Path, program: str):
    store = tmp_path / "dotdo.db"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-c", program, str(store)]
    died = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert died.stdout.startswith("run_")

    with Do(str(store), catalogue=catalogue) as client:
        assert [run.id for run in client.runs.list()] == [died.stdout]
        assert client.handle(died.stdout).result(timeout=60) == "Hello, Ada"
    check_store(store)
