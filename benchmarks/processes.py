"""Fresh processes for measurements, so that no benchmark sees the heap, the caches or the threads of another.

`measure` calls a function `module:name` there with keyword arguments of JSON, and returns what it returned. The folder
for its files lies in benchmarks/results: on the repository's disk, since /tmp may be memory, where a flush is nothing.
"""

import asyncio
import contextlib
import ctypes
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LIMIT_SECONDS = 600


class Failed(Exception):
    """A measuring process failed; its last lines say why."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="scratch-", dir=RESULTS)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Of a process as in production: compiled modules are kept, and nothing of dotdo is configured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DOTDO_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), **(extra or {})}


def command(function: str, arguments: dict[str, Any], python: str = sys.executable) -> list[str]:
    """What starts a measuring process."""
    return [python, "-m", "benchmarks.processes", function, json.dumps(arguments)]


def measure(function: str, *, env: dict[str, str] | None = None, python: str = sys.executable, **arguments: Any) -> Any:
    """Calls `module:name` in a fresh process. Raises Failed."""
    done = subprocess.run(
        command(function, arguments, python),
        env=environment(env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise Failed(f"{function} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@cache
def _shim() -> Path | None:
    """The shared library made of syncs.c; None without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    RESULTS.mkdir(parents=True, exist_ok=True)
    library, source = RESULTS / "syncs.so", ROOT / "benchmarks" / "syncs.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def sync_environment(delay_us: int = 0) -> dict[str, str] | None:
    """For a process whose flushes are counted, and each made slower; None when there is no compiler for the shim."""
    shim = _shim()
    return None if shim is None else {"LD_PRELOAD": str(shim), "DOTDO_BENCH_SYNC_DELAY_US": str(delay_us)}


def syncs() -> int:
    """fsync and fdatasync calls of this process so far; only in one that was started with `sync_environment`."""
    return int(ctypes.CDLL(None).dotdo_bench_syncs())


def main() -> None:
    """Calls the function named on the command line and prints what it returned as the last line."""
    module, _, name = sys.argv[1].partition(":")
    found = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(asyncio.run(found) if inspect.iscoroutine(found) else found), flush=True)


if __name__ == "__main__":
    main()
