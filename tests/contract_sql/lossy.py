"""A wire to a database that can be cut at the worst moment: when a COMMIT is under way."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.sockets import end, receive, send


class Wire:
    """Forwards connections to a server. lose: at the next COMMIT the connection is cut, `before` it reaches the server,
    or `after` the server has answered it; the answer is lost. cuts: how often that has happened.

    down: the server cannot be reached. down_at: it goes down when a client sends that; down_with_loss: or with the
    answer to a COMMIT. refused: how often somebody has tried to reach it then."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{self._listener.getsockname()[1]}")
        self.lose: str | None = None
        self.cuts = self.refused = 0
        self.down = self.down_with_loss = False
        self.down_at = b""
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Ends all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            end(one)
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
            if self.down:
                self.refused += 1
                client.close()
                continue
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            for work in (self._forward, self._return):
                thread = threading.Thread(target=work, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while piece := receive(client):
            if self.down_at and self.down_at in piece:
                self.down, self.down_at = True, b""
            if self.down:
                self._cut(client, server)
                return
            if self.lose == "before" and b"COMMIT" in piece:
                self.lose = None
                self._cut(client, server)
                return
            if self.lose == "after" and b"COMMIT" in piece:
                self.lose = "answer"
            if not send(server, piece):
                return
        end(server)

    def _return(self, client: socket.socket, server: socket.socket) -> None:
        while piece := receive(server):
            if self.lose == "answer" and b"COMMIT\0" in piece:  # the tag of the answer
                self.lose, self.down = None, self.down or self.down_with_loss
                self._cut(client, server)
                return
            if not send(client, piece):
                return
        end(client)

    def _cut(self, client: socket.socket, server: socket.socket) -> None:
        self.cuts += 1
        end(client)
        end(server)


@contextmanager
def lossy_wire(url: str) -> Iterator[Wire]:
    """A wire to the server of that URL."""
    wire = Wire(url)
    try:
        yield wire
    finally:
        wire.close()
