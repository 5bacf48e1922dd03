"""The demo runs as a newcomer runs it, and notices when something is off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import create_engine, insert

from examples.onboarding.account import Account, Person
from examples.onboarding.standins import StandIns
from examples.onboarding.users import users
from tests.repo.sources import ROOT


def test_demo_plays_every_scene_and_finds_nothing_off(tmp_path: Path):
    played = subprocess.run(
        [sys.executable, "-W", "error", "-m", "examples.onboarding.demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    assert played.stderr == ""
    for line in (
        "1  Ada",
        "2  Ben",
        "3  Cleo",
        "4  Dan",
        "5  Eva",
        "6  Fay",
        "SIGKILL",
        "checks hold",
        "runs show run_",
    ):
        assert line in played.stdout
    assert "OFF:" not in played.stdout
    [folder] = tmp_path.iterdir()
    assert {"app.db", "ledger.jsonl", ".dotdo"} <= {path.name for path in folder.iterdir()}


def test_account_says_what_is_missing_and_what_is_there_twice(world: StandIns, folder: Path):
    engine = create_engine(f"sqlite:///{folder / 'app.db'}")
    with engine.begin() as connection:
        connection.execute(insert(users).values(id="1", name="Ada", email="ada@example.com"))
    engine.dispose()
    account, quiet = Account(), Console(quiet=True)
    account.settle(quiet, [Person("Ada", "", customers=0, mails=0, mail_tries=0, slack=0)], world, folder)
    assert account.off == []
    account.settle(quiet, [Person("Ada", "", rows=2, customers=0, mail_tries=0, slack=0)], world, folder)
    assert account.off == ["Ada: users must be 2, is 1", "Ada: mails must be 1, is 0"]


@pytest.mark.parametrize("is_true", [True, False])
def test_account_keeps_what_is_not_true(is_true: bool):
    account = Account()
    account.check(is_true, "The sky is blue")
    assert account.off == ([] if is_true else ["The sky is blue"])
