"""Random asyncio programs as data, and a tiny engine that runs them on a RunLoop, writes a journal and replays it.

A program is nested JSON; `Interpreter` runs it with plain asyncio, asking for steps. `Driver` answers the steps in a
random but seeded order, and records results and timers. As a script it replays the recordings of a file, and prints
what differed.
"""

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncGenerator
from contextvars import Context, ContextVar
from pathlib import Path
from typing import Any

from dotdo.engine.run_loop import RunLoop

MOST_ENTRIES = 60
DELAYS = [0, 0, 10, 10, 10, 25, 50, 1000]  # ms; often equal, so that timers are due together
LEAVES = ["step", "step", "step", "step", "sleep", "raise", "context", "event", "put", "get", "clock"]
BRANCHES = [
    *("gather", "group", "wait", "wait", "wait_gathers", "as_completed", "as_completed_tasks", "task_set", "task_set"),
    *("timeout", "wait_for", "shield", "cancel", "seq", "seq", "try", "lock", "semaphore", "condition", "barrier"),
    *("generator", "generator", "background"),
]
WAITS = [asyncio.FIRST_COMPLETED, asyncio.FIRST_COMPLETED, asyncio.ALL_COMPLETED, asyncio.FIRST_EXCEPTION]

current_value: ContextVar[int] = ContextVar("current_value", default=0)


def make_program(seed: int) -> list[Any]:
    chance = random.Random(seed)
    return ["seq", [make_node(chance, 3) for _ in range(chance.randint(1, 3))]]


def make_node(chance: random.Random, depth: int) -> list[Any]:
    if depth == 0 or chance.random() < 0.2:
        kind = chance.choice(LEAVES)
        if kind == "step":
            return [kind, chance.choice("abc"), chance.randrange(3)]
        return [kind, chance.choice(DELAYS)] if kind == "sleep" else [kind, chance.randrange(2)]
    kind = chance.choice(BRANCHES)
    children = [make_node(chance, depth - 1) for _ in range(chance.choice([2, 3, 3, 4, 6]))]
    if kind in {"timeout", "wait_for", "cancel"}:
        return [kind, children[:2], chance.choice(DELAYS)]
    if kind == "wait":
        return [kind, children, chance.choice(WAITS)]
    return [kind, children, chance.randrange(4)]


class StepFailed(Exception):
    """The driver's stand-in for an action that failed for good."""


class Mismatch(Exception):
    """The replayed code does something else than the journal says."""


