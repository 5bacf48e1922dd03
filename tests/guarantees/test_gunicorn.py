"""`gunicorn -w 4` with a client at the top of a module: one worker runs the engine, whichever lives, and none is asked
in vain. With a real gunicorn, also preloaded, whose workers are killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from tests.guarantees.invariants import check_store
from tests.guarantees.ledger import ROOT
from tests.guarantees.neighbours import until
from tests.patience import PATIENCE

pytestmark = pytest.mark.of_files("one engine for each file")

WORKERS = 4


class Server:
    """A gunicorn with four workers."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port = process, port

    def get(self, path: str = "/run") -> Any:
        """What a worker answers; a worker that is killed answers nothing, and then another one is asked."""
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
                    return json.load(answer)
            except ConnectionError:
                continue

    def workers(self) -> list[int]:
        """Their processes."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]


@contextmanager
def gunicorn(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Serves the application until the end of the context."""
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-w",
        str(WORKERS),
        "-b",
        "127.0.0.1:0",
        "--no-control-socket",
        *options,
    ]
    process = subprocess.Popen(
        [*command, "tests.guarantees.web_app:application"],
        cwd=ROOT,
        env={**os.environ, "FOLDER": str(folder), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "Listening at" in line)
        server = Server(process, int(line.split(":")[-1].split()[0]))
        booted = 0
        while booted < WORKERS:
            booted += "Booting worker" in process.stderr.readline()
        with ThreadPoolExecutor(1) as reading:
            reading.submit(process.stderr.read)  # so that it never has to wait
            yield server
            process.terminate()
            assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["each imports", "preload"])
def test_every_worker_answers_one_runs_the_engine_and_another_takes_over(tmp_path: Path, options: tuple[str, ...]):
    os.mkfifo(tmp_path / "gate")
    with gunicorn(tmp_path, *options) as server, ThreadPoolExecutor(8) as callers:
        answers: list[Any] = []

        def several_have_answered() -> bool:
            """The others may still import the application while one of them answers everybody."""
            answers.extend(callers.map(lambda _: server.get(), range(40)))
            return len({answer["worker"] for answer in answers}) > 1

        until(several_have_answered)
        (engine,) = {answer["engine"] for answer in answers}
        assert engine in server.workers()

        waiting = callers.submit(server.get, "/slow?gate")
        until((tmp_path / f"gate.{engine}").exists)
        os.kill(engine, signal.SIGKILL)
        until(lambda: len(list(tmp_path.glob("gate.*"))) == 2)  # another worker does the step again
        (tmp_path / "gate").write_text("go on")
        first, second = waiting.result(PATIENCE)
        assert first == engine, "a completed step keeps its result"
        assert second != engine
        after = list(callers.map(lambda _: server.get(), range(20)))
        assert {answer["engine"] for answer in after} == {second}
        until(lambda: len(server.workers()) == WORKERS)  # gunicorn has started another one
        assert engine not in server.workers()
    check_store(tmp_path / "dotdo.db")


def test_client_that_was_used_before_the_fork_is_refused_in_words(tmp_path: Path):
    with gunicorn(tmp_path, "--preload", EARLY="1") as server:
        answer = server.get()
        assert answer.startswith("ClientClosed: The client was opened before this process was forked")
        assert "after the fork" in answer
