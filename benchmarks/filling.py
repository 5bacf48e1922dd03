"""Fills a store with ended runs, fast: copies of one that the engine itself has executed, each with an id, times, a
hash chain and an anchored head of its own, so that the audit finds them as sound as any.

For benchmarks only: it writes the tables past the engine, with nobody else on the file, and flushes nothing before the
end.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import apsw

from benchmarks import jobs
from dotdo.audit import Audit
from dotdo.embedding import audit_key, open_reader
from dotdo.journal import GENESIS, anchor, chain

PAST = 30 * 24 * 3_600_000  # ms over which the copies are spread
BATCH = 5_000
SAMPLE = 1_000
OLD = "old.json"  # the ids of the sample, beside the store

Row = dict[str, Any]


def fill(folder: str, runs: int) -> dict[str, float]:
    """Executes one onboarding in a new store in `folder` and copies it until there are so many. Returns the seconds
    that took. Raises RuntimeError when the audit of a sample finds anything."""
    before = time.perf_counter()
    asyncio.run(_execute_one(folder))
    path = str(Path(folder, "dotdo.db"))
    key = audit_key(path, make=False)
    connection = apsw.Connection(path)
    connection.execute("pragma journal_mode = off; pragma synchronous = off; pragma cache_size = -64000").fetchall()
    run, journal = _rows(connection, "runs")[0], _rows(connection, "journal")
    copies = _copies(run, journal, runs - 1, key)
    ids: list[str] = []
    connection.execute("begin")
    while batch := list(islice(copies, BATCH)):
        _insert(connection, "runs", [copy for copy, _ in batch])
        _insert(connection, "journal", [entry for _, entries in batch for entry in entries])
        ids += [copy["id"] for copy, _ in batch]
    connection.execute("commit")
    connection.execute("pragma journal_mode = wal").fetchall()
    connection.close()
    os.sync()
    took = time.perf_counter() - before
    sample = random.Random(1).sample(ids, min(SAMPLE, len(ids)))
    _audit(path, key, sample)
    Path(folder, OLD).write_text(json.dumps(sample))
    return {"seconds": took}


async def _execute_one(folder: str) -> None:
    async with jobs.open_client(folder) as client:
        await client.run(jobs.onboarding, email=jobs.EMAIL)


def _rows(connection: apsw.Connection, table: str) -> list[Row]:
    cursor = connection.execute(f"select * from {table}")
    names = [column[0] for column in cursor.get_description()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _insert(connection: apsw.Connection, table: str, rows: list[Row]) -> None:
    marks = ", ".join("?" * len(rows[0]))
    connection.executemany(f"insert into {table} values ({marks})", [tuple(row.values()) for row in rows])


def _copies(run: Row, journal: list[Row], count: int, key: bytes) -> Iterator[tuple[Row, list[Row]]]:
    """The same run again, so many times, in the order of their times."""
    draw = random.Random(1)
    for number in range(count):
        earlier = PAST - PAST * number // count
        tail = f"7{draw.getrandbits(12):03x}{draw.getrandbits(2) | 8:x}{draw.getrandbits(60):015x}"
        id, digest = f"run_{run['created_at'] - earlier:012x}{tail}", GENESIS
        entries: list[Row] = []
        for entry in journal:
            at = entry["at"] - earlier
            header = (
                f"{id}|{entry['seq']}|{entry['kind']}|{entry['step']}|{entry['generation']}|{entry['attempt']}|{at}"
            )
            digest = chain(digest, header, entry["data_digest"])
            entries.append({**entry, "run": id, "at": at, "digest": digest})
        times = {"created_at": run["created_at"] - earlier, "ended_at": run["ended_at"] - earlier}
        signed = {"digest": digest, "anchor": anchor(key, id, run["seq"], digest)}
        yield {**run, "id": id, "root": id, **times, **signed}, entries


def _audit(path: str, key: bytes, sample: list[str]) -> None:
    store = open_reader(path)
    try:
        audit = Audit(store, key)
        findings = [finding for id in sample for finding in audit.verify(id)]
        if findings or audit.runs != len(sample):
            raise RuntimeError(f"The audit of {len(sample)} runs saw {audit.runs} and found: {findings[:3]}")
    finally:
        store.close()