class Interpreter:
    """Runs one program. `step` is asked for steps; `events` is what an observer inside the program saw, in order."""

    def __init__(self, step: Any) -> None:
        self.step = step
        self.events: list[Any] = []
        self.flags = [asyncio.Event(), asyncio.Event()]
        self.queues = [asyncio.Queue[Any](), asyncio.Queue[Any](2)]
        self.lock, self.condition, self.semaphore = asyncio.Lock(), asyncio.Condition(), asyncio.Semaphore(2)
        self.background: set[asyncio.Task[Any]] = set()

    async def run(self, node: list[Any]) -> Any:
        result = await getattr(self, "do_" + node[0])(*node[1:])
        self.events.append([node[0], describe(result)])
        return result

    def start(self, node: list[Any]) -> asyncio.Task[Any]:
        return asyncio.create_task(self.run(node))

    async def settle(self, tasks: Any) -> list[Any]:
        """Cancel and await tasks in the order of the set that they are in."""
        results: list[Any] = []
        for task in tasks:
            task.cancel()
        for task in tasks:
            results.append(describe((await asyncio.gather(task, return_exceptions=True))[0]))
            self.events.append(["settled", task.get_name() if isinstance(task, asyncio.Task) else "future"])
        return results

    async def do_seq(self, nodes: list[Any], _variant: int = 0) -> Any:
        return [await self.run(node) for node in nodes]

    async def do_step(self, name: str, argument: int) -> Any:
        try:
            return await self.step(name, argument)
        finally:
            self.events.append(["left", name, argument])

    async def do_sleep(self, delay: int) -> Any:
        return await asyncio.sleep(delay / 1000, delay)

    async def do_clock(self, _variant: int) -> Any:
        return asyncio.get_running_loop().time()

    async def do_raise(self, variant: int) -> Any:
        raise [ValueError, KeyError][variant]("raised")

    async def do_context(self, variant: int) -> Any:
        before = current_value.get()
        current_value.set(before + variant + 1)
        return before

    async def do_event(self, variant: int) -> Any:
        if current_value.get() % 2 or variant:
            self.flags[variant].set()
        return await asyncio.wait_for(self.flags[variant].wait(), 0.3)

    async def do_put(self, variant: int) -> Any:
        async with asyncio.timeout(0.2):
            await self.queues[variant].put(len(self.events))

    async def do_get(self, variant: int) -> Any:
        async with asyncio.timeout(0.2):
            return await self.queues[variant].get()

    async def do_gather(self, nodes: list[Any], variant: int) -> Any:
        return await asyncio.gather(*map(self.run, nodes), return_exceptions=variant > 0)

    async def do_group(self, nodes: list[Any], variant: int) -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(self.run(node)) for node in nodes}
        return [task.result() for task in tasks] if variant else len(tasks)

    async def do_wait(self, nodes: list[Any], mode: str) -> Any:
        done, pending = await asyncio.wait([self.start(node) for node in nodes], return_when=mode)
        for task in done:  # the order of a set
            self.events.append(["done", task.get_name(), describe(task.exception())])
            await self.run(["step", "c", 0])
        return await self.settle(pending)

    async def do_wait_gathers(self, nodes: list[Any], variant: int) -> Any:
        gathers = [asyncio.gather(self.run(node), self.run(nodes[0]), return_exceptions=True) for node in nodes]
        done, pending = await asyncio.wait(gathers, return_when=WAITS[variant])
        self.events.append(["gathers", *(gathers.index(each) for each in done)])
        return await self.settle(pending)

    async def do_as_completed(self, nodes: list[Any], variant: int) -> Any:
        results: list[Any] = []
        for soonest in asyncio.as_completed([self.run(node) for node in nodes], timeout=0.4 if variant == 0 else None):
            results.append(describe(await soonest))
        return results

    async def do_as_completed_tasks(self, nodes: list[Any], variant: int) -> Any:
        tasks = {self.start(node): place for place, node in enumerate(nodes)}
        for count, soonest in enumerate(asyncio.as_completed(tasks), 1):
            self.events.append(["soonest", describe((await asyncio.gather(soonest, return_exceptions=True))[0])])
            if count == variant:
                await self.settle(set(tasks))
        return [tasks[task] for task in set(tasks)]

    async def do_task_set(self, nodes: list[Any], variant: int) -> Any:
        tasks = {self.start(node) for node in nodes}
        if variant < 2:
            await asyncio.sleep(0)
            return await self.settle(tasks)
        return [await task for task in tasks]

    async def do_timeout(self, nodes: list[Any], delay: int) -> Any:
        try:
            async with asyncio.timeout(delay / 1000):
                return await self.run(nodes[0])
        except TimeoutError:
            return await self.run(nodes[-1])

    async def do_wait_for(self, nodes: list[Any], delay: int) -> Any:
        return await asyncio.wait_for(self.run(nodes[0]), delay / 1000)

    async def do_shield(self, nodes: list[Any], _variant: int) -> Any:
        inner = self.start(nodes[0])
        try:
            return await asyncio.wait_for(asyncio.shield(inner), 0.02)
        except TimeoutError:
            self.events.append(["shielded", inner.done()])
            return await inner

    async def do_cancel(self, nodes: list[Any], delay: int) -> Any:
        task = self.start(nodes[0])
        await asyncio.sleep(delay / 1000)
        task.cancel("no longer needed")
        return (await asyncio.gather(task, return_exceptions=True))[0]

    async def do_try(self, nodes: list[Any], _variant: int) -> Any:
        try:
            return await self.run(nodes[0])
        except (Exception, asyncio.CancelledError) as error:
            self.events.append(["caught", describe(error)])
            if isinstance(error, asyncio.CancelledError):
                await self.run(["step", "b", 1])
                raise
            return await self.run(nodes[1])

    async def do_lock(self, nodes: list[Any], _variant: int) -> Any:
        async def hold(node: list[Any]) -> Any:
            async with self.lock:
                return await self.run(node) if node[0] in {"step", "sleep"} else node[0]

        return await asyncio.gather(*map(hold, nodes))

    async def do_semaphore(self, nodes: list[Any], _variant: int) -> Any:
        async def hold(node: list[Any]) -> Any:
            async with self.semaphore:
                return await self.run(node) if node[0] in {"step", "sleep"} else node[0]

        return await asyncio.gather(*map(hold, nodes), return_exceptions=True)

    async def do_condition(self, nodes: list[Any], _variant: int) -> Any:
        async def wait() -> Any:
            async with self.condition:
                await self.condition.wait()
            return await self.run(["step", "a", 1])

        waiting = {asyncio.create_task(wait()) for _ in nodes}
        await self.do_try(nodes, 0)
        async with self.condition:
            self.condition.notify(len(nodes) - 1)
        done, pending = await asyncio.wait(waiting, timeout=0.1)
        return [len(done), await self.settle(pending)]

    async def do_barrier(self, nodes: list[Any], _variant: int) -> Any:
        barrier = asyncio.Barrier(len(nodes))

        async def meet(node: list[Any]) -> Any:
            with contextlib.suppress(Exception):
                await self.run(node)
            return await barrier.wait()

        return await asyncio.gather(*map(meet, nodes))

    async def do_generator(self, nodes: list[Any], variant: int) -> Any:
        async def each() -> AsyncGenerator[Any, None]:
            try:
                for node in nodes:
                    yield await self.run(node)
            finally:
                self.events.append(["generator ends", asyncio.get_running_loop().time()])
                if variant == 3:
                    await self.run(["step", "c", 2])

        if variant == 0:  # left before its end: the finaliser cleans up
            async for value in each():
                return value
        async with contextlib.aclosing(each()) as values:
            return [value async for value in values][variant:]

    async def do_background(self, nodes: list[Any], variant: int) -> Any:
        self.background |= {self.start(node) for node in nodes}
        await asyncio.sleep(0)
        for task in self.background:
            if task.done() and not task.cancelled():
                self.events.append(["background", task.get_name(), describe(task.exception())])
        return variant


