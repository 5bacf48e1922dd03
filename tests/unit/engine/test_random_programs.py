"""Any asyncio program replays the same way: the same steps in order, the same events inside, the same outcome."""

import json
import logging
import os
import random
import subprocess
import sys
from collections import Counter
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from dotdo.engine.run_loop import RunLoop
from dotdo.engine.run_tasks import RunFuture, RunTask
from tests.unit.engine import random_programs
from tests.unit.engine.random_programs import BRANCHES, LEAVES, difference, record, replay

PROGRAMS = 250


class AddressTask(RunTask):
    __hash__ = object.__hash__


class AddressFuture(RunFuture):
    __hash__ = object.__hash__


class AddressLoop(RunLoop):
    """The control: tasks and futures as asyncio makes them, which hash by address."""

    def create_future(self) -> RunFuture:
        return AddressFuture(loop=self)

    def _new_task(self, coro: Any, name: str | None, context: Any, **options: Any) -> RunTask:
        self._task_count += 1
        context = context or copy_context()
        task = AddressTask(coro, loop=self, name=name or f"Task-{self._task_count}", context=context, **options)
        task.run_context = context
        self._tasks.append(task)
        return task


@pytest.fixture(scope="module")
def recordings() -> list[dict[str, Any]]:
    logging.getLogger("dotdo.service").setLevel(logging.CRITICAL)  # the programs leave many exceptions unread
    try:
        return [record(seed) for seed in range(PROGRAMS)]
    finally:
        logging.getLogger("dotdo.service").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "dotdo.service")


def test_programs_are_worth_replaying(recordings: list[dict[str, Any]]):
    seen = Counter(event[0] for recorded in recordings for event in recorded["events"])
    assert {*LEAVES, *BRANCHES} - {"raise"} <= set(seen)
    assert seen["generator ends"] > 20
    assert seen["done"] > 100
    kinds = Counter(entry[0] for recorded in recordings for entry in recorded["journal"])
    assert min(kinds["step"], kinds["timer"]) > 500
    assert sum(entry[3] for recorded in recordings for entry in recorded["journal"]) > 50  # failed steps
    assert sum(recorded["outcome"] != "not ended" for recorded in recordings) > PROGRAMS * 0.9


def test_a_replay_from_the_whole_journal_is_the_same(recordings: list[dict[str, Any]]):
    assert {seed: found for seed, recorded in enumerate(recordings) if (found := difference(recorded))} == {}


def test_a_replay_from_any_prefix_goes_on_without_asking_again(recordings: list[dict[str, Any]]):
    continued = 0
    for recorded in recordings:
        for cut in range(len(recorded["journal"])):
            driver = replay(recorded, cut)
            known = recorded["asked_after"][cut]
            assert driver.asked == recorded["asked"][:known]
            assert driver.asked_after == recorded["asked_after"][: cut + 1]
            answered = {entry[1] for entry in driver.journal if entry[0] == "step"}
            driver.go_on(random.Random(cut))
            assert driver.asked[:known] == recorded["asked"][:known]
            assert not answered & set(driver.asked[known:])
            assert len(set(driver.asked)) == len(driver.asked)
            continued += len(driver.asked) > known
            driver.loop.evict()
    assert continued > 1000


def test_a_replay_under_another_hash_seed_is_the_same(recordings: list[dict[str, Any]], tmp_path: Path):
    file = tmp_path / "recordings.json"
    file.write_text(json.dumps(recordings))
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, random_programs.__file__, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {}


def test_control_tasks_hashed_by_address_differ_on_replay():
    recordings = [record(seed, AddressLoop) for seed in range(PROGRAMS)]
    differing = [recorded for recorded in recordings if difference(recorded, AddressLoop)]
    assert len(differing) > PROGRAMS * 0.1
