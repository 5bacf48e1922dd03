"""Bugs that are planted by hand, each a switch: the simulation must find every one of them.

Each is what an engineer might have got wrong: a check dropped, an order turned round, a case forgotten.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dotdo.engine import (
    accepting,
    attempting,
    delivering,
    engine,
    guarding,
    history,
    intake,
    journaling,
    messages,
    reloading,
    requesting,
    resuming,
    running,
    stepping,
    undoing,
)
from dotdo.engine.applying import Databases
from dotdo.engine.claiming import Claimer
from dotdo.engine.committing import GroupCommit
from dotdo.engine.intake import Intake
from dotdo.engine.journaling import RunJournal
from dotdo.engine.running import LiveRun
from dotdo.engine.waiting import Pause, Waiting
from dotdo.engine.waking import Alarm
from dotdo.errors import InputError
from dotdo.journal import anchor
from dotdo.records import Options
from dotdo.schema import Schema
from dotdo.store.sql import SqlStore
from tests.simulation.cases import Case, make_case
from tests.simulation.simulating import Played

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTED: dict[str, Plant] = {}


def planted(plant: Plant) -> Plant:
    """Adds a bug to the list."""
    PLANTED[plant.__name__] = plant
    return plant


def finds(plant: Plant, play: Callable[[Case], Played], seed: int) -> bool:
    """Whether a seed finds a bug: something is wrong with it, and nothing is without it."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        wrong = play(make_case(seed)).wrong
    return bool(wrong) and not play(make_case(seed)).wrong


async def nothing(*args: Any, **options: Any) -> None:
    """Instead of waiting."""


@planted
def answers_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intake, "_durable", nothing)


@planted
def believes_everything_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunJournal, "is_durable", property(lambda self: True))
    patch.setattr(RunJournal, "durable", nothing)


@planted
def requests_before_the_intent_is_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(requesting, "_durable", nothing)


@planted
def drops_a_batch_that_failed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GroupCommit, "_write_alone", lambda self, write: None)


@planted
def forgets_runs_whose_write_failed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reloading, "_reload", nothing)


@planted
def forgets_children_whose_start_was_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reloading, "_take_up_strays", nothing)


@planted
def forgets_claims_whose_answer_was_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlStore, "own_runs", lambda self, node: [])


@planted
def leaves_runs_that_the_store_has_failed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guarding, "_read_again", lambda run, error: None)


@planted
def rescues_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlStore, "rescue", lambda self, now, limit: 0)


@planted
def polls_never(patch: pytest.MonkeyPatch) -> None:
    async def wait(self: Claimer) -> None:
        await self._hint.wait()
        self._hint.clear()

    patch.setattr(Claimer, "_wait", wait)


