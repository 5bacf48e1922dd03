"""Serves the API of a client's platform on a socket (uvicorn), until it is told to stop; then drains in order.

On SIGTERM or SIGINT no new connection is taken, streams end, requests in flight are answered, and the engine drains.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from dotdo.async_client import AsyncDo
from dotdo.errors import DefinitionError
from dotdo.keys import Rate
from dotdo.server.app import make_app
from dotdo.server.connections import Connection, most_connections
from dotdo.server.serving import Served

GRACE_SECONDS = 10
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


async def serve(
    client: AsyncDo,
    *,
    host: str,
    port: int,
    open_access: bool = False,
    rate: Rate | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
    until: asyncio.Event | None = None,
    on_signal: Callable[[int, bool], None] = lambda number, again: None,
) -> None:
    """Serves until SIGTERM, SIGINT, or `until` is set; the caller closes the client.

    port: 0 takes a free one. open_access: no key is needed; refused but on loopback. rate: how many requests a key may
    make that has no rate of its own; by default any number. on_ready: told the URL once requests are answered. Raises
    DefinitionError when the address cannot be had. on_signal: told of each signal, and whether it is not the first; a
    second one cuts what is left.
    """
    if open_access and host not in LOOPBACK:
        raise DefinitionError(
            f"Serving without API keys is for this machine only, and {host} is open to others. Leave out --open, and "
            "make a key with `dotdo keys create`."
        )

    async def platform() -> Served:
        return cast("Served", await client.platform())

    listener = _listen(host, port)
    app = make_app(platform, open_access=open_access, tracer_provider=client.tracer_provider, rate=rate)
    config = uvicorn.Config(
        app,
        http=cast("Any", partial(Connection, limit=most_connections())),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        lifespan="on",
    )
    server = _Server(config, lambda: on_ready(_url(listener)), app.stop, on_signal)
    stopping = None if until is None else asyncio.create_task(_stop(server, until))
    try:
        await server.serve([listener])
    finally:
        listener.close()
        if stopping is not None:
            stopping.cancel()


async def _stop(server: "_Server", until: asyncio.Event) -> None:
    await until.wait()
    server.stop()


class _Server(uvicorn.Server):
    """uvicorn, that tells when it is ready and when it is about to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        on_signal: Callable[[int, bool], None],
    ) -> None:
        super().__init__(config)
        self._on_ready, self._on_stop, self._on_signal = on_ready, on_stop, on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tells that requests are answered from now on."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_ready()

    def stop(self) -> None:
        """Streams end, requests in flight are answered, then it ends."""
        self._on_stop()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came; a second one cuts what is left. uvicorn would raise it again at the end, and so end the
        process before the engine has drained."""
        again = self.force_exit = self.should_exit
        self.stop()  # first: the next signal may come while this one is told
        self._on_signal(sig, again)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With its protocol named, asyncio switches off the delay of small packets on each connection; else answers to
        # clients that acknowledge late come 40 ms late.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        raise DefinitionError(f"The server cannot listen on {host}:{port}: {error.strerror or error}.") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
