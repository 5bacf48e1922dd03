"""`dotdo serve` and `dotdo dev` as a user starts them: a real process in a folder of its own, stopped by signals."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx2

from dotdo.embedding import open_writer
from dotdo.keys import new_key
from dotdo.tls import trusted
from tests.guarantees.ledger import ROOT
from tests.patience import PATIENCE

URL = re.compile(r"(http://127\.0\.0\.1:\d+)")


class Serving:
    """The process: what it has said on stderr, and clients for it."""

    def __init__(self, folder: Path, *arguments: str, terminal: bool = False, **environment: str) -> None:
        self.folder, self.lines, self.ended = folder, list[str](), False
        self._news = threading.Condition()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOTDO_")}
        inside = None
        if terminal:
            outside, inside = pty.openpty()
            self._output = os.fdopen(outside, "rb", buffering=0)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dotdo", *arguments],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if inside is None else inside,
            start_new_session=True,
        )
        if inside is None:
            assert self.process.stderr is not None
            self._output = self.process.stderr  # type: ignore[assignment]
        else:
            os.close(inside)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how Linux says that nobody is left on a terminal
            for line in iter(lambda: self._output.readline(), b""):
                with self._news:
                    self.lines.append(line.decode(errors="replace").rstrip("\r\n"))
                    self._news.notify_all()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def said(self, text: str | Callable[[str], bool], *, after: int = 0) -> str:
        """The first line with that text after so many lines, once it is there."""
        fits = text if callable(text) else lambda line: text in line
        with self._news:
            found = self._news.wait_for(
                lambda: self.ended or any(fits(line) for line in self.lines[after:]), timeout=PATIENCE
            )
            assert found, "\n".join(self.lines)
            return next((line for line in self.lines[after:] if fits(line)), "")

    def records(self) -> list[dict[str, Any]]:
        """The log so far, where it is JSON."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def url(self, *, after: int = 0) -> str:
        """Its address, once it serves."""
        found = URL.search(self.said(lambda line: "Serving " in line and bool(URL.search(line)), after=after))
        assert found is not None, "\n".join(self.lines)
        return found[1]

    def http(self, key: str | None = None, **options: Any) -> httpx2.Client:
        """A client with a key."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = self.url()
        return httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE, verify=trusted(url), **options)

    def key(self, *scopes: str) -> str:
        """A new key that allows everything, or what is given."""
        text, record = new_key("shop", scopes or ["*"], now=1)
        writer = open_writer(str(self.folder / ".dotdo" / "dotdo.db"))
        try:
            writer.save_api_key(record)
        finally:
            writer.close()
        return text

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to the process."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextlib.contextmanager
def serving(
    folder: Path, application: str, *arguments: str, command: str = "serve", **options: Any
) -> Generator[Serving]:
    """Starts `dotdo serve` in the folder, with that application."""
    (folder / "app.py").write_text(application)
    port = () if "--port" in arguments else ("--port", "0")
    found = Serving(folder, command, *arguments, *port, **options)
    try:
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(found.process.pid, signal.SIGKILL)  # and what it has started
        found.end()
        found._output.close()  # pyright: ignore[reportPrivateUsage]  # of this module