@planted
def sends_again_what_nobody_knows_of(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(requesting, "next_move", lambda effect, first_at, now: "send")
    patch.setattr(delivering, "next_move", lambda effect, first_at, now: "send")


@planted
def looks_up_and_does_not_listen(patch: pytest.MonkeyPatch) -> None:
    run_function = delivering.run_function

    async def deaf(run: Any, function: Any, call: Any, effect: Any, input: bytes, **more: Any) -> Any:
        found = await run_function(run, function, call, effect, input, **more)
        return None if function is effect.lookup else found

    patch.setattr(delivering, "run_function", deaf)
    patch.setattr(requesting, "run_function", deaf)


@planted
def makes_a_new_key_for_each_attempt(patch: pytest.MonkeyPatch) -> None:
    key = attempting.effect_key
    count = iter(range(10**9))
    patch.setattr(
        requesting,
        "effect_key",
        lambda run, step, effect, ordinal, epoch: key(run, f"{step}{next(count)}", effect, ordinal, epoch),
    )
    patch.setitem(history._CHANGES, "answered", lambda self, entry, data: None)


@planted
def never_asks_the_database_how_an_attempt_ended(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Databases, "settle", lambda self, database, key: None)


@planted
def keeps_what_a_failed_attempt_had_staged(patch: pytest.MonkeyPatch) -> None:
    new = stepping.StepRun._new_attempt

    def with_leftovers(self: Any, action: Any, number: int) -> Any:
        attempt = new(self, action, number)
        kept = self.__dict__.setdefault("kept", attempt.effects)
        attempt.effects = kept
        return attempt

    patch.setattr(stepping.StepRun, "_new_attempt", with_leftovers)


@planted
def undoes_oldest_first(patch: pytest.MonkeyPatch) -> None:
    plan = undoing._undo_planned

    async def reversed_plan(run: Any) -> None:
        kept, run.history.plan = run.history.plan, list(reversed(run.history.plan or []))
        try:
            await plan(run)
        finally:
            run.history.plan = kept

    patch.setattr(undoing, "_undo_planned", reversed_plan)


@planted
def plans_oldest_first(patch: pytest.MonkeyPatch) -> None:
    """What is planned is undone, as the journal says: it is the plan that is wrong."""
    plan = undoing._plan
    patch.setattr(undoing, "_plan", lambda run: plan(run)[::-1])


@planted
def plans_past_the_pivot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(undoing, "_is_pivot", lambda run, action, version: False)


@planted
def plans_without_the_newest(patch: pytest.MonkeyPatch) -> None:
    plan = undoing._plan
    patch.setattr(undoing, "_plan", lambda run: plan(run)[1:])


@planted
def forgets_what_was_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(history._CHANGES, "undone", lambda self, entry, data: None)


@planted
def forgets_undo_when_a_run_fails(patch: pytest.MonkeyPatch) -> None:
    async def half(run: Any) -> None:
        run.history.plan = (run.history.plan or [])[:1]
        await undo(run)

    undo = undoing._undo_planned
    patch.setattr(undoing, "_undo_planned", half)


@planted
def begins_undoing_again_when_cancelled(patch: pytest.MonkeyPatch) -> None:
    stop = LiveRun.stop

    def careless(self: Any, stopping: Any) -> None:
        ended, self.history.ended = self.history.ended, None
        try:
            stop(self, stopping)
        finally:
            self.history.ended = ended

    patch.setattr(LiveRun, "stop", careless)

    def cancel(run: Any, message: Any) -> None:
        if not run.is_stopping and run.history.stopping is None:
            run.append("cancel_requested", messages.CancelRequested(message.actor))
            run.stop(messages.Stopping("cancelled", messages.ErrorRecord("Cancelled", "cancelled")))

    patch.setattr(messages, "_cancel", cancel)


@planted
def takes_events_twice(patch: pytest.MonkeyPatch) -> None:
    def apply(run: Any, message: Any) -> None:
        if message.kind == "event":
            data = messages.EventReceived(message.name, msgspec.Raw(message.value.encode()), message.sender)
            run.append("event", data)
        original(run, message)

    original = messages.apply_message
    patch.setattr(running, "apply_message", apply)


@planted
def loses_the_end_of_a_child(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine, "child_message", lambda run, ended: None)


@planted
def rings_early(patch: pytest.MonkeyPatch) -> None:
    at = Alarm.at
    patch.setattr(Alarm, "at", lambda self, due, callback: at(self, due - 500, callback))


@planted
def parks_without_an_alarm(patch: pytest.MonkeyPatch) -> None:
    update = RunJournal.update

    def without(self: Any, status: str, **options: Any) -> None:
        if status == "waiting":
            options["due_at"] = None
        update(self, status, **options)

    patch.setattr(RunJournal, "update", without)


@planted
def wakes_what_waits_at_once(patch: pytest.MonkeyPatch) -> None:
    update = RunJournal.update

    def at_once(self: Any, status: str, **options: Any) -> None:
        if status == "waiting":
            options["due_at"] = 0
        update(self, status, **options)

    patch.setattr(RunJournal, "update", at_once)


@planted
def accepts_a_key_twice(patch: pytest.MonkeyPatch) -> None:
    async def unknown(self: Any, id: str, given: str, key: str, name: str) -> bool:
        return False

    count = iter(range(10**9))
    patch.setattr(Intake, "_known", unknown)
    patch.setattr(intake, "run_id", lambda name, key: accepting.keyed_run_id(name, f"{key} {next(count)}"))


@planted
def does_not_compare_inputs_of_a_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(intake, "check_same_input", lambda *args: None)


@planted
def does_not_check_the_fence(patch: pytest.MonkeyPatch) -> None:
    def expect(self: Any, name: str, items: list[Any], otherwise: str) -> None:
        if items:
            if name == "append_entries":
                claims = "select claim from runs where id = :run"
                items = [
                    (*item[:-1], (self._db.write(claims, {"run": item[0]}) or [[item[-1]]])[0][0]) for item in items
                ]
            original(self, name, items, otherwise)

    original = SqlStore._expect
    patch.setattr(SqlStore, "_expect", expect)
    patch.setattr(GroupCommit, "forgive", lambda self, run, claim: None)
    patch.setattr(GroupCommit, "_write_alone", careless_write_alone)


def careless_write_alone(self: Any, write: Any) -> Any:
    """Goes on with a run after one of its writes has failed."""
    try:
        self.store.write([write])
    except Exception as error:
        return error
    return None


@planted
def goes_on_after_a_write_that_failed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GroupCommit, "_write_alone", careless_write_alone)
    patch.setattr(engine, "lost", lambda *args: None)


