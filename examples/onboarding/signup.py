"""The sign-up of a web application: invokes actions by name, the user first, then e-mail and CRM in parallel.

It knows no framework: `body` is the decoded JSON of a request, and what it returns are a status and a JSON body.
"""

import asyncio
from typing import Any

from dotdo import ActionFailed, AsyncDo, InvalidInput


async def handle_signup(client: AsyncDo, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Signs a user up. A request that is sent again, with the same `request_id`, is answered the same way again."""
    request = f"signup:{body['request_id']}"
    with client.trail(request):
        try:
            user = await client.action("create-user-in-db", key=request).invoke(name=body["name"], email=body["email"])
            await asyncio.gather(
                client.action("send-welcome-email", key=request).invoke(recipient_id=user["user_id"]),
                client.action("update-crm-contact", key=request).invoke(name=body["name"], email=body["email"]),
            )
        except InvalidInput as error:
            return 422, {"message": error.message}
        except ActionFailed as error:
            # Every attempt is in the journal of its run: `dotdo runs ls --trail signup:...`.
            return 500, {"message": "Something went wrong while signing you up.", "failed": error.action}
    return 201, {"message": f"Welcome, {body['name']}!", "user_id": user["user_id"]}
