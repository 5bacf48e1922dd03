"""Mails as bytes, built by the standard library, without what it does again for every header of every mail.

It parses each header into a tree, in a class made for that header, and folds the tree again. Most headers need neither:
they are short and plain, so they are written as they are, just as the library writes the headers of a message that it
has read. All others (text beyond ASCII, long lines) take the library's way.
"""

from collections.abc import Sequence
from email.headerregistry import Address, BaseHeader, HeaderRegistry
from email.message import EmailMessage
from email.policy import EmailPolicy
from functools import lru_cache
from typing import Any

LINE = 78
ALIKE = ("Content-Transfer-Encoding", "Content-Type")  # headers that are the same in most mails
# Neither base64 nor quoted-printable can contain it, so it can only be in text that is written as it is.
BOUNDARY = "=_alternative"


class _Registry(HeaderRegistry):
    """Makes the class of a header once, and the headers that are alike in most mails."""

    def __init__(self) -> None:
        super().__init__()
        self._class_of = lru_cache(maxsize=50)(super().__getitem__)
        self._made = lru_cache(maxsize=50)(super().__call__)

    def __getitem__(self, name: str) -> type[BaseHeader]:
        return self._class_of(name)

    def __call__(self, name: str, value: Any) -> BaseHeader:
        # Headers cannot be changed, so messages can share them.
        return self._made(name, value) if name in ALIKE else super().__call__(name, value)


class _Policy(EmailPolicy):
    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        """Keeps what needs no encoding and no folding as the text that it is."""
        if type(value) is str and _is_plain(name, value):
            return name, value
        return super().header_store_parse(name, value)


# Without 8-bit text, which servers may refuse and which must not be rewritten on the way.
POLICY = _Policy(linesep="\r\n", cte_type="7bit", max_line_length=LINE, header_factory=_Registry())


def set_addresses(message: EmailMessage, name: str, addresses: Sequence[Address]) -> None:
    """Adds a header of addresses."""
    written = ", ".join(map(str, addresses))
    message[name] = written if _is_plain(name, written) else addresses


def set_texts(message: EmailMessage, text: str | None, html: str | None) -> None:
    """Makes the body: a text, HTML, or both as alternatives."""
    if text and html:
        boundary, number = BOUNDARY, 0
        while boundary in text or boundary in html:
            boundary, number = f"{BOUNDARY}_{number}", number + 1
        message.set_content(text)
        message.make_alternative(boundary)
        message.add_alternative(html, subtype="html")
    elif text:
        message.set_content(text)
    else:
        message.set_content(html or "", subtype="html")


def _is_plain(name: str, value: str) -> bool:
    # Printable text has no line breaks; "=?" could begin an encoded word.
    fits = len(name) + 2 + len(value) <= LINE
    return fits and value.isascii() and value.isprintable() and "=?" not in value and value == value.strip() != ""
