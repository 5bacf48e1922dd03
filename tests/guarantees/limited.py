"""A node with an action that has limits, in a process of its own: URL. It goes on until its input ends or it is killed.

Its attempts tell a file when they begin and end; `most_at_a_time` reads of it how many runs were at it together.
"""

import asyncio
import logging
import os
from pathlib import Path

from dotdo import AsyncContext, AsyncDo, Catalogue, Concurrency, action
from tests.guarantees.node import TOLD, tell
from tests.guarantees.node_process import be_node

LIMIT = 3
EACH = 1


def definitions() -> Catalogue:
    """What each node offers: one at a time for each customer, three in all."""
    catalogue = Catalogue()

    @action("visit", concurrency=[Concurrency(LIMIT), Concurrency(EACH, key="customer")], catalogue=catalogue)
    async def visit(ctx: AsyncContext, customer: str, number: int) -> int:
        tell(f"begins {ctx.run_id} {customer}")
        await asyncio.sleep(0.02)
        while os.path.exists(f"{os.environ[TOLD]}.{number}"):  # noqa: ASYNC110, ASYNC240 - of another process, and short
            await asyncio.sleep(0.01)
        tell(f"ends {ctx.run_id} {customer}")
        return number

    return catalogue


def keep(number: int) -> Path:
    """Has the visit of that number last until that file is gone."""
    path = Path(f"{os.environ[TOLD]}.{number}")
    path.touch()
    return path


def lines() -> list[list[str]]:
    """What was told, in order: who, what, and about which run."""
    path = Path(os.environ[TOLD])
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def most_at_a_time() -> tuple[int, int]:
    """How many runs were at it together, in all and of one customer. A run counts once, whoever else that was taken for
    dead is still at it; what a killed process was at ends with it."""
    at_it: dict[str, tuple[str, str]] = {}
    killed: set[str] = set()
    most = most_of_one = 0
    for pid, what, *rest in lines():
        if what == "killed":
            killed.add(rest[0])
            at_it = {run: one for run, one in at_it.items() if one[0] != rest[0]}
        elif what == "begins" and pid not in killed:
            at_it[rest[0]] = (pid, rest[1])
        elif what == "ends" and at_it.get(rest[0], ("", ""))[0] == pid:
            del at_it[rest[0]]
        customers = [customer for _, customer in at_it.values()]
        most = max(most, len(customers))
        most_of_one = max([most_of_one, *map(customers.count, customers)])
    return most, most_of_one


if __name__ == "__main__":
    be_node(lambda url: AsyncDo(url, catalogue=definitions()), level=logging.ERROR)
