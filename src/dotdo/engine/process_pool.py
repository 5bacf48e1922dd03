"""Handlers with `pool="process"`: each attempt runs in a process of its own pool, and can be killed like one.

For what computes for long, beside which other threads would have no turn; for what may crash. Processes are started as
they are needed, at most one per core, and used again. One whose handler timed out, was cancelled or crashed is gone.
"""

import asyncio
import builtins
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo.engine.failing import Told
from dotdo.engine.pool_worker import Answer, Job, Place, Raised
from dotdo.errors import AttemptTimedOut, HandlerError, ProcessDied, RetryLater

if TYPE_CHECKING:
    from dotdo.action import Action
    from dotdo.engine.attempting import Attempt

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dotdo.engine.pool_worker import main; main()"
_BUFFER = 1024 * 1024


class ProcessPool:
    """The processes of one engine. limit: how many at most."""

    def __init__(self, limit: int | None = None) -> None:
        self._slots = asyncio.Semaphore(limit or os.cpu_count() or 1)
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()

    async def run(self, job: bytes, timeout: float | None) -> bytes:
        """Runs a job. Raises ProcessDied, AttemptTimedOut; whatever ends it early kills its process."""
        async with self._slots:
            process = await self._take()
            try:
                async with asyncio.timeout(timeout):
                    answer = await _ask(process, job)
            except TimeoutError:
                raise AttemptTimedOut(f"The attempt did not end within {timeout} s; its process was killed.") from None
            except (asyncio.IncompleteReadError, ConnectionError):
                raise ProcessDied(f"The process of the handler ended: {await _end_of(process)}.") from None
            else:
                self._idle.append(process)
                return answer
            finally:
                if process not in self._idle:
                    await self._kill(process)

    async def close(self) -> None:
        """Kills all processes."""
        for process in list(self._all):
            await self._kill(process)

    async def _take(self) -> asyncio.subprocess.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
            await self._kill(process)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _START,
            json.dumps(sys.path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_BUFFER,
        )
        self._all.add(process)
        return process

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        self._all.discard(process)
        if process in self._idle:
            self._idle.remove(process)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def _ask(process: asyncio.subprocess.Process, job: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(len(job).to_bytes(8, "big") + job)
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(8), "big")
    return await process.stdout.readexactly(size)


async def _end_of(process: asyncio.subprocess.Process) -> str:
    code = await process.wait()
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"signal {name}" + (" (perhaps it had no memory left)" if name == "SIGKILL" else "")


async def run_in_process(
    pool: ProcessPool, action: "Action[..., Any]", attempt: "Attempt", input: bytes, timeout: float | None
) -> bytes:
    """Runs a handler in a process: its result as JSON; what it staged is the attempt's. Raises what it raised."""
    assert isinstance(action.pool, tuple)
    job = Job(
        action=action.name,
        version=action.version,
        place=Place(*action.pool),
        input=msgspec.Raw(input),
        run_id=attempt.run_id,
        step=attempt.step,
        number=attempt.number,
        epoch=attempt.epoch,
        key=attempt.idempotency_key,
        actor=attempt.actor,
        trail=attempt.trail,
        traceparent=attempt.traceparent,
    )
    answer = msgspec.json.decode(await pool.run(msgspec.json.encode(job), timeout), type=Answer)
    if answer.raised is not None:
        raise error_of_class(answer.raised) from Told(
            answer.raised.name.rpartition(".")[2], answer.raised.message, answer.raised.traceback
        )
    for staged in answer.effects:
        attempt.take_staged(staged.effect, staged.version, staged.key, bytes(staged.input))
    return bytes(answer.result)


def error_of_class(raised: Raised) -> BaseException:
    """The exception that the handler raised, as far as this process knows its class: the retry policy asks for that.
    Nothing is imported for it, and no code of the class runs."""
    if raised.name == "RetryLater":
        return RetryLater(raised.message, after=raised.after)
    found: Any = builtins if raised.module == "builtins" else sys.modules.get(raised.module)
    for part in raised.name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)) or issubclass(found, BaseExceptionGroup):
        return HandlerError(raised.message)
    if issubclass(found, asyncio.CancelledError | GeneratorExit | StopIteration):
        return HandlerError(f"{raised.name}: {raised.message}")
    error: Any = BaseException.__new__(found, raised.message)
    error.message = raised.message
    return error
