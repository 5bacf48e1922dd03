"""Measures any system in the same way, in the process that calls it. Knows no system: a run is `start(i)`, a coroutine
that submits one run and returns when its result is there.

Everything lasts so many seconds, however fast the system is; a flood lasts until all that was submitted has ended.
"""

import asyncio
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.driving import STEPS, Start, device_flushes, in_flight, latency, one_at_a_time

LEAST, MOST = 20, 2_000  # runs one at a time, whatever the clock says


@dataclass(frozen=True)
class Plan:
    """seconds: of each part. levels: runs in flight; the best one counts. pids: of processes that belong to the system,
    beside this one. counter, trace: files that tell how often was flushed, by the shim or by strace."""

    seconds: float
    levels: list[int]
    level_for_real: int
    pids: list[int]
    counter: str | None = None
    trace: str | None = None

    def flushes(self) -> int:
        """So far, of all processes of the system; of all disks, when nothing counts."""
        if self.counter is None and self.trace is None:
            return device_flushes()
        traced = 0 if self.trace is None else Path(self.trace).read_bytes().count(b"sync(")
        return traced + (0 if self.counter is None else int.from_bytes(Path(self.counter).read_bytes(), sys.byteorder))

    def cpu(self) -> float:
        """Seconds so far, user and system, of all processes of the system."""
        seconds = time.process_time()
        for one in self._processes():
            times = one.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
        return seconds

    def memory(self) -> float:
        """MiB now, of all processes; what they share is counted once."""
        found = [psutil.Process(), *self._processes()]
        return sum(one.memory_full_info().pss for one in found if one.is_running()) / 2**20

    def _processes(self) -> list[psutil.Process]:
        return [one for pid in self.pids for one in _family(pid)]


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


async def trivial(onboard: Start, act: Start, plan: Plan) -> dict[str, Any]:
    """The onboarding with trivial handlers: alone, one action alone, then floods."""
    await one_at_a_time(onboard, 20)
    await in_flight(onboard, 100, 50)
    found = await _alone(onboard, plan)
    found["action"] = latency(await _for(plan.seconds / 2, act))
    floods = [await _flood(onboard, level, plan) for level in plan.levels]
    best = max(floods, key=lambda one: one["rate"])
    return {**found, **best, "cpu_per_1000_steps": best["cpu"] / STEPS * 1000, "floods": floods}


async def real(onboard: Start, plan: Plan) -> dict[str, Any]:
    """The onboarding for real: alone, then a flood. total: runs that were submitted, for a look at what arrived."""
    total = itertools.count()

    async def counted(number: int) -> None:
        next(total)
        await onboard(number)

    await one_at_a_time(counted, 10)
    await in_flight(counted, 50, 25)
    alone = await _alone(counted, plan)
    return {**alone, **await _flood(counted, plan.level_for_real, plan), "total": next(total)}


async def _alone(start: Start, plan: Plan) -> dict[str, Any]:
    before = plan.flushes()
    seconds = await _for(plan.seconds, start)
    flushes = (plan.flushes() - before) / len(seconds)
    counted = plan.counter is not None
    return {"alone": latency(seconds), "flushes_alone": flushes, "counted": counted, "samples": len(seconds)}


async def _for(seconds: float, start: Start) -> list[float]:
    end, found = time.perf_counter() + seconds, list[float]()
    while len(found) < LEAST or (time.perf_counter() < end and len(found) < MOST):
        found += await one_at_a_time(start, 1)
    return found


async def _flood(start: Start, level: int, plan: Plan) -> dict[str, Any]:
    flushes, cpu, before = plan.flushes(), plan.cpu(), time.perf_counter()
    runs = 0

    async def worker() -> None:
        nonlocal runs
        while time.perf_counter() < before + plan.seconds:
            runs += 1
            await start(runs)

    await asyncio.gather(*(worker() for _ in range(level)))
    took = time.perf_counter() - before
    return {
        "level": level,
        "rate": runs / took,
        "cpu": (plan.cpu() - cpu) / runs,
        "flushes_in_flood": (plan.flushes() - flushes) / runs,
    }