@planted
def breaks_the_chain(patch: pytest.MonkeyPatch) -> None:
    link = journaling.link

    def unchained(previous: str, run: str, seq: int, *rest: Any) -> Any:
        return link(previous if seq % 5 else "0" * 64, run, seq, *rest)

    patch.setattr(journaling, "link", unchained)


@planted
def cancels_in_words_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(messages, "_cancel", lambda run, message: None)


@planted
def tries_again_what_nobody_was_asked(patch: pytest.MonkeyPatch) -> None:
    class Everything(set[str]):
        def __contains__(self, key: object) -> bool:
            return True

        def __bool__(self) -> bool:
            return True

    try_again = history._try_again
    patch.setattr(history, "_try_again", lambda record, asked: try_again(record, Everything()))
    reopened = history.History._reopened

    def careless(self: Any, entry: Any, data: Any) -> None:
        blocked = self.blocked is not None and not self.blocked.questions
        reopened(self, entry, data)
        if blocked and data.operation != "resolve":
            for record in self.steps.values():
                try_again(record, Everything())

    patch.setitem(history._CHANGES, "reopened", careless)


@planted
def leaves_a_run_of_what_it_refuses(patch: pytest.MonkeyPatch) -> None:
    accept = Intake._accept

    async def careless(self: Intake, kind: Any, name: str, params: Any, options: Options, id: str | None = None) -> Any:
        try:
            return await accept(self, kind, name, params, options, id)
        except InputError:
            if name == "sim":
                await accept(self, kind, name, {"plan": []}, Options())
            raise

    patch.setattr(Intake, "_accept", careless)


@planted
def anchors_without_the_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journaling, "anchor", lambda key, run, seq, digest: anchor(b"", run, seq, digest))


@planted
def suspects_nobody(patch: pytest.MonkeyPatch) -> None:
    """All that was in flight at a death goes on at once, beside what has caused it."""

    def add(self: resuming.Suspects, run: Any, claim: Any, messages: Any) -> None:
        resuming.begin(self._engine, run, claim, messages)

    patch.setattr(resuming.Suspects, "add", add)


@planted
def never_blocks_what_kills(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resuming, "MAX_CRASHES", 1_000_000)
    patch.setattr(history, "MAX_CRASHES", 1_000_000)


@planted
def keeps_nothing_for_what_cannot_be_kept(patch: pytest.MonkeyPatch) -> None:
    dump = Schema.dump

    def lenient(self: Schema, *given: Any, **options: Any) -> Any:
        try:
            return dump(self, *given, **options)
        except Exception:
            return b"null", None

    patch.setattr(Schema, "dump", lenient)


@planted
def is_busy_only_when_it_goes_on(patch: pytest.MonkeyPatch) -> None:
    """A run that was woken, and whose step goes on in the next turn of the loop, may be parked before."""

    async def over(self: Pause[Any]) -> Any:
        self._run.leave()
        try:
            return await self
        finally:
            self._run.enter()

    patch.setattr(Pause, "over", over)
    patch.setattr(Pause, "set_result", asyncio.Future.set_result)
    patch.setattr(Pause, "cancel", asyncio.Future.cancel)


@planted
def starts_whoever_asks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Waiting, "for_slot", nothing)


@planted
def wakes_for_a_deadline_that_has_passed(patch: pytest.MonkeyPatch) -> None:
    def deadline_at(self: history.History) -> int | None:
        options = self.accepted.options if self.accepted else None
        if options is None or options.deadline is None or self.ended is not None:
            return None
        return self.accepted_at + round(((options.delay or 0) + options.deadline) * 1000)

    patch.setattr(history.History, "deadline_at", property(deadline_at))
