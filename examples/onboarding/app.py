"""Customer onboarding: five atomic actions, and the service (durable workflow) that composes four of them."""

import os
from pathlib import Path
from uuid import uuid4

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from dotdo import AsyncContext, AsyncDo, Context, Fail, Failure, Retry, action, service
from dotdo.connectors import email as mail
from examples.onboarding.providers import create_customer, delete_customer, post_message, resources, save_contact
from examples.onboarding.users import User, users

SOON = Retry(attempts=5, delay=0.1)


@action("create-user-in-db", retry=SOON)
def create_user_in_db(ctx: Context, name: str, email: str) -> User:
    """Inserts the user; the row is committed together with the step."""
    user = User(user_id=f"user_{uuid4().hex[:12]}", name=name, email=email)
    try:
        ctx.sql.execute(insert(users).values(id=user.user_id, name=name, email=email))
    except IntegrityError:
        raise Fail(f"{email} has signed up before.") from None
    return user


@create_user_in_db.undo
def delete_user(ctx: Context, created: User) -> None:
    """Takes the user back when a later step of the onboarding fails for good."""
    ctx.sql.execute(delete(users).where(users.c.id == created.user_id))


@action("setup-billing-account", retry=SOON)
async def setup_billing_account(ctx: AsyncContext, email: str) -> str:
    """Creates the customer at the billing provider, now: the onboarding needs its id."""
    customer = await ctx.request(create_customer, email=email)
    return customer["id"]


@setup_billing_account.undo
def close_billing_account(ctx: Context, customer_id: str) -> None:
    """Takes the customer back; staged, so it is sent until the provider has taken it."""
    ctx.stage(delete_customer, customer_id=customer_id)


@action("send-welcome-email", retry=SOON)
async def send_welcome_email(ctx: AsyncContext, recipient_id: str, template: str = "new-user-welcome-v1") -> str:
    """Stages the mail; it leaves once the step is committed. Returns its Message-ID."""
    user = (await ctx.sql.execute(select(users).where(users.c.id == recipient_id))).one_or_none()
    if user is None:
        raise Fail("User not found.")  # for good: not retried, nothing sent
    return mail.send(to=user.email, template=template, data={"name": user.name}).id


@action("notify-sales-on-slack", retry=SOON)
def notify_sales_on_slack(ctx: Context, customer_name: str) -> None:
    """Tells sales about the new customer."""
    ctx.stage(post_message, channel="#sales", text=f"{customer_name} has signed up.")


@action("update-crm-contact", retry=SOON)
def update_crm_contact(ctx: Context, name: str, email: str) -> None:
    """Makes the new user a lead in the CRM."""
    ctx.stage(save_contact, email=email, first_name=name)


@action("alert-admin", retry=SOON)
def alert_admin(failure: Failure) -> None:
    """Mails the administrator what failed, where and why."""
    text = f"Run {failure.run} failed at {failure.step}: {failure.error.message}\n"
    mail.send(to=os.environ["ADMIN_EMAIL"], subject=f"{failure.name} failed", text=text)


@service("customer-onboarding", on_failure=[alert_admin])
async def customer_onboarding(user_name: str, user_email: str) -> dict[str, str]:
    """The four steps, in order. If one fails for good, those before it are undone, and the admin is told."""
    user = await create_user_in_db(name=user_name, email=user_email)
    customer_id = await setup_billing_account(email=user_email)
    await send_welcome_email(recipient_id=user.user_id)
    await notify_sales_on_slack(customer_name=user_name)
    return {"user_id": user.user_id, "customer_id": customer_id}


def open_client(folder: Path) -> AsyncDo:
    """A client whose runs and users are kept in `folder`; providers and mail server come from the environment."""
    store, database = folder / ".dotdo" / "dotdo.db", folder / "app.db"
    return AsyncDo(f"sqlite:///{store}", sql=f"sqlite:///{database}", resources=resources())
