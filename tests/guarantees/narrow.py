"""A node that has room for few runs, in a process of its own: URL ROOM. It ends with its input.

Its runs stand at gates, files of the test's, and tell a file when they begin and end.
"""

import logging
import sys

from dotdo import AsyncDo
from dotdo.engine.engine import Engine
from tests.guarantees.node import definitions
from tests.guarantees.node_process import be_node


def narrowed(engine: Engine) -> None:
    """The node has room for as many runs as the command says."""
    engine.capacity = int(sys.argv[2])


if __name__ == "__main__":
    be_node(lambda url, _: AsyncDo(url, catalogue=definitions()), prepare=narrowed, level=logging.ERROR)
