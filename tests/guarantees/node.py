"""A node in a process of its own: URL NAME. It says `ready`, and goes on until its input ends, or it is killed.

`definitions(name)` are what nodes offer; what their handlers do is told to a file that all of them append to.
"""

import asyncio
import os
from pathlib import Path

from dotdo import AsyncDo, Catalogue, action, service
from tests.guarantees.node_process import be_node

TOLD = "DOTDO_TEST_TOLD"


def tell(text: str) -> None:
    """Appends a line to what all nodes have told."""
    file = os.open(os.environ[TOLD], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{os.getpid()} {text}\n".encode())
    finally:
        os.close(file)


def told() -> list[str]:
    """What they have told, without who did."""
    path = Path(os.environ[TOLD])
    return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []


def definitions(*left_out: str) -> Catalogue:
    """What a node offers, but for some names."""
    catalogue = Catalogue()

    def of(name: str) -> Catalogue:
        return Catalogue() if name in left_out else catalogue

    @action("add", catalogue=of("add"))
    async def add(left: int, right: int) -> int:
        return left + right

    @service("sum", catalogue=of("sum"))
    async def sum_up(numbers: list[int]) -> int:
        total = 0
        for number in numbers:
            total = await add(total, number)
        return total

    @action("linger", retry=1, catalogue=of("linger"))
    async def linger(name: str) -> str:
        tell(f"begins {name}")
        while os.path.exists(f"{os.environ[TOLD]}.{name}"):  # noqa: ASYNC110, ASYNC240 - of another process, and short
            await asyncio.sleep(0.01)
        tell(f"ends {name}")
        return name

    @service("lingers", catalogue=of("lingers"))
    async def lingers(name: str) -> str:
        before = await add(1, 1)
        return f"{before} {await linger(name)}"

    return catalogue


def keep(name: str) -> Path:
    """Has `linger` linger, until that file is gone."""
    path = Path(f"{os.environ[TOLD]}.{name}")
    path.touch()
    return path


if __name__ == "__main__":
    be_node(lambda url, *left_out: AsyncDo(url, catalogue=definitions(*left_out)))
