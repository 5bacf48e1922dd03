"""How far one PostgreSQL goes, and what could be split: the tables of docs/scaling.md, `python -m benchmarks.scaling`.

Costs are measured here and now, as CPU and bytes, which move less than rates when other work is on the machine; or
given (`--given 340,120,5.4,4.6`). All else follows from them by multiplication; from the migrations and statements of
the store, as they are; or, for cells, from customers played through.
"""

import argparse
import asyncio
import hashlib
import heapq
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import psycopg

from benchmarks import jobs
from benchmarks.driving import in_flight
from dotdo import AsyncDo
from dotdo.store.connecting import DEFAULTS, LONGEST_PAUSE
from dotdo.store.migrate import migrations
from dotdo.store.queries import load_queries
from tests.postgres import Server, restartable_server

RUNS, IN_FLIGHT = 4_000, 500
BUSY = 0.85  # of a node's core: more of it, and whoever waits waits long
RATES = (300, 1_000, 3_000, 10_000, 30_000)
CELLS = (2, 4, 8, 16, 32)
CUSTOMERS = 10_000
TTLS, PROMOTION = (20, 30, 60), 2  # seconds, which Patroni waits for the primary, and a promotion takes


@dataclass(frozen=True)
class Costs:
    """Of one onboarding: microseconds of CPU of the node and of the server, kB of write-ahead log and of tables."""

    node: float
    server: float
    log: float
    growth: float


# -- costs -------------------------------------------------------------------------------------------------------------


def measured(runs: int) -> Costs:
    """A flood of one node on a server of its own, with fsync."""
    os.environ["DOTDO_AUDIT_KEY"] = "00112233445566778899aabbccddeeff"
    with restartable_server(fsync="on", shared_buffers="256MB", max_wal_size="4GB") as server:
        return asyncio.run(_measured(server, runs))


async def _measured(server: Server, runs: int) -> Costs:
    async with AsyncDo(server.url, check_replay=False) as client:

        async def start(_: int) -> None:
            await client.run(jobs.onboarding, email=jobs.EMAIL)

        await in_flight(start, IN_FLIGHT * 2, IN_FLIGHT)
        before, node = _server_state(server), time.process_time()
        await in_flight(start, runs, IN_FLIGHT)
        node = time.process_time() - node
        after = _server_state(server)
    cpu, log, size = (now - then for now, then in zip(after, before, strict=True))
    return Costs(node / runs * 1e6, cpu / runs * 1e6, log / runs / 1e3, size / runs / 1e3)


def _server_state(server: Server) -> tuple[float, int, int]:
    """Seconds of CPU so far, and bytes of write-ahead log and of the store."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        [(log, size)] = connection.execute(
            "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, (select sum(pg_total_relation_size(oid)) "
            "from pg_class where relkind = 'r' and relnamespace = to_regnamespace('dotdo'))::bigint"
        ).fetchall()
    process = psutil.Process(server.pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    cpu = sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system
    return cpu, log, size


def one_server(costs: Costs) -> Iterator[Sequence[str]]:
    """What it takes at so many onboardings per second."""
    yield "onboardings a second", "nodes, a core each", "server cores", "write-ahead log", "growth of the store"
    for rate in RATES:
        yield (
            f"{rate:,}",
            f"{math.ceil(rate * costs.node / 1e6 / BUSY)}",
            f"{rate * costs.server / 1e6:.2g}",
            f"{rate * costs.log / 1e3:,.1f} MB/s",
            f"{rate * costs.growth * 86_400 / 1e9:,.2f} TB a day",
        )


# -- what could be split by the id of a run ----------------------------------------------------------------------------

_CREATE = re.compile(r"create table dotdo\.(\w+) \((.*?)\);", re.S)
_UNIQUE = re.compile(r"create unique index \w+ on dotdo\.(\w+) \(([^)]*)\)")
# What clusters that speak PostgreSQL's language often do without, or have for one part at a time only.
NEEDED = {
    "advisory locks": r"pg_advisory",
    "functions in PL/pgSQL": r"language plpgsql",
    "identity columns": r"as identity",
    "recursive queries": r"with recursive",
    "FOR UPDATE": r"for update",
    "NOTIFY": r"pg_notify",
    "the fate of a transaction": r"pg_xact_status",
}


def schema() -> str:
    """All migrations, without comments."""
    return re.sub(r"--[^\n]*", "", "".join(script for _, script in migrations("postgres")))


def splits() -> Iterator[Sequence[str]]:
    """Each table with rows of runs, and its unique keys that would not hold over parts: those without the run's id."""
    yield "table", "primary key", "unique keys without the run's id"
    text = schema()
    for table, columns in _CREATE.findall(text):
        run = "id" if table == "runs" else "run"
        if table != "runs" and not re.search(r"^\s*run text", columns, re.M):
            continue
        whole = re.findall(r"primary key \(([^)]*)\)", columns)
        keys = [*whole, *re.findall(r"^\s*(\w+)[^,\n]* primary key", columns, re.M)]
        keys += [given for of, given in _UNIQUE.findall(text) if of == table]
        yield table, keys[0], "; ".join(key for key in keys if run not in re.split(r",\s*", key)) or "none"


