"""A process with a client on a store that others share: `python -m tests.guarantees.neighbours STORE`.

It does what the lines on its standard input say, one each, and answers with one line of JSON each; `Neighbour` starts
and asks it. Handlers stand at gates: files that the test makes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dotdo import Catalogue, Context, Do, Fail, Handle, Secret, action, publish, service, wait_for_event
from dotdo.errors import DotdoError
from tests.guarantees.ledger import ROOT
from tests.patience import PATIENCE

catalogue, narrow = Catalogue(), Catalogue()
GLANCE = 0.002


@action("where", catalogue=catalogue)
def where(number: int = 0) -> int:
    """The process that runs it."""
    return os.getpid()


@action("stand", retry=1, catalogue=catalogue)
def stand(ctx: Context, gate: str) -> int:
    """Stands at a gate, and says with a file that it is there."""
    draft = Path(f"{gate}.draft-{os.getpid()}")
    draft.write_text(str(os.getpid()))
    draft.replace(f"{gate}.reached")  # whoever sees it reads all of it
    until(Path(gate).exists)
    return os.getpid()


@action("measure", catalogue=catalogue)
def measure(text: str, password: Secret[str]) -> list[int]:
    """Takes something large, and something secret."""
    return [os.getpid(), len(text), len(password.reveal())]


@action("refuse", catalogue=catalogue)
def refuse(why: str) -> None:
    """Fails for good."""
    raise Fail(why)


@service("in-three-steps", catalogue=catalogue)
async def in_three_steps(gate: str) -> list[int]:
    """One step, a gate, and one step more."""
    return [await where(number=1), await stand(gate=gate), await where(number=2)]


@service("approval", catalogue=catalogue)
async def approval(what: str) -> str:
    """Publishes, and waits for a word."""
    publish({"asks": what})
    return f"{what}: {await wait_for_event('approved')}"


@action("everywhere", catalogue=narrow)
def everywhere() -> int:
    """Defined where little is."""
    return os.getpid()


@action("only-narrow", catalogue=narrow)
def only_narrow() -> int:
    """Defined nowhere else."""
    return os.getpid()


def until(is_so: Any) -> None:
    """Returns once it is so."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError("it did not come to be")
        time.sleep(GLANCE)


def noticed_and_told(client: Do, number: int) -> tuple[float, float]:
    """Starts a run; how long until the engine took it, and from its end until it was known here. In ms."""
    handle = client.start(where, number)
    handle.result()
    back = time.time() * 1000
    at = {entry.kind: entry.at for entry in handle.journal()}
    return at["claimed"] - at["accepted"], back - at["ended"]


def slowest_start(client: Do, count: int) -> float:
    """Starts so many runs, one after the other, and says how many seconds the slowest one took."""
    slowest = 0.0
    for number in range(count):
        began = time.monotonic()
        client.start(where, number)
        slowest = max(slowest, time.monotonic() - began)
    return slowest


class Neighbour:
    """One such process."""

    def __init__(self, store: Path, **options: Any) -> None:
        command = [sys.executable, "-m", "tests.guarantees.neighbours", str(store), json.dumps(options)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        assert self.answer() == "open"

    def order(self, words: str) -> None:
        """Asks something, without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The next answer."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, words: str) -> Any:
        """Asks something and waits for the answer."""
        self.order(words)
        return self.answer()

    @property
    def is_engine(self) -> bool:
        """Whether the engine runs in this process."""
        return self.ask("type(client._portal.call(client._inner.platform)).__name__") == "Engine"

    def kill(self) -> None:
        """Kills it as nobody can refuse."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def leave(self) -> None:
        """Has it end in order."""
        self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0


@contextmanager
def neighbours(store: Path, count: int, **options: Any) -> Iterator[list[Neighbour]]:
    """So many of them; the first one has the engine."""
    opened: list[Neighbour] = []
    try:
        for _ in range(count):
            opened.append(Neighbour(store, **options))
        yield opened
    finally:
        for each in opened:
            each.process.send_signal(signal.SIGCONT)
            with contextlib.suppress(ValueError):  # its pipes were closed: it has been waited for
                each.process.communicate(timeout=PATIENCE)


def main() -> None:
    """Does what it is told."""
    options = json.loads(sys.argv[2])
    offered = narrow if options.pop("narrow", False) else catalogue
    handles: dict[str, Handle[Any]] = {}
    with Do(f"sqlite:///{sys.argv[1]}", catalogue=offered, grace=5.0, **options) as client:
        words = {**globals(), "client": client, "handles": handles}
        print(json.dumps("open"), flush=True)
        for line in sys.stdin:
            try:
                answer = eval(line, words)  # noqa: S307  # the test's own words
            except DotdoError as error:
                answer = f"{type(error).__name__}: {error.message}"
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
