"""The same job in another system, on this machine in the same minutes: ours, theirs, ours, theirs, and so on.

Durability is equal: both flush before they acknowledge. The peer is installed from its registry at the first use, into
benchmarks/results/peers. Theirs is the better one of 50 and 500 runs in flight; the process is fresh each time.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.driving import device_flushes, flood, in_flight, latency, one_at_a_time
from benchmarks.figures import Bar, Figure, at_least, median, number
from benchmarks.flood import IN_FLIGHT
from benchmarks.processes import RESULTS, measure, scratch, sync_environment, syncs
from benchmarks.scale import Scale

PEERS = RESULTS / "peers"
# How many times as fast as the peer the flood must be.
BARS = {"dbos": 30, "restate": 4}


async def ours(runs: int, counts: str) -> dict[str, Any]:
    """In the measuring process. counts: `calls` under the shim, `device`, or `nothing`."""
    count = {"calls": syncs, "device": device_flushes}.get(counts, lambda: 0)
    with scratch() as folder:
        async with jobs.open_client(folder) as client:

            async def onboard(_: int) -> Any:
                return await client.run(jobs.onboarding, email=jobs.EMAIL)

            async def act(_: int) -> Any:
                return await client.run(jobs.create_user, email=jobs.EMAIL)

            await one_at_a_time(onboard, 30)
            before = count()
            alone = await one_at_a_time(onboard, 300)
            flushes = (count() - before) / 300
            single = await one_at_a_time(act, 300)
            await in_flight(onboard, 500, IN_FLIGHT)
            best = (await flood(onboard, runs, IN_FLIGHT, 1))[0]
            return {**best, "onboarding": latency(alone), "action": latency(single), "flushes": flushes}


def figures(peer: str, scale: Scale) -> list[Figure]:
    """Theirs, and how many times better ours are."""
    us, them = {"dbos": _dbos, "restate": _restate}[peer](scale)
    pairs = [(us(), them()) for _ in range(scale.repetitions)]
    label = {"dbos": "DBOS", "restate": "Restate"}[peer]

    def compare(
        name: str, unit: str, value: Callable[[Any], float], more_is_better: bool, bar: Bar | None = None
    ) -> list[Figure]:
        ours, theirs = [value(one) for one, _ in pairs], [value(one) for _, one in pairs]
        better = [a / b if more_is_better else b / a for a, b in zip(ours, theirs, strict=True)]
        return [
            median(f"{label}: {name}", theirs, unit, None, f"ours beside it: {number(statistics.median(ours))}"),
            median(f"ours is better by: {name}", better, "x", bar),
        ]

    return [
        *compare("runs in a flood", "runs/s", lambda one: one["runs_per_second"], True, at_least(BARS[peer])),
        *compare("CPU in a flood", "s/1000 steps", lambda one: one["cpu_per_1000_steps"], False),
        *compare("one onboarding, p50", "ms", lambda one: one["onboarding"]["p50"], False),
        *compare("one onboarding, p99", "ms", lambda one: one["onboarding"]["p99"], False),
        *compare("one action, p50", "ms", lambda one: one["action"]["p50"], False),
        *compare("flushes per onboarding, alone", "", lambda one: one["flushes"], False),
    ]


Measuring = Callable[[], dict[str, Any]]


def _dbos(scale: Scale) -> tuple[Measuring, Measuring]:
    python = _environment("dbos", "dbos==3.4.0", "pysqlite3-binary")
    shim = sync_environment()
    counts, runs = "calls" if shim else "nothing", scale.of(4000)
    return (
        lambda: measure("benchmarks.beside:ours", env=shim, runs=runs, counts=counts),
        lambda: measure(
            "benchmarks.peers.in_dbos:measured",
            env=shim,
            python=python,
            runs=scale.of(600),
            counts_calls=shim is not None,
        ),
    )


def _restate(scale: Scale) -> tuple[Measuring, Measuring]:
    python = _environment("restate", "restate-sdk==1.3.0", "granian==2.8.7", "psutil")
    folder = PEERS / "restate-server"
    server = folder / "node_modules/@restatedev/restate-server-linux-x64/bin/restate-server"
    if not server.exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "@restatedev/restate-server@1.7.12"]
        subprocess.run(install, cwd=folder, check=True)
    # The server is linked statically, so no shim can count its calls: both are counted at the device.
    return (
        lambda: measure("benchmarks.beside:ours", runs=scale.of(4000), counts="device"),
        lambda: measure("benchmarks.peers.in_restate:measured", python=python, runs=scale.of(2000), server=str(server)),
    )


def _environment(name: str, *packages: str) -> str:
    """A virtual environment's Python with those packages; made at the first use."""
    folder, mark = PEERS / name, PEERS / name / "installed"
    python = Path(folder, "bin", "python")
    if not mark.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(install, check=True)
        mark.touch()
    return str(python)