def needs() -> Iterator[Sequence[str]]:
    """What the store asks of its server beyond plain SQL, and where."""
    yield "what", "statements"
    # What the code of the store says by itself.
    own = {"pg_xact_status": "(a commit whose answer was lost)"}
    for what, pattern in NEEDED.items():
        found = [name for name, text in load_queries("postgres").items() if re.search(pattern, text)]
        in_schema = ["(schema)"] if re.search(pattern, schema()) else []
        yield what, ", ".join([*in_schema, *found]) or own.get(pattern, "none")


# -- cells -------------------------------------------------------------------------------------------------------------


def cells() -> Iterator[Sequence[str]]:
    """How much fuller than the average the fullest cell is, by how customers are given to cells."""
    yield "cells", "all alike, by digest", "few large, by digest", "few large, by a table"
    alike = [1.0] * CUSTOMERS
    zipf = [1 / (rank + 1) for rank in range(CUSTOMERS)]
    for count in CELLS:
        digests = [
            int(hashlib.sha256(f"{number}".encode()).hexdigest()[:12], 16) % count for number in range(CUSTOMERS)
        ]
        loads = (
            _fullest(digests, alike, count),
            _fullest(digests, zipf, count),
            _fullest(_placed(zipf, count), zipf, count),
        )
        yield f"{count}", *(f"{load:.2f}x" for load in loads)


def _placed(weights: Sequence[float], count: int) -> list[int]:
    """The largest first, each to the emptiest cell."""
    emptiest = [(0.0, cell) for cell in range(count)]
    places: list[int] = []
    for weight in weights:
        load, cell = heapq.heappop(emptiest)
        places.append(cell)
        heapq.heappush(emptiest, (load + weight, cell))
    return places


def _fullest(places: Sequence[int], weights: Sequence[float], count: int) -> float:
    loads = [0.0] * count
    for place, weight in zip(places, weights, strict=True):
        loads[place] += weight
    return max(loads) * count / sum(loads)


# -- a failover --------------------------------------------------------------------------------------------------------


def failovers() -> Iterator[Sequence[str]]:
    """For how long nobody can write, at most, when the primary's machine is gone without a word, and what that is to a
    node: it looks again every LONGEST_PAUSE, and waits for a host that does not answer."""
    yield "Patroni's `ttl`", "promoted after", "found by nodes after"
    for ttl in TTLS:
        promoted = ttl + PROMOTION
        found = promoted + LONGEST_PAUSE + int(DEFAULTS["connect_timeout"])
        yield f"{ttl} s", f"{promoted} s", f"{found:g} s"


# -- the page ----------------------------------------------------------------------------------------------------------


def table(rows: Iterator[Sequence[str]]) -> str:
    """As Markdown."""
    head, *body = rows
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--given", help="costs instead of measuring them: us, us, kB, kB, with commas")
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args()
    costs = Costs(*map(float, given.given.split(","))) if given.given else measured(given.runs)
    print(f"An onboarding costs {costs.node:.0f} us of CPU on the node and {costs.server:.0f} us on the server, and")
    print(f"{costs.log:.1f} kB of write-ahead log and {costs.growth:.1f} kB of tables and indexes.\n")
    print(table(one_server(costs)), end="\n\n")
    for rows in (splits(), needs(), cells(), failovers()):
        print(table(rows), end="\n\n")


if __name__ == "__main__":
    main()
