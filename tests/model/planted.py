"""Faults planted by hand, each a switch: the model must find every one of them, proof that it looks."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dotdo.engine import accepting, engine, history, messages, run_timers, undoing
from dotdo.engine.engine import Engine
from dotdo.engine.service_code import ServiceCode
from dotdo.errors import InvalidOperation, KeyConflict
from dotdo.remote import RemotePlatform
from tests.model import reference

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTED: dict[str, Plant] = {}


def planted(plant: Plant) -> Plant:
    """Adds a fault to the list."""
    PLANTED[plant.__name__] = plant
    return plant


def _around(patch: pytest.MonkeyPatch, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    patch.setattr(owner, name, make(getattr(owner, name)))


@planted
def another_input_is_taken(patch: pytest.MonkeyPatch) -> None:
    def make(accept: Any) -> Any:
        async def accept_anything(self: Engine, kind: Any, name: str, params: Any, options: Any, **rest: Any) -> str:
            try:
                return await accept(self, kind, name, params, options, **rest)
            except KeyConflict:
                other = {"city": "Rome" if params["city"] == "Oslo" else "Oslo"}
                return await accept(self, kind, name, other, options, **rest)

        return accept_anything

    _around(patch, Engine, "accept", make)


@planted
def delayed_runs_start_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(accepting, "_start_of", lambda options, now: (None, None))


def _silently(name: str) -> Plant:
    def make(operation: Any) -> Any:
        async def do_anyway(self: Engine, *args: Any, **named: Any) -> None:
            try:
                await operation(self, *args, **named)
            except InvalidOperation:
                return

        return do_anyway

    return lambda patch: _around(patch, Engine, name, make)


@planted
def ended_runs_take_events(patch: pytest.MonkeyPatch) -> None:
    _silently("send_event")(patch)


@planted
def ended_runs_are_cancelled_in_silence(patch: pytest.MonkeyPatch) -> None:
    _silently("cancel")(patch)


@planted
def undone_runs_are_undone_in_silence(patch: pytest.MonkeyPatch) -> None:
    _silently("undo")(patch)


@planted
def keys_of_events_are_lost_on_the_way(patch: pytest.MonkeyPatch) -> None:
    """Over HTTP only."""

    def make(send_event: Any) -> Any:
        async def send(
            self: RemotePlatform, id: str, name: str, value: bytes, key: str | None, actor: str | None
        ) -> None:
            await send_event(self, id, name, value, None, actor)

        return send

    _around(patch, RemotePlatform, "send_event", make)


@planted
def events_that_come_early_are_lost(patch: pytest.MonkeyPatch) -> None:
    def event(self: Any, item: Any) -> None:
        if any(not future.done() for future in self._awaited.get(item.name, ())):
            take(self, item)

    take = ServiceCode._event  # pyright: ignore[reportPrivateUsage]
    patch.setattr(ServiceCode, "_event", event)


@planted
def nothing_is_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(undoing, "_plan", lambda run: [])


@planted
def newest_step_is_left(patch: pytest.MonkeyPatch) -> None:
    _around(patch, undoing, "_plan", lambda plan: lambda run: plan(run)[1:])


@planted
def undone_oldest_first(patch: pytest.MonkeyPatch) -> None:
    _around(patch, undoing, "_plan", lambda plan: lambda run: list(reversed(plan(run))))


@planted
def retry_keeps_what_was_undone(patch: pytest.MonkeyPatch) -> None:
    def make(dropped: Any) -> Any:
        def fewer(run: Any, operation: str) -> list[str]:
            return [id for id in dropped(run, operation) if not run.steps[id].undone]

        return fewer

    _around(patch, messages, "_dropped", make)


@planted
def answer_that_it_did_not_happen_is_taken_for_the_opposite(patch: pytest.MonkeyPatch) -> None:
    def make(resolve: Any) -> Any:
        def otherwise(self: Any, entry: Any, data: Any) -> None:
            if data.about == "undo" and data.outcome == "did_not_happen":
                data = msgspec.structs.replace(data, outcome="happened")
            resolve(self, entry, data)

        return otherwise

    _around(patch, history, "resolve", make)


@planted
def nobody_is_told_of_failures(patch: pytest.MonkeyPatch) -> None:
    async def tell(run: Any, error: Any) -> None:
        return

    patch.setattr(undoing, "tell_of_failure", tell)


@planted
def timers_are_late(patch: pytest.MonkeyPatch) -> None:
    def make(add: Any) -> Any:
        return lambda self, delay, now, handle: add(self, delay + 1, now, handle)

    _around(patch, run_timers.RunTimers, "add", make)


@planted
def the_end_of_a_child_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "child_message", lambda run, ended: None)


@planted
def a_run_is_not_listed(patch: pytest.MonkeyPatch) -> None:
    def make(list_runs: Any) -> Any:
        async def list_fewer(self: Engine, filter: Any) -> Any:
            found = await list_runs(self, filter)
            return found[:-1] if len(found) > 1 else found

        return list_fewer

    _around(patch, Engine, "list_runs", make)


@planted
def the_reference_forgets_the_second_try(patch: pytest.MonkeyPatch) -> None:
    """A fault of the model's own is found as well."""
    patch.setattr(reference, "BETWEEN_CALLS", reference.BETWEEN_CALLS[:1])
