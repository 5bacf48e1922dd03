"""Runs a command, and starts it again whenever a Python file of a folder changes: for `dotdo dev`.

The command is in a process group of its own, so that Ctrl-C reaches it once, through here, and it can stop in order.
One that has ended by itself, as code with a mistake in it does, is started again with the next change.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dotdo.cli.output import mark, say
from dotdo.errors import DefinitionError

LOOK_MS = 200  # how often to see whether the command has ended
WATCHED_BY = "DOTDO_WATCHED_BY"  # tells the command who watches it, so that it can end with it


def watch_and_run(folder: Path, command: Sequence[str], *, patience: float) -> None:
    """Runs the command until SIGINT or SIGTERM. patience: seconds that it is given to stop in order."""
    try:
        from watchfiles import PythonFilter, watch
    except ModuleNotFoundError as error:
        raise DefinitionError(f"dotdo dev needs more packages ({error}): pip install 'dotdo[server]'.") from None
    say(f"Watching {folder}; Ctrl-C stops.")
    watched = _Watched(command, patience)
    enough = threading.Event()
    before = _on_signals(lambda: watched.stop_again() if enough.is_set() else enough.set())
    watched.start()
    try:
        for changes in watch(
            folder,
            watch_filter=PythonFilter(),
            stop_event=enough,
            yield_on_timeout=True,
            rust_timeout=LOOK_MS,
            raise_interrupt=False,
        ):
            if changes:
                say(f"{mark('↻', '*')} {', '.join(sorted({Path(path).name for _, path in changes}))}")
                watched.stop()
                watched.start()
            else:
                watched.look()
        watched.stop()
    finally:
        watched.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watched:
    """The command's process."""

    def __init__(self, command: Sequence[str], patience: float) -> None:
        self._command, self._patience = command, patience
        self._process: subprocess.Popen[bytes] | None = None
        self._told = False

    def start(self) -> None:
        """Starts the command."""
        environment = {**os.environ, WATCHED_BY: str(os.getpid())}
        self._process = subprocess.Popen(self._command, env=environment, process_group=0)  # noqa: S603 # our own command
        self._told = False

    def look(self) -> None:
        """Tells, once, when it has ended by itself."""
        if not self._told and self._process is not None and self._process.poll() is not None:
            self._told = True
            say("It is started again when a file changes.")

    def stop(self) -> None:
        """Has it stop in order, and waits for that."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def stop_again(self) -> None:
        """Somebody cannot wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends what is left of it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _on_signals(act: Callable[[], None]) -> dict[int, Any]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return {number: signal.signal(number, lambda _number, _frame: act()) for number in numbers}
