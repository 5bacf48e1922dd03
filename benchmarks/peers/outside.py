"""The onboarding for real, as the bodies of another system's steps: a row in SQL, a customer over HTTP, a mail over
SMTP, a message over HTTP; in plain Python, with well-kept libraries and connections that stay open.

Each call carries a key of its run, as a careful user would do it: most of these systems may execute a step twice. The
servers are those of examples/onboarding; where they are, is in the environment.
"""

import asyncio
import os
import smtplib
import threading
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

import aiosmtplib
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from examples.onboarding.users import users

MAIL_CONNECTIONS = 8


def insert_user(dialect: str, id: str, number: int) -> Any:
    """The statement; executed again, it changes nothing."""
    insert = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect]
    return insert(users).values(id=id, name=name_of(number), email=address_of(number)).on_conflict_do_nothing()


def name_of(number: int) -> str:
    """Of the user with that number."""
    return f"User {number}"


def address_of(number: int) -> str:
    """Of the user with that number."""
    return f"user{number}@example.com"


def open_database(url: str) -> sa.Engine:
    """The application's database. SQLite takes one writer at a time, so it gets one connection, for which all queue."""
    alone: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 600}
    engine = sa.create_engine(url, **(alone if url.startswith("sqlite") else {}))
    if url.startswith("sqlite"):
        event.listen(engine, "connect", durable)
    return engine


def durable(connection: Any, _: Any) -> None:
    """Every commit on SQLite is flushed, in write-ahead mode, too."""
    connection.execute("pragma synchronous = full")


def _customer(key: str, number: int) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {os.environ['BILLING_TOKEN']}", "Idempotency-Key": key}
    return {
        "url": f"{os.environ['BILLING_URL']}/v1/customers",
        "headers": headers,
        "data": {"email": address_of(number)},
    }


def _notice(number: int) -> dict[str, Any]:
    text = f"{name_of(number)} has signed up."
    headers = {"Authorization": f"Bearer {os.environ['SLACK_TOKEN']}"}
    url = f"{os.environ['SLACK_URL']}/api/chat.postMessage"
    return {"url": url, "headers": headers, "json": {"channel": "#sales", "text": text}}


def _welcome(key: str, number: int) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = os.environ["DOTDO_EMAIL_SENDER"], address_of(number)
    message["Subject"] = f"Welcome, {name_of(number)}!"
    message["Message-ID"] = f"<{key}@shop.example>"
    message.set_content(f"Hello {name_of(number)},\n\nyour account is ready.\n\nThe people of Shop Example\n")
    message.add_alternative(f"<p>Hello {name_of(number)},</p>\n<p>your account is ready.</p>\n", subtype="html")
    return message


def _mail_server() -> dict[str, Any]:
    parts = urlsplit(os.environ["DOTDO_EMAIL_URL"])
    return {"hostname": parts.hostname, "port": parts.port}


class Outside:
    """For async steps. Made when the first one runs, on its loop."""

    def __init__(self) -> None:
        import aiohttp

        self._http = aiohttp.ClientSession(raise_for_status=True)
        self._idle: list[aiosmtplib.SMTP] = []
        self._mail = asyncio.Semaphore(MAIL_CONNECTIONS)

    async def create_customer(self, key: str, number: int) -> str:
        """Its id; the same for the same key."""
        async with self._http.post(**_customer(key, number)) as answer:
            return (await answer.json())["id"]

    async def send_welcome(self, key: str, number: int) -> str:
        """The Message-ID."""
        message = _welcome(key, number)
        async with self._mail:
            server = self._idle.pop() if self._idle else aiosmtplib.SMTP(**_mail_server(), start_tls=False)
            if not server.is_connected:
                await server.connect()
            await server.send_message(message)
            self._idle.append(server)
        return str(message["Message-ID"])

    async def notify_sales(self, number: int) -> str:
        """The message's timestamp."""
        async with self._http.post(**_notice(number)) as answer:
            return (await answer.json())["ts"]

    async def close(self) -> None:
        """Closes the HTTP connections."""
        await self._http.close()


class OutsideWithoutAsync:
    """The same for plain functions; with a mail connection for each thread."""

    def __init__(self) -> None:
        import httpx2

        self._http = httpx2.Client(timeout=60)
        self._mine = threading.local()

    def create_customer(self, key: str, number: int) -> str:
        """Its id; the same for the same key."""
        return self._http.post(**_customer(key, number)).raise_for_status().json()["id"]

    def send_welcome(self, key: str, number: int) -> str:
        """The Message-ID."""
        message, where = _welcome(key, number), _mail_server()
        if not hasattr(self._mine, "server"):
            self._mine.server = smtplib.SMTP(where["hostname"], where["port"])
        self._mine.server.send_message(message)
        return str(message["Message-ID"])

    def notify_sales(self, number: int) -> str:
        """The message's timestamp."""
        return self._http.post(**_notice(number)).raise_for_status().json()["ts"]
