"""What running code may ask for, where it may ask, and what it is told when it asks at the wrong place."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dotdo
from dotdo import (
    ActionFailed,
    AsyncContext,
    Catalogue,
    Context,
    Do,
    EffectCall,
    Retry,
    RunBlocked,
    action,
    current_context,
    effect,
    service,
)
from dotdo.connectors import email
from dotdo.errors import CalledOutside
from dotdo.testing import ManualClock
from tests.patience import PATIENCE

desk = Catalogue()


class Pool:
    """A resource that the client was given."""


POOL = Pool()


@effect("tell", catalogue=desk)
def tell(call: EffectCall, effect: str, self: int = 0) -> dict[str, Any]:
    return {
        "effect": effect,
        "self": self,
        "actor": call.actor,
        "trail": call.trail,
        "pool": call.resource(Pool) is POOL,
    }


@action("look-sync", catalogue=desk)
def look_sync(ctx: Context) -> dict[str, Any]:
    ctx.log.warning("looking")
    return seen(ctx)


@action("look-async", catalogue=desk)
async def look_async(ctx: AsyncContext) -> dict[str, Any]:
    ctx.log.warning("looking")
    return seen(ctx)


def seen(ctx: Context | AsyncContext) -> dict[str, Any]:
    ctx.heartbeat()
    return {
        "run": ctx.run_id,
        "step": ctx.step,
        "attempt": ctx.attempt,
        "key": ctx.idempotency_key,
        "actor": ctx.actor,
        "trail": ctx.trail,
        "current": current_context() is ctx,
        "pool": ctx.resource(Pool) is POOL,
        "made": isinstance(ctx.resource(bytearray, bytearray), bytearray),
    }


class Keys:
    """Notes the key of every attempt."""

    def __init__(self) -> None:
        self.noted: list[str] = []


@action("note-key", retry=Retry(attempts=2, delay=5, jitter=False), catalogue=desk)
def note_key(ctx: Context, fail_first: bool = True) -> None:
    ctx.resource(Keys).noted.append(ctx.idempotency_key)
    if fail_first and ctx.attempt == 1:
        raise ConnectionError("first")


@action("ask-sync", catalogue=desk)
def ask_sync(ctx: Context) -> dict[str, Any]:
    ctx.stage(tell, effect="staged", self=2)
    return ctx.request(tell, effect="asked", self=1)


@action("ask-async", catalogue=desk)
async def ask_async(ctx: AsyncContext) -> dict[str, Any]:
    ctx.stage(tell, effect="staged", self=2)
    return await ctx.request(tell, effect="asked", self=1)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Do]:
    with Do(
        f"sqlite:///{tmp_path / 'dotdo.db'}",
        catalogue=desk,
        clock=ManualClock(),
        resources=[POOL],
        actor="ada",
    ) as client:
        yield client


# -- in a handler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["look-sync", "look-async"])
def test_a_handler_learns_who_it_works_for(client: Do, name: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="dotdo.action"):
        run = client.action.execute(name=name, trail="signup:1", wait=PATIENCE)
    key = run.result.pop("key")
    assert run.result == {
        "run": run.id,
        "step": name,
        "attempt": 1,
        "actor": "ada",
        "trail": "signup:1",
        "current": True,
        "pool": True,
        "made": True,
    }
    assert key.startswith(run.id)
    (record,) = [record for record in caplog.records if record.message == "looking"]
    assert (vars(record)["run"], vars(record)["step"], vars(record)["attempt"]) == (run.id, name, 1)


def test_the_key_of_a_step_is_equal_on_every_attempt_and_differs_between_runs(tmp_path: Path):
    clock, keys = ManualClock(), Keys()
    with Do(f"sqlite:///{tmp_path / 'dotdo.db'}", catalogue=desk, clock=clock, resources=[keys]) as client:
        handle = client.start(note_key)
        clock.advance_to_next()
        handle.result(timeout=PATIENCE)
        client.run(note_key, fail_first=False)
    first, again, other = keys.noted
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", ["ask-sync", "ask-async"])
def test_parameters_of_effects_may_have_any_name(client: Do, name: str):
    run = client.action.execute(name=name, trail="t", wait=PATIENCE)
    assert run.result == {"effect": "asked", "self": 1, "actor": "ada", "trail": "t", "pool": True}


# -- at the wrong place -----------------------------------------------------------------------------------------------


@action("act", catalogue=desk)
async def act() -> None: ...


@service("serve", catalogue=desk)
async def serve() -> None: ...


async def result_of(found: Any) -> Any:
    return await found if asyncio.iscoroutine(found) or isinstance(found, asyncio.Future) else found


USES: dict[str, Any] = {
    "action": lambda: act(),
    "service": lambda: serve(),
    "sleep": lambda: dotdo.sleep(1),
    "now": dotdo.now,
    "uuid": dotdo.uuid,
    "random": dotdo.random,
    "wait_for_event": lambda: dotdo.wait_for_event("x"),
    "call": lambda: dotdo.call("act"),
    "effect": lambda: tell(effect="x"),
    "current_context": current_context,
    "email": lambda: email.send(to="ada@example.com", subject="Hi", text="Hello"),
}
IN_HANDLERS = {"effect", "current_context", "email"}


@action("misplace", retry=Retry(attempts=3, delay=3600), catalogue=desk)
async def misplace(use: str) -> None:
    await result_of(USES[use]())


@action("misplace-sync", retry=Retry(attempts=3, delay=3600), catalogue=desk)
def misplace_sync(use: str) -> None:
    found = USES[use]()
    if asyncio.iscoroutine(found):
        found.send(None)


@service("misplace-in-service", catalogue=desk)
async def misplace_in_service(use: str) -> None:
    await result_of(USES[use]())


@pytest.mark.parametrize("use", sorted(USES))
def test_outside_of_everything_each_says_where_it_works(use: str):
    with pytest.raises(CalledOutside) as caught:
        asyncio.run(result_of(USES[use]())) if use in ("sleep", "wait_for_event", "call") else USES[use]()
    expected = {
        "action": "Call act.plain(...) for the bare handler, client.run(act, ...)",
        "service": "Call client.start(serve, ...)",
        "effect": "Inside a handler stage it (ctx.stage(tell, ...))",
    }
    assert expected.get(use, "outside a handler" if use in IN_HANDLERS else "works inside a service only") in str(
        caught.value
    )


@pytest.mark.parametrize("handler", ["misplace", "misplace-sync"])
@pytest.mark.parametrize("use", sorted(USES.keys() - IN_HANDLERS | {"effect"}))
def test_inside_a_handler_it_is_told_and_not_tried_again(client: Do, use: str, handler: str):
    with pytest.raises(ActionFailed) as caught:
        client.action(handler, wait=PATIENCE).invoke(use=use)
    error = caught.value
    assert (error.error_type, error.attempts) == ("CalledOutside", 1)
    if use in ("action", "service", "call"):
        expected = (
            "Actions do not call actions: compose them in a service, or move the shared code into a plain function"
        )
    elif use == "effect":
        expected = "Inside a handler stage it"
    else:
        expected = "works inside a service only. A handler is ordinary code: use what Python has"
    assert expected in str(error)


@pytest.mark.parametrize("use", sorted(IN_HANDLERS))
def test_inside_a_service_the_work_of_handlers_is_refused(client: Do, use: str):
    with pytest.raises(RunBlocked) as caught:
        client.service("misplace-in-service", wait=PATIENCE).invoke(use=use)
    assert ("put it into an action" if use != "effect" else "was called directly") in str(caught.value)


# -- in a service -----------------------------------------------------------------------------------------------------


@service("recorded", catalogue=desk)
async def recorded() -> list[str]:
    first = [dotdo.now().isoformat(), str(dotdo.uuid()), str(dotdo.random().random())]
    await dotdo.sleep(60)
    second = [dotdo.now().isoformat(), str(dotdo.uuid()), str(dotdo.random().random())]
    value = await dotdo.wait_for_event("go")
    named = await dotdo.call("look-async@1")
    return [*first, *second, str(value), named["step"]]


def test_services_get_recorded_time_ids_and_numbers(tmp_path: Path):
    clock = ManualClock()
    options: dict[str, Any] = {"catalogue": desk, "clock": clock, "resources": [POOL], "check_replay": True}
    with Do(f"sqlite:///{tmp_path / 'dotdo.db'}", **options) as client:
        handle, other = client.start(recorded), client.start(recorded)
        handle.send_event("go", {"x": 1})
        other.send_event("go", {"x": 1})
        clock.advance_to_next()
        result, another = handle.result(timeout=PATIENCE), other.result(timeout=PATIENCE)
        assert client.runs.get(handle.id).status == "completed", "its replay gave the same"
    assert result[0] == "2030-01-01T00:00:00+00:00"
    assert result[3] == "2030-01-01T00:01:00+00:00"
    assert len({*result[1:3], *result[4:6]}) == 4, "each draw is new"
    assert not set(result[1:3]) & set(another[1:3]), "and differs between runs"
    assert result[6] == "{'x': 1}"
    assert result[7].startswith("look-async:")
