"""Where the time of a flood goes: samples of the event loop's thread, the CPU of each thread, and garbage collection.

A timer of the process's CPU time (setitimer, ITIMER_PROF) interrupts the main thread, where the event loop runs; the
innermost line of Python then is a sample. C code counts for the line that called it. Unlike a tracing profiler it
costs next to nothing, so what it shows are µs of a real flood. Python runs the handler at the next function call or
loop, so a sample may be one call off: read it by function, and lines as a hint.
"""

import gc
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from benchmarks import jobs
from benchmarks.driving import in_flight
from benchmarks.flood import IN_FLIGHT
from benchmarks.processes import ROOT, measure, scratch

INTERVAL = 0.001
TOP = 30


class Sampler:
    """Counts where the main thread is, and what garbage collection takes; a context manager."""

    def __init__(self) -> None:
        self.functions: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.inclusive: Counter[str] = Counter()
        self.samples = 0
        self.collections: Counter[int] = Counter()
        self.collecting = 0.0
        self.threads: dict[str, float] = {}

    def __enter__(self) -> "Sampler":
        self._before = _cpu_by_thread()
        gc.callbacks.append(self._collected)
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        gc.callbacks.remove(self._collected)
        self.threads = {name: cpu - self._before.get(name, 0.0) for name, cpu in _cpu_by_thread().items()}

    def _sample(self, _: int, frame: FrameType | None) -> None:
        self.samples += 1
        if frame is None:
            return
        self.functions[_function(frame)] += 1
        self.lines[f"{_file(frame)}:{frame.f_lineno}"] += 1
        seen: set[str] = set()
        while frame is not None:
            seen.add(_function(frame))
            frame = frame.f_back
        self.inclusive.update(seen)

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self.collecting += time.thread_time() - self._began
            self.collections[info["generation"]] += 1


def _cpu_by_thread() -> dict[str, float]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found: Counter[str] = Counter()
    for thread in psutil.Process().threads():
        found[names.get(thread.id, "others")] += thread.user_time + thread.system_time  # type: ignore[assignment]
    return dict(found)


def _file(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) and ".venv" not in path.parts else path.name


def _function(frame: FrameType) -> str:
    return f"{_file(frame)} {frame.f_code.co_qualname}"


async def sampled(runs: int) -> dict[str, Any]:
    """In the measuring process: a flood under the sampler."""
    with scratch() as folder:
        async with jobs.open_client(folder) as client:

            async def start(_: int) -> Any:
                return await client.run(jobs.onboarding, email=jobs.EMAIL)

            await in_flight(start, 2000, IN_FLIGHT)
            loop_cpu = time.thread_time()
            with Sampler() as sampler:
                seconds = await in_flight(start, runs, IN_FLIGHT)
            return {
                "runs": runs,
                "seconds": seconds,
                "loop_cpu": time.thread_time() - loop_cpu,
                "samples": sampler.samples,
                "functions": sampler.functions.most_common(TOP),
                "lines": sampler.lines.most_common(TOP),
                "inclusive": sampler.inclusive.most_common(TOP * 2),
                "threads": sampler.threads,
                "collections": dict(sampler.collections),
                "collecting": sampler.collecting,
            }


def report(runs: int = 10_000) -> str:
    """The profile of a flood, in µs of CPU per onboarding."""
    found = measure("benchmarks.profiling:sampled", runs=runs)
    each = found["loop_cpu"] / found["samples"] / runs * 1e6

    def table(title: str, counted: list[tuple[str, int]]) -> list[str]:
        return ["", title, *(f"{count * each:8.1f}  {what}" for what, count in counted)]

    threads = [
        f"{cpu / runs * 1e6:8.1f}  {name}" for name, cpu in sorted(found["threads"].items(), key=lambda t: -t[1])
    ]
    collections = ", ".join(f"{count} of generation {which}" for which, count in sorted(found["collections"].items()))
    return "\n".join(
        [
            f"{runs:,} onboardings, {IN_FLIGHT} in flight: {runs / found['seconds']:,.0f} runs/s under the sampler; "
            "µs of CPU per onboarding",
            *["", "by thread", *threads],
            *["", f"{found['collecting'] / runs * 1e6:8.1f}  garbage collection, within the above ({collections})"],
            *table("the event loop's thread, by function, without what it calls", found["functions"]),
            *table("the same, with what it calls", found["inclusive"]),
            *table("by line", found["lines"]),
        ]
    )
