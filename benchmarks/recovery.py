"""Recovery: a process with 10,000 onboardings in flight is killed with SIGKILL; a new one goes on with them.

In flight: three steps are completed, and the handler of the fourth has been entered and waits. The time counts from the
start of the new process until the handler of every run has been entered again (all move), and until all have completed.
"""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from benchmarks import jobs
from benchmarks.driving import in_flight
from benchmarks.figures import Figure, at_most, median
from benchmarks.processes import ROOT, command, environment, measure, scratch
from benchmarks.scale import Scale


async def fill(folder: str, runs: int) -> None:
    """In the process that will be killed: says so when all are in flight."""
    async with jobs.open_client(folder) as client:
        ids: list[str] = []

        async def start(_: int) -> None:
            ids.append((await client.start(jobs.onboarding_gated, email=jobs.EMAIL)).id)

        await in_flight(start, runs, 500)
        await jobs.gate.wait_for(runs)
        _ids_in(folder).write_text(json.dumps(ids))
        print("all in flight", flush=True)
        await asyncio.Event().wait()


async def resume(folder: str, runs: int, began: float) -> dict[str, float]:
    """In the process after it. began: the wall clock when it was started."""
    ids: list[str] = json.loads(_ids_in(folder).read_text())
    async with jobs.open_client(folder) as client:
        await jobs.gate.wait_for(runs)
        moved = time.time() - began
        jobs.gate.open()
        for id in ids:
            await client.runs.wait(id)
        return {"moved": moved, "completed": time.time() - began}


def _ids_in(folder: str) -> Path:
    return Path(folder, "ids.json")


def kill_and_resume(runs: int) -> dict[str, float]:
    """One kill, and what it took to go on."""
    with scratch() as folder:
        process = subprocess.Popen(
            command("benchmarks.recovery:fill", {"folder": str(folder), "runs": runs}),
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if process.stdout.readline() != "all in flight\n":
            raise RuntimeError("The process to be killed did not get its runs in flight; what it says is above.")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return measure("benchmarks.recovery:resume", folder=str(folder), runs=runs, began=time.time())


def figures(scale: Scale) -> list[Figure]:
    """Seconds."""
    runs = scale.of(10_000)
    found = [kill_and_resume(runs) for _ in range(scale.repetitions)]
    return [
        median(f"{runs:,} runs after SIGKILL: all move again", [one["moved"] for one in found], "s", at_most(5)),
        median(f"{runs:,} runs after SIGKILL: all completed", [one["completed"] for one in found], "s"),
    ]
