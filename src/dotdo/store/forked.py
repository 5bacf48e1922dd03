"""What SQLite must be kept from in a process that was forked while stores were open.

SQLite's locks belong to the process that took them and are not inherited, but its memory of having them is: a child
that used, closed, or opened anew a file that was open when it was forked would work without locks, and could corrupt
it (sqlite.org/howtocorrupt.html, 2.6). So in a child those files are refused, and their connections never closed.
"""

import os
from typing import Any

from dotdo.errors import StoreUnusable

_Inode = tuple[int, int]

_open: dict[int, tuple[_Inode, tuple[Any, ...]]] = {}
_inherited: set[_Inode] = set()


def keep_out_of_children(path: str, *connections: Any) -> None:
    """Notes that this process has a store open, through these connections."""
    _open[id(connections[0])] = _inode(path), connections


def may_be_closed(connection: Any) -> None:
    """Forgets a store that is about to be closed."""
    _open.pop(id(connection), None)


def refuse_inherited(path: str) -> None:
    """Raises StoreUnusable when the process that this one was forked from had that file open."""
    if _inherited and os.path.exists(path) and _inode(path) in _inherited:
        raise StoreUnusable(
            f"This process was forked from one that had the store {path} open, and SQLite's locks do not survive that. "
            "Open the client after the fork. (A Do opens at its first use: under `gunicorn --preload`, use none while "
            "modules are imported. With multiprocessing, starting processes by `spawn` avoids it, too.)"
        )


def _inode(path: str) -> _Inode:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _in_child() -> None:
    if not _open:
        return
    import ctypes  # here, because it is big, and only a child needs it

    for inode, connections in _open.values():
        _inherited.add(inode)
        for connection in connections:
            # One reference that nobody gives back: to close it would take locks that another thread held at the fork.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    _open.clear()


os.register_at_fork(after_in_child=_in_child)
