"""A net that goes silent between a program and a server: what a partition looks like to whoever speaks TCP.

Nothing is refused and nothing breaks: connections stay open, new ones are taken, and no answer comes. What was said
meanwhile is held back. When the net heals, that arrives, however late, or all connections turn out to be gone.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.sockets import end, receive, send


class Partition:
    """Forwards connections to the server of a URL; `url` leads through here.

    held: pieces of what was said that have been held back; held_commits: those with a COMMIT in them. taken: how many
    connections were taken while the net was silent.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.held = self.held_commits = self.taken = 0
        self._change = threading.Condition()
        self._there = self._back = True  # whether queries arrive; whether answers do
        self._lost: set[socket.socket] = set()
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def go_silent(self, *, queries_arrive: bool = False) -> None:
        """From now on nothing comes through; queries_arrive: only the answers are held back."""
        with self._change:
            self._there, self._back = queries_arrive, False

    def heal(self, *, delivers: bool) -> None:
        """The net is whole again. delivers: what was held back arrives now, also from clients that have given up; else
        all connections from before are gone, and with them what was on its way."""
        with self._change:
            if not delivers:
                self._lost |= self._sockets
                for one in self._sockets:
                    end(one)
            self._there = self._back = True
            self._change.notify_all()

    def close(self) -> None:
        """Ends all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.heal(delivers=False)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            thread = threading.Thread(target=self._connect, args=(client,))
            with self._change:
                self._sockets.add(client)
                self._threads.append(thread)
                self.taken += not self._back
            thread.start()

    def _connect(self, client: socket.socket) -> None:
        """Speaks to a client; its first piece opens the connection to the server."""
        server: socket.socket | None = None
        while True:
            piece = receive(client)
            with self._change:
                if piece and not self._there:
                    self.held += 1
                    self.held_commits += b"COMMIT" in piece
                self._change.wait_for(lambda: self._there)
                if client in self._lost:
                    return
                if server is None:
                    if not piece:
                        return  # it has said nothing
                    try:
                        server = socket.create_connection(self._server)
                    except OSError:  # it is down just now
                        end(client)
                        return
                    thread = threading.Thread(target=self._return, args=(client, server))
                    self._sockets.add(server)
                    self._threads.append(thread)
                    thread.start()
            if not piece:
                end(server)
                return
            if not send(server, piece):
                return

    def _return(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            piece = receive(server)
            with self._change:
                if piece and not self._back:
                    self.held += 1
                    self.held_commits += b"COMMIT\0" in piece  # the tag of an answer
                self._change.wait_for(lambda: self._back)
                if client in self._lost:
                    return
            if not piece:
                end(client)
                return
            if not send(client, piece):
                return


@contextmanager
def partition(url: str) -> Iterator[Partition]:
    """A net to the server of that URL."""
    net = Partition(url)
    try:
        yield net
    finally:
        net.close()
