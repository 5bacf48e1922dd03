"""How far one PostgreSQL goes, and what could be split: the tables of docs/scaling.md, `python -m benchmarks.scaling`.

Costs are measured here and now, as CPU and bytes, which move less than rates when other work is on the machine; or
given (`--given 340,120,5.4,4.6`). All else follows from them by multiplication; from the migrations and statements of
the store, as they are; or, for cells, from a simulation with a seed.
"""

import argparse
import asyncio
import hashlib
import math
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil
import psycopg

from benchmarks import jobs
from benchmarks.driving import in_flight
from dotdo import AsyncDo
from dotdo.store.migrate import migrations
from dotdo.store.queries import load_queries
from tests.postgres import Server, restartable_server

RUNS, IN_FLIGHT = 4_000, 500
BUSY = 0.85  # of a node's core: more of it, and whoever waits waits long
RATES = (300, 1_000, 3_000, 10_000, 30_000)
CELLS = (2, 4, 8, 16, 32)
KEYS, REQUESTS = 10_000, 1_000_000


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
            f"{rate * costs.server / 1e6:.1f}",
            f"{rate * costs.log / 1e3:,.1f} MB/s",
            f"{rate * costs.growth * 86_400 / 1e9:,.2f} TB a day",
        )


# -- what could be split by the id of a run ----------------------------------------------------------------------------

RUN = ("id", "run")  # what a run's id is called: in `runs`, and in all other tables of it
_CREATE = re.compile(r"create table dotdo\.(\w+) \((.*?)\);", re.S)
_UNIQUE = re.compile(r"create unique index \w+ on dotdo\.(\w+) \(([^)]*)\)")


def keys() -> dict[str, list[list[str]]]:
    """The unique keys of each table, its primary key first."""
    text = re.sub(r"--[^\n]*", "", "".join(script for _, script in migrations("postgres")))
    found: dict[str, list[list[str]]] = {}
    for table, body in _CREATE.findall(text):
        whole = re.findall(r"primary key \(([^)]*)\)", body)
        single = re.findall(r"^\s*(\w+)[^,\n]* primary key", body, re.M)
        others = re.findall(r"^\s*(\w+)[^,\n]* unique", body, re.M)
        found[table] = [_columns(one) for one in (*whole, *single, *others)]
    for table, columns in _UNIQUE.findall(text):
        found[table].append(_columns(columns))
    return found


def _columns(text: str) -> list[str]:
    return [one.strip() for one in text.split(",")]


def of_runs() -> dict[str, str]:
    """The tables with rows of runs, and what a run's id is called there."""
    text = re.sub(r"--[^\n]*", "", "".join(script for _, script in migrations("postgres")))
    return {
        table: "id" if table == "runs" else "run"
        for table, body in _CREATE.findall(text)
        if table == "runs" or re.search(r"^\s*run text", body, re.M)
    }


def splits() -> Iterator[Sequence[str]]:
    """Each table of runs: whether its unique keys have the run's id in them, so that each holds within one part."""
    yield "table", "primary key", "unique keys without a run's id"
    found = keys()
    for table, run in of_runs().items():
        without = [", ".join(key) for key in found[table] if run not in key]
        yield table, ", ".join(found[table][0]), "; ".join(without) or "none"


def reach(statement: str) -> str:
    """Which runs a statement touches: `one`, `listed` (given by id), `any` (it looks for them), or `none`."""
    tables = of_runs()
    if not any(re.search(rf"dotdo\.{table}\b", statement) for table in tables):
        return "none"
    flat = " ".join(statement.split())
    if re.search(r"\b(run|id|root|chain|wanted\.value ->> 0) = %\((run|root|id)\)s", flat):
        return "one"
    if "jsonb_array_elements" in flat and "%(elsewhere)s" not in flat and "%(unseen)s" not in flat:
        return "listed"
    return "any"


def reaches() -> dict[str, list[str]]:
    """The statements of the store by what they touch."""
    found: dict[str, list[str]] = {"one": [], "listed": [], "any": [], "none": []}
    for name, statement in load_queries("postgres").items():
        found[reach(statement)].append(name)
    return found


# -- cells -------------------------------------------------------------------------------------------------------------


def cells() -> Iterator[Sequence[str]]:
    """How much fuller than the average the fullest cell is, when a digest of the caller's key (or the run) chooses."""
    yield "cells", "by run", "by customer, all alike", "by customer, a few large (Zipf)", "moves with one cell more"
    chance = random.Random(7)
    alike = [1.0] * KEYS
    zipf = [1 / (rank + 1) for rank in range(KEYS)]
    by_run = [1.0] * REQUESTS
    for count in CELLS:
        one = _fullest([chance.randrange(count) for _ in by_run], by_run, count)
        customers = [int(hashlib.sha256(f"{number}".encode()).hexdigest()[:12], 16) % count for number in range(KEYS)]
        loads = (_fullest(customers, alike, count), _fullest(customers, zipf, count))
        yield f"{count}", f"{one:.2f}x", *(f"{load:.2f}x" for load in loads), f"1 of {count + 1}"


def _fullest(places: Sequence[int], weights: Sequence[float], count: int) -> float:
    loads = [0.0] * count
    for place, weight in zip(places, weights, strict=True):
        loads[place] += weight
    return max(loads) * count / sum(loads)


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
    print(table(splits()), end="\n\n")
    for what, names in reaches().items():
        print(f"{len(names)} statements touch {what}: {', '.join(names)}\n")
    print(table(cells()))


if __name__ == "__main__":
    main()
