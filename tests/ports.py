"""Ports for servers that are told theirs, because they must come back on the same one."""

import secrets
import socket

# Below those that systems give away by themselves: else somebody has it between two starts, if only for a moment.
FIRST, LAST = 15_000, 29_999


def free_port() -> int:
    """A port of this machine that nobody has, and that nobody is given who does not ask for this very one."""
    while True:
        port = FIRST + secrets.randbelow(LAST + 1 - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
