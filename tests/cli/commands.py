"""Runs `dotdo` as a user does: a process of its own in a folder of its own, with nothing of the caller's environment.

`Terminal` runs it on a pseudo-terminal, for what is only shown there.
"""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE

APPLICATION = '''
"""An application with something of everything."""
import asyncio
import threading
import datetime as dt
import enum
from dotdo import Context, EffectCall, Fail, Retry, action, effect, service, wait_for_event

SOON = Retry(attempts=3, delay=0.01, jitter=False)
refusals = []


class Size(enum.Enum):
    SMALL = "1"
    LARGE = "2"


@effect("post.letter", dedup="key", retry=SOON)
def letter(call: EffectCall, to: str) -> None:
    """Refused once, then taken."""
    if not refusals:
        refusals.append(to)
        raise ConnectionError("the box is full")


@action("greet")
def greet(ctx: Context, name: str, times: int = 1) -> str:
    """Greets somebody."""
    return ", ".join([f"Hello {name}"] * times)


@action("greet", version=2)
def greet_all(ctx: Context, names: list[str]) -> str:
    """Greets several."""
    return "Hello " + " and ".join(names)


@action("echo")
def echo(
    text: str = "", number: int = 0, ratio: float = 0.0, flag: bool = False, tags: list[str] = [], user_id: str = "",
    day: dt.date | None = None, size: Size = Size.SMALL, note: str | None = None, mixed: str | int = 0,
) -> dict:
    return {"text": text, "number": number, "ratio": ratio, "flag": flag, "tags": tags, "day": day, "size": size,
            "note": note, "user_id": user_id, "mixed": mixed}


@action("reserve")
def reserve(item: str) -> str:
    return f"reserved {item}"


@reserve.undo
def release(reserved: str) -> None: ...


@action("charge", retry=SOON)
def charge(cents: int) -> int:
    if cents < 0:
        raise ValueError("cents must be positive")
    return cents


@action("tell")
def tell(ctx: Context, to: str) -> str:
    return ctx.stage(letter, to=to).id


@service("order")
async def order(item: str, cents: int = 1) -> str:
    """Reserves, tells and charges."""
    await reserve(item=item)
    await tell(to=item)
    await charge(cents=cents)
    return item


@service("approval")
async def approval(what: str) -> str:
    await reserve(item=what)
    return await wait_for_event("approved")


@service("buggy")
async def buggy() -> None:
    raise KeyError("oops")


@action("slow")
async def slow(seconds: float) -> str:
    print("started", flush=True)
    await asyncio.sleep(seconds)
    return "done"
'''


class Shell:
    """A folder, and `dotdo` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOTDO_", "COLUMNS"))}
        self.environment = {**kept, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "TZ": "UTC"}

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def write_application(self, name: str = "app.py") -> Path:
        return self.write(name, APPLICATION)

    def run(self, *arguments: str, input: str | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
        """A command to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environment, **environment},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def ok(self, *arguments: str, **environment: str) -> str:
        """The stdout of a command that must succeed."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command prints with --json, whatever its exit code."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command that goes on."""
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-W", "error", "-m", "dotdo", *arguments]

    def wait_for_run(self, status: str) -> str:
        """The id of the newest run, once it is in a state; looked up beside whatever engine is alive."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            listed = self.run("runs", "ls", "--status", status, "--json")
            if listed.returncode == 0 and json.loads(listed.stdout):
                return json.loads(listed.stdout)[0]["id"]
        raise TimeoutError(f"no run became {status}")

    def on_terminal(self, *arguments: str, columns: int = 100) -> str:
        """What a command shows on a terminal, colours included."""
        terminal, inside = pty.openpty()
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environment, "TERM": "xterm-256color"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
        )
        os.close(inside)
        shown = b""
        try:
            while piece := os.read(terminal, 65536):
                shown += piece
        except OSError:
            pass  # how Linux says that nobody is left on the other side
        finally:
            os.close(terminal)
            process.wait(timeout=PATIENCE)
        return shown.decode(errors="replace").replace("\r\n", "\n")


def interrupt(process: "subprocess.Popen[str]", number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Sends a signal; exit code, stdout and stderr once the process has ended."""
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, output, errors
