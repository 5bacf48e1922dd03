"""A disk that fills up under a live engine (a real one, of 1 MiB): refused clearly, nothing lost, goes on after."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.of_files("the disk of the process that has the store")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What full_disk.py saw, in a mount namespace of its own."""
    program = Path(__file__).with_name("full_disk.py")
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    command = [*namespace, sys.executable, "-W", "error", program, tmp_path_factory.mktemp("disk")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_new_runs_are_refused_with_what_to_do(seen: dict[str, Any]):
    assert len(seen["errors"]) == 3
    for error in seen["errors"]:
        assert error.startswith("StoreUnavailable: The disk of the store")
        assert "is full. Nothing was accepted; free some space and try again." in error
    assert seen["runs while full"] == 4, "three before, and the one in flight: nothing was accepted"


def test_run_in_flight_waits_and_goes_on_when_there_is_space(seen: dict[str, Any]):
    assert seen["status while full"] == "running"
    kind, text = seen["waits while full"]
    assert kind == "store"
    assert "is full" in text
    assert seen["in flight"] == "in flight"
    assert set(seen["handled"]) == {"in flight"}, "what was not committed may be done again"


def test_nothing_is_lost_and_the_store_is_sound(seen: dict[str, Any]):
    assert seen["results"] == sorted([*seen["before"], "in flight", "after"])
    assert seen["findings"] == []


def test_store_that_there_is_no_room_for_is_refused_clearly(seen: dict[str, Any]):
    refused, opened = seen["opening"]
    assert refused.startswith("Store")
    assert "other.db" in refused
    assert "full" in refused or "No space left" in refused
    assert opened == "there was room"
