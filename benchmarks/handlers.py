"""The bodies of the onboarding's steps: trivial, and the same for every system. Imports nothing but Python."""

import itertools
from typing import Any

EMAIL = "ada.lovelace@example.com"
_numbers = itertools.count(1)


async def create_user(email: str) -> dict[str, Any]:
    """Makes up a user."""
    return {"user_id": f"user-{next(_numbers):08d}", "email": email, "plan": "free"}


async def set_up_billing(user_id: str) -> dict[str, Any]:
    """Makes up a customer."""
    return {"user_id": user_id, "customer": f"cus_{user_id}", "status": "active"}


async def send_welcome(user_id: str) -> dict[str, Any]:
    """Makes up a message."""
    return {"user_id": user_id, "message_id": f"msg_{user_id}", "template": "welcome"}


async def notify_sales(user_id: str) -> dict[str, Any]:
    """Makes up a notice."""
    return {"user_id": user_id, "channel": "#sales", "sent": True}
