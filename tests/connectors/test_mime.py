"""Mails are byte for byte what the standard library makes of them on its own, where that is slow for no gain."""

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default
from typing import Any

import pytest

from dotdo.connectors._mime import BOUNDARY
from dotdo.connectors._templates import Rendered
from dotdo.connectors.email import _parsed, message_of  # pyright: ignore[reportPrivateUsage]

LONG_NAME = "Augusta Ada King, Countess of Lovelace, and Charles Babbage of Cambridge"
PEOPLE = [f"Person {number} <person{number}@example.com>" for number in range(9)]


def built_by_the_library(content: Rendered, to: list[str], sender: str, reply_to: str | None = None) -> EmailMessage:
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    message["Subject"] = content.subject
    message["From"] = _parsed("sender", sender)
    message["To"] = [_parsed("recipient", one) for one in to]
    if reply_to is not None:
        message["Reply-To"] = _parsed("reply_to", reply_to)
    message["Auto-Submitted"] = "auto-generated"
    if content.text:
        message.set_content(content.text)
        if content.html:
            message.make_alternative(BOUNDARY)
            message.add_alternative(content.html, subtype="html")
    else:
        message.set_content(content.html or "", subtype="html")
    return message


@pytest.mark.parametrize(
    "subject",
    [
        "Hello",
        "Grüße aus Köln",
        "日本語の件名です " * 12,
        "long enough to be folded " * 8,
        "x" * 200,
        "a=?b",
        "=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
        "=?utf-8?b?not base64?=",
        "  spaces  inside and   around ",
        'colon: comma, semicolon; <angle> (comment) "quotes" and \\',
        "e\N{COMBINING ACUTE ACCENT} \N{ZERO WIDTH JOINER} \N{PILE OF POO}",
        *("fits a line" + "x" * more for more in range(55, 62)),  # "Subject: " and 69 characters are 78
    ],
)
def test_subject(subject: str):
    content, sender, to = Rendered(subject, "Hello\n"), "Shop <shop@example.com>", ["ada@example.com"]
    assert message_of(content, to, sender).as_bytes() == built_by_the_library(content, to, sender).as_bytes()


@pytest.mark.parametrize(
    "to",
    [
        ["ada@example.com"],
        ["Ada <ada@example.com>", "bob@y.org"],
        ['"Lovelace, Ada" <ada@example.com>'],
        ["Dr. Ada L. <ada@example.com>"],
        ["Ada Önal <ada@example.com>", "Bob <b@y.org>"],
        [f'"{LONG_NAME}" <ada@example.com>'],
        [f'"{LONG_NAME} Ö" <ada@example.com>'],
        ['"=?utf-8?q?Gr=C3=BC=C3=9Fe?=" <ada@example.com>'],
        PEOPLE,
        [*PEOPLE, "Jürgen <j@example.com>"],
        ["ada@bücher.example"],
        [f"{'a' * 64}@{'b' * 60}.example"],
    ],
)
def test_addresses(to: list[str]):
    content = Rendered("Hello", "Hello\n")
    for sender, reply_to in (("shop@example.com", None), (to[0], to[-1])):
        ours, theirs = (make(content, to, sender, reply_to) for make in (message_of, built_by_the_library))
        assert ours.as_bytes() == theirs.as_bytes()


@pytest.mark.parametrize(
    "text, html",
    [
        ("Hello\n", None),
        (None, "<p>Hello</p>\n"),
        ("Hello", "<p>Hello</p>"),
        ("Grüße\n", "<p>Grüße</p>\n"),
        ("日本語\n" * 40, "<p>日本語</p>\n"),
        ("x" * 5000, "<p>" + "y" * 5000 + "</p>"),
        (".\n..\nFrom here\n", "\n\n"),
        ("a\r\nb\rc\n", "<p>a\r\nb\rc</p>"),
        ("with a NUL \0 and a tab\t\n", "<p> trailing </p> \n"),
    ],
)
def test_texts(text: str | None, html: str | None):
    content, sender, to = Rendered("Hello", text, html), "Shop <shop@example.com>", ["ada@example.com"]
    ours, theirs = message_of(content, to, sender), built_by_the_library(content, to, sender)
    assert ours.as_bytes() == theirs.as_bytes()


@pytest.mark.parametrize("text", [f"--{BOUNDARY}\nhidden\n", f"--{BOUNDARY}--\n--{BOUNDARY}_0\n", f"{BOUNDARY} ü\n"])
def test_text_that_holds_the_boundary_arrives_whole(text: str):
    message = message_of(Rendered("Hello", text, f"<p>{text}</p>\n"), ["ada@example.com"], "shop@example.com")
    arrived: Any = message_from_bytes(message.as_bytes(), policy=default)
    parts = [part.get_content().replace("\r\n", "\n") for part in arrived.iter_parts()]
    assert parts == [text, f"<p>{text}</p>\n"]


def test_mails_of_one_template_keep_what_is_their_own():
    mails = [
        message_of(Rendered(subject, f"Hello {name}\n", f"<p>{name}</p>\n"), [f"{name} <{name}@example.com>"], sender)
        for name, subject, sender in (
            ("ada", "Welcome", "Shop <shop@example.com>"),
            ("bob", "Grüße", "Köln <k@example.com>"),
            ("eve", "Welcome", "Shop <shop@example.com>"),
        )
    ]
    arrived: list[Any] = [message_from_bytes(mail.as_bytes(), policy=default) for mail in mails]
    assert [mail["Subject"] for mail in arrived] == ["Welcome", "Grüße", "Welcome"]
    assert [mail["To"].addresses[0].addr_spec[:3] for mail in arrived] == ["ada", "bob", "eve"]
    assert [mail["From"].addresses[0].display_name for mail in arrived] == ["Shop", "Köln", "Shop"]
    bodies = [mail.get_body().get_content().strip() for mail in arrived]
    assert bodies == ["<p>ada</p>", "<p>bob</p>", "<p>eve</p>"]


@pytest.mark.parametrize("name", ["Subject", "From", "To", "Message-ID", "X-Other"])
@pytest.mark.parametrize("value", ["a\nBcc: eve@example.com", "a\rBcc: eve@example.com", "a\r\n\r\nbody"])
def test_no_line_break_comes_into_a_header(name: str, value: str):
    message = message_of(Rendered("Hello", "Hello\n"), ["ada@example.com"], "shop@example.com")
    del message[name]
    with pytest.raises(ValueError, match="linefeed"):
        message[name] = value