def describe(value: Any) -> Any:
    """What a value is, as JSON; never an address."""
    if isinstance(value, BaseExceptionGroup):
        return [type(value).__name__, *(describe(each) for each in value.exceptions)]
    if isinstance(value, BaseException):
        return [type(value).__name__, str(value)]
    if isinstance(value, list | tuple):
        return [describe(each) for each in value]
    return value if value is None or isinstance(value, int | float | str) else type(value).__name__


class Driver:
    """A tiny engine: starts the program, then hands over entries. `asked` is every step asked for, in order."""

    def __init__(self, program: list[Any], loop_class: type[RunLoop] = RunLoop, salt: int = 7) -> None:
        self.program = program
        self.loop = loop_class(salt=salt, now=1_000_000)
        self.asked: list[str] = []
        self.asked_after: list[int] = []  # how many were asked for by the end of each entry
        self.journal: list[list[Any]] = []
        self.futures: dict[str, asyncio.Future[Any]] = {}
        self.counts: dict[str, int] = {}
        self.events: list[Any] = []
        self.task = self.loop.create_task(self.main(), context=Context())
        self.turn()

    async def main(self) -> Any:
        interpreter = Interpreter(self.step)
        self.events = interpreter.events
        return await interpreter.run(self.program)

    def step(self, name: str, argument: int) -> asyncio.Future[Any]:
        future = self.loop.create_future()
        call = f"{name}({argument})"
        self.counts[call] = count = self.counts.get(call, 0) + 1
        self.asked.append(f"{call}#{count}")
        self.futures[self.asked[-1]] = future
        return future

    def turn(self) -> None:
        self.loop.drain()
        if self.task.done():
            for task in self.loop.unfinished():
                task.cancel()
            self.loop.drain()
        self.asked_after.append(len(self.asked))

    def deliver(self, entry: list[Any]) -> None:
        kind, key, at, failed = entry
        self.loop.advance(at)
        if kind == "timer":
            timer = self.loop.timer(key)
            if timer is None:
                raise Mismatch(f"the program does not wait for {key}")
            self.loop.fire(timer)
        else:
            if key not in self.futures:
                raise Mismatch(f"the program has not asked for {key}")
            future = self.futures.pop(key)
            if not future.done():  # else it was cancelled, and the result is late
                future.set_exception(StepFailed(key)) if failed else future.set_result(f"result of {key}")
        self.journal.append(entry)
        self.turn()

    def go_on(self, chance: random.Random) -> "Driver":
        """Answer until the program ends, waits for what can never happen, or has used up its entries."""
        while not self.task.done() and len(self.journal) < MOST_ENTRIES:
            choices: list[str] = [
                key for key, future in self.futures.items() if not future.done() or chance.random() < 0.1
            ]
            timer = self.loop.next_timer()
            at = self.loop.now + chance.choice([0, 0, 1, 5, 30])
            if timer is not None and (not choices or chance.random() < 0.4):
                self.deliver(["timer", timer.key, max(at, timer.due), False])
            elif choices:
                self.deliver(["step", chance.choice(choices), at, chance.random() < 0.1])
            else:
                break
        return self

    def record(self) -> dict[str, Any]:
        """All that has to be the same on replay; evicts the run."""
        outcome: Any = "not ended"
        if self.task.cancelled():
            outcome = "cancelled"
        elif self.task.done():
            outcome = describe(self.task.exception() or self.task.result())
        record = {
            "program": self.program,
            "journal": self.journal,
            "asked": self.asked,
            "asked_after": self.asked_after,
            "events": list(self.events),
            "outcome": outcome,
        }
        refusing = self.loop.evict()
        assert not refusing, refusing
        return json.loads(json.dumps(record))


def record(seed: int, loop_class: type[RunLoop] = RunLoop) -> dict[str, Any]:
    return Driver(make_program(seed), loop_class).go_on(random.Random(seed)).record()


def replay(recorded: dict[str, Any], entries: int | None = None, loop_class: type[RunLoop] = RunLoop) -> Driver:
    driver = Driver(recorded["program"], loop_class)
    try:
        for entry in recorded["journal"][:entries]:
            driver.deliver(entry)
    except Mismatch:
        driver.loop.evict()
        raise
    return driver


def difference(recorded: dict[str, Any], loop_class: type[RunLoop] = RunLoop) -> str | None:
    """In which respect a full replay differs from what was recorded; None when in none."""
    try:
        replayed = replay(recorded, None, loop_class).record()
    except Mismatch as mismatch:
        return str(mismatch)
    return next((name for name in recorded if replayed[name] != recorded[name]), None)


if __name__ == "__main__":
    recordings = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({seed: found for seed, recorded in enumerate(recordings) if (found := difference(recorded))}))
