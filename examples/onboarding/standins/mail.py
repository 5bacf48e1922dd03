"""The mail server: takes messages over SMTP and writes them into the ledger."""

import asyncio
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message

from aiosmtpd.smtp import SMTP, Envelope, Session

from examples.onboarding.standins.world import SILENT, Arrival, World

REFUSALS = {"4xx": "451 4.3.0 Try again later", "429": "451 4.7.1 Slow down", "5xx": "550 5.1.1 No such mailbox"}
LONGEST_SILENCE = 60.0


class Mail:
    """A handler for aiosmtpd."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Takes or refuses one message."""
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        # The modern policy would parse each header anew whenever it is looked at, which takes most of a server's time.
        message = message_from_bytes(content.replace(b"\r\n", b"\n"))
        payload = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "subject": str(make_header(decode_header(message["Subject"] or ""))),
            "text": _text_of(message),
        }
        how = self._world.fault("email", "message", payload)
        reply = REFUSALS.get(how or "", "250 OK")
        status = None if how in SILENT else int(reply[:3])
        happened = how in (None, "lost", "timeout")
        self._world.record(Arrival("email", "message", str(message["Message-ID"]), payload, status, happened, reply))
        if how == "timeout":
            await asyncio.sleep(LONGEST_SILENCE)
        if status is None and isinstance(server.transport, asyncio.Transport):
            server.transport.abort()
        return reply


def _text_of(message: Message) -> str:
    """Its text, or else its HTML."""
    parts = {part.get_content_type(): part for part in reversed([*message.walk()])}
    body = parts.get("text/plain") or parts.get("text/html")
    if body is None:
        return ""
    content = body.get_payload(decode=True)
    assert isinstance(content, bytes), "text has no parts"
    return content.decode(str(body.get_content_charset("utf-8")), errors="replace")


async def serve_mail(world: World) -> tuple[asyncio.Server, int]:
    """Starts the mail server on a free port of this machine."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Mail(world), hostname="localhost"), "127.0.0.1", 0, backlog=1024)
    return server, server.sockets[0].getsockname()[1]
