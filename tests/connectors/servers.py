"""Real servers for the connectors' tests: SMTP by aiosmtpd and HTTP by the standard library, each in a thread."""

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

CERTIFICATE = Path(__file__).with_name("localhost.pem")  # self-signed for localhost and 127.0.0.1, with its key
HANG_UP = "hang up"
SILENCE = "silence"


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_tls() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATE))


@dataclass
class Mail:
    sender: str
    recipients: list[str]
    message: EmailMessage
    encrypted: bool


@dataclass
class MailServer:
    """A running mail server. `answers` are given to the next commands of a kind (MAIL, RCPT, DATA) instead of 250."""

    port: int = 0
    connections: int = 0
    mails: list[Mail] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)
    open: set[asyncio.Transport] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any) -> str:
        answer = self._next("MAIL")
        if answer is None:
            envelope.mail_from = address
        return answer or "250 OK"

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any) -> str:
        answer = self._next("RCPT")
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        answer = self._next("DATA")
        assert isinstance(server.transport, asyncio.Transport)
        if answer == HANG_UP:
            server.transport.abort()
        elif answer == SILENCE:
            await asyncio.Event().wait()
        elif answer is None:
            assert isinstance(envelope.content, bytes)
            message = message_from_bytes(envelope.content.replace(b"\r\n", b"\n"), policy=policy.default)
            encrypted = server.transport.get_extra_info("ssl_object") is not None
            self.mails.append(Mail(str(envelope.mail_from), envelope.rcpt_tos, message, encrypted))
        return answer or "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.users.append(data.login.decode())
        return AuthResult(success=data.password == b"p@ss:word", handled=False)

    def hang_up(self) -> None:
        """Ends all connections from the server's side, and returns when they are gone."""
        asyncio.run_coroutine_threadsafe(_hang_up(self.open), self.loop).result()

    def _next(self, command: str) -> str | None:
        answers = self.answers.get(command)
        return answers.pop(0) if answers else None


@contextmanager
def mail_server(*, starttls: bool = False, tls: bool = False, login: bool = False) -> Iterator[MailServer]:
    """A mail server that offers STARTTLS, or speaks TLS from the start, or wants a login."""
    record = MailServer()
    loop = record.loop
    options: dict[str, Any] = {"loop": loop, "hostname": "localhost", "tls_context": server_tls() if starttls else None}
    if login:
        options |= {"authenticator": record.authenticate, "auth_require_tls": starttls or tls}

    class Connection(SMTP):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert isinstance(transport, asyncio.Transport)
            record.open.add(transport)

    def connect() -> SMTP:
        record.connections += 1
        return Connection(record, **options)

    started = loop.create_server(connect, "127.0.0.1", 0, ssl=server_tls() if tls else None)
    server = loop.run_until_complete(started)
    record.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield record
    finally:
        asyncio.run_coroutine_threadsafe(_close(server, record), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncio.Server, record: MailServer) -> None:
    server.close()
    await _hang_up(record.open)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _hang_up(connections: set[asyncio.Transport]) -> None:
    for transport in connections:
        transport.abort()
    connections.clear()


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    status: int = 200
    body: bytes = b'{"ok": true}'
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    behaviour: str = ""


class HttpServer(ThreadingHTTPServer):
    """A running HTTP server: records requests, and answers with `replies`, then with `Reply()`."""

    daemon_threads = True
    request_queue_size = 1024  # of those who connect at once; with http.server's 5, others come a second later

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[Request] = []
        self.replies: list[Reply] = []
        self.connections = 0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: HttpServer  # pyright: ignore[reportIncompatibleVariableOverride]
    lock: ClassVar = threading.Lock()

    def setup(self) -> None:
        super().setup()
        with self.lock:
            self.server.connections += 1

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.lock:
            self.server.requests.append(Request(self.command, self.path, headers, body))
            reply = self.server.replies.pop(0) if self.server.replies else Reply()
        if reply.behaviour:
            self.close_connection = True
            if reply.behaviour == SILENCE:
                self.server.released.wait()
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(reply.body)
            self.wfile.flush()
        except ConnectionError:  # a client that has read enough hangs up
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `requests`."""


@contextmanager
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
