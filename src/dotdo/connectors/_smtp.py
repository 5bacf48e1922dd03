"""Handing messages to one mail server: its URL, a small pool of connections, and what its refusals mean.

A message is taken for all its recipients or for none. A 5xx answer about the message, its sender or a recipient is
final (Fail); everything else, from a 4xx answer to a lost connection, may go better next time (NotAccepted). Once all
of a message was sent, a lost connection leaves unknown whether the server took it, and the error says so.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlsplit

import msgspec

from dotdo import DefinitionError, Fail, RetryLater

if TYPE_CHECKING:
    import aiosmtplib

# What a server answers to a client that it does not know yet: the account is at fault, not the message.
NOT_SIGNED_IN = {530, 534, 535, 538}
CLOSING = 421  # "Service not available, closing transmission channel", RFC 5321 4.2.3
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


class NotAccepted(RetryLater):
    """The mail server did not take the message this time; another try may succeed.

    unknown: the connection was lost after the message was sent, so the server may have taken it all the same.
    """


class Server(msgspec.Struct, frozen=True):
    """A mail server's URL, taken apart. start_tls: True requires it, None takes it where offered, False never."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str | None
    start_tls: bool | None

    @classmethod
    def from_url(cls, url: str) -> "Server":
        """Reads `smtp://[user:password@]host[:port]` or `smtps://...`. Raises DefinitionError; it shows no password."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise DefinitionError(f"The URL of the mail server is wrong: {error}.") from None
        scheme = parts.scheme
        if scheme not in ("smtp", "smtps") or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise DefinitionError(
                "The URL of the mail server is wrong: smtp://[user:password@]host[:port] or smtps://... is needed."
            )
        user = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        if scheme == "smtps":
            return cls(scheme, host, port or 465, user, password, start_tls=False)
        # A password must not cross a network in the clear because somebody on the way hid the server's offer of TLS.
        start_tls = True if user and host not in THIS_MACHINE else None
        return cls(scheme, host, port or (587 if user else 25), user, password, start_tls)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Connections:
    """At most `limit` connections to a server; between `open` and `close` idle ones are kept for the next message."""

    def __init__(self, server: Server, limit: int, timeout: float, tls: ssl.SSLContext | None) -> None:
        self._server, self._timeout, self._tls = server, timeout, tls
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[aiosmtplib.SMTP] = []
        self._keeps = False
        self._hostname: str | None = None

    def open(self) -> None:
        """Keeps connections from now on. Raises DefinitionError when another client does so already."""
        if self._keeps:
            raise DefinitionError("This Mailer is in use by another client; give each client a Mailer of its own.")
        self._keeps = True

    async def close(self) -> None:
        """Leaves the server."""
        self._keeps = False
        while self._idle:
            await _leave(self._idle.pop())

    async def deliver(self, message: bytes, sender: str, recipients: Sequence[str], password: str | None) -> None:
        """Hands a message over for all recipients. Raises Fail (refused for good) or NotAccepted.

        password: of the user in the URL, for a new connection.
        """
        from aiosmtplib import SMTPException, SMTPResponseException

        async with self._slots:
            sent = False
            try:
                connection = await self._begin(sender, password)
                try:
                    for recipient in recipients:
                        await connection.rcpt(recipient)
                    sent = True
                    await connection.data(message)
                except BaseException:
                    # Whatever went wrong (a refusal, a timeout, the end of the attempt), the server may still hold half
                    # a message on this connection.
                    _drop(connection)
                    raise
            except SMTPResponseException as refusal:
                self._refused(refusal)
            except (SMTPException, OSError) as error:
                what = "did not answer whether it took" if sent else "did not take"
                raise NotAccepted(
                    f"The mail server {self._server} {what} the message: {error}", unknown=sent
                ) from error
            if self._keeps:
                self._idle.append(connection)
            else:
                await _leave(connection)

    async def _begin(self, sender: str, password: str | None) -> "aiosmtplib.SMTP":
        """A connection on which the server has taken the sender: an idle one that still answers, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.mail(sender)
                return connection
            except BaseException as error:
                _drop(connection)
                if not _has_hung_up(error):
                    raise
        connection = await self._connect(password)
        try:
            await connection.mail(sender)
        except BaseException:
            _drop(connection)
            raise
        return connection

    async def _connect(self, password: str | None) -> "aiosmtplib.SMTP":
        from aiosmtplib import SMTP

        if self._hostname is None:
            self._hostname = await asyncio.to_thread(socket.getfqdn)
        connection = SMTP(
            hostname=self._server.host,
            port=self._server.port,
            use_tls=self._server.scheme == "smtps",
            start_tls=self._server.start_tls,
            tls_context=self._tls,
            local_hostname=self._hostname,
            timeout=self._timeout,
        )
        await connection.connect()
        try:
            if self._server.user is not None:
                await connection.login(self._server.user, password or "")
        except BaseException:
            _drop(connection)
            raise
        return connection

    def _refused(self, refusal: "aiosmtplib.SMTPResponseException") -> NoReturn:
        from aiosmtplib import SMTPDataError, SMTPRecipientRefused, SMTPSenderRefused

        is_final = isinstance(refusal, SMTPSenderRefused | SMTPRecipientRefused | SMTPDataError) and refusal.code >= 500
        whom = f" for {refusal.recipient}" if isinstance(refusal, SMTPRecipientRefused) else ""
        text = f"The mail server {self._server} answered{whom}: {refusal.code} {refusal.message}"
        if is_final and refusal.code not in NOT_SIGNED_IN:
            raise Fail(text) from refusal
        raise NotAccepted(text) from refusal


def _has_hung_up(error: BaseException) -> bool:
    """Whether a server that does not take a sender means the connection, which it has ended meanwhile: its right."""
    from aiosmtplib import SMTPException, SMTPSenderRefused

    return error.code == CLOSING if isinstance(error, SMTPSenderRefused) else isinstance(error, SMTPException)


async def _leave(connection: "aiosmtplib.SMTP") -> None:
    from aiosmtplib import SMTPException

    transport = connection.transport
    try:
        await connection.quit(timeout=5)
    except SMTPException:  # saying goodbye is a courtesy; the message was taken before
        connection.close()
    _abort(transport)


def _drop(connection: "aiosmtplib.SMTP") -> None:
    transport = connection.transport
    connection.close()
    _abort(transport)


def _abort(transport: asyncio.BaseTransport | None) -> None:
    # Closing alone would wait for the server's end of TLS, perhaps beyond the end of the event loop.
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
