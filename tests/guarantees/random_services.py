"""Random asyncio programs as services of the real engine: their steps are actions, their timers durable.

`python -m tests.guarantees.random_services STORE run FIRST LAST` runs the programs of these seeds, each once by its
key, and prints their results; with a number behind, the process kills itself after so many commits. `... STORE replay`
replays what has ended and prints what each run asked for and came to.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from dotdo import AsyncDo, Catalogue, Fail, action, service
from dotdo.embedding import open_reader
from dotdo.errors import OutcomeError
from dotdo.store.protocol import Write
from dotdo.store.sql import SqlStore
from dotdo.testing import ManualClock
from tests.guarantees.replays import ended_services, replay_again
from tests.unit.engine.random_programs import Interpreter, describe, make_program

catalogue = Catalogue()


async def answer(name: str, argument: int) -> str:
    """Takes a few turns of the loop more or less, so that results come in another order than they were asked for."""
    for _ in range((ord(name) * 7 + argument * 5) % 11):
        await asyncio.sleep(0)
    if (ord(name) + argument) % 5 == 0:
        raise Fail(f"{name} refuses {argument}")
    return f"result of {name}({argument})"


@action("a", catalogue=catalogue)
async def a(argument: int) -> str:
    return await answer("a", argument)


@action("b", catalogue=catalogue)
async def b(argument: int) -> str:
    return await answer("b", argument)


@action("c", catalogue=catalogue)
async def c(argument: int) -> str:
    return await answer("c", argument)


ACTIONS = {"a": a, "b": b, "c": c}
ENOUGH = 60  # programs under way when a process is killed


def step(name: str, argument: int) -> Coroutine[Any, Any, str]:
    """What an interpreter asks for."""
    return ACTIONS[name](argument=argument)


@service("random-program", catalogue=catalogue)
async def random_program(seed: int) -> dict[str, Any]:
    """Runs the program of a seed; the result is its outcome, and everything that was seen inside, in order."""
    interpreter = Interpreter(step)
    try:
        outcome = describe(await interpreter.run(make_program(seed)))
    except (Exception, asyncio.CancelledError) as error:
        outcome = describe(error)
    return {"outcome": outcome, "events": describe(interpreter.events)}


async def run_programs(store: str, seeds: range) -> dict[str, Any]:
    """Runs the programs at once, moving the clock on whenever all of them wait; their ends by seed."""
    clock = ManualClock()

    async def end(client: AsyncDo, seed: int) -> Any:
        handle = await client.start(random_program.with_(key=f"{seed}"), seed=seed)
        try:
            return await handle.result()
        except OutcomeError as error:
            return {"outcome": error.code, "message": error.message}

    async with AsyncDo(store, catalogue=catalogue, clock=clock, check_replay=True) as client:
        await client.platform()
        over = False

        def pass_time() -> None:
            while not over:
                try:
                    clock.advance_to_next(timeout=0.02)
                except TimeoutError:
                    continue

        passing = asyncio.get_running_loop().run_in_executor(None, pass_time)
        try:
            ends = await asyncio.gather(*(end(client, seed) for seed in seeds))
        finally:
            over = True
            await passing
    return dict(zip(map(str, seeds), ends, strict=True))


def replay_programs(store: str) -> dict[str, Any]:
    """What each run that has ended asks for, and comes to, when it is replayed here."""
    opened = open_reader(store)
    try:
        again = {entries[0].run: replay_again(opened, entries, catalogue) for entries in ended_services(opened)}
    finally:
        opened.close()
    return {run: [[*one.asked], one.new, (one.result or b"").decode(), one.error] for run, one in again.items()}


def die_after(commits: int) -> None:
    """Has this process killed in the place of one of its commits, after so many of them; not before there are runs
    enough, of which a slow machine accepts a few with each commit."""
    write, left, accepted = SqlStore.write, commits, 0

    def counted(self: SqlStore, writes: list[Write]) -> None:
        nonlocal left, accepted
        if accepted >= ENOUGH:
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        accepted += sum(len(each.accepts) for each in writes)
        write(self, writes)

    SqlStore.write = counted  # type: ignore[method-assign]


def main(store: str, what: str, *numbers: str) -> None:
    """The program."""
    logging.getLogger("dotdo").setLevel(logging.CRITICAL)  # the programs leave many exceptions unread
    if what == "replay":
        print(json.dumps(replay_programs(store)))
        return
    first, last, *commits = map(int, numbers)
    if commits:
        die_after(commits[0])
    print(json.dumps(asyncio.run(run_programs(store, range(first, last)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
