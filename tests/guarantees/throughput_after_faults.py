"""How soon it is as fast again after a fault as before: `python -m tests.guarantees.throughput_after_faults`.

Nodes in processes of their own, on a real server with a synchronous standby, make payments (an effect, and SQL in the
store's database) for callers who always have as many under way. After each fault the throughput must be at least 95 %
of that before within 60 s, no process may have ended, and in the end everything is done, once, and nothing is stuck.
Ends with 1 otherwise. Other work on the machine moves rates, so medians of short windows are compared, and a fault
that misses is tried again. Part of `make nightly`.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import NamedTuple

from dotdo import AsyncDo
from tests.guarantees.ledger import Ledger
from tests.guarantees.paying import TABLES, Payers, check, definitions, query
from tests.guarantees.paying import node as paying_node
from tests.partition import Partition, partition
from tests.postgres import Server, restartable_server, standby_of

STANDBY = "second"
SHARE, WITHIN, TRIES = 0.95, 60.0, 3
PATIENCE = 120.0  # seconds, for the last of all payments when no more begin
STORM, PAUSE, DOWN = 8.0, 0.2, 3.0  # seconds: how long connections are broken off, how often; a server's absence


class Flood(Payers):
    """Callers of whom each always has one payment under way."""

    async def rate(self, windows: int, length: float) -> float:
        """Payments per second from now on: the median of so many windows."""
        began = time.monotonic()
        await asyncio.sleep(windows * length)
        return self.rate_since(began, windows, length)

    def rate_since(self, began: float, windows: int, length: float) -> float:
        """The median of windows that are over."""
        counts = [0] * windows
        for end in reversed(self.ends):
            if end < began:
                break
            window = int((end - began) / length)
            if window < windows:
                counts[window] += 1
        return statistics.median(counts) / length


class Scene:
    """The servers, the nodes, and what can be done to them. The net is that of the second node."""

    def __init__(self, stack: ExitStack, nodes: int, lease: float) -> None:
        self._stack, self._lease = stack, lease
        self.world = stack.enter_context(tempfile.TemporaryDirectory())
        self.ledger = stack.enter_context(Ledger())
        settings = {"synchronous_standby_names": STANDBY, "synchronous_commit": "on", "max_connections": "200"}
        self.primary: Server = stack.enter_context(restartable_server(**settings))
        soon = {"wal_retrieve_retry_interval": "500ms", "max_connections": "200"}
        self.standby: Server = stack.enter_context(standby_of(self.primary, STANDBY, **soon))
        for table in TABLES:
            query(self.primary.url, table)
        self.net: Partition = stack.enter_context(partition(self.primary.url))
        self.url = self._both(self.primary.url)
        urls = [self._both(self.net.url) if number == 1 else self.url for number in range(nodes)]
        self.urls = urls
        self.nodes = [self._node(url) for url in urls]
        self.current = self.primary  # the server that takes writes

    def _both(self, first: str) -> str:
        ports = [url.rpartition(":")[2].partition("/")[0] for url in (first, self.standby.url)]
        return f"postgresql://postgres@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/postgres"

    def _node(self, url: str) -> "subprocess.Popen[str]":
        return self._stack.enter_context(paying_node(url, self.ledger, self.world))

    def ended(self) -> list[int]:
        """The nodes whose processes have ended, by number."""
        return [number for number, process in enumerate(self.nodes) if process.poll() is not None]

    # -- faults: each returns when it is over -------------------------------------------------------------------------

    async def killed(self) -> None:
        """A node is killed, and a new process takes its place."""
        self.nodes[0].kill()
        self.nodes[0].wait()
        self.nodes[0] = await asyncio.to_thread(self._node, self.urls[0])

    async def frozen(self) -> None:
        """A node is stopped for longer than its lease, and goes on."""
        os.kill(self.nodes[0].pid, signal.SIGSTOP)
        await asyncio.sleep(1.5 * self._lease)
        os.kill(self.nodes[0].pid, signal.SIGCONT)

    async def broken_off(self) -> None:
        """All connections are broken off at the server, again and again."""
        end = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend'"
        over = time.monotonic() + STORM
        while time.monotonic() < over:
            await asyncio.to_thread(query, self.current.url, f"{end} and pid <> pg_backend_pid()")
            await asyncio.sleep(PAUSE)

    async def restarted(self) -> None:
        """The server is stopped in order (fast), and started."""
        await self._restart(immediately=False)

    async def crashed(self) -> None:
        """The server is stopped like in a crash (immediate), recovers, and is there again."""
        await self._restart(immediately=True)

    async def _restart(self, *, immediately: bool) -> None:
        await asyncio.to_thread(self.current.stop, immediately=immediately)
        await asyncio.sleep(DOWN)
        await asyncio.to_thread(self.current.start)

    async def cut_off(self) -> None:
        """The net of one node goes silent for longer than its lease, and delivers what it held back."""
        held = self.net.held
        self.net.go_silent()
        await asyncio.sleep(1.5 * self._lease)
        if self.net.held == held:
            raise RuntimeError("nothing was said over that net, so nothing was tried")
        self.net.heal(delivers=True)

    async def failed_over(self) -> None:
        """The first server dies, and its standby is promoted."""
        await asyncio.to_thread(self.primary.stop, immediately=True)
        await asyncio.to_thread(query, self.standby.url, "select pg_promote()")
        self.current = self.standby


# The last one cannot be done twice: there is one standby.
FAULTS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "a node is killed and started anew": Scene.killed,
    "a node stands still for longer than its lease": Scene.frozen,
    "connections are broken off all the time": Scene.broken_off,
    "the server is restarted (fast)": Scene.restarted,
    "the server crashes (immediate)": Scene.crashed,
    "the net of a node goes silent": Scene.cut_off,
    "the standby takes over": Scene.failed_over,
}


class Found(NamedTuple):
    """What became of one fault: payments per second before and after; seconds until then, or None if it never was."""

    fault: str
    before: float
    after: float
    seconds: float | None

    def __str__(self) -> str:
        when = f"after {self.seconds:5.1f} s" if self.seconds is not None else f"NOT within {WITHIN:.0f} s"
        return f"{self.fault:<48} {self.before:7.1f}/s before, {self.after:7.1f}/s {when}"


async def measure(scene: Scene, flood: Flood, name: str, windows: int, length: float) -> Found:
    """One fault."""
    before = await flood.rate(windows, length)
    if not before:
        raise RuntimeError(f"nothing is done before {name!r}: there is nothing to compare with")
    await FAULTS[name](scene)
    over = time.monotonic()
    best = 0.0
    while True:
        await asyncio.sleep(length / 2)
        began = time.monotonic() - windows * length
        if began < over:
            continue
        rate = flood.rate_since(began, windows, length)
        best = max(best, rate)
        if rate >= SHARE * before:
            return Found(name, before, rate, began - over)
        if began - over > WITHIN:
            return Found(name, before, best, None)


async def play(names: list[str], nodes: int, lease: float, callers: int, windows: int, length: float) -> int:
    """All faults in turn; how many things went wrong."""
    wrong = 0
    async with AsyncExitStack() as closing:
        stack = closing.enter_context(ExitStack())
        scene = await asyncio.to_thread(Scene, stack, nodes, lease)
        client = await closing.enter_async_context(AsyncDo(scene.url, catalogue=definitions(), engine=False))
        flood = Flood(client, callers)
        await flood.rate(2 * windows, length)  # what is new is slow
        for name in names:
            for left in reversed(range(1 if name == "the standby takes over" else TRIES)):
                found = await measure(scene, flood, name, windows, length)
                print(found, flush=True)
                if found.seconds is not None or not left:
                    break
            wrong += found.seconds is None
            if ended := scene.ended():
                print(f"    processes of nodes have ended: {ended}", flush=True)
                wrong += 1
        try:
            async with asyncio.timeout(PATIENCE):
                acknowledged = await flood.stop()
        except TimeoutError:
            left = "select id, status, waiting_for from dotdo.runs where ended_at is null limit 5"
            stuck = query(scene.current.url, left)
            print(f"    payments are stuck: {stuck}", flush=True)
            return wrong + 1
        await asyncio.to_thread(check, scene.current.url, scene.ledger, scene.world, acknowledged)
        left_open = query(scene.current.url, "select count(*) from dotdo.runs where ended_at is null")
        print(f"{len(acknowledged)} payments, each made once; {left_open[0][0]} runs left open", flush=True)
        return wrong + bool(left_open[0][0])


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--lease", type=float, default=15.0, help="seconds")
    parser.add_argument("--callers", type=int, default=40)
    parser.add_argument("--windows", type=int, default=5, help="of which the median counts")
    parser.add_argument("--length", type=float, default=2.0, help="of a window, in seconds")
    parser.add_argument("--only", action="append", help="part of a fault's name")
    given = parser.parse_args()
    names = [name for name in FAULTS if not given.only or any(part in name for part in given.only)]
    os.environ.update(DOTDO_AUDIT_KEY="00112233445566778899aabbccddeeff", DOTDO_LEASE=f"{given.lease}")
    wrong = asyncio.run(play(names, given.nodes, given.lease, given.callers, given.windows, given.length))
    print("all is as fast as before" if not wrong else f"{wrong} went wrong", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
