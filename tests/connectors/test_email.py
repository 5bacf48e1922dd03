"""The e-mail connector against real SMTP servers: what leaves, what is refused before, and what refusals mean."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from dotdo import (
    ActionFailed,
    AsyncContext,
    AsyncDo,
    DefinitionError,
    EffectCall,
    Fail,
    FromSecret,
    UnknownSecret,
    action,
)
from dotdo.connectors import email
from dotdo.connectors._smtp import Server
from dotdo.connectors.email import Mailer, NotAccepted
from dotdo.errors import CalledOutside
from tests.connectors.servers import HANG_UP, SILENCE, MailServer, client_tls, mail_server

SENDER = "Shop <shop@example.com>"


def mailer(server: MailServer, **options: Any) -> Mailer:
    return Mailer(server.url, sender=SENDER, **options)


def effect_call(mailer: Mailer, key: str = "run_1.0123456789abcdef.0") -> EffectCall:
    return EffectCall(key, "run_1", "send#1", 1, resources={Mailer: mailer})


def deliver(mailer: Mailer, *, key: str = "run_1.0123456789abcdef.0", **message: Any) -> email.Sent:
    message = {"to": ["ada@example.com"], "subject": "Hello", "text": "Hello Ada\n", **message}
    return asyncio.run(email.send_message.plain(effect_call(mailer, key), **message))


# -- what arrives ------------------------------------------------------------------------------------------------------


def test_message_arrives_with_its_headers_and_text():
    with mail_server() as server:
        deliver(mailer(server), to=["Ada Önal <ada@example.com>", "bob@y.org"], subject="Grüße", reply_to="x@y.org")
    [mail] = server.mails
    assert (mail.sender, mail.recipients) == ("shop@example.com", ["ada@example.com", "bob@y.org"])
    assert mail.message["Subject"] == "Grüße"
    assert mail.message["From"] == SENDER
    assert mail.message["To"] == "Ada Önal <ada@example.com>, bob@y.org"
    assert mail.message["Reply-To"] == "x@y.org"
    assert mail.message["Auto-Submitted"] == "auto-generated"
    assert abs(mail.message["Date"].datetime.timestamp() - time.time()) < 60
    assert mail.message.get_content() == "Hello Ada\n"


def test_preview_shows_the_message_and_sends_nothing():
    @action("greet-in-a-preview")
    async def greet(ctx: AsyncContext, now: bool) -> str:
        if now:
            return (await ctx.request(email.send_message, to=["a@x.org"], subject="Now", html="<b>Hi</b>")).subject
        sent = email.send(to=["Ada <ada@x.org>", "b@x.org"], subject="Grüße", text="Hello\n.\n", reply_to="r@x.org")
        return sent.id

    async def main() -> None:
        async with AsyncDo("sqlite://", resources=[mailer(server)]) as client:
            staged, requested = await client.preview(greet, now=False), await client.preview(greet, now=True)
        [effect] = staged.effects
        assert effect.text is not None
        assert effect.text.splitlines() == [
            "From: Shop <shop@example.com>",
            "To: Ada <ada@x.org>, b@x.org",
            "Reply-To: r@x.org",
            "Subject: Grüße",
            "",
            "Hello",
            ".",
        ]
        assert effect.answer["id"] == staged.result
        assert requested.result == "Now"
        assert (requested.effects[0].text or "").endswith("Subject: Now\n\n(HTML, 9 characters)")

    with mail_server() as server:
        asyncio.run(main())
        assert (server.connections, server.mails) == (0, [])


def test_text_that_looks_like_the_end_of_a_message_arrives_whole():
    text = "before\n.\n..\nafter ö\n" + "x" * 5000 + "\n"
    with mail_server() as server:
        deliver(mailer(server), text=text)
    assert server.mails[0].message.get_content() == text


def test_html_arrives_beside_the_text_or_alone():
    with mail_server() as server:
        deliver(mailer(server), html="<p>Hello</p>\n")
        deliver(mailer(server), text=None, html="<p>Only</p>\n")
    both, alone = (mail.message for mail in server.mails)
    assert [part.get_content_type() for part in both.iter_parts()] == ["text/plain", "text/html"]
    assert alone.get_content_type() == "text/html"


@pytest.mark.parametrize(
    "written, name",
    [
        ("ada@example.com", ""),
        ("<ada@example.com>", ""),
        ("Ada <ada@example.com>", "Ada"),
        ("Dr. Ada L. <ada@example.com>", "Dr. Ada L."),
        ('"Lovelace, Ada" <ada@example.com>', "Lovelace, Ada"),
    ],
)
def test_address_may_have_a_name(written: str, name: str):
    with mail_server() as server:
        deliver(mailer(server), to=[written])
    [address] = server.mails[0].message["To"].addresses
    assert (address.display_name, address.addr_spec) == (name, "ada@example.com")


def test_domain_beyond_ascii_is_written_in_its_ascii_form():
    with mail_server() as server:
        deliver(mailer(server), to=["ada@bücher.example"])
    assert server.mails[0].recipients == ["ada@xn--bcher-kva.example"]


def test_message_id_is_equal_for_one_key_and_differs_between_keys():
    with mail_server() as server:
        sent = [deliver(mailer(server), key=key) for key in ("a", "a", "b")]
    assert [mail.message["Message-ID"] for mail in server.mails] == [one.id for one in sent]
    assert sent[0].id == sent[1].id != sent[2].id
    assert sent[0].id.endswith("@example.com>")


# -- what is refused before anything leaves ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, problem",
    [
        ({"to": ["ada"]}, "before the @"),
        ({"to": ["ada@"]}, "'' is not a domain"),
        ({"to": ["@example.com"]}, "before the @"),
        ({"to": ["ada@exa mple.com"]}, "one such as"),
        ({"to": ["ada@example..com"]}, "'example..com' is not a domain"),
        ({"to": ["ada@-example.com"]}, "'-example.com' is not a domain"),
        ({"to": ["a..b@example.com"]}, "before the @"),
        ({"to": ["Ada <ada@example.com> Bob"]}, "one such as"),
        ({"to": ["ada@example.com>\r\nRCPT TO:<eve@example.com"]}, "line break"),
        ({"to": ["ada@example.com\nBcc: eve@example.com"]}, "line break"),
        ({"to": ["ada@example.com, eve@example.com"]}, "one such as"),
        ({"to": ["friends: ada@example.com;"]}, "one such as"),
        ({"to": ["ädä@example.com"]}, "1 to 64 letters"),
        ({"to": ["a" * 65 + "@example.com"]}, "1 to 64 letters"),
        ({"to": [""]}, "one such as"),
        ({"to": []}, "no recipient"),
        ({"sender": "shop"}, "The sender 'shop' is not an e-mail address"),
        ({"reply_to": "a@b\n"}, "line break"),
        ({"subject": "Hello\nBcc: eve@example.com"}, "line break"),
        ({"subject": "Hello\u2028there"}, "line break"),
        ({"subject": " "}, "no subject"),
        ({"text": ""}, "empty"),
    ],
)
def test_message_that_cannot_be_sent_is_refused_for_good(message: dict[str, Any], problem: str):
    with mail_server() as server:
        with pytest.raises(Fail, match=problem):
            deliver(mailer(server), **message)
        assert server.connections == 0


# -- templates ---------------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Mailer:
    for name, text in files.items():
        stem, _, kind = name.rpartition("_")
        (folder / f"{stem}.{kind}").write_text(text)
    return Mailer("smtp://localhost", sender=SENDER, templates=folder)


def test_template_gives_subject_text_and_escaped_html(tmp_path: Path):
    text = "Subject: Hello {{ name }}\n\nDear {{ name }},\n{% if vip %}\nthank you.\n{% endif %}\n"
    ours = write(tmp_path, hello_txt=text, hello_html="<p>{{ name }}</p>")
    rendered = ours.render("hello", {"name": "Ada & Bob", "vip": True})
    assert rendered.subject == "Hello Ada & Bob"
    assert rendered.text == "Dear Ada & Bob,\nthank you.\n"
    assert rendered.html == "<p>Ada &amp; Bob</p>"


def test_template_without_html_gives_none(tmp_path: Path):
    assert write(tmp_path, hello_txt="Subject: Hi\nHello").render("hello").html is None


def test_changed_template_is_read_again(tmp_path: Path):
    ours = write(tmp_path, hello_txt="Subject: One\nHello")
    assert ours.render("hello").subject == "One"
    write(tmp_path, hello_txt="Subject: Two, longer\nHello")
    assert ours.render("hello").subject == "Two, longer"


def test_line_break_in_data_cannot_leave_the_subject(tmp_path: Path):
    ours = write(tmp_path, hello_txt="Subject: Hello {{ name }}\nText")
    rendered = ours.render("hello", {"name": "Ada\nBcc: eve@example.com"})
    assert rendered.text == "Text"
    with pytest.raises(Fail, match="line break"):
        email.message_of(rendered, ["ada@example.com"], SENDER)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("Subject: x\n\n{{ nobody }}", "'nobody' is undefined"),
        ("Subject: {{ nobody }}\n", "'nobody' is undefined"),
        ("Subject: x\n\n\n{% if %}", "hello.txt is wrong in line 4"),
        ("Hello\n", "hello.txt is wrong in line 1: it must be `Subject: ...`"),
        ("", "hello.txt is wrong in line 1"),
        ("Subject: x\n{{ 1 / 0 }}", "could not be rendered: division by zero"),
        ("Subject: x\n{{ ''.__class__.__mro__ }}", "could not be rendered"),
        ("Subject: x\n{% include 'other' %}", "no e-mail template 'other'"),
        ("Subject: x\n{% include '../secret.txt' %}", "no e-mail template '../secret.txt'"),
    ],
)
def test_template_that_is_wrong_fails_for_good(text: str, problem: str, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("Subject: secret\nsecret")
    (tmp_path / "templates").mkdir()
    with pytest.raises(Fail) as caught:
        write(tmp_path / "templates", hello_txt=text).render("hello")
    assert problem in caught.value.message


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".hidden", "", "a\0b", "a..b", "a\n"])
def test_template_name_cannot_leave_its_folder(name: str, tmp_path: Path):
    with pytest.raises(Fail, match="is not the name of an e-mail template"):
        write(tmp_path, hello_txt="Subject: x\n").render(name)


def test_missing_template_or_folder_is_said(tmp_path: Path):
    with pytest.raises(Fail, match=r"no e-mail template 'hello\.txt'"):
        write(tmp_path).render("hello")
    with pytest.raises(Fail, match="no folder was given"):
        Mailer("smtp://localhost", sender=SENDER).render("hello")


# -- what the server's answers mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_refusal_of_a_message_is_final_when_it_says_so(command: str):
    with mail_server() as server:
        server.answers[command] = ["550 5.1.1 No such mailbox"]
        with pytest.raises(Fail, match=r"answered.*: 550 5\.1\.1 No such mailbox"):
            deliver(mailer(server))


@pytest.mark.parametrize("answer", ["451 4.3.0 Later", "421 Too busy", HANG_UP])
@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_temporary_refusal_or_lost_connection_may_be_tried_again(command: str, answer: str):
    with mail_server() as server:
        server.answers[command] = [answer]
        with pytest.raises(NotAccepted, match=f"127.0.0.1:{server.port}") as caught:
            deliver(mailer(server))
        # Only who hangs up when all of the message may be there leaves us in doubt.
        assert caught.value.unknown == (command == "DATA" and answer == HANG_UP)
        deliver(mailer(server))
        assert len(server.mails) == 1


def test_server_that_wants_a_login_first_is_no_final_refusal():
    with mail_server() as server:
        server.answers["MAIL"] = ["530 5.7.0 Authentication required"]
        with pytest.raises(NotAccepted, match="530"):
            deliver(mailer(server))


def test_silent_server_is_left_after_the_timeout():
    with mail_server() as server:
        server.answers["DATA"] = [SILENCE]
        with pytest.raises(NotAccepted, match=r"(?i)timed out"):
            deliver(mailer(server, timeout=0.05))


def test_absent_server_is_named():
    with mail_server() as server:
        absent = mailer(server)
    with pytest.raises(NotAccepted, match=rf"127\.0\.0\.1:{server.port} did not take the message: .*connect"):
        deliver(absent)


def test_one_refused_recipient_means_that_nobody_gets_the_message():
    with mail_server() as server:
        ours = mailer(server)
        server.answers["RCPT"] = ["451 4.2.2 Mailbox full"]
        with pytest.raises(NotAccepted, match=r"for ada@example\.com: 451"):
            deliver(ours, to=["ada@example.com", "bob@example.com"])
        assert server.mails == []
        deliver(ours, to=["ada@example.com", "bob@example.com"])
        assert len(server.mails) == 1


# -- connections -------------------------------------------------------------------------------------------------------


def test_connections_are_bounded_and_used_again():
    async def scenario() -> None:
        async with mailer(server, connections=3) as ours:
            await asyncio.gather(*(send_one(ours, index) for index in range(20)))
            assert server.connections <= 3
            await send_one(ours, 20)
            assert server.connections <= 3

    async def send_one(ours: Mailer, index: int) -> None:
        await email.send_message.plain(effect_call(ours, str(index)), to=["ada@example.com"], subject="x", text="y")

    with mail_server() as server:
        asyncio.run(scenario())
    assert len({mail.message["Message-ID"] for mail in server.mails}) == 21


def test_connection_that_the_server_closed_meanwhile_is_replaced():
    async def scenario() -> None:
        async with mailer(server) as ours:
            for _ in range(3):
                await email.send_message.plain(effect_call(ours), to=["ada@example.com"], subject="x", text="y")
                await asyncio.to_thread(server.hang_up)

    with mail_server() as server:
        asyncio.run(scenario())
    assert (len(server.mails), server.connections) == (3, 3)


def test_kept_connection_that_the_server_says_it_closes_is_replaced():
    async def scenario() -> None:
        async with mailer(server) as ours:
            await email.send_message.plain(effect_call(ours), to=["ada@example.com"], subject="x", text="y")
            server.answers["MAIL"] = ["421 4.4.2 Idle for too long"]
            await email.send_message.plain(effect_call(ours), to=["ada@example.com"], subject="x", text="y")

    with mail_server() as server:
        asyncio.run(scenario())
    assert (len(server.mails), server.connections) == (2, 2)


def test_refusal_on_a_kept_connection_is_told_at_once():
    """That connections may end says nothing against the others, which are not tried in vain."""

    async def scenario() -> None:
        async with mailer(server) as ours:
            await email.send_message.plain(effect_call(ours), to=["ada@example.com"], subject="x", text="y")
            server.answers["MAIL"] = ["550 5.7.1 Not you"]
            with pytest.raises(Fail, match="Not you"):
                await email.send_message.plain(effect_call(ours), to=["ada@example.com"], subject="x", text="y")

    with mail_server() as server:
        asyncio.run(scenario())
    assert (len(server.mails), server.connections) == (1, 1)


def test_connection_of_a_cancelled_delivery_is_not_used_again():
    async def scenario() -> None:
        async with mailer(server) as ours:
            server.answers["DATA"] = [SILENCE]
            one = effect_call(ours)
            sending = asyncio.ensure_future(
                email.send_message.plain(one, to=["ada@example.com"], subject="x", text="y")
            )
            while server.answers["DATA"]:  # noqa: ASYNC110 - the server, on its own loop, has the letter and is silent
                await asyncio.sleep(0.01)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await email.send_message.plain(effect_call(ours), to=["bob@example.com"], subject="x", text="y")

    with mail_server() as server:
        asyncio.run(scenario())
    assert [mail.recipients for mail in server.mails] == [["bob@example.com"]]


def test_mailer_in_use_refuses_a_second_client():
    async def scenario() -> None:
        async with Mailer("smtp://localhost", sender=SENDER) as ours:
            with pytest.raises(DefinitionError, match="Mailer of its own"):
                async with ours:
                    pass

    asyncio.run(scenario())


def test_starttls_and_login_by_url():
    with mail_server(starttls=True, login=True) as server:
        url = server.url.replace("//", "//ada:p%40ss%3Aword@")
        deliver(Mailer(url, sender=SENDER, tls=client_tls()))
    assert server.mails[0].encrypted
    assert server.users == ["ada"]


def test_tls_from_the_start():
    with mail_server(tls=True) as server:
        deliver(Mailer(server.url.replace("smtp:", "smtps:"), sender=SENDER, tls=client_tls()))
    assert server.mails[0].encrypted


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_certificate_that_nobody_vouches_for_is_refused(scheme: str):
    with mail_server(tls=scheme == "smtps", starttls=scheme == "smtp") as server:
        with pytest.raises(NotAccepted, match=r"(?i)certificate"):
            deliver(Mailer(server.url.replace("smtp:", f"{scheme}:"), sender=SENDER))
        assert server.mails == []


def test_wrong_password_is_said_without_showing_it():
    with mail_server(starttls=True, login=True) as server:
        url = server.url.replace("//", "//ada:secret@")
        with pytest.raises(NotAccepted, match="535") as caught:
            deliver(Mailer(url, sender=SENDER, tls=client_tls()))
    assert "secret" not in str(caught.value)


def test_password_may_be_a_secret_that_is_looked_up_for_each_connection():
    password = FromSecret("SMTP_PASSWORD")
    with mail_server(starttls=True, login=True) as server:
        ours = Mailer(server.url.replace("//", "//ada@"), sender=SENDER, tls=client_tls(), password=password)
        call = EffectCall("key", "run_1", "s", 1, resources={Mailer: ours}, secrets={"SMTP_PASSWORD": "wrong"})
        message: dict[str, Any] = {"to": ["ada@example.com"], "subject": "Hello", "text": "Hello"}
        with pytest.raises(NotAccepted, match="535") as caught:
            asyncio.run(email.send_message.plain(call, **message))
        assert "wrong" not in str(caught.value)
        call = EffectCall("key", "run_1", "s", 1, resources={Mailer: ours}, secrets={"SMTP_PASSWORD": "p@ss:word"})
        asyncio.run(email.send_message.plain(call, **message))
    assert len(server.mails) == 1
    call = EffectCall("key", "run_1", "s", 1, resources={Mailer: ours}, secrets={})
    with pytest.raises(UnknownSecret, match="SMTP_PASSWORD"):
        asyncio.run(email.send_message.plain(call, **message))


@pytest.mark.parametrize("url", ["smtp://localhost", "smtp://ada:other@localhost"])
def test_password_beside_a_url_that_has_no_use_for_it_is_refused(url: str):
    with pytest.raises(DefinitionError, match="a URL with a user and no password"):
        Mailer(url, sender=SENDER, password=FromSecret("SMTP_PASSWORD"))


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, host, port, start_tls",
    [
        ("smtp://mail.example.com", "mail.example.com", 25, None),
        ("smtp://user:pw@mail.example.com", "mail.example.com", 587, True),
        ("smtp://user:pw@localhost:2525", "localhost", 2525, None),
        ("smtp://[::1]:2525/", "::1", 2525, None),
        ("smtps://user:pw@mail.example.com", "mail.example.com", 465, False),
    ],
)
def test_url_decides_port_and_encryption(url: str, host: str, port: int, start_tls: bool | None):
    server = Server.from_url(url)
    assert (server.host, server.port, server.start_tls) == (host, port, start_tls)


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost", "smtp://", "smtp://h:99999", "smtp://h/path", "smtp://h?a"]
)
def test_wrong_url_is_refused_without_showing_it(url: str):
    with pytest.raises(DefinitionError, match="URL of the mail server is wrong"):
        Mailer(url, sender=SENDER)


def test_password_is_in_no_text_of_a_mailer():
    ours = Mailer("smtp://user:secret@localhost", sender=SENDER)
    assert repr(ours) == "<Mailer localhost:587>"


def test_wrong_sender_or_folder_is_refused(tmp_path: Path):
    with pytest.raises(DefinitionError, match=r"Mailer\(sender=\.\.\.\).*'nobody'"):
        Mailer("smtp://localhost", sender="nobody")
    with pytest.raises(DefinitionError, match="there is no folder"):
        Mailer("smtp://localhost", sender=SENDER, templates=tmp_path / "missing")


def test_environment_configures_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DOTDO_EMAIL_URL", "smtp://mail.example.com:2525")
    monkeypatch.setenv("DOTDO_EMAIL_SENDER", SENDER)
    monkeypatch.setenv("DOTDO_EMAIL_TEMPLATES", str(tmp_path))
    ours = Mailer.from_environment()
    assert (repr(ours), ours.sender) == ("<Mailer mail.example.com:2525>", SENDER)
    monkeypatch.delenv("DOTDO_EMAIL_URL")
    with pytest.raises(DefinitionError, match="DOTDO_EMAIL_URL"):
        Mailer.from_environment()


# -- in handlers, on the real engine -----------------------------------------------------------------------------------


@action("test-email.sync")
def send_from_sync(to: str, then_raise: bool = False) -> str:
    sent = email.send(to=to, subject="Hello", text="Hello\n")
    if then_raise:
        raise Fail("changed my mind")
    return sent.id


@action("test-email.template")
async def send_template(to: str, template: str, data: dict[str, Any] | None = None) -> str:
    return email.send(to=to, template=template, data=data).id


@action("test-email.mixed")
async def send_mixed() -> None:
    email.send(to="ada@example.com", template="hello", subject="Hello")


@action("test-email.data-only")
async def send_data_only() -> None:
    email.send(to="ada@example.com", subject="Hello", text="Hello", data={})


@action("test-email.twice")
async def send_twice() -> list[str]:
    return [email.send(to="ada@example.com", subject="Hello", text="Hello\n").id for _ in range(2)]


@action("test-email.request")
async def request_message(ctx: AsyncContext) -> str:
    sent = await ctx.request(email.send_message, to=["ada@example.com"], subject="Now", text="Now\n")
    return sent.id


def run(name: str, *resources: Any, **params: Any) -> Any:
    async def scenario() -> Any:
        async with AsyncDo("sqlite://", resources=resources) as client:
            return await client.action(name).invoke(**params)

    return asyncio.run(scenario())


def test_message_leaves_with_the_id_that_the_handler_was_told():
    with mail_server() as server:
        id = run("test-email.sync", mailer(server), to="Ada <ada@example.com>")
    [mail] = server.mails
    assert mail.message["Message-ID"] == id
    assert mail.recipients == ["ada@example.com"]


def test_two_messages_of_one_handler_have_ids_of_their_own():
    with mail_server() as server:
        ids = run("test-email.twice", mailer(server))
    assert {mail.message["Message-ID"] for mail in server.mails} == set(ids)
    assert len(set(ids)) == 2


def test_handler_that_raises_sends_nothing():
    with mail_server() as server:
        with pytest.raises(ActionFailed, match="changed my mind"):
            run("test-email.sync", mailer(server), to="ada@example.com", then_raise=True)
        assert server.connections == 0


@pytest.mark.parametrize(
    "name, params, problem",
    [
        ("test-email.sync", {"to": "ada"}, "is not an e-mail address"),
        ("test-email.template", {"to": "ada@example.com", "template": "other"}, "no e-mail template"),
        ("test-email.template", {"to": "ada@example.com", "template": "hello"}, "'name' is undefined"),
        (
            "test-email.template",
            {"to": "ada@example.com", "template": "hello", "data": {"name": "Ada\nBcc: eve@example.com"}},
            "line break",
        ),
        ("test-email.mixed", {}, "not both"),
        ("test-email.data-only", {}, "without the template"),
    ],
)
def test_message_that_cannot_work_fails_the_attempt_at_once(
    name: str, params: dict[str, Any], problem: str, tmp_path: Path
):
    (tmp_path / "hello.txt").write_text("Subject: Hello {{ name }}\nHello")
    with mail_server() as server:
        with pytest.raises(ActionFailed, match=problem) as caught:
            run(name, mailer(server, templates=tmp_path), **params)
        assert caught.value.attempts == 1
        assert server.connections == 0


def test_template_is_rendered_and_sent(tmp_path: Path):
    (tmp_path / "hello.txt").write_text("Subject: Hello {{ name }}\n\nHello {{ name }}!\n")
    with mail_server() as server:
        ours = mailer(server, templates=tmp_path)
        run("test-email.template", ours, to="ada@example.com", template="hello", data={"name": "Ada"})
    [mail] = server.mails
    assert (mail.message["Subject"], mail.message.get_content()) == ("Hello Ada", "Hello Ada!\n")


def test_message_may_be_requested():
    with mail_server() as server:
        id = run("test-email.request", mailer(server))
    assert [mail.message["Message-ID"] for mail in server.mails] == [id]


def test_environment_is_used_when_no_mailer_was_given(monkeypatch: pytest.MonkeyPatch):
    with mail_server() as server:
        monkeypatch.setenv("DOTDO_EMAIL_URL", server.url)
        monkeypatch.setenv("DOTDO_EMAIL_SENDER", SENDER)
        run("test-email.sync", to="ada@example.com")
    assert len(server.mails) == 1


def test_send_outside_a_handler_is_refused():
    with pytest.raises(CalledOutside, match="outside a handler"):
        email.send(to="ada@example.com", subject="Hello", text="Hello")
