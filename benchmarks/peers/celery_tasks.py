"""The jobs as Celery's tasks: a chain and a chord. It has no async tasks, so the bodies are plain functions that do the
same. A task may be executed again when its worker dies (`acks_late`), so each call to the outside carries the run's id.
"""

import itertools
import os
from functools import cache
from typing import Any

from celery import Celery, chain, chord  # pyright: ignore[reportMissingImports]  # in its own environment only

from benchmarks.peers.outside import OutsideWithoutAsync, insert_user, open_database

_redis = os.environ["BENCHMARK_REDIS"]
app = Celery("benchmarks", broker=f"{_redis}/0", backend=f"{_redis}/1")
app.conf.update(task_acks_late=True, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
_numbers = itertools.count(1)


@app.task
def create_user(email: str) -> dict[str, Any]:
    """Makes up a user."""
    return {"user_id": f"user-{os.getpid()}-{next(_numbers):08d}", "email": email, "plan": "free"}


@app.task
def set_up_billing(user: dict[str, Any]) -> dict[str, Any]:
    """Makes up a customer."""
    return {"user_id": user["user_id"], "customer": f"cus_{user['user_id']}", "status": "active"}


@app.task
def send_welcome(user: dict[str, Any]) -> dict[str, Any]:
    """Makes up a message."""
    return {"user_id": user["user_id"], "message_id": f"msg_{user['user_id']}", "template": "welcome"}


@app.task
def notify_sales(user: dict[str, Any]) -> dict[str, Any]:
    """Makes up a notice."""
    return {"user_id": user["user_id"], "channel": "#sales", "sent": True}


@app.task
def finish(results: list[Any]) -> dict[str, Any]:
    """The end of the chord: a fifth task, which is not counted as a step."""
    return {"billing": results[0], "email": results[1], "sales": results[2]}


def onboarding(email: str) -> Any:
    """To be applied."""
    return chain(create_user.s(email), chord([set_up_billing.s(), send_welcome.s(), notify_sales.s()], finish.s()))


@cache
def _outside() -> OutsideWithoutAsync:
    return OutsideWithoutAsync()


@cache
def _database() -> Any:
    return open_database(os.environ["BENCHMARK_APPLICATION"])


@app.task(bind=True)
def create_user_for_real(self: Any, number: int) -> dict[str, Any]:
    """A row in SQL."""
    id = f"user_{self.request.root_id}"
    with _database().begin() as connection:
        connection.execute(insert_user(connection.dialect.name, id, number))
    return {"user_id": id, "number": number}


@app.task(bind=True)
def create_customer(self: Any, known: dict[str, Any]) -> dict[str, Any]:
    """A request."""
    id = _outside().create_customer(f"{self.request.root_id}-billing", known["number"])
    return {**known, "customer_id": id}


@app.task(bind=True)
def send_welcome_for_real(self: Any, known: dict[str, Any]) -> dict[str, Any]:
    """A mail."""
    _outside().send_welcome(f"{self.request.root_id}-welcome", known["number"])
    return known


@app.task
def notify_sales_for_real(known: dict[str, Any]) -> dict[str, Any]:
    """A message."""
    _outside().notify_sales(known["number"])
    return known


def onboarding_for_real(number: int) -> Any:
    """To be applied."""
    steps = (create_user_for_real.s(number), create_customer.s(), send_welcome_for_real.s(), notify_sales_for_real.s())
    return chain(*steps)
