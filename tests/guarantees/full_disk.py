"""Fills a disk under a live engine, and says what happened: what test_full_disk_loses_nothing.py runs.

    python full_disk.py FOLDER

in a mount namespace of its own; the small tmpfs that it mounts on FOLDER vanishes with it. Prints a JSON object of
what was seen.
"""

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from dotdo import AsyncDo, StoreError, action
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader

SIZE = 1024 * 1024
gate = asyncio.Event()
entered = asyncio.Event()
handled: list[str] = []


@action("note")
async def note(text: str) -> str:
    return text


@action("gated")
async def gated(text: str) -> str:
    """Waits in the middle of its attempt, so that the disk can fill up before its commit."""
    handled.append(text)
    entered.set()
    await gate.wait()
    return text


class Failures(logging.Handler):
    """Tells when the engine has logged that a write failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen = asyncio.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        if "full" in self.messages[-1]:
            self.seen.set()


class Filler:
    """A file that takes all the space there is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "filler"

    def fill(self) -> None:
        with self.path.open("wb", buffering=0) as file:
            for size in (65536, 4096, 512, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def free(self) -> None:
        self.path.unlink()


async def main(folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    store, failures, filler = str(folder / "dotdo.db"), Failures(), Filler(folder)
    logging.getLogger("dotdo").addHandler(failures)
    async with AsyncDo(store) as client:
        before = [await client.run(note, text=f"before {number}") for number in range(3)]
        in_flight = await client.start(gated, text="in flight")
        await entered.wait()

        filler.fill()
        errors: list[str] = []
        for number in range(3):  # accepting says so, each time, at once
            try:
                async with asyncio.timeout(10):
                    await client.run(note, text="x" * 20_000 + str(number))
            except StoreError as error:
                errors.append(f"{type(error).__name__}: {error.message}")
        seen["errors"] = errors
        seen["runs while full"] = len(await client.runs.list())

        gate.set()  # the attempt in flight cannot commit
        await failures.seen.wait()
        failures.seen.clear()
        await failures.seen.wait()  # and was tried again in vain
        while not any(in_flight.id in message for message in failures.messages):
            failures.seen.clear()
            await failures.seen.wait()
        run = await in_flight.get()
        seen["status while full"] = run.status
        seen["waits while full"] = [run.waiting_for.kind, run.waiting_for.text] if run.waiting_for else None

        filler.free()
        seen["in flight"] = await in_flight.result(timeout=60)
        seen["after"] = await client.run(note, text="after")
        seen["before"] = before
        seen["results"] = sorted(str(run.result) for run in await client.runs.list())
    seen["handled"] = handled
    seen["opening"] = await open_on_full_disk(folder, filler)
    reader = open_reader(store)
    seen["findings"] = [finding.text for finding in Audit(reader, audit_key(store)).verify()]
    reader.close()
    return seen


async def open_on_full_disk(folder: Path, filler: Filler) -> list[str]:
    """What is said of a new store that there is no room for, and then of the same with room."""
    said: list[str] = []
    filler.fill()
    for _ in range(2):
        try:
            async with AsyncDo(str(folder / "other.db")) as client:
                said.append(await client.run(note, text="there was room"))
        except StoreError as error:
            said.append(f"{type(error).__name__}: {error.message}")
            filler.free()
    return said


if __name__ == "__main__":
    place = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], check=True)
    print(json.dumps(asyncio.run(main(place))))
