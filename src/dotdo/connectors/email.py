"""E-mail over SMTP: `email.send(...)` inside a handler stages a message, which leaves after the commit.

The message is rendered while the handler runs, so a missing template, an undefined variable or a bad address fails
the attempt before anything leaves. SMTP knows no idempotency keys: delivery is at least once, and every try carries the
same Message-ID, by which a repeat can be told from a second message. All recipients get a message, or none does.
"""

import hashlib
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, localtime
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Self

import msgspec

from dotdo import DefinitionError, EffectCall, Fail, FromSecret, Retry, Secret, StandIn, current_context, effect
from dotdo.connectors._mime import POLICY, set_addresses, set_texts
from dotdo.connectors._smtp import Connections, NotAccepted, Server
from dotdo.connectors._templates import Rendered, Templates

__all__ = ["Mailer", "NotAccepted", "Rendered", "Sent", "send", "send_message"]

DOMAIN = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
LOCAL = re.compile(r"(?=.{1,64}$)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
# A name is bare or in quotes. RFC 5322 allows more (comments, routes, groups), which people do not write.
ADDRESS = re.compile(r"""(?P<name>"[^"\\]*"|[^"<>@,;:\\]*)\s*<(?P<framed>[^<>\s]+)>|(?P<bare>[^<>\s,;:"]+)""")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Sent(msgspec.Struct, frozen=True):
    """A message on its way: `id` is its Message-ID, the same on every try."""

    id: str
    to: list[str]
    subject: str


def send(
    *,
    to: str | Sequence[str],
    template: str | None = None,
    data: Mapping[str, Any] | None = None,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
    sender: str | None = None,
    reply_to: str | None = None,
) -> Sent:
    """Stages a message, for use inside a handler: it leaves after the commit, and not at all if the handler raises.

    to: one address or several, as `ada@example.com` or `Ada <ada@example.com>`; all see each other. Either template
    and data (see `Mailer`), or subject with text, html or both. sender: instead of the Mailer's. reply_to: for answers.

    Raises Fail at once for an address, header, template or variable that cannot work, CalledOutside outside a handler.
    """
    context = current_context()
    mailer = context.resource(Mailer, Mailer.from_environment)
    if template is not None:
        if subject is not None or text is not None or html is not None:
            raise Fail("email.send() takes a template, or subject= with text= and html=; not both.")
        content = mailer.render(template, data)
    else:
        if data is not None:
            raise Fail("email.send() was given data= without the template that it is for.")
        content = Rendered(subject or "", text, html)
    recipients = [to] if isinstance(to, str) else list(to)
    sender = sender or mailer.sender
    check_message(content, recipients, sender, reply_to)  # what cannot be sent is not staged
    staged = context.stage(
        send_message,
        to=recipients,
        subject=content.subject,
        text=content.text,
        html=content.html,
        sender=sender,
        reply_to=reply_to,
    )
    return Sent(message_id(staged.id, sender), recipients, content.subject)


def show_message(call: EffectCall, input: dict[str, Any]) -> StandIn:
    """A message as a preview shows it: from whom, to whom, its subject and text."""
    sender = input.get("sender") or call.resource(Mailer, Mailer.from_environment).sender
    content = Rendered(input["subject"], input.get("text"), input.get("html"))
    message = message_of(content, input["to"], sender, input.get("reply_to"))
    lines = [f"{name}: {message[name]}" for name in ("From", "To", "Reply-To", "Subject") if message[name] is not None]
    text = content.text if content.text else f"(HTML, {len(content.html or '')} characters)"
    sent = Sent(message_id(call.key, sender), input["to"], content.subject)
    return StandIn(text="\n".join([*lines, "", text]), answer=sent)


# Mail may wait: up to an hour, which is longer than servers that greylist want it to.
@effect(
    "email.send-message",
    dedup="none",
    on_unknown="resend",
    preview=show_message,
    retry=Retry(attempts=12, factor=3, max_delay=600),
)
async def send_message(
    call: EffectCall,
    to: list[str],
    subject: str,
    text: str | None = None,
    html: str | None = None,
    sender: str | None = None,
    reply_to: str | None = None,
) -> Sent:
    """Hands one rendered message to the mail server. `email.send` stages it; a handler may also request it.

    Raises Fail when the server refuses the message or a recipient for good (5xx), NotAccepted for all that is tried
    again; its `unknown` says that the server may have taken the message all the same.
    """
    mailer = call.resource(Mailer, Mailer.from_environment)
    sender = sender or mailer.sender
    message = message_of(Rendered(subject, text, html), to, sender, reply_to)
    message["Message-ID"] = identity = message_id(call.key, sender)
    message["Date"] = format_datetime(localtime())
    await mailer.deliver(message, address_of(sender), [address_of(one) for one in to], call.secret)
    return Sent(identity, to, subject)


def message_id(key: str, sender: str) -> str:
    """The Message-ID of the effect with that key: `<digest@domain of the sender>`."""
    domain = address_of(sender).rpartition("@")[2]
    return f"<{hashlib.sha256(key.encode()).hexdigest()[:32]}@{domain}>"


def check_message(content: Rendered, to: Sequence[str], sender: str, reply_to: str | None = None) -> None:
    """Raises Fail, with the reason, if there is no sending such a message."""
    if not content.subject.strip():
        raise Fail("The message has no subject.")
    if not content.text and not content.html:
        raise Fail("The message is empty: give text=, html= or both.")
    if not to:
        raise Fail("The message has no recipient: to= is empty.")
    if CONTROL.search(content.subject):
        raise Fail(f"The subject {content.subject!r} contains a line break or control character.")
    _parsed("sender", sender)
    for one in to:
        _parsed("recipient", one)
    if reply_to is not None:
        _parsed("reply_to", reply_to)
    try:
        for text in (content.subject, content.text, content.html):
            (text or "").encode()
    except UnicodeError as error:
        raise Fail(f"The message is not Unicode text: {error}.") from None


def message_of(content: Rendered, to: Sequence[str], sender: str, reply_to: str | None = None) -> EmailMessage:
    """The message without its identity and date. Raises Fail, with the reason, if it cannot be sent."""
    check_message(content, to, sender, reply_to)
    message = EmailMessage(policy=POLICY)
    message["Subject"] = content.subject
    set_addresses(message, "From", [_parsed("sender", sender)])
    set_addresses(message, "To", [_parsed("recipient", one) for one in to])
    if reply_to is not None:
        set_addresses(message, "Reply-To", [_parsed("reply_to", reply_to)])
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: keeps holiday notices from answering
    set_texts(message, content.text, content.html)
    return message


def address_of(written: str) -> str:
    """The bare address of `Ada <ada@example.com>`. Raises Fail if it is none."""
    return _parsed("address", written).addr_spec


@lru_cache(maxsize=1000)
def _parsed(what: str, written: str) -> Address:
    def refuse(reason: str) -> NoReturn:
        raise Fail(f"The {what} {written[:100]!r} is not an e-mail address: {reason}.")

    if len(written) > 500:
        refuse("it has more than 500 characters")
    if CONTROL.search(written):
        refuse("it contains a line break or control character")
    found = ADDRESS.fullmatch(written.strip())
    if found is None:
        refuse("one such as ada@example.com or Ada <ada@example.com> is needed; give several as a list")
    local, _, domain = (found["framed"] or found["bare"]).rpartition("@")
    if not LOCAL.fullmatch(local):
        refuse("what stands before the @ must be 1 to 64 letters, digits and signs of ASCII")
    try:
        domain = domain.encode("idna").decode()
    except UnicodeError:
        refuse(f"{domain!r} is not a domain")
    if not DOMAIN.fullmatch(domain):
        refuse(f"{domain!r} is not a domain")
    return Address((found["name"] or "").strip().strip('"'), local, domain)


class Mailer:
    """The mail server, sender and templates of an application: `Do(resources=[Mailer(...)])`.

    url: `smtp://host` (STARTTLS where the server offers it), `smtp://user:password@host` (port 587; STARTTLS required
    unless the host is this machine), `smtps://user:password@host` (TLS from the start). sender: who messages are from.
    templates: a folder of Jinja templates: `name.txt`, whose first line is `Subject: ...`, and `name.html` if wanted.
    connections: how many at once. timeout: seconds for each answer of the server. tls: instead of the system's trust.
    password: instead of one in the URL; a `FromSecret` is looked up for each new connection.

    As a resource it keeps connections open between messages. Without one, `Mailer.from_environment` is used.
    """

    def __init__(
        self,
        url: str,
        *,
        sender: str,
        templates: str | os.PathLike[str] | None = None,
        connections: int = 8,
        timeout: float = 30.0,
        tls: ssl.SSLContext | None = None,
        password: str | FromSecret | None = None,
    ) -> None:
        if find_spec("aiosmtplib") is None or find_spec("jinja2") is None:
            raise DefinitionError('E-mail needs aiosmtplib and Jinja2: pip install "dotdo[email]".')
        self._server = Server.from_url(url)
        if password is not None and (self._server.user is None or self._server.password is not None):
            raise DefinitionError("Mailer(password=...) needs a URL with a user and no password: smtp://user@host.")
        self._password = self._server.password if password is None else password
        try:
            address_of(sender)
        except Fail as problem:
            raise DefinitionError(f"Mailer(sender=...): {problem}") from None
        if templates is not None and not Path(templates).is_dir():
            raise DefinitionError(f"Mailer(templates=...): there is no folder {os.fspath(templates)!r}.")
        self.sender = sender
        self._templates = None if templates is None else Templates(Path(templates))
        self._connections = Connections(self._server, connections, timeout, tls)

    @classmethod
    def from_environment(cls) -> "Mailer":
        """A Mailer from DOTDO_EMAIL_URL, DOTDO_EMAIL_SENDER and, if set, DOTDO_EMAIL_TEMPLATES. If the URL has a user
        and no password, DOTDO_EMAIL_PASSWORD_SECRET may name the secret that is the password."""
        url, sender = os.environ.get("DOTDO_EMAIL_URL"), os.environ.get("DOTDO_EMAIL_SENDER")
        if not url or not sender:
            raise DefinitionError(
                "No mail server is configured. Give the client one, Do(resources=[Mailer(url, sender=...)]), "
                "or set DOTDO_EMAIL_URL and DOTDO_EMAIL_SENDER."
            )
        templates, name = os.environ.get("DOTDO_EMAIL_TEMPLATES"), os.environ.get("DOTDO_EMAIL_PASSWORD_SECRET")
        return cls(url, sender=sender, templates=templates or None, password=FromSecret(name) if name else None)

    async def __aenter__(self) -> Self:
        self._connections.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connections.close()

    def render(self, template: str, data: Mapping[str, Any] | None = None) -> Rendered:
        """The subject and texts of a template. Raises Fail when it is missing, wrong, or lacks a variable."""
        if self._templates is None:
            raise Fail(f"There is no e-mail template {template!r}: no folder was given, as in Mailer(templates=...).")
        return self._templates.render(template, data or {})

    async def deliver(
        self,
        message: EmailMessage,
        sender: str,
        recipients: Sequence[str],
        lookup: Callable[[str], Secret[str]] | None = None,
    ) -> None:
        """Hands a message to the server for all recipients. Raises Fail (refused for good) or NotAccepted.

        lookup: gives the secret of a name, such as `call.secret`; needed for a `FromSecret` password.
        """
        password = self._password
        if isinstance(password, FromSecret):
            if lookup is None:
                raise DefinitionError(f"The password of {self!r} is the secret {password.name!r}: pass call.secret.")
            password = password.resolve(lookup)
        await self._connections.deliver(message.as_bytes(), sender, recipients, password)

    def __repr__(self) -> str:
        return f"<Mailer {self._server}>"
