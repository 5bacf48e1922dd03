"""Limits hold over real nodes on one PostgreSQL, of which some are killed: never more at it together, no slot lost.

A file to which all attempts append is the witness; the store is only asked whether anything of it is left in the end.
"""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dotdo import Do
from tests.guarantees import limited, node
from tests.guarantees.invariants import check_store
from tests.guarantees.node_process import node_process
from tests.stores import url_of

PATIENCE = 60.0
RUNS, CUSTOMERS = 40, 5


@pytest.fixture
def path(on_postgres: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the store goes by; afterwards the invariants of all its runs are checked."""
    monkeypatch.setenv(node.TOLD, str(tmp_path / "told"))
    path = tmp_path / "dotdo.db"
    yield path
    check_store(path)


def kill(one: "subprocess.Popen[str]") -> None:
    """Kills a node. It is told before: what it may still begin until it is gone does not count."""
    node.tell(f"killed {one.pid}")
    one.kill()
    one.wait()


def left(path: Path) -> list[tuple[Any, ...]]:
    """What there is of tickets, slots and messages."""
    counts = ", ".join(f"(select count(*) from dotdo.{table})" for table in ("tickets", "slots", "inbox"))
    with psycopg.connect(url_of(path), autocommit=True) as connection:
        return connection.execute(f"select {counts}".encode()).fetchall()


def until(condition: Callable[[], bool]) -> None:
    """Returns when that holds; other processes bring it about, so it is looked at again and again."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "that never came about"
        time.sleep(0.02)


def test_no_more_at_a_time_and_no_slot_is_lost_when_nodes_are_killed(path: Path):
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(node_process("limited", url_of(path))) for _ in range(2)]
        held = {str(one.pid): one for one in nodes}
        gates = [limited.keep(number) for number in range(limited.LIMIT)]
        client = stack.enter_context(Do(url_of(path), engine=False, catalogue=limited.definitions()))
        handles = [
            client.action("visit").start(customer=f"c{number % CUSTOMERS}", number=number) for number in range(RUNS)
        ]
        until(lambda: sum(what == "begins" for _, what, *_ in limited.lines()) >= limited.LIMIT)
        victim = next(pid for pid, what, *_ in limited.lines() if what == "begins")
        kill(held.pop(victim))
        stack.enter_context(node_process("limited", url_of(path)))
        for gate in gates:
            gate.unlink()
        assert sorted(handle.result(timeout=PATIENCE) for handle in handles) == list(range(RUNS))
        ended = {rest[0] for _, what, *rest in limited.lines() if what == "ends"}
        assert len(ended) == RUNS
        until(lambda: left(path) == [(0, 0, 0)])
    most, most_of_one = limited.most_at_a_time()
    assert (most, most_of_one) == (limited.LIMIT, limited.EACH)
